"""Progress on stderr: a spinner with the step's name on a terminal, silence elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def steps(title: str) -> Iterator[Callable[[str], None]]:
    """While this lasts, the function it yields shows what is being done now, and nothing gets to stdout.

    The steps run code of the user's, which may print; stdout is for data.
    """
    with _to_stderr():
        if not sys.stderr.isatty():
            yield lambda step: None
            return
        from rich.console import Console

        with Console(stderr=True).status(title) as status:
            yield lambda step: status.update(f"{title}: {step}")


@contextlib.contextmanager
def _to_stderr() -> Iterator[None]:
    """Send what Python and what C code writes to stdout to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
