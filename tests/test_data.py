from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from deploykit.data import DataFile, everything
from deploykit.errors import UsageError
from deploykit.types import TensorSpec, ValueRange

if TYPE_CHECKING:
    from deploykit.types import Array

SPECS = (TensorSpec.parse("x:float32[batch,time,2]"), TensorSpec.parse("mask:int64[time,batch]"))


def arrays(rows: int = 5, steps: int = 40) -> dict[str, Array]:
    """Each element tells its row and step."""
    code = np.arange(rows)[:, None] * 1000 + np.arange(steps)[None]
    return {"x": np.repeat(code[..., None], 2, axis=-1).astype(np.float32), "mask": code.T.copy()}


def test_pieces_are_consecutive_and_the_same_for_all_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays())  # type: ignore[arg-type]
    data = DataFile(tmp_path / "d.npz", SPECS)
    feeds = data.feeds(3, {"batch": 2, "time": 10})
    assert feeds["x"].shape == (2, 10, 2)
    assert feeds["x"].flags.c_contiguous
    assert np.array_equal(feeds["x"][..., 0].T, feeds["mask"])
    assert np.all(np.diff(feeds["mask"], axis=0) == 1)
    assert np.array_equal(data.feeds(3, {"batch": 2, "time": 10})["x"], feeds["x"])
    starts = {float(data.feeds(seed, {"batch": 1, "time": 10})["x"][0, 0, 0]) for seed in range(10)}
    assert len(starts) > 5, "seeds choose different pieces"


def test_more_than_there_is_wraps_around(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays(rows=2, steps=4))  # type: ignore[arg-type]
    feeds = DataFile(tmp_path / "d.npz", SPECS).feeds(0, {"batch": 5, "time": 9})
    assert feeds["x"].shape == (5, 9, 2)
    assert set(np.unique(feeds["mask"] % 1000)) == {0, 1, 2, 3}


def test_lengths_are_never_beyond_the_piece(tmp_path: Path) -> None:
    specs = (SPECS[0], TensorSpec.parse("lengths:int64[batch]"))
    np.savez(tmp_path / "d.npz", x=arrays()["x"], lengths=np.array([40, 3, 25, 40, 9]), labels=np.arange(5))
    data = DataFile(tmp_path / "d.npz", specs, {"lengths": ValueRange(1, "time")})
    lengths = data.feeds(0, {"batch": 5, "time": 10})["lengths"]
    assert lengths.dtype == np.int64
    assert lengths[0] == lengths.max() == 10, "one row is as long as the piece"
    assert set(lengths) <= {3, 9, 10}
    assert everything(tmp_path / "d.npz")["lengths"].tolist() == [40, 3, 25, 40, 9]
    assert list(everything(tmp_path / "d.npz")) == ["x", "lengths", "labels"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": None}, "has no array 'mask'"),
        ({"x": np.zeros((5, 40, 3), np.float32)}, "with 2=2"),
        ({"x": np.zeros((5, 40, 2))}, r"x:float64\[5,40,2\], and the model takes x:float32"),
        ({"x": np.zeros((5, 40), np.float32)}, "and the model takes"),
        ({"x": np.zeros((5, 41, 2), np.float32)}, "time=41"),
        ({"x": np.zeros((5, 0, 2), np.float32), "mask": np.zeros((0, 5), np.int64)}, "time=0"),
    ],
)
def test_data_that_does_not_fit_is_a_usage_error(tmp_path: Path, change: dict[str, Array | None], message: str) -> None:
    kept = {name: value for name, value in {**arrays(), **change}.items() if value is not None}
    np.savez(tmp_path / "d.npz", **kept)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        DataFile(tmp_path / "d.npz", SPECS)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_npz_is_a_usage_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(UsageError, match="cannot read"):
        DataFile(tmp_path / "d.npz", SPECS)


def test_pickled_objects_and_single_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.asarray([{}], dtype=object), mask=np.zeros(1))
    np.save(tmp_path / "d.npy", np.zeros(3))
    for name in ("d.npz", "d.npy", "missing.npz"):
        with pytest.raises(UsageError, match="cannot read"):
            DataFile(tmp_path / name, SPECS)
