"""Every name of TensorRT's that the code uses is there in each version it is used with, by the true bindings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deploykit.trt.library import SINCE, UNTIL, has, parse_version
from tests.trt import api, names

ROOT = Path(__file__).parents[2]
TABLES = {*SINCE, *UNTIL}
APIS = {version: api.load(version) for version in api.VERSIONS}
#: What Python's own objects have: an attribute of this name is hardly TensorRT's.
PYTHON = {name for kind in (dict, list, set, str, bytes, int, memoryview, Path) for name in dir(kind)}


def sources() -> dict[str, str]:
    paths = [path for pattern in ("trt/*.py", "backends/trt*.py") for path in (ROOT / "deploykit").glob(pattern)]
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(paths)}


def there(version: str, name: str) -> bool:
    """Whether a version has a name, or a table says that it lacks the class that the name is of."""
    owner = name.partition(".")[0]
    without = owner != name and owner in TABLES and not has(parse_version(version), owner)
    return without or names.exists(APIS[version], name)


def wrong(modules: Mapping[str, str]) -> list[str]:
    """Names that a version lacks, though no table says so."""
    readers = names.read(modules, APIS.values())
    found = []
    for module, reader in readers.items():
        for use in reader.uses:
            lacking = [version for version in APIS if not there(version, use.name)]
            if use.asked and use.name not in TABLES:
                found.append(f"{module}:{use.line}: {use.name} is asked for, and is in neither table")
            unsaid = [version for version in lacking if use.name not in TABLES or has(parse_version(version), use.name)]
            if unsaid:
                found.append(f"{module}:{use.line}: TensorRT {', '.join(unsaid)} has no {use.name}")
        found += [f"{module}:{use.line}: {use.name} is not defined" for use in reader.undefined]
    own = {name for reader in readers.values() for name in reader.own}
    listed = {name.rpartition(".")[2] for name in TABLES}
    for module, reader in readers.items():
        found += [
            f"{module}:{use.line}: .{use.name} is in some versions of TensorRT alone"
            for use in reader.lost
            if use.name not in own | listed | PYTHON
        ]
    return sorted(set(found))


def test_every_name_is_in_every_version_or_in_a_table() -> None:
    assert wrong(sources()) == []


def test_the_walk_sees_what_the_code_does() -> None:
    """Were the trail lost, the test above would pass whatever the code said."""
    used = {use.name for reader in names.read(sources(), APIS.values()).values() for use in reader.uses}
    assert {
        "Builder.build_serialized_network",
        "BuilderFlag.TF32",
        "ICudaEngine.get_tensor_profile_shape",
        "IExecutionContext.execute_async_v3",
        "IExecutionContext.set_input_shape",
        "OnnxParser.get_error",
        "Runtime.deserialize_cuda_engine",
    } <= used


@pytest.mark.parametrize("name", sorted(TABLES))
@pytest.mark.parametrize("version", api.VERSIONS)
def test_the_tables_say_what_the_bindings_have(version: str, name: str) -> None:
    assert has(parse_version(version), name) == names.exists(APIS[version], name)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("trt.BuilderFlag.FP8", "11.4.0.106 has no BuilderFlag.FP8"),
        ("trt.Builder(logger).build_cuda_engine(None)", "10.16.1.11, 11.4.0.106 has no Builder.build_cuda_engine"),
        ("trt.Runtime(logger).deserialize_cuda_engine(b'').num_bindings", "has no ICudaEngine.num_bindings"),
        ("[trt.Runtime(logger).deserialize_cuda_engine(b'')][0].max_batch_size", "some versions of TensorRT alone"),
        ("config = trt.Builder(logger).create_builder_config()\nconfig.int8_calibrator = None", "int8_calibrator"),
        ("network = make()\nfor i in range(network.num_layers):\n    network.get_layer(i).nothing", "ILayer.nothing"),
        ("loaded = library.load()\nloaded.IInt8EntropyCalibrator2()", "11.4.0.106 has no IInt8EntropyCalibrator2"),
        ("anything.execute_async_v2([], 0)", ".execute_async_v2 is in some versions of TensorRT alone"),
        ("library.member(trt, 'BuilderFlag.DEBUG')", "BuilderFlag.DEBUG is asked for, and is in neither table"),
        ("for flag in ('BuilderFlag.DEBUG',):\n    has(version, flag)", "BuilderFlag.DEBUG is asked for"),
        ("class Log(trt.ILogger):\n    def logs(self, severity, msg): ...", "ILogger.log is not defined"),
        ("held.runtime = trt.Runtime(logger)\nclass A:\n    def f(self):\n        self.b = trt.Builder(logger)\n"
         "    def g(self):\n        self.b.max_workspace_size", "Builder.max_workspace_size"),
    ],
)  # fmt: skip
def test_the_walk_finds_what_a_version_lacks(lines: str, said: str) -> None:
    head = "import tensorrt as trt\ndef make() -> trt.INetworkDefinition: ...\n"
    found = wrong({"made_up.py": head + lines})
    assert any(said in each for each in found), found


def test_the_walk_lets_pass_what_all_versions_have() -> None:
    lines = """
import tensorrt as trt

def run(engine: trt.ICudaEngine, version: tuple[int, ...]) -> None:
    context: Any = engine.create_execution_context()
    context.set_input_shape("x", (1, 2))
    if has(version, "BuilderFlag.FP16"):
        library.member(trt, "BuilderFlag.FP16")
    trt.Logger.Severity.ERROR.name
    trt.Logger.WARNING
"""
    assert wrong({"made_up.py": lines}) == []


@pytest.mark.parametrize("version", api.VERSIONS)
def test_names_exist_by_class_and_by_base(version: str) -> None:
    known: Mapping[str, Any] = APIS[version]
    there = ("Builder", "Logger.log", "Logger.min_severity", "ILogger.Severity.ERROR", "DataType.HALF", "nptype")
    assert all(names.exists(known, name) for name in there)
    assert not any(names.exists(known, name) for name in ("Builder.nothing", "Nothing.at_all", "nothing"))
