"""Every CPU path against a reference of its own, without onnxruntime: here, under emulation, and under sanitizers."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kernels import building
from tests.kernels.building import CHECKER, Builder, Source

MACHINE = platform.machine()
no_compiler = building.missing(building.compiler()[0])
no_arm = building.missing(building.ARM_COMPILER, building.ARM_EMULATOR)
pytestmark = pytest.mark.skipif(no_compiler is not None, reason=str(no_compiler))


def flags_of_cpu() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((set(line.split(":")[1].split()) for line in lines if line.startswith("flags")), set())


def why_no_emulation() -> str | None:
    if MACHINE != "x86_64" or not {"avx2", "fma"} <= flags_of_cpu():
        return "emulation of other x86-64 CPUs needs one with AVX2"
    return None if Path("/usr/include/simde/x86/avx512.h").is_file() else "not installed: libsimde-dev"


no_emulation = why_no_emulation()


@pytest.fixture(scope="session")
def builder(built: Path) -> Builder:
    return building.native(built)


@pytest.fixture(scope="session")
def check(builder: Builder) -> Path:
    return builder.program([*building.core(MACHINE), CHECKER])


@pytest.fixture(scope="session")
def arm_check(built: Path) -> Path:
    builder = Builder(built, (building.ARM_COMPILER,), building.FLAGS)
    return builder.program([*building.core("aarch64"), CHECKER], "-static")


def lines(command: list[str | Path], **environment: str) -> list[str]:
    done = building.run(command, **environment)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    return [line.split(",")[0] for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_paths_that_run_here(check: Path) -> None:
    found = lines([check])
    assert "plain: sound" in found
    if "avx2" in flags_of_cpu():
        assert "avx2: sound" in found
    # Each is said to be sound or not to run here, and last which one is chosen: the first that runs.
    said = dict(line.split(": ") for line in found)
    assert said.pop("chosen") == next(path for path, verdict in said.items() if verdict == "sound")
    assert set(said.values()) <= {"sound", "does not run here"}


@pytest.mark.slow
@pytest.mark.skipif(no_emulation is not None, reason=str(no_emulation))
def test_avx512_vnni_and_avx_vnni_emulated(builder: Builder) -> None:
    emulated = [
        replace(source, flags=building.EMULATED) if "vnni" in source.path.stem else source
        for source in building.core(MACHINE)
    ]
    found = lines([builder.program([*emulated, CHECKER])])
    assert {"avx512vnni: sound", "avxvnni: sound"} <= set(found)


@pytest.mark.slow
@pytest.mark.skipif(no_arm is not None, reason=str(no_arm))
@pytest.mark.parametrize(
    ("cpu", "expected"),
    [
        ("max", ["neon: sound", "plain: sound", "chosen: neon"]),
        ("cortex-a57", ["neon: does not run here", "plain: sound", "chosen: plain"]),
    ],
)
def test_arm64(arm_check: Path, cpu: str, expected: list[str]) -> None:
    assert lines([building.ARM_EMULATOR, "-cpu", cpu, arm_check, "--layers", "60"]) == expected


@pytest.mark.slow
def test_addresses_and_undefined_behaviour(built: Path, builder: Builder) -> None:
    asan = building.native(built, *building.ADDRESS)
    found = lines([building.sanitized(asan, builder, [replace(CHECKER, flags=())]), "--layers", "60"])
    assert "plain: sound" in found


@pytest.mark.slow
def test_data_races(built: Path, builder: Builder) -> None:
    tsan = building.native(built, *building.THREAD)
    found = lines([building.sanitized(tsan, builder, [CHECKER]), "--only", "threads"])
    assert "plain: sound" in found


Mutate = Callable[[str, str, str], Path]


@pytest.fixture
def mutated(tmp_path: Path, builder: Builder) -> Mutate:
    """The checker with one place of one file of the plain path changed."""

    def build(name: str, old: str, new: str) -> Path:
        for source in building.SOURCES.iterdir():
            (tmp_path / source.name).write_text(source.read_text())
        text = (tmp_path / name).read_text()
        assert text.count(old) == 1, f"{name} has no single {old!r} any more: choose another mutation"
        (tmp_path / name).write_text(text.replace(old, new))
        rest = [builder.object(source) for source in building.core(MACHINE) if source.path.stem != "plain"]
        quick = replace(builder, folder=tmp_path / "built")
        return quick.program([Source(tmp_path / "plain.cpp", ("-O1",))], objects=[*rest, builder.object(CHECKER)])

    return build


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "old", "new", "only"),
    [
        # One lane's product too large by one; a NaN that min swallows.
        ("plain.cpp", "return sum + (pairs >> 16)", "return I{0, 0, 1, 0} + sum + (pairs >> 16)", "reference"),
        ("plain.cpp", "return most < value ? most : value;", "return value < most ? value : most;", "extremes"),
    ],
)
def test_the_checker_notices(mutated: Mutate, name: str, old: str, new: str, only: str) -> None:
    program = mutated(name, old, new)
    done = building.run([program, "--path", "plain", "--only", only])
    assert done.returncode == 1
    assert "plain: WRONG" in done.stdout
