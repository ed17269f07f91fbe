"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from deploykit.errors import ArtifactError, OutputError


@contextlib.contextmanager
def atomic_path(path: Path, option: str = "-o") -> Iterator[Path]:
    """Yield a temporary path beside ``path``; it takes that name when the block ends well, and is removed otherwise.

    Folders that had to be made are removed again when the block fails, so that an error leaves nothing behind.
    ``option`` is the one that names the path, for the error.

    Raises:
        OutputError: the folder or the file cannot be written, or the disk is full.
    """
    import tempfile  # slow enough for `deploykit --help` to be without it

    made: list[Path] = []
    try:
        for folder in [*reversed(path.parent.parents), path.parent]:
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder; name a file with {option}.")
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
    except OSError as error:
        _remove_folders(made)
        raise OutputError(f"cannot write {path}: {_reason(error)}; choose another place with {option}.") from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files for their owner alone; an artifact is as readable as the umask lets any new file be.
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        _remove_folders(made)
        if isinstance(error, OSError):
            raise OutputError(f"cannot write {path}: {_reason(error)}; choose another place with {option}.") from error
        raise


def write_text(path: Path, text: str, option: str = "-o") -> None:
    """Write ``text`` to ``path`` whole or not at all (UTF-8)."""
    with atomic_path(path, option) as temporary:
        temporary.write_text(text, encoding="utf-8")


class _OnlyAskedError(Exception):
    pass


def require_writable(path: Path, option: str) -> None:
    """Find out now that a file cannot be written, before the work whose result it shall hold; nothing stays behind.

    Raises:
        OutputError: it cannot be written.
    """
    with contextlib.suppress(_OnlyAskedError), atomic_path(path, option):
        raise _OnlyAskedError


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits.

    Raises:
        ArtifactError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {_reason(error)}.") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _remove_folders(folders: list[Path]) -> None:
    for folder in reversed(folders):
        with contextlib.suppress(OSError):  # somebody else may have put a file there meanwhile: then it stays
            folder.rmdir()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
