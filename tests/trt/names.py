"""Which of TensorRT's names a module of ours uses: read from its source, with TensorRT's own signatures for the types.

An expression's type is followed from ``import tensorrt`` (or ``library.load()``) on: through calls, attributes,
annotations, assignments, loops and our own functions that say what they return. Where the trail is lost, a second rule
holds: an attribute whose name is one of TensorRT's counts as TensorRT's.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: The module itself, as a type; an instance of a class is the class's name, the class itself is ``type[NAME]``.
MODULE = "module"
#: What every enum's members have.
ENUM = frozenset({"name", "value", "__members__"})


def exists(api: Mapping[str, Any], name: str) -> bool:
    """Whether a version has ``Builder``, ``BuilderFlag.TF32``, ``Dims.MAX_DIMS`` or ``ILogger.Severity.ERROR``."""
    classes = api["classes"]
    if name in classes or name in api["functions"] or name in api["constants"] or name == "__version__":
        return True
    owner, _, member = name.rpartition(".")
    if owner not in classes:
        return False
    about = classes[owner]
    groups = ("enum", "methods", "readonly", "writable", "constants")
    if any(member in about.get(group, ()) for group in groups) or ("enum" in about and member in ENUM):
        return True
    return any(exists(api, f"{base}.{member}") for base in about.get("bases", ()))


def vocabulary(apis: Iterable[Mapping[str, Any]]) -> frozenset[str]:
    """Members' names that not every version has, in whichever class."""
    each = [
        {
            member
            for about in api["classes"].values()
            for group in ("enum", "methods", "readonly", "writable")
            for member in about.get(group, ())
        }
        for api in apis
    ]
    return frozenset(set.union(*each) - set.intersection(*each))


@dataclass(frozen=True)
class Use:
    """A name, where it is used, and whether the code asked for the version first (``library.member`` and ``has``)."""

    name: str
    line: int
    asked: bool = False


@dataclass
class Types:
    """What the trail needs to know of TensorRT: signatures of all versions together."""

    apis: tuple[Mapping[str, Any], ...]

    def about(self, owner: str, member: str) -> Iterator[tuple[str, Any]]:
        """Groups and contents that versions have for a member, base classes' too."""
        for api in self.apis:
            about = api["classes"].get(owner, {})
            for group in ("enum", "methods", "readonly", "writable", "constants"):
                if member in about.get(group, ()):
                    yield group, about[group][member]
            for base in about.get("bases", ()):
                yield from self.about(base, member)

    def known(self, name: str) -> bool:
        return any(name in api["classes"] for api in self.apis)

    def member(self, owner: str, member: str) -> str | None:
        """The type of ``owner.member``."""
        if self.known(f"{owner}.{member}"):
            return f"type[{owner}.{member}]"
        for group, found in self.about(owner, member):
            if group == "enum":
                return owner
            if group == "methods":
                return f"method[{owner}.{member}]"
            if group == "constants":
                return str(found).rpartition(".")[0]
            return self.written(found)
        return None

    def result(self, owner: str, member: str) -> str | None:
        """The type that a method returns."""
        for group, found in self.about(owner, member):
            if group == "methods":
                return self.written(found[0].rpartition(" -> ")[2])
        return None

    def written(self, text: str) -> str | None:
        """A type as the signatures write it: a class of TensorRT's, or a list of one."""
        inner = text.removeprefix("list[").removesuffix("]") if text.startswith("list[") else text
        return text if self.known(inner) else None

    def top(self, name: str) -> str | None:
        """The type of ``tensorrt.name``."""
        if self.known(name):
            return f"type[{name}]"
        for api in self.apis:
            if name in api["constants"]:
                return str(api["constants"][name]).rpartition(".")[0]
        return None


def inside(kind: str | None, what: str) -> str | None:
    """``Builder`` of ``type[Builder]``."""
    return kind[len(what) + 1 : -1] if kind is not None and kind.startswith(what + "[") else None


@dataclass
class Reader(ast.NodeVisitor):
    """Reads one module. ``returns`` holds what our own functions return, by name; it is filled by a first reading."""

    types: Types
    words: frozenset[str]
    returns: dict[str, str] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    lost: list[Use] = field(default_factory=list)
    scopes: list[dict[str, str]] = field(default_factory=lambda: [{}])
    selves: list[dict[str, str]] = field(default_factory=lambda: [{}])
    functions: list[str] = field(default_factory=list)
    #: What a class of ours that TensorRT calls does not define.
    undefined: list[Use] = field(default_factory=list)
    #: Functions, parameters and attributes of our own.
    own: set[str] = field(default_factory=set)

    # -- types ---------------------------------------------------------------------------------------------------

    def of(self, node: ast.expr | None) -> str | None:
        """The type of an expression, where it is one of TensorRT's."""
        match node:
            case ast.Name():
                return next((scope[node.id] for scope in reversed(self.scopes) if node.id in scope), None)
            case ast.Attribute():
                return self.attribute(node)
            case ast.Call():
                return self.call(node)
            case ast.Subscript():
                kind = self.of(node.value)
                return inside(kind, "list") or (kind and self.types.result(kind, "__getitem__"))
            case ast.IfExp():
                return self.of(node.body) or self.of(node.orelse)
            case ast.NamedExpr():
                return self.of(node.value)
            case ast.ListComp() | ast.GeneratorExp():
                for generator in node.generators:
                    self.bind(generator.target, inside(self.of(generator.iter), "list"))
                kind = self.of(node.elt)
                return kind and f"list[{kind}]"
        return None

    def attribute(self, node: ast.Attribute) -> str | None:
        kind = self.of(node.value)
        if kind == MODULE:
            return self.types.top(node.attr)
        if (owner := inside(kind, "type") or kind) is not None and "[" not in owner:
            return self.types.member(owner, node.attr)
        if isinstance(node.value, ast.Name) and node.value.id == "self" and node.attr in self.selves[-1]:
            return self.selves[-1][node.attr]
        return MODULE if node.attr == "trt" else None

    def call(self, node: ast.Call) -> str | None:
        function = node.func
        if isinstance(function, ast.Attribute) and ast.unparse(function) == "library.load":
            return MODULE
        if (name := told(node)) is not None and ast.unparse(function).rpartition(".")[2] == "member":
            owner, _, member = name.rpartition(".")
            return self.types.member(owner, member) if owner else self.types.top(name)
        kind = self.of(function)
        if (made := inside(kind, "type")) is not None:
            return made
        if (method := inside(kind, "method")) is not None:
            return self.types.result(*method.rsplit(".", 1))
        return self.returns.get(ast.unparse(function).rpartition(".")[2])

    def annotated(self, node: ast.expr | None) -> str | None:
        """An annotation's type: ``trt.Builder``, ``trt.Builder | None``, ``list[trt.Builder]``, ``ModuleType``."""
        if node is None:
            return None
        for each in ast.walk(node):
            if isinstance(each, ast.Name) and each.id == "ModuleType":
                return MODULE
            if isinstance(each, ast.Attribute) and (kind := inside(self.of(each), "type")) is not None:
                return f"list[{kind}]" if isinstance(node, ast.Subscript) else kind
        return None

    def bind(self, target: ast.expr, kind: str | None) -> None:
        """Remember a name's type; where it gets another, that one is forgotten."""
        match target:
            case ast.Name():
                self.scopes[-1].pop(target.id, None)
                if kind is not None:
                    self.scopes[-1][target.id] = kind
            case ast.Attribute(value=ast.Name(id="self")) if kind is not None:
                self.selves[-1][target.attr] = kind

    # -- statements ----------------------------------------------------------------------------------------------

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name == "tensorrt":
                self.scopes[-1][alias.asname or alias.name] = MODULE

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module == "tensorrt":
            for alias in node.names:
                self.uses.append(Use(alias.name, node.lineno))

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.selves.append({})
        defined = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
        for base in node.bases:
            self.visit(base)
            if (owner := inside(self.of(base), "type")) is not None:
                callbacks = [each["classes"].get(owner, {}).get("methods", {}) for each in self.types.apis]
                wanted = {name for each in callbacks for name in each if not name.startswith("__")}
                self.undefined += [Use(f"{owner}.{name}", node.lineno) for name in sorted(wanted - defined)]
        # Twice: a method may use what one further down has assigned.
        for _ in range(2):
            for statement in node.body:
                self.visit(statement)
        self.selves.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.own.add(node.name)
        self.functions.append(node.name)
        self.scopes.append({})
        arguments = node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if (kind := self.annotated(argument.annotation)) is not None:
                self.scopes[-1][argument.arg] = kind
        if (kind := self.annotated(node.returns)) is not None:
            self.returns[node.name] = kind
        self.generic_visit(node)
        self.scopes.pop()
        self.functions.pop()

    def visit_Return(self, node: ast.Return) -> None:
        self.generic_visit(node)
        if self.functions and (kind := self.of(node.value)) is not None:
            self.returns[self.functions[-1]] = kind

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self.visit(target)
            pairs: list[tuple[ast.expr, ast.expr]] = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            elif isinstance(target, ast.Tuple):
                for each in target.elts:
                    self.bind(each, inside(self.of(node.value), "list"))
                continue
            for one, value in pairs:
                self.bind(one, self.of(value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            self.own.add(node.target.id)
        # ``config: Any = …`` stays what it was: the annotation is for mypy alone.
        self.bind(node.target, self.of(node.value) or self.annotated(node.annotation))

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.generic_visit(node)
        self.bind(node.target, self.of(node.value))

    def visit_For(self, node: ast.For) -> None:
        self.visit(node.iter)
        self.bind(node.target, inside(self.of(node.iter), "list"))
        self.generic_visit(node)

    # -- uses ----------------------------------------------------------------------------------------------------

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        kind = self.of(node.value)
        if kind == MODULE:
            self.uses.append(Use(node.attr, node.lineno))
        elif (owner := inside(kind, "type") or kind) is not None and "[" not in owner:
            self.uses.append(Use(f"{owner}.{node.attr}", node.lineno))
        elif kind is None and node.attr in self.words:
            self.lost.append(Use(node.attr, node.lineno))

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function = ast.unparse(node.func).rpartition(".")[2]
        if function in {"member", "has"} and (name := told(node)) is not None:
            self.uses.append(Use(name, node.lineno, asked=True))

    def visit_Constant(self, node: ast.Constant) -> None:
        """``"BuilderFlag.FP16"`` anywhere: it is on its way to ``member`` or ``has``."""
        owner, _, member = node.value.partition(".") if isinstance(node.value, str) else ("", "", "")
        if member.isidentifier() and self.types.known(owner):
            self.uses.append(Use(f"{owner}.{member}", node.lineno, asked=True))


def told(node: ast.Call) -> str | None:
    """The name given to ``member`` or ``has``; None where it is not written there."""
    last = node.args[-1] if node.args else None
    return last.value if isinstance(last, ast.Constant) and isinstance(last.value, str) else None


def read(sources: Mapping[str, str], apis: Iterable[Mapping[str, Any]]) -> dict[str, Reader]:
    """What each module uses. Read twice: the first time for what our functions return."""
    types = Types(tuple(apis))
    words = vocabulary(types.apis)
    returns: dict[str, str] = {}
    readers: dict[str, Reader] = {}
    for _ in range(2):
        for name, source in sources.items():
            readers[name] = Reader(types, words, returns)
            readers[name].visit(ast.parse(source))
    return readers
