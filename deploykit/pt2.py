"""Programs of torch.export in .pt2 files, read without running code from them, and what they take.

``torch.export.load`` unpickles whatever a file holds, resolves the targets of its nodes through attributes of torch,
evaluates its symbolic expressions, and compiles the Python source that its names are put into. So nothing of a file is
given to it as it is: its JSON is checked part by part against what an exported model needs, and only what was checked
goes, in an archive that is written anew, to torch.
"""

from __future__ import annotations

import ast
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

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|")
# A parameter's path; keys of a ModuleDict may hold a dash.
_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_KEY = re.compile(r"[A-Za-z0-9_ .-]{1,128}")
_RECORD = re.compile(r"(weight|tensor)_[0-9]{1,9}")
_SYMBOL = re.compile(r"(s|ps|u|zf|zuf)[0-9]{1,5}")

_HIGHER_ORDER = {
    *("associative_scan", "cond", "map_impl", "scan", "while_loop", "wrap_with_autocast", "wrap_with_set_grad_enabled"),
}
_OPERATOR = {
    *("add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "le", "lshift", "lt", "mod", "mul", "ne", "neg", "not_"),
    *("or_", "pos", "pow", "rshift", "sub", "truediv", "xor"),
}
_MATH = {"acos", "asin", "atan", "ceil", "cos", "cosh", "exp", "floor", "log", "log2", "pow", "sin", "sinh", "sqrt"} | {
    *("tan", "tanh", "trunc"),
}
_SYM = {"sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sqrt", "sym_sum"}
# The operators of aten that reach beyond their tensors: into files, the terminal, autograd, or caches.
_REACHING = re.compile(
    r"from_file|save|set_data|_backward|_print|record_stream|_cufft_\w+|_test_\w+|_propagate_xla_data"
)

_FUNCTIONS = {
    *(
        "Abs",
        "Add",
        "And",
        "BooleanFalse",
        "BooleanTrue",
        "CeilDiv",
        "CeilToInt",
        "CleanDiv",
        "Eq",
        "Equality",
        "Float",
    ),
    *("FloatPow", "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge", "GreaterThan", "Gt", "Identity", "IntTrueDiv"),
    *("Integer", "LShift", "Le", "LessThan", "Lt", "Max", "Min", "Mod", "ModularIndexing", "Mul", "Ne", "Not", "Or"),
    *("Pow", "PowByNatural", "PythonMod", "RShift", "Rational", "RoundDecimal", "RoundToInt", "StrictGreaterThan"),
    *("StrictLessThan", "ToFloat", "TruncToFloat", "TruncToInt", "Unequality", "Where", "Xor", "ceiling", "floor"),
    *("IsNonOverlappingAndDenseIndicator", "sqrt"),
}
_VALUES = {"oo", "int_oo", "true", "false", "True", "False", "pi", "E"}
_ASSUMPTIONS = {"integer", "nonnegative", "nonpositive", "negative", "nonzero", "positive", "real", "zero", "finite"}
_POWERS = {"Pow", "PowByNatural", "FloatPow", "LShift"}
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.BitAnd, ast.BitOr)
_LONGEST, _LARGEST_POWER = 2000, 64

_CONTAINERS = {
    *("builtins.dict", "builtins.list", "builtins.tuple", "collections.OrderedDict"),
    *("torch.fx.immutable_collections.immutable_dict", "torch.fx.immutable_collections.immutable_list"),
}
# What torch says while it reads, it says to these.
_LOGGERS = ("torch.export", "torch.export.pt2_archive._package", "torch._export.serde.serialize")
_LOADING = threading.RLock()


class _Refused(Exception):  # noqa: N818 - what is refused is the answer, not a failure of ours
    """Something in a file that an exported model has no need of; the text says what."""


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
    except _Refused as refused:
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
        program = _program(_json(read_record(_MODEL)))
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
    raise _Refused("a pickle")


# The archive.


def _records(path: Path, source: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries by their names below the archive's one folder."""
    infos = source.infolist()
    if any(info.filename == _OLD for info in infos):
        raise ModelError(f"{path} was written by torch 2.8 or older: {_SAVE} of a newer torch.")
    if sum(info.file_size for info in infos) > path.stat().st_size:
        raise zipfile.BadZipFile("its parts overlap")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise _Refused("compressed parts, which torch.export.save never writes")
    records = {info.filename.partition("/")[2]: info for info in infos}
    if len(records) < len(infos):
        raise _Refused("two parts of one name")
    if "archive_format" not in records or source.read(records["archive_format"]) != b"pt2":
        raise ModelError(f"{path} is damaged, or a zip file of something else than torch.export: {_SAVE}.")
    if any(name.startswith("data/aotinductor/") for name in records):
        raise _Refused("compiled code")
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
    _check(payload)
    for name, entry in payload["config"].items():
        record = entry["path_name"]
        if entry["use_pickle"] is not False:
            raise _Refused(f"{_shown(name)} as a pickle instead of plain numbers")
        if not _RECORD.fullmatch(record) or entry["tensor_meta"] is None:
            raise _Refused(f"{_shown(name)} as an object instead of a tensor")
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
            raise _Refused(f"sample inputs that are more than plain tensors ({_said(error)})") from error
    return content


# The program.


def _program(program: dict[str, Any]) -> dict[str, Any]:
    """The program without what only describes it, checked."""
    graph_module = program["graph_module"]
    # Source text of checks on input shapes, which would be compiled.
    program["guards_code"] = []
    for symbol in program["range_constraints"]:
        _check_expression(symbol)
    graph_module["metadata"] = {}
    graph_module["treespec_namedtuple_fields"] = {}
    # Only the first entry, that of the model itself, says how it is called.
    del graph_module["module_call_graph"][1:]
    for value in (*graph_module["graph"]["inputs"], *_constants(graph_module["signature"])):
        if not isinstance(value.get("as_string", ""), str) or not _NAME.fullmatch(value.get("as_string", "")):
            raise _Refused(f"the constant input {_shown(value['as_string'])}")
    _check(program)
    return program


def _constants(signature: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for spec in signature["input_specs"]:
        if "constant_input" in spec:
            yield spec["constant_input"]["value"]
        if "user_input" in spec:
            yield spec["user_input"]["arg"]


def _check(value: Any) -> None:
    """Check every part of a JSON value whose key says that torch makes more of it than data."""
    if isinstance(value, list):
        for part in value:
            _check(part)
    if not isinstance(value, dict):
        return
    for key, part in value.items():
        if key == "metadata":
            value[key] = _described(part)
        elif check := _CHECKS.get(key):
            check(part)
        # The keys of these are names, one of which may well be "target".
        _check(list(part.values()) if key in _MAPS else part)


def _described(metadata: Any) -> dict[str, str]:
    """Where a node comes from: of its metadata the part that is shown to people, and not looked up in torch."""
    kept = ("nn_module_stack", "stack_trace")
    return {key: text for key, text in metadata.items() if key in kept and isinstance(text, str)}


def _check_target(target: Any) -> None:
    if not isinstance(target, str) or not _allowed(target):
        raise _Refused(f"the operator {_shown(target)}, which is none of PyTorch's own on tensors")


def _allowed(target: str) -> bool:
    import torch

    module, _, name = target.rpartition(".")
    known = {"_operator": _OPERATOR, "math": _MATH, "torch": _SYM, "torch.ops.higher_order": _HIGHER_ORDER}
    if module in known:
        return name in known[module]
    match = re.fullmatch(r"torch\.ops\.(aten|prims)\.(\w+)\.(\w+)", target, re.ASCII)
    if match is None or _REACHING.fullmatch(match[2]):
        return False
    overload = "" if match[3] == "default" else f".{match[3]}"
    # Asked from the dispatcher: attributes of torch.ops are more than operators.
    return bool(torch._C._dispatch_has_kernel(f"{match[1]}::{match[2]}{overload}"))


def _check_expression(text: Any) -> None:
    if not isinstance(text, str) or not text.isascii() or len(text) > _LONGEST:
        raise _Refused("a size that is no expression of sensible length")
    try:
        _check_node(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise _Refused(f"the size {_shown(text)}, which is no expression of sizes") from error


def _check_node(node: ast.AST) -> None:
    """Arithmetic, comparisons, and the functions that torch writes sizes with; ValueError for anything else."""
    match node:
        case ast.Constant(value=int(number)):
            if abs(number) >= 2**63:
                raise ValueError
        case ast.Constant(value=float()):
            pass
        case ast.Name(id=name):
            if name not in _VALUES and not _SYMBOL.fullmatch(name):
                raise ValueError
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() | ast.Not() | ast.Invert(), operand=operand):
            _check_node(operand)
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _ARITHMETIC):
            if isinstance(op, ast.Pow):
                _check_power(left, right)
            _check_nodes(left, right)
        case ast.BoolOp(values=values):
            _check_nodes(*values)
        case ast.Compare(left=left, comparators=others):
            _check_nodes(left, *others)
        case ast.Call(func=ast.Name(id=name)):
            _check_call(name, node)
        case _:
            raise ValueError


def _check_call(name: str, node: ast.Call) -> None:
    match node.args:
        case [ast.Constant(value=str(text))] if name == "Symbol" and _SYMBOL.fullmatch(text):
            _check_keywords(node, _ASSUMPTIONS)
        case [ast.Constant(value=str(text))] if name == "Float":
            float(text)
            _check_keywords(node, {"precision", "dps"})
        case args if name in _FUNCTIONS and not node.keywords:
            if name in _POWERS:
                _check_power(*args)
            _check_nodes(*args)
        case _:
            raise ValueError


def _check_nodes(*nodes: ast.AST) -> None:
    for node in nodes:
        _check_node(node)


def _check_power(base: ast.AST, exponent: ast.AST) -> None:
    """A power of numbers is worked out at once, so that has to be a small one, and no power of a power."""
    parts = [*ast.walk(base), *ast.walk(exponent)]
    if any(isinstance(part, ast.Pow) or (isinstance(part, ast.Name) and part.id in _POWERS) for part in parts):
        raise ValueError
    for part in ast.walk(exponent):
        if isinstance(part, ast.BinOp) or (isinstance(part, ast.Constant) and not _is_small(part.value)):
            raise ValueError
        if isinstance(part, ast.Call) and getattr(part.func, "id", "") not in ("Integer", "Rational", "Symbol"):
            raise ValueError


def _is_small(value: Any) -> bool:
    # The strings are names of symbols, which are checked on their own.
    return isinstance(value, str) or (isinstance(value, int | float) and abs(value) <= _LARGEST_POWER)


def _check_keywords(node: ast.Call, names: set[str]) -> None:
    for keyword in node.keywords:
        if keyword.arg not in names or not isinstance(keyword.value, ast.Constant):
            raise ValueError
        if not isinstance(keyword.value.value, int) or abs(keyword.value.value) > 1000:
            raise ValueError


def _check_name(name: Any) -> None:
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise _Refused(f"the name {_shown(name)}")


def _check_path(name: Any) -> None:
    if not (isinstance(name, str) and _PATH.fullmatch(name)):
        raise _Refused(f"the name {_shown(name)}")


def _check_paths(names: Any) -> None:
    for name in names:
        _check_path(name)


def _check_names(names: Any) -> None:
    for name in names or ():
        _check_name(name)


def _check_containers(text: Any) -> None:
    """How arguments and results are nested: in plain containers, by plain keys."""
    version, tree = json.loads(text)
    if version != 1:
        raise _Refused(f"containers of version {_shown(version)}")
    _check_container(tree)


def _check_container(tree: Mapping[str, Any]) -> None:
    kind, context = tree["type"], tree["context"]
    if kind is None and context is None:
        return
    if kind not in _CONTAINERS:
        raise _Refused(f"a {_shown(kind)} among its arguments or results")
    keys = json.loads(context) or []
    if not isinstance(keys, list) or not all(isinstance(key, str) and _KEY.fullmatch(key) for key in keys):
        raise _Refused(f"the keys {_shown(keys)}")
    for child in tree["children_spec"]:
        _check_container(child)


def _check_whole(value: Any) -> None:
    """Numbers that a graph returns become source text too, and torch does not ask whether they are some."""
    if isinstance(value, list):
        for part in value:
            _check_whole(part)
    elif value is not None and not isinstance(value, int):
        raise _Refused(f"{_shown(value)} where a whole number belongs")


def _check_absent(value: Any) -> None:
    if value:
        raise _Refused("an object that is no tensor")


_MAPS = ("tensor_values", "sym_int_values", "sym_bool_values", "sym_float_values", "as_string_to_argument", "config")
_CHECKS: dict[str, Callable[[Any], None]] = {
    "target": _check_target,
    "as_operator": _check_target,
    "expr_str": _check_expression,
    # Names become Python source, that of the module's forward.
    **dict.fromkeys(("name", "as_name"), _check_name),
    **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name", "user_input_name"), _check_path),
    **dict.fromkeys(_MAPS, _check_names),
    "config": _check_paths,
    **dict.fromkeys(("as_int", "as_ints", "as_int_lists", "as_bool", "as_bools", "as_none"), _check_whole),
    **dict.fromkeys(("min_val", "max_val", "index"), _check_whole),
    "forward_arg_names": _check_names,
    **dict.fromkeys(("in_spec", "out_spec"), _check_containers),
    **dict.fromkeys(("as_custom_obj", "custom_obj", "custom_obj_values", "token"), _check_absent),
}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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
