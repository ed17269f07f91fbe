"""Weights files, good and bad."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deploykit import weights
from deploykit.errors import WeightsError


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


@pytest.mark.parametrize("form", ["safetensors", "pickle", "checkpoint", "other key", "data parallel", "compiled"])
def test_every_usual_form_is_read(tmp_path: Path, form: str) -> None:
    state = module().state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "checkpoint":
        torch.save({"epoch": 3, "model_state_dict": state}, path)
    elif form == "other key":
        torch.save({"net": state, "lr": torch.tensor(0.1), "optimizer": {"state": {}}}, path)
    elif form in ("data parallel", "compiled"):
        prefix = "module." if form == "data parallel" else "_orig_mod."
        torch.save({f"{prefix}{name}": tensor for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    found = weights.read_state(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    assert found.keys() == state.keys()


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_wants_to_run_code_is_refused_and_nothing_runs(tmp_path: Path, writer: str) -> None:
    path, mark = tmp_path / "w.pt", tmp_path / "ran"
    if writer == "torch":
        torch.save({"weight": Malicious(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"weight": Malicious(mark)}))
    with pytest.raises(WeightsError, match=r"refused|no readable"):
        weights.read_state(path)
    assert not mark.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(module(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="refused, and nothing of it was run"):
        weights.read_state(tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x00" * 100, b"hello"])
def test_a_damaged_file_is_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=r"no readable|refused") as error:
        weights.read_state(tmp_path / name)
    assert "\n" not in str(error.value)


def test_of_several_state_dicts_the_usual_name_is_meant_or_none(tmp_path: Path) -> None:
    state = module().state_dict()
    torch.save({"ema": {}, "average": {"a": torch.zeros(1)}, "state_dict": state}, tmp_path / "w.pt")
    assert weights.read_state(tmp_path / "w.pt").keys() == state.keys()
    torch.save({"one": state, "two": state}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"several state dicts \(one, two\)"):
        weights.read_state(tmp_path / "w.pt")


def test_a_missing_file_and_one_without_tensors_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights file"):
        weights.read_state(tmp_path / "none.pt")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="holds no tensors"):
        weights.read_state(tmp_path / "w.pt")


def test_a_state_that_does_not_fit_names_the_keys() -> None:
    state = module().state_dict()
    state["extra.weight"] = state.pop("0.bias")
    state["1.weight"] = torch.zeros(7, 7)
    with pytest.raises(WeightsError) as error:
        weights.fit(module(), state, Path("w.pt"))
    for told in ("missing: 0.bias", "unexpected: extra.weight", "1.weight (7, 7) for (2, 4)"):
        assert told in str(error.value)


def test_nan_in_the_weights_is_told_with_its_key() -> None:
    state = module().state_dict()
    state["1.bias"] = torch.tensor([float("nan"), 0.0])
    with pytest.raises(WeightsError, match=r"NaN or Inf in 1\.bias"):
        weights.fit(module(), state, Path("w.pt"))


def test_fitting_weights_are_loaded() -> None:
    state = {name: torch.full_like(tensor, 0.5) for name, tensor in module().state_dict().items()}
    fresh = module()
    weights.fit(fresh, state, Path("w.pt"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in fresh.state_dict().items())
