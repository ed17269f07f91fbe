"""From the command line's words to a module."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deploykit import loading
from deploykit.artifact import ModelRef
from deploykit.errors import DeploykitError, ModelError, UnknownNameError, UsageError
from deploykit.types import TensorSpec


def test_a_users_factory_is_built_in_eval_mode_without_gradients(net: ModelRef) -> None:
    spec = loading.load(net)
    assert spec.inputs == (TensorSpec("x", "float32", ("batch", "time", 8)),)
    assert not spec.module.training
    assert not any(parameter.requires_grad for parameter in spec.module.parameters())
    assert loading.model_name(net) == "gru"


def test_its_weights_are_loaded(net: ModelRef, folder: Path) -> None:
    state = {name: torch.full_like(tensor, 0.25) for name, tensor in loading.load(net).module.state_dict().items()}
    torch.save(state, folder / "w.pt")
    loaded = loading.load(replace(net, weights="w.pt")).module.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())


def test_a_package_is_found_from_the_current_folder(folder: Path) -> None:
    package = folder / "my_own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("from torch import nn\ndef make(): return nn.GRU(4, 4)\n")
    spec = loading.load(ModelRef("my_own_package.nets:make", inputs=("x[time,batch,4]",)))
    assert isinstance(spec.module, torch.nn.GRU)


def test_a_factory_may_return_a_spec_and_the_command_line_overrides_its_inputs(folder: Path) -> None:
    (folder / "described.py").write_text(
        "from torch import nn\nfrom deploykit.types import ModelSpec, TensorSpec\n"
        "def make(): return ModelSpec(nn.GRU(4, 4), (TensorSpec('seq', 'float32', ('time', 'batch', 4)),))\n"
    )
    ref = ModelRef("described.py:make")
    assert loading.load(ref).inputs[0].name == "seq"
    assert loading.load(replace(ref, inputs=("x[time,1,4]",))).inputs == (TensorSpec("x", "float32", ("time", 1, 4)),)


@pytest.mark.parametrize(
    ("ref", "kind", "told"),
    [
        ("charlm-gur", UnknownNameError, "did you mean 'charlm-gru'?"),
        ("net.py", UsageError, "names a file but no factory"),
        ("none.py:make", ModelError, "no file none.py"),
        ("net.py:gur", ModelError, "no function or class 'gur'"),
        ("net.py:no_module", ModelError, "returned a int"),
        ("net.py:exits", ModelError, "SystemExit: 5"),
        ("net.pt2", ModelError, "no .pt2 file at net.pt2"),
        ("net.py:fails", ModelError, "ValueError: no such thing"),
        ("no_such_package.nets:make", ModelError, "importing no_such_package.nets failed"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(net: ModelRef, ref: str, kind: type[DeploykitError], told: str) -> None:
    with pytest.raises(kind) as error:
        loading.load(replace(net, ref=ref))
    assert told in str(error.value)


def test_a_module_itself_serves_as_its_own_factory(folder: Path) -> None:
    (folder / "ready.py").write_text("from torch import nn\nmodel = nn.GRU(4, 4)\n")
    assert isinstance(loading.load(ModelRef("ready.py:model", inputs=("x[time,batch,4]",))).module, torch.nn.GRU)


def test_a_dim_of_one_size_is_no_dynamic_dim(net: ModelRef) -> None:
    spec = loading.load(replace(net, dims=("time=7:7", "batch=1:4")))
    assert spec.inputs[0].dims == ("batch", 7, 8)
    assert spec.dynamic == ("batch",)
    assert set(spec.dims) == {"batch"}


def test_minus_infinity_in_a_buffer_is_a_mask_and_nan_is_not(folder: Path) -> None:
    code = (
        "import torch\nfrom torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self, value):\n        super().__init__()\n"
        "        self.register_buffer('mask', torch.full((2,), value))\n    def forward(self, x): return x + 1\n"
        "def mask(): return Net(float('-inf'))\ndef broken(): return Net(float('nan'))\n"
    )
    (folder / "masked.py").write_text(code)
    loading.load(ModelRef("masked.py:mask", inputs=("x[batch,2]",)))
    with pytest.raises(ModelError, match="NaN in its buffer mask"):
        loading.load(ModelRef("masked.py:broken", inputs=("x[batch,2]",)))


def test_the_source_hash_tells_weights_and_structure_apart(net: ModelRef) -> None:
    first = loading.load(net).module
    assert loading.source_hash(first) == loading.source_hash(loading.load(net).module)
    assert loading.source_hash(first) != loading.source_hash(loading.load(replace(net, ref="net.py:rnn")).module)
    other = loading.load(net).module
    next(other.parameters()).data[0, 0] += 1
    assert loading.source_hash(first) != loading.source_hash(other)


def test_a_module_without_a_description_asks_for_it(net: ModelRef) -> None:
    with pytest.raises(UsageError, match="--input"):
        loading.load(replace(net, inputs=()))
    with pytest.raises(UsageError, match="one name"):
        loading.load(replace(net, inputs=("x[batch,4]", "x[batch,4]")))
    with pytest.raises(UsageError, match="'tiem'"):
        loading.load(replace(net, dims=("tiem=1:5",)))


def test_nan_in_the_modules_own_weights_is_told(folder: Path) -> None:
    (folder / "broken.py").write_text(
        "from torch import nn\n"
        "def make():\n    m = nn.GRU(4, 4)\n    m.bias_hh_l0.data[2] = float('nan')\n    return m\n"
    )
    with pytest.raises(ModelError, match="NaN or Inf in its parameter bias_hh_l0"):
        loading.load(ModelRef("broken.py:make", inputs=("x[time,batch,4]",)))
