"""What a model is, as data: `ModelSpec`, from which `build` makes it; and `Loaded`, a model that was read."""

import dataclasses
import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shaketable.core.errors import InputError, ModelError, ShaketableError
from shaketable.core.seeds import generator
from shaketable.plugins import nearest

from .factories import check_name, find_factory
from .layers import Wrapped, check_statistics

Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build a model but its weights.

    Args:
        architecture: a key of ARCHITECTURES, or `module:name` or `file.py:name` of your own factory.
        arguments: the architecture's own arguments, JSON scalars, for example {"width": 16}.
        classes: how many logits.
        channels: of an image; 1 grey, 3 colour.
        size: (h, w) of an image in pixels.
        mean, std: of the normalisation, one number a channel for images in [0, 1]; both empty: none.
        labels: the classes' names, or None.

    Raises:
        ModelError: an architecture that is unknown; the nearest name is suggested.
        InputError: any other value that cannot be.

    Equal specs and seeds build equal models. Checked by tests/models/test_architectures.py (round trip, bad values).
    """

    architecture: str
    classes: int
    channels: int
    size: tuple[int, int]
    arguments: dict[str, Scalar] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_name(self.architecture)
        whole(self.classes, "classes", 1 << 24)
        whole(self.channels, "channels", 1 << 16)
        if not isinstance(self.size, list | tuple) or len(self.size) != 2:
            raise InputError("size", "(h, w) in pixels", repr(self.size), "Give two whole numbers.")
        for side in self.size:
            whole(side, "size", 1 << 16)
        for name, value in self.arguments.items():
            if not isinstance(name, str) or not isinstance(value, bool | int | float | str | None):
                raise InputError("arguments", "names with JSON scalars", f"{name!r}: {value!r}", "Simplify the value.")
        mean, std = tuple(self.mean), tuple(self.std)
        if mean or std:
            mean, std = check_statistics(mean, std)
            if len(mean) != self.channels:
                found = f"{len(mean)} for {self.channels} channels"
                raise InputError("mean, std", "one number a channel", found, "Give one mean and std a channel.")
        labels = None if self.labels is None else tuple(self.labels)
        if labels is not None and (len(labels) != self.classes or not all(isinstance(name, str) for name in labels)):
            raise InputError("labels", f"{self.classes} names", f"{len(labels)}: {labels[:3]}…", "Name every class.")
        for name, value in {"size": tuple(self.size), "mean": mean, "std": std, "labels": labels}.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "arguments", dict(self.arguments))

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; `from_json` reads them back to an equal spec."""
        lists = {"size": list(self.size), "mean": list(self.mean), "std": list(self.std)}
        labels = None if self.labels is None else list(self.labels)
        return dataclasses.asdict(self) | lists | {"labels": labels}

    @classmethod
    def from_json(cls, value: object) -> "ModelSpec":
        """The spec that `to_json` wrote.

        Raises:
            InputError: not a JSON object, or a key that is missing or unknown; the nearest name is suggested.
        """
        if not isinstance(value, dict):
            raise InputError("spec", "a JSON object", type(value).__name__, "Give the object that to_json wrote.")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for name in value:
            if name not in fields:
                raise InputError("spec", f"the keys {', '.join(fields)}", repr(name), nearest(name, fields))
        missing = [name for name in ("architecture", "classes", "channels", "size") if name not in value]
        if missing:
            raise InputError("spec", "architecture, classes, channels and size", f"no {missing[0]}", "Add it.")
        for name in ("mean", "std", "labels"):
            if not isinstance(value.get(name, []), list | tuple | (type(None) if name == "labels" else list)):
                raise InputError(f"spec.{name}", "a list", repr(value[name]), "Give a list.")
        if not isinstance(value.get("arguments", {}), dict):
            raise InputError("spec.arguments", "a JSON object", repr(value["arguments"]), "Give an object.")
        return cls(**value)


@dataclass(frozen=True)
class Loaded:
    """A model that was read from a file, a folder or a library, and what is known about it.

    Args:
        model: takes (n, c, h, w) in [0, 1], returns logits; in eval mode.
        spec: from which it was built, or None if it is not one of ours.
        name: short, for tables.
        source: the path or identifier that was asked for.
        sha256: of the file, as `sha256sum` prints it, or None if there is no single file.
        size: (h, w) of the images that it takes, or None if any or unknown.
        labels: the classes' names, or None.
        gradients: False for a model without input gradients (ONNX).
        notes: what was done or should be known, a sentence each.
    """

    model: nn.Module
    spec: ModelSpec | None
    name: str
    source: str
    sha256: str | None = None
    size: tuple[int, int] | None = None
    labels: tuple[str, ...] | None = None
    gradients: bool = True
    notes: tuple[str, ...] = ()


def build(spec: ModelSpec, seed: int) -> Wrapped:
    """The model of a spec with fresh weights, in training mode, on the CPU; normalisation is its first layer.

    Args:
        spec: what to build.
        seed: of the initialisation; the same seed gives the same weights, bit for bit.

    The global random state is left as it was (initialisers have no generator argument, so the CPU's is forked).

    Raises:
        ModelError: arguments that the architecture does not take or cannot be built with.

    Checked by tests/models/test_architectures.py.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator(seed, "build", spec.architecture).get_state())
        return assemble(spec)


def assemble(spec: ModelSpec) -> Wrapped:
    """The model of a spec, initialised from the global random state, on the current default device."""
    factory = find_factory(spec.architecture)
    given = {"channels": spec.channels, "classes": spec.classes, "size": spec.size}
    try:
        parameters = inspect.signature(factory).parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name in spec.arguments:
            if name in given or (name not in parameters and not open_ended):
                names = [n for n in parameters if n not in given]
                expected = f"an argument of {spec.architecture}: {', '.join(names) or 'none'}"
                raise ModelError("arguments", expected, repr(name), nearest(name, names))
        network = factory(**{k: v for k, v in given.items() if k in parameters}, **spec.arguments)
    except ShaketableError:
        raise
    except Exception as error:  # whatever a factory of somebody else raises
        found = f"{type(error).__name__}: {error}"
        remedy = "Correct the spec's arguments."
        raise ModelError("arguments", f"what {spec.architecture} can be built with", found, remedy) from error
    if not isinstance(network, nn.Module):
        found = type(network).__name__
        raise ModelError("architecture", "a factory of a torch.nn.Module", found, f"Change {spec.architecture}.")
    return Wrapped(network, spec.mean, spec.std)


def read_labels(path: str | Path) -> tuple[str, ...]:
    """The classes' names from a JSON file, in the order of the logits.

    Args:
        path: of a list of names, of {"0": name, ...} (a [wnid, name] pair as the value counts as its name), or of
            {name: 0, ...}. Every index from 0 on must be there once.

    Raises:
        InputError: no such file, no JSON, or indices that are missing or doubled.

    Checked by tests/models/test_checkpoint.py.
    """
    shown, expected = f"labels ({path})", 'a JSON list of names or {"0": name, ...}'
    remedy = "Write one name for every logit, in their order."
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(shown, expected, f"{type(error).__name__}: {error}", remedy) from error
    if isinstance(value, dict):
        value = _in_order(value)
    names = [name[-1] if isinstance(name, list) and name else name for name in value] if isinstance(value, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        found = "none, or indices that are missing, doubled or no numbers, or names that are no strings"
        raise InputError(shown, expected, found, remedy)
    return tuple(str(name) for name in names)


def _in_order(table: dict[str, Any]) -> list[Any] | None:
    """The names of {"0": name, ...} or of {name: 0, ...} by index, or None if the indices are not 0, 1, 2 and so on."""
    indices = [str(index) for index in range(len(table))]
    if all(isinstance(index, int) for index in table.values()):
        table = {str(index): name for name, index in table.items()}
    return [table[index] for index in indices] if set(table) == set(indices) else None


def whole(value: object, argument: str, high: int) -> None:
    """Raises InputError unless the value is a whole number from 1 to high."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        raise InputError(argument, f"a whole number from 1 to {high}", repr(value), f"Correct {argument}.")
