"""A machine with a GPU, as far as a stand-in can be one: see ``stand_in/tensorrt``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

from tests.trt import api

FOLDER = Path(__file__).with_name("stand_in")
PLAYED = ("tensorrt", "pycuda")
#: Where the check for a GPU is; the stand-in's sitecustomize does for other processes what is done here for this one.
CHECK = "deploykit.trt.cuda"


def forget() -> None:
    """Import the modules that are stood in for anew, when they are asked for again."""
    for name in [name for name in sys.modules if name.partition(".")[0] in PLAYED]:
        del sys.modules[name]


@pytest.fixture
def stand_in(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stand-in for the module ``tensorrt``, here and in processes started from here.

    The newest version that is known, unless the test asks for others:
    ``@pytest.mark.parametrize("stand_in", ["8.6.1", "10.0.1"], indirect=True)``.
    """
    monkeypatch.setenv("DEPLOYKIT_TEST_TENSORRT", getattr(request, "param", api.VERSIONS[-1]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(FOLDER), os.environ.get("PYTHONPATH")))))
    monkeypatch.syspath_prepend(str(FOLDER))
    if find_spec(CHECK) is not None:
        monkeypatch.setattr(f"{CHECK}.gpu_missing", lambda *_, **__: None)
    forget()
    try:
        yield importlib.import_module("tensorrt")
    finally:
        forget()
