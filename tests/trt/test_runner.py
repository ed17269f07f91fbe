"""The runner of engines, on stand-ins of TensorRT and pycuda: what it answers, what it refuses, what it lets go."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from deploykit.artifact import Artifact
from deploykit.backends import Runner, RunOptions
from deploykit.backends.ort import BACKEND as ORT
from deploykit.errors import ArtifactError, BackendFailedError
from deploykit.trt.runner import TrtRunner
from deploykit.types import TensorSpec
from tests.backends.models import INPUTS, OUTPUTS, onnx_artifact
from tests.trt import api
from tests.trt.engines import build, model

WIDE = {"x": ((1, 1, 4), (2, 5, 4), (4, 128, 4))}
STEP = {"x": ((1, 1, 4), (1, 1, 4), (1, 1, 4))}
every_version = pytest.mark.parametrize("stand_in", api.VERSIONS, indirect=True)


@pytest.fixture
def state(stand_in: ModuleType) -> Iterator[Any]:
    """What the stand-in of pycuda counts. In the end everything is released, and no rule was broken."""
    from pycuda import _state

    found: Any = _state.reset()
    yield found
    gc.collect()
    assert found.broken == []
    assert found.pushed == 0
    assert set(+found.live) <= {"context"}


@pytest.fixture
def engine(state: Any, tmp_path: Path) -> Artifact:
    return build(tmp_path, onnx_artifact(tmp_path).path, [WIDE], INPUTS, OUTPUTS)


@pytest.fixture
def runner(engine: Artifact) -> Iterator[TrtRunner]:
    with TrtRunner(engine) as opened:
        yield opened


def feeds(batch: int = 2, time: int = 5, seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((batch, time, 4)).astype(np.float32)}


def refused(call: Callable[[], object], *words: str, kind: type[Exception] = BackendFailedError) -> str:
    with pytest.raises(kind) as error:
        call()
    text = str(error.value)
    assert text.endswith(".")
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


@every_version
def test_it_answers_as_onnxruntime_does(state: Any, tmp_path: Path) -> None:
    source = onnx_artifact(tmp_path)
    with (
        TrtRunner(build(tmp_path, source.path, [STEP, WIDE], INPUTS, OUTPUTS)) as runner,
        ORT.open(source, RunOptions()) as reference,
    ):
        for batch, time in ((2, 5), (1, 1), (4, 128), (1, 1), (3, 7)):
            given = feeds(batch, time)
            expected, found = reference.infer(given), runner.infer(given)
            assert list(found) == ["y", "h"]
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, atol=1e-6)
            assert runner.device_ms == 0.25


def test_its_notes_say_what_a_reader_must_know(runner: TrtRunner) -> None:
    assert "end to end" in runner.notes[0]
    assert any("Stand-in GPU" in note for note in runner.notes)
    assert not any("profile" in note for note in runner.notes)


def test_the_narrowest_profile_that_holds_the_shapes_is_taken(state: Any, tmp_path: Path) -> None:
    made = build(tmp_path, onnx_artifact(tmp_path).path, [WIDE, STEP], INPUTS, OUTPUTS)
    with TrtRunner(made) as runner:
        (lane,) = runner._lanes.values()
        for (batch, time), profile in (((1, 1), 1), ((2, 5), 0), ((1, 1), 1), ((1, 2), 0)):
            runner.infer(feeds(batch, time))
            assert lane._context.active_optimization_profile == profile
        assert any("2 profiles" in note and "1x1x4" in note for note in runner.notes)


def test_shapes_outside_the_profile_name_the_input_and_the_ranges(runner: TrtRunner) -> None:
    refused(lambda: runner.infer(feeds(5, 1)), "'x'", "5x1x4", "1x1x4 to 4x128x4", "--shapes")
    refused(lambda: runner.infer(feeds(0, 1)), "'x'", "0x1x4", "1x1x4 to 4x128x4")
    refused(lambda: runner.infer(feeds(1, 0)), "1x0x4")
    assert set(runner.infer(feeds())) == {"y", "h"}


ADD = model([helper.make_node("Add", ["a", "b"], ["c"])], ["a:float32[n]", "b:float32[m]"], ["c:float32[k]"])


def test_shapes_that_fit_different_profiles_only_name_them_all(state: Any, tmp_path: Path) -> None:
    small, large = ((1,), (1,), (1,)), ((5,), (5,), (5,))
    with TrtRunner(build(tmp_path, ADD, [{"a": small, "b": large}, {"a": large, "b": small}])) as runner:
        five, one = np.ones(5, np.float32), np.ones(1, np.float32)
        assert runner.infer({"a": five, "b": one})["c"].shape == (5,)
        refused(lambda: runner.infer({"a": five, "b": five}), "together", "a=5:5:5,b=1:1:1", "a=1:1:1,b=5:5:5")


def test_an_empty_input_that_the_profile_holds_gives_an_empty_output(state: Any, tmp_path: Path) -> None:
    negated = model([helper.make_node("Neg", ["x"], ["y"])], ["x:float32[n]"], ["y:float32[n]"])
    with TrtRunner(build(tmp_path, negated, [{"x": ((0,), (2,), (4,))}])) as runner:
        assert runner.infer({"x": np.zeros(0, np.float32)})["y"].shape == (0,)
        assert list(runner.infer({"x": np.ones(2, np.float32)})["y"]) == [-1, -1]


def test_without_a_manifests_specs_the_engines_own_are_taken(state: Any, tmp_path: Path) -> None:
    with TrtRunner(build(tmp_path, onnx_artifact(tmp_path).path, [WIDE])) as runner:
        assert set(runner.infer(feeds())) == {"y", "h"}
        refused(lambda: runner.infer({"x": np.zeros((1, 1, 4))}), "'x'", "float64")


def test_a_manifest_that_names_others_is_refused(engine: Artifact) -> None:
    wrong = replace(engine, outputs=OUTPUTS[:1])
    refused(lambda: TrtRunner(wrong), "names the outputs y", "build it again", kind=ArtifactError)


@every_version
def test_integers_are_given_as_the_version_takes_them(state: Any, stand_in: Any, tmp_path: Path) -> None:
    spec = TensorSpec.parse("x:int64[n]")
    doubled = model([helper.make_node("Add", ["x", "x"], ["y"])], ["x:int64[n]"], ["y:int64[n]"])
    made = build(tmp_path, doubled, [{"x": ((1,), (2,), (4,))}], [spec], [replace(spec, name="y")])
    with TrtRunner(made) as runner:
        found = runner.infer({"x": np.asarray([3, -4])})
        assert found["y"].dtype == np.int64
        assert list(found["y"]) == [6, -8]
        narrow = [note for note in runner.notes if "int32" in note]
        large = {"x": np.asarray([2**40, 1])}
        if narrow:
            refused(lambda: runner.infer(large), "'x'", "int32")
        else:
            assert list(runner.infer(large)["y"]) == [2**41, 2]
        assert bool(narrow) == stand_in.__version__.startswith("8")


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_inputs_and_outputs_are_converted(state: Any, tmp_path: Path, kind: str) -> None:
    same = model([helper.make_node("Identity", ["x"], ["y"])], [f"x:{kind}[n]"], [f"y:{kind}[n]"])
    specs = TensorSpec.parse("x:float32[n]"), TensorSpec.parse("y:float32[n]")
    with TrtRunner(build(tmp_path, same, [{"x": ((1,), (4,), (8,))}], specs[:1], specs[1:])) as runner:
        given = np.asarray([1.0, -0.3333333, 65000.0, np.inf], np.float32)
        found = runner.infer({"x": given})["y"]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, given, rtol=2**-8 if kind == "bfloat16" else 2**-11)


def test_booleans_and_scalars_go_through(state: Any, tmp_path: Path) -> None:
    nodes = [helper.make_node("Where", ["mask", "x", "s"], ["y"])]
    made = model(nodes, ["mask:bool[n]", "x:float32[n]", "s:float32[]"], ["y:float32[n]"])
    profile = {"mask": ((1,), (2,), (4,)), "x": ((1,), (2,), (4,))}
    with TrtRunner(build(tmp_path, made, [profile])) as runner:
        given = {
            "mask": np.asarray([True, False]),
            "x": np.asarray([1, 2], np.float32),
            "s": np.float32(9) * np.ones(()),
        }
        assert list(runner.infer({**given, "s": given["s"].astype(np.float32)})["y"]) == [1, 9]


@every_version
def test_sizes_that_the_data_decides_come_from_an_allocator(state: Any, tmp_path: Path) -> None:
    found = model([helper.make_node("NonZero", ["x"], ["y"])], ["x:float32[n]"], ["y:int64[1,k]"])
    spec = TensorSpec.parse("x:float32[n]"), TensorSpec.parse("y:int64[1,k]")
    with TrtRunner(build(tmp_path, found, [{"x": ((1,), (4,), (900,))}], spec[:1], spec[1:])) as runner:
        for count, size in ((1, 4), (800, 900), (0, 3), (3, 3)):
            given = np.zeros(size, np.float32)
            given[:count] = 1
            assert runner.infer({"x": given})["y"].tolist() == [list(range(count))]
        made = state.made["memory"]
        for _ in range(50):
            runner.infer({"x": given})
        assert state.made["memory"] == made


def test_no_memory_for_such_an_output_is_a_sentence(state: Any, tmp_path: Path) -> None:
    found = model([helper.make_node("NonZero", ["x"], ["y"])], ["x:float32[n]"], ["y:int64[1,k]"])
    with TrtRunner(build(tmp_path, found, [{"x": ((1,), (4,), (900,))}])) as runner:
        ones = {"x": np.ones(900, np.float32)}
        state.memory = 5000
        refused(lambda: runner.infer(ones), "out of memory")
        state.memory = 1 << 30
        assert runner.infer(ones)["y"].shape == (1, 900)


def test_ten_thousand_runs_leave_nothing_behind(state: Any, runner: TrtRunner) -> None:
    given = [feeds(batch, time) for batch, time in ((1, 1), (4, 16), (2, 5))]
    for one in given:
        runner.infer(one)
    live, made = dict(state.live), dict(state.made)
    for number in range(10_000):
        runner.infer(given[number % 3])
    assert (dict(state.live), dict(state.made)) == (live, made)
    (lane,) = runner._lanes.values()
    assert len(lane._addresses) == 3


def test_several_runners_of_one_engine_do_not_meet(engine: Artifact, state: Any) -> None:
    with TrtRunner(engine) as one:
        expected = one.infer(feeds())
        with TrtRunner(engine) as other:
            other.infer(feeds(seed=1))
        assert np.array_equal(one.infer(feeds())["y"], expected["y"])
    assert state.made["context"] <= 1


def test_threads_take_turns_and_another_one_may_close(engine: Artifact) -> None:
    runner = TrtRunner(engine)
    expected = [runner.infer(feeds(seed=seed))["y"] for seed in range(4)]
    wrong: list[int] = []

    def work(seed: int) -> None:
        found = [runner.infer(feeds(seed=seed))["y"] for _ in range(20)]
        wrong.extend(seed for one in found if not np.array_equal(one, expected[seed]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    last = threading.Thread(target=runner.close)
    last.start()
    last.join()


def test_close_lets_go_of_the_context_before_its_memory(engine: Artifact, state: Any) -> None:
    import weakref

    runner = TrtRunner(engine)
    runner.infer(feeds())
    (lane,) = runner._lanes.values()
    assert runner._engine is not None
    for what, held in (("execution context", lane._context), ("engine", runner._engine._engine)):
        weakref.finalize(held, state.released.append, what)
    del held, lane
    state.released.clear()
    runner.close()
    runner.close()
    assert state.released[0] == "execution context"
    assert state.released.index("engine") < state.released.index("event")
    assert state.released[-3:] == ["event", "event", "stream"]
    refused(lambda: runner.infer(feeds()), "closed")
    refused(lambda: runner.carry({"x": "y"}), "closed")


# Failures: everything that TensorRT returns is looked at.


@pytest.mark.parametrize(
    ("method", "result"),
    [
        ("set_input_shape", False),
        ("set_tensor_address", False),
        ("execute_async_v3", False),
        ("set_optimization_profile_async", False),
        ("infer_shapes", ["x"]),
        ("infer_shapes", RuntimeError("shape inference failed\nat the second line")),
        ("execute_async_v3", TypeError("incompatible function arguments")),
    ],
)
def test_whatever_tensorrt_refuses_is_a_sentence_and_the_runner_lives_on(
    state: Any, tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch, method: str, result: Any
) -> None:
    with TrtRunner(build(tmp_path, onnx_artifact(tmp_path).path, [STEP, WIDE], INPUTS, OUTPUTS)) as runner:
        other = feeds(1, 1, seed=1)
        expected = runner.infer(other)["y"]

        def refuse(*_: object) -> object:
            if isinstance(result, Exception):
                raise result
            return result

        with monkeypatch.context() as patch:
            patch.setattr(stand_in.IExecutionContext, method, refuse)
            refused(lambda: runner.infer(feeds(4, 100)), "TensorRT")
        assert runner._device._stream.is_done()
        # Shapes that were bound before, and other numbers in memory that a copy may have been left in.
        assert np.array_equal(runner.infer(other)["y"], expected)


def test_its_own_words_are_in_the_sentence(
    state: Any, tmp_path: Path, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with TrtRunner(build(tmp_path, onnx_artifact(tmp_path).path, [WIDE], INPUTS, OUTPUTS)) as runner:
        monkeypatch.setattr(type(runner._engine), "profile", lambda *_: 0)  # as if we did not look ourselves
        refused(lambda: runner.infer(feeds(9, 1)), "do not satisfy the optimization profile")


def test_an_engine_without_a_context_is_a_sentence_and_leaves_nothing(
    engine: Artifact, stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in.ICudaEngine, "create_execution_context", lambda *_: None)
    refused(lambda: TrtRunner(engine), "prepare")


@pytest.mark.parametrize(
    "function",
    ["cuMemAlloc", "cuMemHostAlloc", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuEventRecord", "cuStreamSynchronize"],
)
def test_whatever_cuda_refuses_is_a_sentence_and_the_runner_lives_on(
    state: Any, runner: TrtRunner, function: str
) -> None:
    state.failing[function] = "out of memory"
    refused(lambda: runner.infer(feeds()), "CUDA", "out of memory")
    state.failing.clear()
    assert runner.infer(feeds())["y"].shape == (2, 5, 3)


def test_nothing_is_deserialized_that_was_built_elsewhere(
    engine: Artifact, stand_in: Any, monkeypatch: pytest.MonkeyPatch, state: Any
) -> None:
    monkeypatch.setattr(stand_in.Runtime, "deserialize_cuda_engine", lambda *_: pytest.fail("it was deserialized"))
    state.compute_capability = (8, 6)
    refused(lambda: TrtRunner(engine), "8.6", "9.0", kind=ArtifactError)


def test_a_plan_that_tensorrt_refuses_is_a_sentence_with_its_words(engine: Artifact) -> None:
    content = engine.path.read_bytes()
    engine.path.write_bytes(content + b"more")
    refused(lambda: TrtRunner(engine), "model.float32.engine", "the plan is cut off")


def test_a_version_compatible_plan_may_bring_its_code(state: Any, tmp_path: Path) -> None:
    source = onnx_artifact(tmp_path).path
    made = build(tmp_path, source, [WIDE], INPUTS, OUTPUTS, flags=["VERSION_COMPATIBLE"], version_compatible=True)
    with TrtRunner(made) as runner:
        assert set(runner.infer(feeds())) == {"y", "h"}
    assert made.engine is not None
    strict = replace(made, engine=replace(made.engine, options={}))
    refused(lambda: TrtRunner(strict), "host code")


@pytest.fixture
def stripped(state: Any, tmp_path: Path) -> Artifact:
    source = onnx_artifact(tmp_path).path
    return build(tmp_path, source, [WIDE], INPUTS, OUTPUTS, flags=["STRIP_PLAN", "REFIT"], strip=True)


def test_a_stripped_plan_takes_its_weights_from_its_onnx_file(stripped: Artifact, tmp_path: Path) -> None:
    with TrtRunner(stripped) as runner, ORT.open(onnx_artifact(tmp_path), RunOptions()) as reference:
        np.testing.assert_allclose(runner.infer(feeds())["y"], reference.infer(feeds())["y"], atol=1e-6)
        assert any("weights" in note for note in runner.notes)


def test_a_stripped_plan_without_its_onnx_file_says_what_is_missing(stripped: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "contract.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    refused(lambda: TrtRunner(stripped), "ONNX file", "--strip", kind=ArtifactError)


def test_weights_that_do_not_fit_are_refused_in_tensorrts_words(
    stripped: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halved(model: onnx.ModelProto, precision: str, version: tuple[int, ...]) -> onnx.ModelProto:
        assert precision == "fp32"
        del model.graph.initializer[0]
        return model

    monkeypatch.setattr("deploykit.trt.prepare.prepared", halved)
    refused(lambda: TrtRunner(stripped), "weights", "contract.onnx")


# Streams: states stay on the GPU.


def cell(folder: Path) -> Artifact:
    """A recurrent model whose state goes in and out: ``h_out = tanh(x + h_in)``, ``y = h_out``, time summed up."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["s"], keepdims=0),
        helper.make_node("Add", ["s", "h_in"], ["a"]),
        helper.make_node("Tanh", ["a"], ["h_out"]),
        helper.make_node("Neg", ["h_out"], ["y"]),
    ]
    inputs, outputs = (
        ["x:float32[batch,time,3]", "h_in:float32[batch,3]"],
        ["y:float32[batch,3]", "h_out:float32[batch,3]"],
    )
    made = model(nodes, inputs, outputs, axes=np.asarray([1]))
    profile = {"x": ((1, 1, 3), (1, 1, 3), (4, 9, 3)), "h_in": ((1, 3), (1, 3), (4, 3))}
    return build(
        folder, made, [profile], [TensorSpec.parse(one) for one in inputs], [TensorSpec.parse(one) for one in outputs]
    )


PAIRS = {"h_in": "h_out"}


def chunks(count: int, batch: int = 2, time: int = 1) -> list[Any]:
    return [np.random.default_rng(seed).standard_normal((batch, time, 3)).astype(np.float32) for seed in range(count)]


def by_numpy(runner: Runner) -> Any:
    return Runner.carry(runner, PAIRS)


@every_version
def test_a_stream_answers_as_one_whose_states_go_through_numpy(state: Any, tmp_path: Path) -> None:
    with TrtRunner(cell(tmp_path)) as runner:
        step, plain = runner.carry(PAIRS), by_numpy(runner)
        start = {"h_in": np.full((2, 3), 0.5, np.float32)}
        for number, chunk in enumerate(chunks(12)):
            given = {"x": chunk, **start} if number in {0, 7} else {"x": chunk}  # later states are passed over
            found, expected = step(given), plain({"x": chunk, **start} if number == 0 else {"x": chunk})
            assert set(found) == {"y"}
            np.testing.assert_array_equal(found["y"], expected["y"])


def test_states_of_a_stream_are_copied_to_the_gpu_once_and_never_back(
    state: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pycuda import driver

    copies: list[tuple[str, int]] = []

    def counted(direction: str, true: Callable[..., None], host: int) -> Callable[..., None]:
        def copy(*given: Any) -> None:
            copies.append((direction, given[host].nbytes))
            true(*given)

        return copy

    monkeypatch.setattr(driver, "memcpy_htod_async", counted("htod", driver.memcpy_htod_async, 1))
    monkeypatch.setattr(driver, "memcpy_dtoh_async", counted("dtoh", driver.memcpy_dtoh_async, 0))
    with TrtRunner(cell(tmp_path)) as runner:
        step = runner.carry(PAIRS)
        step({"x": chunks(1)[0], "h_in": np.zeros((2, 3), np.float32)})
        assert copies == [("htod", 24), ("htod", 24), ("dtoh", 24)]  # the state, x; y
        copies.clear()
        made = dict(state.made)
        for chunk in chunks(20):
            step({"x": chunk})
        assert copies == [("htod", 24), ("dtoh", 24)] * 20
        assert state.made == made


def test_chunks_of_a_stream_may_have_different_lengths(state: Any, tmp_path: Path) -> None:
    with TrtRunner(cell(tmp_path)) as runner:
        step, plain = runner.carry(PAIRS), by_numpy(runner)
        for time in (1, 9, 2):
            given = {"x": chunks(1, time=time)[0], **({"h_in": np.zeros((2, 3), np.float32)} if time == 1 else {})}
            np.testing.assert_array_equal(step(given)["y"], plain(given)["y"])


def test_streams_and_plain_inferences_do_not_meet(state: Any, tmp_path: Path) -> None:
    with TrtRunner(cell(tmp_path)) as runner:
        start = {"h_in": np.zeros((2, 3), np.float32)}
        one, other, plain = runner.carry(PAIRS), runner.carry(PAIRS), by_numpy(runner)
        for number, chunk in enumerate(chunks(6)):
            given = {"x": chunk, **(start if number == 0 else {})}
            expected = plain(given)["y"]
            np.testing.assert_array_equal(one(given)["y"], expected)
            runner.infer({"x": -chunk, "h_in": start["h_in"] + 3})
            np.testing.assert_array_equal(other(given)["y"], expected)


def test_streams_that_are_over_give_their_memory_to_the_next(state: Any, tmp_path: Path) -> None:
    with TrtRunner(cell(tmp_path)) as runner:
        given = {"x": chunks(1)[0], "h_in": np.zeros((2, 3), np.float32)}
        runner.carry(PAIRS)(given)
        live = dict(state.live)
        for _ in range(100):
            runner.carry(PAIRS)(given)
        assert dict(state.live) == live
        kept = runner.carry(PAIRS)
        kept(given)
    refused(lambda: kept(given), "closed")


def test_a_step_that_fails_leaves_the_stream_where_it_was(state: Any, tmp_path: Path) -> None:
    with TrtRunner(cell(tmp_path)) as runner:
        step, plain = runner.carry(PAIRS), by_numpy(runner)
        given = {"x": chunks(1)[0], "h_in": np.zeros((2, 3), np.float32)}
        step(given), plain(given)
        refused(lambda: step({"x": chunks(1, batch=3)[0]}), "batch")
        refused(lambda: step({}), "'x' is missing")
        state.failing["cuMemcpyHtoDAsync"] = "out of memory"
        refused(lambda: step({"x": chunks(1)[0]}), "out of memory")
        state.failing.clear()
        np.testing.assert_array_equal(step({"x": chunks(2)[1]})["y"], plain({"x": chunks(2)[1]})["y"])


def test_the_first_step_needs_the_states(state: Any, tmp_path: Path) -> None:
    with TrtRunner(cell(tmp_path)) as runner:
        refused(lambda: runner.carry(PAIRS)({"x": chunks(1)[0]}), "'h_in' is missing")


def test_a_state_of_another_shape_than_its_output_is_refused(state: Any, tmp_path: Path) -> None:
    nodes = [helper.make_node("Concat", ["h_in", "x"], ["h_out"], axis=0), helper.make_node("Neg", ["x"], ["y"])]
    made = model(nodes, ["x:float32[n]", "h_in:float32[m]"], ["y:float32[n]", "h_out:float32[k]"])
    profile = {"x": ((1,), (1,), (4,)), "h_in": ((1,), (1,), (64,))}
    with TrtRunner(build(tmp_path, made, [profile])) as runner:
        step = runner.carry(PAIRS)
        refused(lambda: step({"x": np.ones(2, np.float32), "h_in": np.ones(3, np.float32)}), "h_out", "(5,)", "(3,)")


def test_a_state_of_another_type_than_its_output_goes_through_numpy(state: Any, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h_out"], to=onnx.TensorProto.FLOAT16),
        helper.make_node("Neg", ["h_in"], ["y"]),
    ]
    made = model(nodes, ["x:float32[n]", "h_in:float32[n]"], ["y:float32[n]", "h_out:float16[n]"])
    profile = {"x": ((1,), (1,), (4,)), "h_in": ((1,), (1,), (4,))}
    specs = [TensorSpec.parse(one) for one in ("x:float32[n]", "h_in:float32[n]", "y:float32[n]", "h_out:float32[n]")]
    with closing(TrtRunner(build(tmp_path, made, [profile], specs[:2], specs[2:]))) as runner:
        step = runner.carry(PAIRS)
        assert list(step({"x": np.ones(2, np.float32), "h_in": np.ones(2, np.float32)})["y"]) == [-1, -1]
        assert list(step({"x": np.ones(2, np.float32) * 2})["y"]) == [-1, -1]
        assert list(step({"x": np.ones(2, np.float32)})["y"]) == [-2, -2]


def test_two_engines_speak_for_themselves_whichever_is_closed_first(engine: Artifact, state: Any) -> None:
    x = np.zeros((1, 3, 4), np.float32)
    first, second = TrtRunner(engine), TrtRunner(engine)
    first.infer({"x": x})
    first.close()
    gc.collect()
    assert second._lanes[()]._context is not None
    second._lanes[()]._context._engine._missing = ["W"]  # as a stripped plan is before it has its weights
    with pytest.raises(BackendFailedError, match="the engine has no weights yet: refit W"):
        second.infer({"x": x})
    second.close()


def test_what_tensorrt_made_is_released_while_the_context_is_current(engine: Artifact, state: Any) -> None:
    runner = TrtRunner(engine)
    runner.infer({"x": np.zeros((1, 3, 4), np.float32)})
    runner.close()
    del runner
    gc.collect()
    assert state.adrift == []
