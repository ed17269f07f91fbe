"""What TensorRT tells of a build."""

from __future__ import annotations

from types import ModuleType

from deploykit.trt.progress import monitor


def test_two_threads_may_have_phases_of_one_name(stand_in: ModuleType) -> None:
    said: list[str] = []
    stopped: list[BaseException] = []
    watching = monitor(said.append, stopped)
    watching.phase_start("Tactic Selection", None, 3)
    watching.phase_start("Tactic Selection", None, 3)
    assert watching.step_complete("Tactic Selection", 0)
    watching.phase_finish("Tactic Selection")
    # The other thread's is still under way: no reason to end the build.
    assert watching.step_complete("Tactic Selection", 1)
    watching.phase_finish("Tactic Selection")
    assert stopped == []
    assert said[-1].startswith("Tactic Selection 2/")


def test_what_is_raised_ends_the_build(stand_in: ModuleType) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    stopped: list[BaseException] = []
    watching = monitor(interrupted, stopped)
    watching.phase_start("Building Engine", None, 2)
    assert not watching.step_complete("Building Engine", 0)
    assert isinstance(stopped[0], KeyboardInterrupt)
