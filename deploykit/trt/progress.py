"""What TensorRT tells of a long build as it goes on, and how to stop one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import tensorrt as trt


def monitor(say: Callable[[str], None], stopped: list[BaseException]) -> trt.IProgressMonitor:
    """A monitor that tells ``say`` the phases under way, like ``Building Engine 3/12: Tactic Selection 40/200``.

    TensorRT calls it from C++, where an exception (Ctrl-C, say) must not arrive: it goes to ``stopped``, and the build
    is asked to end.
    """
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc,unused-ignore] # no type where TensorRT has no stubs
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, tuple[int, int]] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.tell(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.tell(phase_name, step + 1)
            return not stopped

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

        def tell(self, phase: str, done: int, steps: int | None = None) -> None:
            try:
                # Names may be the same in two threads: the one that ends first takes the other's away.
                self.phases[phase] = (done, self.phases.get(phase, (0, done))[1] if steps is None else steps)
                # A copy: TensorRT may call from several threads.
                say(": ".join(f"{name} {done}/{steps}" for name, (done, steps) in list(self.phases.items())))
            except BaseException as error:
                stopped.append(error)

    return Monitor()
