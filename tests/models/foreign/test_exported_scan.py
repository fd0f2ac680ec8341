"""Hostile `.pt2` programs: each is refused by the scan, before torch reads it, and the canary never appears.

Each entry of the table that is marked "runs" is also given to torch alone, in a folder of its own, to show that torch 2.13
does run it: were that to change, the entry proves less and the mark must go.
"""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from shaketable.core.errors import ModelError, UnsafeFileError
from shaketable.models.foreign import exported_text, load
from shaketable.models.foreign.exported_ops import ATEN, OTHER, allowed
from shaketable.models.foreign.exported_scan import scan_program
from shaketable.models.foreign.pickle_calls import RefusedError

CANARY = "CANARY"
TOUCH = f"__import__('os').system('touch {CANARY}')"
"""Python that makes the canary, for places that are evaluated."""

QUOTELESS = f"__import__(bytes([111, 115]).decode()).system(bytes({list(f'touch {CANARY}'.encode())}).decode())"
BREAKOUT = f'training"), getattr(__import__("os"), "system")("touch {CANARY}"), ("'
"""What breaks out of `getattr(self, "…")` in generated source, without a dot."""

EMPTY_GRAPH = {
    "inputs": [],
    "outputs": [],
    "nodes": [],
    "tensor_values": {},
    "sym_int_values": {},
    "sym_bool_values": {},
}
Entries = dict[str, bytes]
Json = dict[str, Any]


class Touch:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def program(edit: Callable[[Json], None]) -> Callable[[Entries], None]:
    """An edit of the archive that edits the program's document."""
    return _json("models/model.json", edit)


def weights(edit: Callable[[Json], None]) -> Callable[[Entries], None]:
    return _json("data/weights/model_weights_config.json", lambda value: edit(value["config"]))


def constants(edit: Callable[[Json], None]) -> Callable[[Entries], None]:
    return _json("data/constants/model_constants_config.json", lambda value: edit(value["config"]))


def _json(name: str, edit: Callable[[Json], None]) -> Callable[[Entries], None]:
    def change(entries: Entries) -> None:
        value = json.loads(entries[name])
        edit(value)
        entries[name] = json.dumps(value).encode()

    return change


def graph(edit: Callable[[Json], None]) -> Callable[[Entries], None]:
    return program(lambda value: edit(value["graph_module"]["graph"]))


def both(*edits: Callable[[Entries], None]) -> Callable[[Entries], None]:
    def change(entries: Entries) -> None:
        for edit in edits:
            edit(entries)

    return change


def entry(name: str, content: bytes) -> Callable[[Entries], None]:
    return lambda entries: entries.update({name: content})


def expression(text: str) -> Callable[[Entries], None]:
    """Replace every size expression by this text."""

    def change(entries: Entries) -> None:
        old = json.dumps("Symbol('s77', positive=True, integer=True)").encode()
        assert old in entries["models/model.json"]
        entries["models/model.json"] = entries["models/model.json"].replace(old, json.dumps(text).encode())

    return change


def renamed(old: str, new: str) -> Callable[[Entries], None]:
    """Replace a whole JSON text everywhere in the program and its configurations."""

    def change(entries: Entries) -> None:
        for name in [n for n in entries if n.endswith(".json")]:
            entries[name] = entries[name].replace(json.dumps(old).encode(), json.dumps(new).encode())

    return change


def _pickled_weight(config: Json) -> None:
    config["conv.weight"]["use_pickle"] = True


def _opaque(config: Json) -> None:
    config["k"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}


def _custom(config: Json) -> None:
    config["k"] = {"path_name": "custom_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}


def _pickled_constant(config: Json) -> None:
    config["scale"]["use_pickle"] = True


def _treespec(kind: str, context: str) -> Callable[[Entries], None]:
    leaf = {"type": None, "context": None, "children_spec": []}
    spec = json.dumps([1, {"type": kind, "context": context, "children_spec": [leaf]}])
    return program(lambda v: v["graph_module"]["module_call_graph"][0]["signature"].update(out_spec=spec))


FACTORY = json.dumps({"default_factory_module": "evil", "default_factory_name": "x", "dict_context": ["a"]})
ENUM = json.dumps({"__enum__": True, "fqn": "evil:X", "name": "A"})


def _system_node(value: Json) -> None:
    """A node that calls torch.os.system when the program runs."""
    node = json.loads(json.dumps(value["nodes"][0]))
    node["target"] = "torch.os.system"
    node["name"] = "called"
    node["inputs"] = [{"name": "", "arg": {"as_string": f"touch {CANARY}"}, "kind": 1}]
    node["outputs"] = [{"as_none": True}]
    value["nodes"].insert(0, node)


def _string_input(value: Json) -> None:
    value["graph_module"]["graph"]["inputs"].append({"as_string": f"' or {TOUCH} or '"})
    spec = {"constant_input": {"name": "s", "value": {"as_string": f"' or {TOUCH} or '"}}}
    value["graph_module"]["signature"]["input_specs"].append(spec)


def _op(target: str) -> Callable[[Entries], None]:
    return graph(lambda g: g["nodes"][0].update(target=target))


def _argument(argument: Json) -> Callable[[Entries], None]:
    return graph(lambda g: g["nodes"][0]["inputs"].append({"name": "extra", "arg": argument, "kind": 2}))


RUNS: dict[str, tuple[Callable[[Entries], None], str]] = {
    "pickled weights": (
        both(weights(_pickled_weight), entry("data/weights/weight_0", saved(Touch()))),
        "a pickle (use_pickle)",
    ),
    "pickled constants": (
        both(constants(_pickled_constant), entry("data/constants/tensor_0", saved(Touch()))),
        "a pickle (use_pickle)",
    ),
    "an opaque object": (
        both(constants(_opaque), entry("data/constants/opaque_obj_0", pickle.dumps(Touch()))),
        "opaque_obj_0",
    ),
    "sample inputs": (entry("data/sample_inputs/model.pt", saved(((Touch(),), {}))), "system"),
    "legacy sample inputs": (
        entry("data/sample_inputs/model.pt", saved(((Touch(),), {}), _use_new_zipfile_serialization=False)),
        "system",
    ),
    "raw pickle as sample inputs": (entry("data/sample_inputs/model.pt", pickle.dumps(Touch(), 2)), "system"),
    "weights in the older layout": (entry("data/weights/model.pt", saved(Touch())), "data/weights/model.pt"),
    "constants in the older layout": (entry("data/constants/model.pt", saved(Touch())), "data/constants/model.pt"),
    "a size expression": (expression(TOUCH), "more than arithmetic"),
    "a size expression, hidden": (
        expression(f"Add(Integer(2), Symbol({TOUCH}, positive=True))"),
        "more than arithmetic",
    ),
    "an expression through attributes": (
        expression(f"Symbol.__class__.__mro__[-1].__subclasses__() and {TOUCH}"),
        "more than arithmetic",
    ),
    "a guard": (
        program(lambda v: v.update(guards_code=[f"{TOUCH} == 0 or L['x'].size()[0] > 0"])),
        "more than a comparison",
    ),
    "a guard's message": (
        program(lambda v: v.update(guards_code=[f"L['x'].size()[0] > 0 and 'a' != 'b\" + str({QUOTELESS}) + \"'"])),
        "more than a comparison",
    ),
    "a name of a weight": (renamed("conv.weight", f"conv.{BREAKOUT}"), "dotted name"),
    "a sub-graph's name": (_argument({"as_graph": {"name": BREAKOUT, "graph": EMPTY_GRAPH}}), "node named"),
}

OTHERS: dict[str, tuple[Callable[[Entries], None], str]] = {
    "an operator, which torch's verifier stops too": (graph(_system_node), "torch.os.system"),
    "a name of a node, which torch renames": (renamed("sub", f"x[{TOUCH}]"), "node named"),
    "a name of an argument": (renamed("x", f"x=[{TOUCH}], *"), "node named"),
    "a custom object": (both(constants(_custom), entry("data/constants/custom_obj_0", b"x")), "custom_obj_0"),
    "a compiled library": (entry("data/aotinductor/model/x.so", b"\x7fELF"), "a compiled library"),
    "a further program": (entry("models/other.json", b"{}"), "models/other.json"),
    "an unknown entry": (entry("code/x.py", b""), "code/x.py"),
    "a container to import": (_treespec("collections.defaultdict", FACTORY), "a container of type"),
    "an enum to import": (_treespec("builtins.dict", f"[{ENUM}]"), "whose keys are no names"),
    "a context to import": (_treespec("builtins.dict", ENUM), "whose keys are no names"),
    "an operator that maps files": (_op("torch.ops.aten.from_file.default"), "from_file"),
    "an operator that writes files": (_op("torch.ops.aten.save.default"), "aten.save"),
    "an operator by attribute": (_op("torch.ops.aten.add.Tensor.__class__"), "__class__"),
    "an operator of another library": (_op("torch.ops.debugprims.load_tensor.default"), "debugprims"),
    "an extension's operator": (_op("#evil:run"), "#evil:run"),
    "torch.load as an operator": (_op("torch.load"), "torch.load"),
    "torch.hub.load as an operator": (_op("torch.hub.load"), "torch.hub.load"),
    "an attribute getter": (_op("_operator.attrgetter"), "attrgetter"),
    "powers of sizes": (_op("_operator.pow"), "_operator.pow"),
    "an operator as a value": (_argument({"as_operator": "torch.load"}), "an operator passed as a value"),
    "an object as a value": (_argument({"as_custom_obj": {"name": "k", "class_fqn": "evil.X"}}), "a custom class"),
    "a text with quotes": (_argument({"as_string": "a') or ('"}), "a text argument"),
    "a text as a number": (_argument({"as_int": "1); evil("}), "a text in the field 'as_int'"),
    "a text under a new field": (graph(lambda g: g.update(surprise="text")), "a text in the field 'surprise'"),
    "a device of code": (renamed("cpu", "cpu'); x("), "the text"),
    "a string input": (program(_string_input), "a text argument"),
    "an assertion verifier": (program(lambda v: v.update(verifiers=["EVIL"])), "EVIL"),
    "symbols to count to": (
        program(lambda v: v["range_constraints"].update(u999999999={"min_val": 0, "max_val": 1})),
        "a size symbol",
    ),
    "powers of powers": (
        expression("Pow(Pow(Integer(9), Integer(8)), Integer(8))"),
        "more than arithmetic",
    ),
    "a long power": (expression("Pow(Symbol('s77'), Integer(999999999))"), "more than arithmetic"),
    "an absurd expression": (expression("Add(" + ", ".join(["Integer(1)"] * 900) + ")"), "characters"),
    "a number beyond 64 bits": (_argument({"as_int": 2**64}), "beyond 64 bits"),
    "an intermediate of petabytes": (
        graph(lambda g: g["tensor_values"]["sub"]["sizes"].append({"as_int": 10**15})),
        "above the limit",
    ),
    "a creation of petabytes": (_argument({"as_ints": [10**8, 10**8]}), "absurd size"),
    "an input of negative size": (
        graph(lambda g: g["tensor_values"]["x"]["sizes"].__setitem__(2, {"as_int": -8})),
        "negative size",
    ),
    "a weight of petabytes": (
        weights(lambda c: c["conv.weight"]["tensor_meta"]["sizes"].__setitem__(0, {"as_int": 10**15})),
        "over 144 bytes",
    ),
    "a weight of petabytes by stride 0": (
        weights(lambda c: c["conv.weight"]["tensor_meta"].update(sizes=[{"as_int": 10**15}], strides=[{"as_int": 0}])),
        "over 144 bytes",
    ),
    "an empty weight that is none": (entry("data/weights/weight_0", b""), "over 0 bytes"),
    "a weight outside its folder": (
        weights(lambda c: c["conv.weight"].update(path_name="../../../etc/passwd")),
        "etc/passwd",
    ),
}


@pytest.mark.parametrize("name", [*RUNS, *OTHERS])
def test_hostile_programs_are_refused(
    name: str,
    edited: Callable[[Callable[[Entries], None]], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edit, found = (RUNS | OTHERS)[name]
    path = edited(edit)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.export, "load", lambda *_, **__: pytest.fail("torch read the file"))
    with pytest.raises(UnsafeFileError) as caught:
        load(str(path))
    assert found in caught.value.found
    assert not (tmp_path / CANARY).exists()


@pytest.mark.parametrize("name", RUNS)
def test_torch_itself_runs_them(
    name: str,
    edited: Callable[[Callable[[Entries], None]], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = edited(RUNS[name][0])
    monkeypatch.chdir(tmp_path)
    try:
        torch.export.load(path).module()(torch.zeros(2, 1, 8, 8))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    else:
        reason = "no error"
    assert (tmp_path / CANARY).exists(), reason[-600:]


def test_the_copy_holds_nothing_that_was_not_checked(exported_net: tuple[nn.Module, Path]) -> None:
    scanned = scan_program(exported_net[1])
    with zipfile.ZipFile(io.BytesIO(scanned.archive)) as archive:
        document = json.loads(archive.read("model/models/model.json"))
        sample = torch.load(io.BytesIO(archive.read("model/data/sample_inputs/model.pt")), weights_only=True)
    assert all(node["metadata"] == {} for node in document["graph_module"]["graph"]["nodes"])
    assert torch.equal(sample[0][0], torch.zeros(1, 1, 8, 8))
    assert sample[1] == {}
    assert (scanned.parameters, scanned.buffers) == (6, 4)
    assert scanned.program.batch == (1, 512)
    assert scanned.program.shape == (None, 1, 8, 8)


DAMAGED: dict[str, tuple[Callable[[Entries], None], str]] = {
    "no weights": (lambda e: e.pop("data/weights/weight_3"), "KeyError"),
    "no configuration": (lambda e: e.pop("data/weights/model_weights_config.json"), "an archive with"),
    "no sample inputs": (lambda e: e.pop("data/sample_inputs/model.pt"), "an archive with"),
    "no program": (lambda e: e.pop("models/model.json"), "several programs or none"),
    "no JSON": (entry("models/model.json", b"{"), "JSONDecodeError"),
    "no UTF-8": (entry("models/model.json", b"\xff\xfe{"), "UnicodeDecodeError"),
    "deep JSON": (entry("models/model.json", b"[" * 100_000), "RecursionError"),
    "a list for a program": (entry("models/model.json", b"[]"), "TypeError"),
    "no graph": (program(lambda v: v["graph_module"].pop("graph")), "KeyError"),
    "a later version": (entry("archive_version", b"1"), "another version"),
    "no version": (lambda e: e.pop("archive_version"), "KeyError"),
    "a schema of the future": (program(lambda v: v["schema_version"].update(major=99)), "schema version"),
    "an undefined name": (graph(lambda g: g["outputs"][0]["as_tensor"].update(name="nowhere")), "cannot load"),
    "a missing overload": (_op("torch.ops.aten.relu.nothing"), "cannot load"),
    "two inputs": (
        program(
            lambda v: v["graph_module"]["signature"]["input_specs"].append(
                {"user_input": {"arg": {"as_tensor": {"name": "x"}}}}
            )
        ),
        "it takes 2 inputs",
    ),
    "for a GPU": (renamed("cpu", "cuda"), "one for cuda"),
    "bytes for images": (graph(lambda g: g["tensor_values"]["x"].update(dtype=1)), "its input is not float32"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_a_model_error(
    name: str, edited: Callable[[Callable[[Entries], None]], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    edit, found = DAMAGED[name]
    with pytest.raises(ModelError) as caught:
        load(str(edited(edit)))
    assert capfd.readouterr().err == ""
    assert found in str(caught.value)
    assert caught.value.remedy


def test_the_layout_of_older_torch_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("serialized_state_dict.pt", saved(Touch()))
        archive.writestr("version", "8.0")
    with pytest.raises(ModelError, match="older one, which holds pickles"):
        load(str(path))


GOOD = [
    "Symbol('s77', positive=True, integer=True)",
    "Mul(Integer(2), Symbol('s77', positive=True, integer=True))",
    "Add(Integer(-1), FloorDiv(Symbol('s0'), Integer(2)))",
    "Pow(Symbol('s0', integer=True), Integer(2))",
    "Mul(Rational(1, 2), Symbol('s0'))",
    "Float('0.5', precision=53)",
    "StrictLessThan(Symbol('s0'), Integer(4))",
]


@pytest.mark.parametrize("text", GOOD)
def test_size_expressions_of_torch_pass(text: str) -> None:
    assert eval(f"dict(a={exported_text.expression(text)!r})")["a"] == exported_text.expression(text)
    import sympy

    assert sympy.sympify(exported_text.expression(text)) == sympy.sympify(text)


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].size()[2] >= 3",
        "((-2) + L['x'].size()[3]) != 1",
        "L['x'].size()[3]*L['x'].size()[2] > 30",
        "(max(1, (-2) + L['x'].size()[3])*max(1, (-2) + L['x'].size()[2])) != 1",
        "(L['x'].size()[0] % 7) != 3",
    ],
)
def test_guards_of_torch_pass(text: str) -> None:
    """These were written by torch 2.13 for a model with branches on its input's size."""
    assert exported_text.guard(text)


_ATOMS = st.sampled_from(
    [
        *("Symbol('s0')", "Integer(3)", "3", "__import__", "os", "x.y", "'a'", "f()", "lambda: 0", "[1]", "s0", "{}"),
        *("a if b else c", "(yield)", "f'{x}'", "*a", "x:=1", "not x", "Symbol(Symbol)", "Symbol('s0', positive=f())"),
        *("Add.__class__", "L['x'].size()[0]", "L['x'].__class__"),
    ]
)
_TEXTS = st.recursive(
    _ATOMS,
    lambda inner: st.one_of(
        st.builds("{}({}, {})".format, st.sampled_from(["Add", "Mul", "eval", "Max", "Symbol", "exec"]), inner, inner),
        st.builds("({}) + ({})".format, inner, inner),
        st.builds("{}[{}]".format, inner, inner),
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(_TEXTS)
def test_what_passes_the_grammars_is_arithmetic(text: str) -> None:
    """Whatever is let through evaluates with nothing but the listed functions in reach."""
    functions = {name: lambda *a, **k: 1 for name in exported_text._FUNCTIONS | {"Symbol", "Float", "Pow"}}
    for grammar, names in (
        (exported_text.expression, functions),
        (
            exported_text.guard,
            dict.fromkeys(exported_text._GUARD_FUNCTIONS, lambda *a: 1) | {"L": {"x": torch.zeros(2, 3)}},
        ),
    ):
        try:
            passed = grammar(text)
        except RefusedError:
            continue
        eval(passed, {"__builtins__": {}}, names)


def test_the_operators_exist_and_none_touches_a_file() -> None:
    """The list names real operators, so that a slip of spelling shows; and no allowed overload takes a file's name."""
    schemas = [schema for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("aten::")]
    known = {schema.name.removeprefix("aten::") for schema in schemas}
    assert known >= ATEN
    for schema in schemas:
        target = f"torch.ops.aten.{schema.name.removeprefix('aten::')}.{schema.overload_name or 'default'}"
        if allowed(target):
            assert not {argument.name for argument in schema.arguments} & {"filename", "file"}
    assert not any(name.startswith(("torch.os", "torch.load", "torch.hub")) for name in OTHER)
    for target in ("torch.ops.aten.relu", "torch.ops.aten..default", "torch.ops.aten.set_.source_Tensor", "relu", ""):
        assert not allowed(target)
