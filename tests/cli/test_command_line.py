"""The command line as a report tells it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from deploykit.cli._command import command_line, quoted

FOLDER, HOME = Path("/home/ann/nets"), Path("/home/ann")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--batch", "--batch"),
        ("1,16", "1,16"),
        ("/home/ann/nets/build/a.onnx", "build/a.onnx"),
        ("/home/ann/nets/net.py:gru", "net.py:gru"),
        ("/home/ann/other/my data.npz", "~/'other/my data.npz'"),
        ("/home/bob/secret/a.onnx", "a.onnx"),
        ("--html=/home/ann/nets/r.html", "--html=r.html"),
        ("--data=/home/bob/x y.npz", "--data='x y.npz'"),
        ("x:float32[batch,time,8]", "'x:float32[batch,time,8]'"),
        ("../a.onnx", "../a.onnx"),
        ("", "''"),
        ("--dim=time=1:9", "--dim=time=1:9"),
    ],
)
def test_words_are_quoted_and_their_paths_are_not_the_machines(word: str, told: str) -> None:
    line = quoted(("bench", word), FOLDER, HOME)
    assert line == f"deploykit bench {told}"
    assert len(shlex.split(line)) == 3


def test_outside_of_a_command_there_is_none() -> None:
    assert command_line() is None
