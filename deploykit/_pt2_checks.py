"""Checks of a .pt2 file's JSON: of what torch would look up, evaluate or compile, only what a model needs passes."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|")
# A parameter's path; keys of a ModuleDict may hold a dash.
_PATH = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_KEY = re.compile(r"[A-Za-z0-9_ .-]{1,128}")
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
    *("Abs", "Add", "And", "BooleanFalse", "BooleanTrue", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality"),
    "Float",
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


class Refused(Exception):  # noqa: N818 - what is refused is the answer, not a failure of ours
    """Something in a file that an exported model has no need of; the text says what."""


def checked_program(program: dict[str, Any]) -> dict[str, Any]:
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
            raise Refused(f"the constant input {shown(value['as_string'])}")
    check(program)
    return program


def _constants(signature: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for spec in signature["input_specs"]:
        if "constant_input" in spec:
            yield spec["constant_input"]["value"]
        if "user_input" in spec:
            yield spec["user_input"]["arg"]


def check(value: Any) -> None:
    """Check every part of a JSON value whose key says that torch makes more of it than data."""
    if isinstance(value, list):
        for part in value:
            check(part)
    if not isinstance(value, dict):
        return
    for key, part in value.items():
        if key == "metadata":
            value[key] = _described(part)
        elif examine := _CHECKS.get(key):
            examine(part)
        # The keys of these are names, one of which may well be "target".
        check(list(part.values()) if key in _MAPS else part)


def _described(metadata: Any) -> dict[str, str]:
    """Where a node comes from: of its metadata the part that is shown to people, and not looked up in torch."""
    kept = ("nn_module_stack", "stack_trace")
    return {key: text for key, text in metadata.items() if key in kept and isinstance(text, str)}


def _check_target(target: Any) -> None:
    if not isinstance(target, str) or not _allowed(target):
        raise Refused(f"the operator {shown(target)}, which is none of PyTorch's own on tensors")


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
        raise Refused("a size that is no expression of sensible length")
    try:
        _check_node(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError) as error:
        raise Refused(f"the size {shown(text)}, which is no expression of sizes") from error


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
        raise Refused(f"the name {shown(name)}")


def _check_path(name: Any) -> None:
    if not (isinstance(name, str) and _PATH.fullmatch(name)):
        raise Refused(f"the name {shown(name)}")


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
        raise Refused(f"containers of version {shown(version)}")
    _check_container(tree)


def _check_container(tree: Mapping[str, Any]) -> None:
    kind, context = tree["type"], tree["context"]
    if kind is None and context is None:
        return
    if kind not in _CONTAINERS:
        raise Refused(f"a {shown(kind)} among its arguments or results")
    keys = json.loads(context) or []
    if not isinstance(keys, list) or not all(isinstance(key, str) and _KEY.fullmatch(key) for key in keys):
        raise Refused(f"the keys {shown(keys)}")
    for child in tree["children_spec"]:
        _check_container(child)


def _check_whole(value: Any) -> None:
    """Numbers that a graph returns become source text too, and torch does not ask whether they are some."""
    if isinstance(value, list):
        for part in value:
            _check_whole(part)
    elif value is not None and not isinstance(value, int):
        raise Refused(f"{shown(value)} where a whole number belongs")


def _check_absent(value: Any) -> None:
    if value:
        raise Refused("an object that is no tensor")


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


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
