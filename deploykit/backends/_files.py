"""Opening an artifact's file, and the sentence where that fails: one way for every backend that reads files."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from deploykit.errors import BackendFailedError, DeploykitError
from deploykit.runtime import sentence


@contextlib.contextmanager
def loading(path: Path, library: str, say: Callable[[Exception], str] = sentence) -> Iterator[None]:
    """Turn whatever ``library`` raises while it loads ``path`` into one sentence by ``say``; our own errors pass.

    Raises:
        BackendFailedError: there is no such file, or the library cannot load it.
    """
    if not path.is_file():
        raise BackendFailedError(f"there is no file {path}: make it with `deploykit export`.")
    try:
        yield
    except DeploykitError:
        raise
    except Exception as error:
        # A report carries this sentence to others, whom the folders of this machine do not concern.
        why = say(error).replace(str(path), path.name)
        raise BackendFailedError(f"{library} cannot load {path.name}: {why}; make it again from its source.") from error
