"""The document of an exported program (`models/model.json`), checked and rewritten before torch reads it.

What torch would act on is let through field by field; a text under a field that is not known here is refused. What is only
for people or tools (stack traces, module stacks, annotations, the calls of inner modules) is left out. So torch is given a
document that this module wrote.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from . import exported_text as text
from .exported_ops import allowed, in_place
from .pickle_calls import RefusedError

MAX_DOCUMENT = 64 * 2**20
MAX_NODES = 200_000
ITEMSIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 2, 7: 4, 8: 8, 9: 4, 10: 8, 11: 16, 12: 1, 13: 2, 28: 2}
ITEMSIZE |= {29: 1, 30: 1, 31: 1, 32: 1, 33: 1, 34: 4, 35: 8}
"""Bytes of an element by torch.export's numbers for the dtypes."""

FLOAT32 = 7
FLOATS = (6, 7, 8, 13)
_DEVICES = {"cpu", "cuda", "mps", "xpu"}
_FORBIDDEN = {
    "as_custom_obj": "an object of a custom class",
    "custom_obj": "an object of a custom class",
    "as_operator": "an operator passed as a value",
    "as_string_to_argument": "a dictionary of arguments",
    "constant_input": "a constant among the inputs",
    "token": "an effect token",
}


@dataclass(frozen=True)
class Program:
    """A checked document and what it says about itself.

    Args:
        document: what torch is given.
        shape: of the image input, (n, c, h, w) as a rule; None where a size is free.
        batch: the least and the most images a call takes; the most may be None.
        facts: any of "in-place", "no-grad", "detach", "trains", "mutates".
        device: the type of the device that it was exported on.
    """

    document: dict[str, Any]
    shape: tuple[int | None, ...]
    batch: tuple[int, int | None]
    facts: frozenset[str]
    device: str


def check_document(content: bytes, limit: int) -> Program:
    """Check a program's document and rewrite it.

    Args:
        content: of `models/model.json`.
        limit: the most bytes that a declared tensor may have.

    Raises:
        RefusedError: it says anything that a program of an image classifier does not need.
        ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError: it is no such document.
    """
    raw = json.loads(content.decode("utf-8"), parse_constant=_no_constant)
    walker = _Walker(limit)
    graph = walker.clean(raw["graph_module"]["graph"], "graph")
    signature = walker.clean(raw["graph_module"]["signature"], "signature")
    calls = [call for call in raw["graph_module"]["module_call_graph"] if call["fqn"] == ""]
    document = {
        "graph_module": {
            "graph": graph,
            "signature": signature,
            "module_call_graph": walker.clean(calls, "module_call_graph"),
            "metadata": {},
            "treespec_namedtuple_fields": {},
        },
        "opset_version": walker.clean(raw["opset_version"], "opset_version"),
        "range_constraints": {
            text.symbol(name): {key: _bound(limits[key]) for key in ("min_val", "max_val")}
            for name, limits in raw["range_constraints"].items()
        },
        "schema_version": {key: int(raw["schema_version"][key]) for key in ("major", "minor")},
        "verifiers": [_one_of(name, {"TRAINING", "ATEN", ""}) for name in raw.get("verifiers", [])],
        "torch_version": text.plain(raw.get("torch_version", "")),
        "guards_code": [text.guard(condition) for condition in raw.get("guards_code", [])],
    }
    return _describe(document, walker.devices)


class _Walker:
    """Rewrites nested JSON, each text by its field's grammar."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self.devices: set[str] = set()
        self.texts: dict[str, Callable[[str], str]] = {
            **dict.fromkeys(("name", "as_name", "forward_arg_names", "user_input_name"), text.identifier),
            **dict.fromkeys(("parameter_name", "buffer_name", "tensor_constant_name"), text.path),
            **dict.fromkeys(("as_string", "as_strings"), text.plain),
            **dict.fromkeys(("in_spec", "out_spec"), text.treespec),
            "expr_str": text.expression,
            "fqn": lambda value: _one_of(value, {""}),
            "target": _operator,
            "type": self.device,
            "as_float": lambda value: _one_of(value, {"Infinity", "-Infinity", "NaN"}),
            "as_floats": lambda value: _one_of(value, {"Infinity", "-Infinity", "NaN"}),
        }

    def device(self, value: str) -> str:
        self.devices.add(_one_of(value, _DEVICES))
        return value

    def clean(self, value: Any, field: str) -> Any:
        self.count += 1
        if self.count > 100 * MAX_NODES:
            raise RefusedError("a program without end")
        if isinstance(value, dict):
            return self.mapping(value)
        if isinstance(value, list):
            if field == "as_ints" and math.prod(abs(n) for n in value if n) > self.limit:
                raise RefusedError("a tensor of absurd size")
            return [self.clean(item, field) for item in value]
        if isinstance(value, str):
            if field not in self.texts:
                raise RefusedError(f"a text in the field {field[:80]!r}")
            return self.texts[field](value)
        if isinstance(value, int) and abs(value) >= 2**63:
            raise RefusedError("a number beyond 64 bits")
        return value

    def mapping(self, value: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, item in value.items():
            if key in _FORBIDDEN or (key == "custom_obj_values" and item):
                raise RefusedError(_FORBIDDEN.get(key, "objects of custom classes"))
            text.path(key)
            if key == "metadata":
                made[key] = {}
            elif key == "name" and "arg" in value and isinstance(item, str):
                made[key] = text.identifier(item, argument=True)
            else:
                made[key] = self.clean(item, key)
        if "sizes" in made and "dtype" in made:
            sizes = [_size(size) or 1 for size in made["sizes"]]
            if min(sizes, default=0) < 0:
                raise RefusedError("a tensor of negative size")
            if math.prod(sizes) * ITEMSIZE[made["dtype"]] > self.limit:
                raise RefusedError(f"a tensor of size {sizes}, above the limit of {self.limit} bytes")
        return made


def _describe(document: dict[str, Any], devices: set[str]) -> Program:
    """Read off what the program takes, gives and does."""
    module = document["graph_module"]
    graph, signature = module["graph"], module["signature"]
    if any(list(entry) != ["as_tensor"] for entry in graph["inputs"]):
        raise RefusedError("inputs that are no tensors")
    taken = [spec["user_input"]["arg"] for spec in signature["input_specs"] if "user_input" in spec]
    if len(taken) != 1 or list(taken[0]) != ["as_tensor"]:
        raise ValueError(f"it takes {len(taken)} inputs; a model of images takes one")
    meta = graph["tensor_values"][taken[0]["as_tensor"]["name"]]
    if meta["dtype"] != FLOAT32:
        raise ValueError("its input is not float32; images are float32 in [0, 1]")
    shape = tuple(_size(size) for size in meta["sizes"])
    batch: tuple[int, int | None] = (shape[0], shape[0]) if shape and shape[0] is not None else (1, None)
    if shape and shape[0] is None:
        expression = meta["sizes"][0]["as_expr"]["expr_str"]
        for name, limits in document["range_constraints"].items():
            if expression.startswith(f"Symbol('{name}'"):
                batch = (max(limits["min_val"] or 0, 0), limits["max_val"])
    facts = set(_facts(graph))
    if any(list(spec) != ["user_output"] for spec in signature["output_specs"]):
        facts.add("mutates")
    device = "+".join(sorted(devices)) or "cpu"
    return Program(document, shape, batch, frozenset(facts), device)


def _facts(graph: dict[str, Any]) -> Iterator[str]:
    for count, node in enumerate(graph["nodes"]):
        if count > MAX_NODES:
            raise RefusedError(f"a program of more than {MAX_NODES} steps")
        target = node["target"]
        arguments = {given["name"]: given["arg"] for given in node["inputs"]}
        if in_place(target):
            yield "in-place"
        if ".detach" in target:
            yield "detach"
        if target.endswith("wrap_with_set_grad_enabled"):
            yield "no-grad"
        if any(arguments.get(name) == {"as_bool": True} for name in ("train", "training")):
            yield "trains"
        for value in arguments.values():
            if "as_graph" in value:
                yield from _facts(value["as_graph"]["graph"])


def _size(size: dict[str, Any]) -> int | None:
    return size.get("as_int")


def _operator(target: str) -> str:
    if not allowed(target):
        raise RefusedError(f"the operator {target[:120]!r}")
    return target


def _one_of(value: Any, options: set[str]) -> str:
    if not isinstance(value, str) or value not in options:
        raise RefusedError(f"the text {str(value)[:80]!r} where one of {sorted(options)} belongs")
    return value


def _bound(value: Any) -> int | None:
    if value is not None and (type(value) is not int or abs(value) >= 2**63):
        raise RefusedError("a size limit that is no number")
    return value


def _no_constant(name: str) -> Any:
    raise RefusedError(f"the number {name}")
