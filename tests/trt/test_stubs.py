"""The stubs that mypy checks the code against find what is wrong, and let pass what is right."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mypy import api as mypy

from deploykit.trt.library import SINCE
from tests.trt import api, stubs

SETTINGS = """
[mypy]
strict = True
mypy_path = {folder}
[mypy-tensorrt.*]
ignore_errors = True
[mypy-numpy.*]
follow_imports = skip
"""
RIGHT = """
import tensorrt as trt

def build(logger: trt.ILogger, model: bytes) -> bytes | None:
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        return parser.get_error(0).desc().encode()
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.TF32)
    config.builder_optimization_level = 3
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, 2), [1, 2], trt.Dims([1, 2]))
    built = builder.build_serialized_network(network, config)
    return None if built is None else bytes(memoryview(built))

def run(engine: trt.ICudaEngine) -> list[tuple[int, ...]]:
    context = engine.create_execution_context()
    if context is None or not context.execute_async_v3(1):
        return []
    return [tuple(context.get_tensor_shape(engine.get_tensor_name(i))) for i in range(engine.num_io_tensors)]
"""
WRONG = {
    "trt.Builder(logger).build_cuda_engine(None)": 'has no attribute "build_cuda_engine"',
    "trt.BuilderFlag.NOTHING": 'has no attribute "NOTHING"',
    "trt.Runtime(logger).deserialize_cuda_engine(b'').num_layers": 'Item "None"',
    "trt.Builder(logger).create_builder_config().set_flag('TF32')": 'expected "BuilderFlag"',
    "trt.Builder()": 'Missing positional argument "logger"',
    "trt.OnnxParser(None, logger).parse(b'', name='x')": 'Unexpected keyword argument "name"',
    "trt.IProgressMonitors": 'has no attribute "IProgressMonitors"',
}


def checked(folder: Path, version: str, lines: str) -> list[str]:
    """What mypy says of some lines in one version."""
    (folder / "tensorrt").mkdir()
    (folder / "tensorrt/__init__.pyi").write_text(stubs.text(api.load(version), lacking(version)))
    (folder / "mypy.ini").write_text(SETTINGS.format(folder=folder))
    (folder / "made_up.py").write_text(lines)
    options = ["--config-file", str(folder / "mypy.ini"), "--cache-dir", str(folder / "cache"), "--no-error-summary"]
    return mypy.run([*options, str(folder / "made_up.py")])[0].splitlines()


def lacking(version: str) -> list[str]:
    return [name for name in SINCE if "." not in name and name not in api.load(version)["classes"]]


@pytest.mark.parametrize("version", api.VERSIONS)
def test_stubs_are_python(version: str) -> None:
    ast.parse(stubs.text(api.load(version), lacking(version)))


@pytest.mark.slow
@pytest.mark.parametrize("version", [api.VERSIONS[0], api.VERSIONS[-1]])
def test_mypy_finds_what_is_wrong_and_nothing_else(tmp_path: Path, version: str) -> None:
    wrong = "".join(f"    {line}\n" for line in WRONG)
    head = f"{RIGHT}\ndef wrong(logger: trt.ILogger) -> None:\n"
    said = checked(tmp_path, version, head + wrong)
    first = head.count("\n") + 1
    for number, (line, what) in enumerate(WRONG.items(), first):
        assert any(f":{number}: error: " in each and what in each for each in said), (line, said)
    assert [each for each in said if ": error: " in each and int(each.split(":")[1]) < first] == []
