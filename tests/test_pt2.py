"""Files of torch.export: read back as they were saved, and refused unread where they hold more than a model."""

from __future__ import annotations

import json
import logging
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from deploykit import _pt2_checks, pt2
from deploykit.errors import ModelError
from deploykit.types import DimRange

Change = Callable[[Any], Any]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = nn.GRU(4, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, last = self.rnn(x, state)
        return self.head(y), last


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.conv(x.transpose(1, 2)).transpose(1, 2).relu())
        # Arithmetic on sizes, so that the file holds expressions of them.
        return torch.cat([y, y], 1).reshape(-1, 2 * y.shape[1], 2).softmax(-1) * mask.sum().float()


class Nested(nn.Module):
    """Takes a keyword, a dict and a list, has names that the format uses itself, and a branch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 4)
        self.register_buffer("target", torch.tensor([2.0]))

    def forward(self, target: torch.Tensor, other: Any, *, name: torch.Tensor) -> dict[str, Any]:
        x = self.embedding(target) + other["a"][0]
        y = torch.cond(name.sum() > 3, lambda z: z * 2.0, lambda z: z - 1.0, (x,))
        masked = y.masked_fill(target.unsqueeze(-1) == 0, float("-inf"))
        return {"out": masked, "rest": [x * self.target, target.shape[0]]}


def save(
    path: Path, module: nn.Module, args: tuple[Any, ...], dynamic: Any, **kwargs: Any
) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=dynamic)
        torch.export.save(program, path)
    return program


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with gru.pt2, conv.pt2 and nested.pt2."""
    folder = tmp_path_factory.mktemp("pt2")
    batch, time = Dim("batch", min=1, max=64), Dim("time", min=2, max=512)
    gru = (torch.randn(3, 7, 4), torch.randn(1, 3, 5))
    save(folder / "gru.pt2", Recurrent(), gru, ({0: batch}, {1: batch}))
    conv = (torch.randn(3, 7, 4), torch.ones(3, 7, dtype=torch.bool))
    save(folder / "conv.pt2", Convolutional(), conv, ({0: batch, 1: time}, {0: batch, 1: time}))
    shapes = {"target": {0: batch}, "other": {"a": [{0: batch}]}, "name": {0: Dim("words", min=1)}}
    nested = (torch.zeros(3, 7, dtype=torch.int64), {"a": [torch.randn(3, 7, 4)]})
    save(folder / "nested.pt2", Nested(), nested, shapes, name=torch.tensor([7, 2, 3, 1]))
    return folder


def test_a_gru_is_read_as_it_was_saved(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = pt2.read(files / "gru.pt2")
    assert capfd.readouterr() == ("", "")
    assert [str(tensor) for tensor in pt2.describe(program)] == ["x:float32[batch,7,4]", "state:float32[1,batch,5]"]
    assert pt2.dims(program) == {"batch": DimRange(1, 64)}
    assert pt2.calling(program) is None
    x, state = torch.randn(5, 7, 4), torch.randn(1, 5, 5)
    for found, expected in zip(pt2.module(program)(x, state), Recurrent()(x, state), strict=True):
        torch.testing.assert_close(found, expected)
    assert program.state_dict.keys() == Recurrent().state_dict().keys()


def test_modes_are_kept_within_other_modules(files: Path) -> None:
    module = pt2.module(pt2.read(files / "conv.pt2"))
    assert module.eval() is module.train() is module
    nn.ModuleList([module]).eval()


def test_two_dynamic_dims_and_expressions_of_them(files: Path) -> None:
    program = pt2.read(files / "conv.pt2")
    assert [str(tensor) for tensor in pt2.describe(program)] == ["x:float32[batch,time,4]", "mask:bool[batch,time]"]
    assert pt2.dims(program) == {"batch": DimRange(1, 64), "time": DimRange(2, 512)}
    x, mask = torch.randn(2, 11, 4), torch.ones(2, 11, dtype=torch.bool)
    torch.testing.assert_close(pt2.module(program)(x, mask), Convolutional()(x, mask))


def test_nested_arguments_are_called_with_tensors_in_order(files: Path) -> None:
    program = pt2.read(files / "nested.pt2")
    inputs = pt2.describe(program)
    assert [str(tensor) for tensor in inputs] == [
        *("target:int64[batch,7]", "other_a_0:float32[batch,7,4]", "name:int64[dim_2]")
    ]
    assert pt2.dims(program)["dim_2"].high == DimRange().high
    call = pt2.calling(program)
    assert call is not None
    target, other, name = torch.randint(0, 9, (5, 7)), torch.randn(5, 7, 4), torch.tensor([1, 3])
    found = call(pt2.module(program), (target, other, name))
    expected = Nested()(target, {"a": [other]}, name=name)
    torch.testing.assert_close(found, expected)


def test_inputs_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, factor: Any) -> torch.Tensor:
            return x * 2 if factor is None else x * factor

    for value, kind in ((None, "NoneType"), (2.5, "float")):
        save(tmp_path / "m.pt2", Scaled(), (torch.ones(2), value), None)
        program = pt2.read(tmp_path / "m.pt2")
        with pytest.raises(ModelError, match=f"^input 2 of the program is no tensor but a {kind}"):
            pt2.describe(program)


def test_dims_that_others_decide_and_other_dtypes_are_refused(tmp_path: Path) -> None:
    class Pairs(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x.repeat(2) + y

    size = Dim("size", min=2, max=64)
    save(tmp_path / "m.pt2", Pairs(), (torch.ones(4), torch.ones(8)), ({0: size}, {0: 2 * size}))
    program = pt2.read(tmp_path / "m.pt2")
    with pytest.raises(ModelError, match=r"the input y has a dim of 2\*s\d+, which other dims decide"):
        pt2.describe(program)
    save(tmp_path / "m.pt2", nn.ReLU(), (torch.ones(2, dtype=torch.bfloat16),), None)
    program = pt2.read(tmp_path / "m.pt2")
    with pytest.raises(ModelError, match="is bfloat16: export it with one of float32"):
        pt2.describe(program)


# Files that are something else.


def test_what_is_no_program_is_said_so(tmp_path: Path, files: Path) -> None:
    path = tmp_path / "m.pt2"
    with pytest.raises(ModelError, match=r"no \.pt2 file at"):
        pt2.read(path)
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ModelError, match=r"a zip file of something else than torch\.export"):
        pt2.read(path)
    path.write_bytes(pickle.dumps({"weight": 3}))
    with pytest.raises(ModelError, match=r"is damaged, or no file of torch\.export"):
        pt2.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(ModelError, match=r"a zip file of something else than torch\.export"):
        pt2.read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.7")
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", pickle.dumps(Runs(tmp_path / "ran")))
    with pytest.raises(ModelError, match=r"written by torch 2\.8 or older: save it again"):
        pt2.read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_truncated_files_are_damaged(tmp_path: Path, files: Path, part: float) -> None:
    content = (files / "gru.pt2").read_bytes()
    (tmp_path / "m.pt2").write_bytes(content[: int(len(content) * part)])
    with pytest.raises(ModelError, match="is damaged"):
        pt2.read(tmp_path / "m.pt2")


# Files that are dangerous.


class Runs:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def saved(value: Any, folder: Path) -> bytes:
    torch.save(value, folder / "value")
    return (folder / "value").read_bytes()


def rewrite(source: Path, target: Path, changes: dict[str, Change], added: dict[str, bytes] | None = None) -> None:
    """A copy of an archive with parts changed: JSON by functions of what it holds, others by functions of bytes."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            name, content = info.filename.partition("/")[2], old.read(info)
            if change := changes.get(name):
                if name.endswith(".json"):
                    value = json.loads(content)
                    content = json.dumps(change(value) or value).encode()
                else:
                    content = change(content)
            new.writestr(f"m/{name}", content)
        for name, content in (added or {}).items():
            new.writestr(f"m/{name}", content)


@pytest.fixture
def refused(tmp_path: Path, files: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Asks for a changed copy of a file to be refused, with nothing run or printed; what was said."""

    def refuse(changes: dict[str, Change], source: str = "conv", added: dict[str, bytes] | None = None) -> str:
        path = tmp_path / "m.pt2"
        rewrite(files / f"{source}.pt2", path, changes, added)
        with pytest.raises(ModelError) as caught:
            pt2.read(path)
        assert not (tmp_path / "ran").exists()
        assert capfd.readouterr() == ("", "")
        assert str(caught.value).startswith(f"{path} is refused, and nothing of it was run: it holds ")
        return str(caught.value)

    return refuse


MODEL = "models/model.json"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
SAMPLE = "data/sample_inputs/model.pt"


def test_rewriting_alone_changes_nothing(tmp_path: Path, files: Path) -> None:
    for name in ("gru", "conv", "nested"):
        rewrite(files / f"{name}.pt2", tmp_path / "m.pt2", {MODEL: lambda model: None})
        assert pt2.describe(pt2.read(tmp_path / "m.pt2")) == pt2.describe(pt2.read(files / f"{name}.pt2"))


def test_a_pickled_weight(refused: Callable[..., str], tmp_path: Path) -> None:
    def change(config: Any) -> None:
        config["config"]["head.bias"]["use_pickle"] = True

    content = saved(Runs(tmp_path / "ran"), tmp_path)
    assert "'head.bias' as a pickle" in refused({WEIGHTS: change, "data/weights/weight_3": lambda _: content})


@pytest.mark.parametrize("prefix", ["opaque_obj_", "custom_obj_", "tensor_"])
def test_a_pickled_constant(refused: Callable[..., str], tmp_path: Path, prefix: str) -> None:
    entry = {"path_name": f"{prefix}0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    content = pickle.dumps(Runs(tmp_path / "ran"))
    change: Change = lambda config: {"config": {"thing": entry}}  # noqa: E731
    assert "'thing' as a pickle" in refused({CONSTANTS: change}, added={f"data/constants/{prefix}0": content})
    entry["use_pickle"] = False
    assert "'thing' as an object" in refused({CONSTANTS: change}, added={f"data/constants/{prefix}0": content})


def test_sample_inputs_of_a_class(refused: Callable[..., str], tmp_path: Path) -> None:
    content = saved(((Runs(tmp_path / "ran"),), {}), tmp_path)
    assert "sample inputs that are more than plain tensors" in refused({SAMPLE: lambda _: content})


def test_compiled_code(refused: Callable[..., str]) -> None:
    assert "compiled code" in refused({}, added={"data/aotinductor/model/m.so": b"\x7fELF"})


def test_two_parts_of_one_name(refused: Callable[..., str]) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        assert "two parts of one name" in refused({}, added={MODEL: b"{}"})


@pytest.mark.parametrize(
    "target",
    [
        *("torch.os.system", "torch.hub.load", "torch.load", "torch.ops.load_library", "torch.serialization.load"),
        *("torch.ops.aten.from_file.default", "torch.ops.aten.save.default", "torch.ops.aten.__class__.mro"),
        *("torch.ops.aten.add.default.__class__", "torch.ops.aten.add.Tensor.op", "torch.ops.aten._print.default"),
        *(
            "torch.ops.mine.thing.default",
            "torch.ops.higher_order.inductor_compiled_code",
            "torch.ops._test.leaky_relu",
        ),
        *("_operator.methodcaller", "_operator.attrgetter", "_operator.call", "math.__loader__.load_module"),
        *("#mine:thing", "os.system", "builtins.eval", "", None, ["torch.os.system"], {"a": "b"}),
    ],
)
def test_operators_that_are_none(refused: Callable[..., str], target: Any, tmp_path: Path) -> None:
    def change(model: Any) -> None:
        node = model["graph_module"]["graph"]["nodes"][0]
        node["target"] = target
        node["inputs"] = [{"name": "a", "arg": {"as_string": f"touch {tmp_path}/ran"}, "kind": 1}]

    assert "the operator" in refused({MODEL: change})

    def argument(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][0]["inputs"][0]["arg"] = {"as_operator": target}

    assert "the operator" in refused({MODEL: argument})


def test_operators_of_branches(refused: Callable[..., str]) -> None:
    def change(model: Any) -> None:
        nodes = model["graph_module"]["graph"]["nodes"]
        cond = next(node for node in nodes if node["target"].endswith(".cond"))
        branch = next(one["arg"]["as_graph"] for one in cond["inputs"] if "as_graph" in one["arg"])
        branch["graph"]["nodes"][0]["target"] = "torch.os.system"

    assert "the operator 'torch.os.system'" in refused({MODEL: change}, "nested")


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch MARK')",
        "(lambda: 0)()",
        "Symbol(__import__('os').system('touch MARK'))",
        "Symbol('s0', positive=__import__('os'))",
        "Symbol('x.__class__')",
        "Symbol('s0').__class__",
        "s0.__class__",
        "open('MARK', 'w')",
        "sympify('s0')",
        "Function('f')",
        "Max.__mro__",
        "[s0][0]",
        "s0 if s0 else s0",
        "Max(*s0)",
        "Max(s0, key=s0)",
        "'s0'",
        "f'{s0}'",
        "s0 := 3",
        "s0; s0",
        "9**9**9**9",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "Pow(Pow(Integer(9), Integer(60)), Integer(60))",
        "2**(64*64*64*64)",
        "2^99999999999",
        "s0!",
        "eval",
        "Integer('5')",
        "9" * 40,
        "+".join(["s0"] * 2000),
        "(" * 1500,
        "",
        "ｓ0",
        3,
        None,
    ],
)
@pytest.mark.parametrize("place", ["sizes", "weights"])
def test_expressions_that_are_more(refused: Callable[..., str], text: Any, tmp_path: Path, place: str) -> None:
    if isinstance(text, str):
        text = text.replace("MARK", str(tmp_path / "ran"))

    def sizes(model: Any) -> None:
        model["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = text

    def weights(config: Any) -> None:
        config["config"]["head.bias"]["tensor_meta"]["sizes"][0] = {"as_expr": {"expr_str": text}}

    assert " size" in refused({MODEL: sizes} if place == "sizes" else {WEIGHTS: weights})


@pytest.mark.parametrize(
    "text",
    [
        "s0 + 1",
        "2*s0 - s77//4",
        "Max(1, FloorDiv(s0 + 3, 2))",
        "Add(Integer(1), Mul(Integer(2), Symbol('s0', positive=True, integer=True)))",
        "Pow(Symbol('u3', integer=True), Integer(-1))",
        "s0**2 + 2.5",
        "And(s0 < 5, Ne(Mod(s0, 2), 0), Not(s0 >= 1)) | Eq(u0, 3) & ~true",
        "Float('0.5', precision=53)",
        "TruncToInt(FloatTrueDiv(ToFloat(s0), 2.0))",
        "Min(int_oo, -oo)",
        "Rational(1, 2)",
    ],
)
def test_expressions_of_sizes_pass(text: str) -> None:
    _pt2_checks._check_expression(text)


CODE = "x):\n    import os\n    os.system('touch MARK')\n#"


@pytest.mark.parametrize("name", [CODE, "a b", "a\n", "x=exec('1')", "x'", 3, {"a": 1}])
def test_names_that_are_source_text(refused: Callable[..., str], name: Any, tmp_path: Path) -> None:
    def placeholder(model: Any) -> Any:
        return json.loads(json.dumps(model).replace('"mask"', json.dumps(name) if isinstance(name, str) else '"a-b"'))

    def argument(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][0]["inputs"][0]["name"] = name

    def arguments(model: Any) -> None:
        model["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [name]

    def parameter(model: Any) -> None:
        spec = next(spec for spec in model["graph_module"]["signature"]["input_specs"] if "parameter" in spec)
        spec["parameter"]["parameter_name"] = 'a", exec("1"), "'

    for change in (placeholder, argument, arguments, parameter):
        assert "the name" in refused({MODEL: change})


def test_weights_with_names_that_are_source_text(refused: Callable[..., str]) -> None:
    change: Change = lambda config: {"config": {'a", exec("1"), "': config["config"]["head.bias"]}}  # noqa: E731
    assert "the name" in refused({WEIGHTS: change})


@pytest.mark.parametrize("kind", ["as_int", "as_bool", "as_none"])
def test_numbers_that_are_source_text(refused: Callable[..., str], kind: str) -> None:
    def change(model: Any) -> None:
        model["graph_module"]["graph"]["outputs"].append({kind: "__import__('os').getcwd()"})

    assert "where a whole number belongs" in refused({MODEL: change})


@pytest.mark.parametrize(
    "tree",
    [
        {
            "type": "builtins.dict",
            "context": '[{"__enum__": true, "fqn": "antigravity:X", "name": "Y"}]',
            "children_spec": [],
        },
        {"type": "collections.namedtuple", "context": '"a.b"', "children_spec": []},
        {"type": "builtins.dict", "context": json.dumps(["a': exec('1'), 'b"]), "children_spec": []},
        {"type": "os.system", "context": "null", "children_spec": []},
    ],
)
def test_containers_that_are_more(refused: Callable[..., str], tree: Any) -> None:
    def change(model: Any) -> None:
        signature = model["graph_module"]["module_call_graph"][0]["signature"]
        signature["out_spec"] = json.dumps([1, {"type": "builtins.list", "context": "null", "children_spec": [tree]}])

    assert "among its arguments" in (said := refused({MODEL: change})) or "the keys" in said


def test_objects_among_the_inputs(refused: Callable[..., str]) -> None:
    def change(model: Any) -> None:
        spec = {"arg": {"name": "thing", "class_fqn": "a.b"}, "custom_obj_name": "thing"}
        model["graph_module"]["signature"]["input_specs"].append({"custom_obj": spec})

    assert "an object that is no tensor" in refused({MODEL: change})


def test_source_text_of_guards_is_left_out(tmp_path: Path, files: Path) -> None:
    def change(model: Any) -> None:
        assert model["guards_code"]
        model["guards_code"] = [f"__import__('os').system('touch {tmp_path}/ran') == 0"]
        model["graph_module"]["graph"]["nodes"][0]["metadata"]["source_fn_stack"] = "a,torch.os.system"

    rewrite(files / "conv.pt2", tmp_path / "m.pt2", {MODEL: change})
    program = pt2.read(tmp_path / "m.pt2")
    pt2.module(program)(torch.ones(2, 5, 4), torch.ones(2, 5, dtype=torch.bool))
    assert not (tmp_path / "ran").exists()
    assert all("source_fn_stack" not in node.meta for node in program.graph.nodes)


@pytest.mark.parametrize(("part", "value"), [("archive_version", b"99"), ("schema", 99)])
def test_other_versions(tmp_path: Path, files: Path, part: str, value: Any) -> None:
    def schema(model: Any) -> None:
        model["schema_version"]["major"] = value

    rewrite(files / "gru.pt2", tmp_path / "m.pt2", {MODEL: schema} if part == "schema" else {part: lambda _: value})
    with pytest.raises(ModelError, match=r"is of version .*99.* this torch reads .*: save it again"):
        pt2.read(tmp_path / "m.pt2")


def test_what_torch_itself_cannot_read_is_one_sentence(
    tmp_path: Path, files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def change(model: Any) -> None:
        model["graph_module"]["graph"]["nodes"][1]["inputs"][0]["arg"]["as_tensor"]["name"] = "nowhere"

    rewrite(files / "conv.pt2", tmp_path / "m.pt2", {MODEL: change})
    with pytest.raises(ModelError, match="cannot be read by this version of torch"):
        pt2.read(tmp_path / "m.pt2")
    assert capfd.readouterr() == ("", "")


def test_torch_is_as_before_and_could_not_unpickle_meanwhile(tmp_path: Path) -> None:
    before = torch.load, torch._C._pickle_load_obj, logging.getLogger("torch.export").disabled
    content = saved(Runs(tmp_path / "ran"), tmp_path)
    with pytest.raises(pickle.UnpicklingError), pt2._guarded():
        torch.load(tmp_path / "value", weights_only=False)
    with pytest.raises(_pt2_checks.Refused), pt2._guarded() as archive:
        archive.pickle.loads(content)
    with pytest.raises(_pt2_checks.Refused), pt2._guarded():
        torch._C._pickle_load_obj(content)
    assert not (tmp_path / "ran").exists()
    assert before == (torch.load, torch._C._pickle_load_obj, logging.getLogger("torch.export").disabled)
