"""Programs of torch.export in .pt2 files, read without running code from them, and what they take.

``torch.export.load`` unpickles whatever a file holds, resolves the targets of its nodes through attributes of torch,
evaluates its symbolic expressions, and compiles the Python source that its names are put into. So nothing of a file is
given to it as it is: its JSON is checked part by part against what an exported model needs, and only what was checked
goes, in an archive that is written anew, to torch.
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from deploykit._pt2_checks import Refused, check, checked_program, shown
from deploykit.errors import ModelError, first_line
from deploykit.types import BATCH, DTYPES, TIME, DimRange, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from deploykit.types import Call

_MODEL = "models/model.json"
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_WEIGHTS_CONFIG = f"{_WEIGHTS}model_weights_config.json"
_CONSTANTS_CONFIG = f"{_CONSTANTS}model_constants_config.json"
_SAMPLE = "data/sample_inputs/model.pt"
_OLD = "serialized_exported_program.json"
_SAVE = "save it again with torch.export.save"

_RECORD = re.compile(r"(weight|tensor)_[0-9]{1,9}")
# What torch says while it reads, it says to these.
_LOGGERS = ("torch.export", "torch.export.pt2_archive._package", "torch._export.serde.serialize")
_LOADING = threading.RLock()


def read(path: Path) -> ExportedProgram:
    """The program in a file that ``torch.export.save`` wrote.

    Raises:
        ModelError: the file is missing, damaged, something else or of another version, or it holds more than a graph
            and plain tensors: then the message says what, and nothing of it was run.
    """
    if not path.is_file():
        raise ModelError(f"no .pt2 file at {path}: check the path.")
    try:
        buffer = _checked_copy(path)
    except Refused as refused:
        raise ModelError(f"{path} is refused, and nothing of it was run: it holds {refused}.") from refused
    except ModelError:
        raise
    # A damaged file is met with whatever the readers of zip and JSON raise, at any depth.
    except Exception as error:
        raise ModelError(f"{path} is damaged, or no file of torch.export ({_said(error)}): {_SAVE}.") from error
    try:
        return _load(buffer)
    except Exception as error:
        raise ModelError(f"{path} cannot be read by this version of torch ({_said(error)}): {_SAVE}.") from error


def describe(program: ExportedProgram) -> tuple[TensorSpec, ...]:
    """The inputs that a user gives, in order. Dynamic dims are called batch, time, and then after their axis.

    Raises:
        ModelError: an input is no tensor, or one that deploykit has no word for.
    """
    names = _dim_names(program)
    return tuple(
        TensorSpec(name, _dtype(name, value), tuple(_dim(name, size, names) for size in value.shape))
        for name, value in _inputs(program)
    )


def dims(program: ExportedProgram) -> dict[str, DimRange]:
    """The sizes that the program was exported for, by the names that ``describe`` gives to its dims."""
    ranges = {str(symbol): found for symbol, found in program.range_constraints.items()}
    return {name: _range(ranges[symbol]) for symbol, name in _dim_names(program).items() if symbol in ranges}


def module(program: ExportedProgram) -> nn.Module:
    """The program as a module. It has one mode, that it was exported in, and keeps it whatever it is set to."""
    # The checks of input shapes, which it would run first, are ours to make, and were left out with all source text.
    made: nn.Module = program.module(check_guards=False)

    # As torch makes it, it raises as soon as a module around it is put in eval mode.
    def keep(mode: bool = True) -> nn.Module:
        return made

    for name in ("train", "eval"):
        setattr(made, name, keep)
    return made


def unchecked(made: nn.Module) -> None:
    """Let a program's module run at other sizes than it was exported for, which its operators may well allow.

    torch.export cannot leave the time axis of a recurrent layer dynamic, even if nothing in the program needs it fixed.
    """
    made._forward_pre_hooks.clear()


def calling(program: ExportedProgram) -> Call | None:
    """How the module is called with its tensors in order; None where it simply takes them so."""
    from torch.utils import _pytree as pytree

    spec = program.call_spec.in_spec
    plain = pytree.tree_structure(((0,) * spec.num_leaves, {}))
    if spec == plain:
        return None

    def call(called: nn.Module, tensors: Sequence[Tensor]) -> Any:
        args, kwargs = pytree.tree_unflatten(list(tensors), spec)
        return called(*args, **kwargs)

    return call


# What goes to torch.


def _checked_copy(path: Path) -> io.BytesIO:
    """An archive with only what was checked, and nothing that a model can do without."""
    archive = _archive_module()
    with zipfile.ZipFile(path) as source:
        records = _records(path, source)
        read_record: Callable[[str], bytes] = lambda name: source.read(records[name])  # noqa: E731
        _check_version(path, records, read_record)
        program = checked_program(_json(read_record(_MODEL)))
        kept = {_MODEL: json.dumps(program).encode()}
        for config, folder in ((_WEIGHTS_CONFIG, _WEIGHTS), (_CONSTANTS_CONFIG, _CONSTANTS)):
            payload = _json(read_record(config))
            kept[config] = json.dumps(payload).encode()
            for name in _payload(payload, folder, records):
                kept.setdefault(name, read_record(name))
        kept[_SAMPLE] = _sample(read_record(_SAMPLE))
    buffer = io.BytesIO()
    with archive.PT2ArchiveWriter(buffer) as writer:
        for name, content in kept.items():
            writer.write_bytes(name, content)
    buffer.seek(0)
    return buffer


def _archive_module() -> Any:
    try:
        from torch.export.pt2_archive import _package
    except ImportError as error:
        raise ModelError("reading .pt2 files needs a newer torch: run pip install 'torch>=2.9'.") from error
    return _package


def _load(buffer: io.BytesIO) -> ExportedProgram:
    with _guarded() as archive:
        contents = archive.load_pt2(buffer)
    program: ExportedProgram = contents.exported_programs["model"]
    return program


@contextmanager
def _guarded() -> Iterator[Any]:
    """torch's reader, unable to unpickle: should a check above have a hole, it ends here with an exception."""
    import torch

    archive = _archive_module()
    with _LOADING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unpickle = torch.load

        def load(*args: Any, **kwargs: Any) -> Any:
            return unpickle(*args, **{**kwargs, "weights_only": True})

        changes: list[tuple[Any, str, Any]] = [
            (torch, "load", load),
            (archive, "pickle", SimpleNamespace(loads=_no_pickle)),
            (torch._C, "_pickle_load_obj", _no_pickle),
            *((logging.getLogger(name), "disabled", True) for name in _LOGGERS),
        ]
        saved = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
        try:
            for owner, name, value in changes:
                setattr(owner, name, value)
            yield archive
        finally:
            for owner, name, value in saved:
                setattr(owner, name, value)


def _no_pickle(*_: Any) -> NoReturn:
    raise Refused("a pickle")


# The archive.


def _records(path: Path, source: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries by their names below the archive's one folder."""
    infos = source.infolist()
    if any(info.filename == _OLD for info in infos):
        raise ModelError(f"{path} was written by torch 2.8 or older: {_SAVE} of a newer torch.")
    if sum(info.file_size for info in infos) > path.stat().st_size:
        raise zipfile.BadZipFile("its parts overlap")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise Refused("compressed parts, which torch.export.save never writes")
    records = {info.filename.partition("/")[2]: info for info in infos}
    if len(records) < len(infos):
        raise Refused("two parts of one name")
    if "archive_format" not in records or source.read(records["archive_format"]) != b"pt2":
        raise ModelError(f"{path} is damaged, or a zip file of something else than torch.export: {_SAVE}.")
    if any(name.startswith("data/aotinductor/") for name in records):
        raise Refused("compiled code")
    if _MODEL not in records:
        raise ModelError(f"{path} holds no program called 'model': {_SAVE}.")
    if _WEIGHTS_CONFIG not in records or _CONSTANTS_CONFIG not in records:
        raise ModelError(f"{path} holds its weights in an older form: {_SAVE} of a newer torch.")
    return records


def _check_version(path: Path, records: Mapping[str, Any], read_record: Callable[[str], bytes]) -> None:
    from torch._export.serde.schema import SCHEMA_VERSION
    from torch.export.pt2_archive.constants import ARCHIVE_VERSION_VALUE

    archive = read_record("archive_version").decode() if "archive_version" in records else "none"
    schema = _json(read_record(_MODEL)).get("schema_version", {}).get("major")
    if archive != ARCHIVE_VERSION_VALUE or schema != SCHEMA_VERSION[0]:
        raise ModelError(
            f"{path} is of version {archive}, with programs of version {schema}, and this torch reads "
            f"{ARCHIVE_VERSION_VALUE} with {SCHEMA_VERSION[0]}: {_SAVE} of the torch that is installed here."
        )


def _json(content: bytes) -> dict[str, Any]:
    value = json.loads(content)
    if not isinstance(value, dict):
        raise TypeError("a part that should be a JSON object is none")
    return value


def _payload(payload: dict[str, Any], folder: str, records: Mapping[str, zipfile.ZipInfo]) -> Iterator[str]:
    """The names of the records with tensors that a config lists; each is raw numbers, never a pickle."""
    check(payload)
    for name, entry in payload["config"].items():
        record = entry["path_name"]
        if entry["use_pickle"] is not False:
            raise Refused(f"{shown(name)} as a pickle instead of plain numbers")
        if not _RECORD.fullmatch(record) or entry["tensor_meta"] is None:
            raise Refused(f"{shown(name)} as an object instead of a tensor")
        sizes = [size["as_int"] for size in entry["tensor_meta"]["sizes"]]
        if not records[folder + record].file_size and math.prod(sizes):
            raise ValueError(f"{name} has no values")
        yield folder + record


def _sample(content: bytes) -> bytes:
    import torch

    if content:
        try:
            torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:
            raise Refused(f"sample inputs that are more than plain tensors ({_said(error)})") from error
    return content


def _said(error: Exception) -> str:
    """What a reader said in one line, with the kind of error, which alone often says it."""
    refusal = re.search(r"GLOBAL [\w.]+", str(error))
    said = refusal[0] if refusal else first_line(error).split(". ", 1)[0]
    return said if said == type(error).__name__ else f"{type(error).__name__}: {said}"


# What it takes.


def _inputs(program: ExportedProgram) -> list[tuple[str, Tensor]]:
    """Names and example values, without contents, of what a user gives."""
    import torch

    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for number, name in enumerate(program.graph_signature.user_inputs):
        value = values.get(name) if isinstance(name, str) else name
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"input {number + 1} of the program is no tensor but a {type(value).__name__}: export it with tensors "
                "as its inputs only."
            )
        found.append((str(name), value))
    return found


def _dtype(name: str, value: Tensor) -> str:
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ModelError(f"the input {name} of the program is {dtype}: export it with one of {', '.join(DTYPES)}.")
    return dtype


def _dim_names(program: ExportedProgram) -> dict[str, str]:
    """What each symbol among the dims is called, in order of first appearance."""
    import torch

    named: dict[str, str] = {}
    for number, (_, value) in enumerate(_inputs(program)):
        sizes: Sequence[Any] = value.shape  # whole numbers, or symbolic ones, which torch does not declare
        for axis, size in enumerate(sizes):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                named.setdefault(str(size.node.expr), _dim_name(number, axis, set(named.values())))
    return named


def _dim_name(number: int, axis: int, taken: set[str]) -> str:
    if number == 0 and axis < 2:
        return (BATCH, TIME)[axis]
    after = max(axis, 2)
    while f"dim_{after}" in taken:
        after += 1
    return f"dim_{after}"


def _dim(name: str, size: int | torch.SymInt, names: Mapping[str, str]) -> int | str:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression.is_Integer:
        return int(expression)
    if str(expression) not in names:
        raise ModelError(
            f"the input {name} has a dim of {expression}, which other dims decide: export it with a Dim of its own."
        )
    return names[str(expression)]


def _range(found: Any) -> DimRange:
    """A range of torch, whose ends may be infinite, within what deploykit takes."""
    everything = DimRange()
    low, high = (int(end) if end.is_Integer else None for end in (found.lower, found.upper))
    return DimRange(
        everything.low if low is None else everything.clamp(low),
        everything.high if high is None else everything.clamp(high),
    )
