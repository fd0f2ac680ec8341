"""Whose weight is whose: the names in somebody's file matched with the names in our architecture.

Three steps, each only where the one before left something: equal names; equal names once both are spelt alike (`fc` and
`linear`, `block1.layer.0` and `layer1.0`, `convShortcut` and `shortcut`, ...); the order of layers of the same shape, only
if it can be read in one way. Whatever is left over on either side is an error that lists it.
"""

import difflib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from shaketable.core.errors import ModelError

from .guesses import guess

Shapes = Mapping[str, tuple[int, ...]]

WRAPPERS = ("module", "model", "network", "net", "_orig_mod", "backbone", "_model", "encoder", "student")
"""Names under which training code wraps a model, the likelier first."""

_SPELLINGS = (
    (re.compile(r"^block(\d)\.layer\.(\d+)\."), r"layer\1.\2."),
    (re.compile(r"\b(convshortcut|downsample|skip|projection)\b"), "shortcut"),
    (re.compile(r"\bshortcut\.0\."), "shortcut."),
    (re.compile(r"^(linear|fc|classifier|head|last_linear|output)(\.\d+)?\.(weight|bias)$"), r"head.\3"),
    (re.compile(r"^(bn|bn1|norm|norm1|bn_final|bn_last|final_bn)\."), "norm."),
    (re.compile(r"\b(batchnorm|batch_norm)(\d*)\b"), r"bn\2"),
    (re.compile(r"\bconv_(\d)\b"), r"conv\1"),
)
_COUNTERS = (".num_batches_tracked", ".total_ops", ".total_params")
_BARE_COUNTERS = ("num_batches_tracked", "total_ops", "total_params")


@dataclass(frozen=True)
class Matched:
    """Which of their names is each of ours, and what should be known about it."""

    names: dict[str, str]
    notes: tuple[str, ...]


def match_keys(theirs: Shapes, ours: Shapes, *, argument: str) -> Matched:
    """Match the names of a file with those of a network.

    Args:
        theirs: names and shapes in the file, in its order.
        ours: names and shapes in the network, in its order.
        argument: how errors name the file.

    Raises:
        ModelError: names or shapes that cannot be matched in one way; what is missing and unexpected is listed.

    Checked by tests/models/foreign/test_keys.py.
    """
    notes: list[str] = []
    wanted = {name: shape for name, shape in ours.items() if not _counts(name)}
    stripped = _strip({name: shape for name, shape in theirs.items() if not _counts(name)}, wanted, notes)
    unused = [name for name in stripped if name.startswith("sub_block1.")]
    if unused and not any(name.startswith("sub_block1.") for name in wanted):
        notes.append(
            f"{len(unused)} weights under sub_block1. are left out: TRADES' WideResNet makes but never uses them."
        )
        stripped = {name: full for name, full in stripped.items() if name not in unused}
    shapes = {name: theirs[full] for name, full in stripped.items()}
    pairs = {name: name for name in wanted if name in shapes}
    by_spelling = _same_spelling(wanted, shapes, pairs)
    if by_spelling:
        example = next(iter(by_spelling.items()))
        notes.append(f"{len(by_spelling)} names were matched by spelling, such as {example[1]} with {example[0]}.")
    pairs |= by_spelling
    by_order = _same_order(wanted, shapes, pairs)
    if by_order:
        example = next(iter(by_order.items()))
        notes.append(
            f"{len(by_order)} names were matched by the order of equal shapes, such as {example[1]} with {example[0]}: "
            "check the clean accuracy before you believe a robust one."
        )
    pairs |= by_order
    _refuse_rest(wanted, shapes, pairs, argument)
    return Matched({name: stripped[their] for name, their in pairs.items()}, tuple(notes))


def spelt(name: str) -> str:
    """A name in the common spelling."""
    name = name.lower()
    for pattern, replacement in _SPELLINGS:
        name = pattern.sub(replacement, name)
    return name


def _counts(name: str) -> bool:
    return name.endswith(_COUNTERS) or name in _BARE_COUNTERS


def _agreement(names: Mapping[str, str], shapes: Shapes, ours: Shapes) -> int:
    """How many of these names are ours, of the same shape, in the common spelling."""
    known = Counter((spelt(name), shape) for name, shape in ours.items())
    return sum(known[spelt(name), shapes[full]] > 0 for name, full in names.items())


def _strip(theirs: Shapes, ours: Shapes, notes: list[str]) -> dict[str, str]:
    """Their names without the prefixes of wrappers, each with the whole name it came from."""
    names = {name: name for name in theirs}
    while True:
        firsts = Counter(name.partition(".")[0] for name in names if "." in name)
        groups = {first: _under(names, first) for first in firsts}
        now = _agreement(names, theirs, ours)
        if len(groups) == 1 and len(next(iter(groups.values()))) == len(names) and len(names) > 0:
            ((first, inner),) = groups.items()
            if _agreement(inner, theirs, ours) >= now and not all(n.startswith(f"{first}.") for n in ours):
                notes.append(f"The prefix {first}. was taken off all names.")
                names = inner
                continue
            return names
        best = max((_agreement(inner, theirs, ours) for inner in groups.values()), default=0)
        if best <= now:
            return names
        equal = [first for first, inner in groups.items() if _agreement(inner, theirs, ours) == best]
        first = next((wrapper for wrapper in WRAPPERS if wrapper in equal), equal[0] if len(equal) == 1 else None)
        if first is None:
            return names
        others = sorted({name.partition(".")[0] for name in names} - {first})
        notes.append(f"Only the names under {first}. were read; left out: {', '.join(others[:6])}.")
        names = groups[first]


def _under(names: Mapping[str, str], first: str) -> dict[str, str]:
    return {name[len(first) + 1 :]: full for name, full in names.items() if name.startswith(f"{first}.")}


def _same_spelling(ours: Shapes, theirs: Shapes, pairs: Mapping[str, str]) -> dict[str, str]:
    taken = set(pairs.values())
    their_spelling: dict[str, list[str]] = {}
    for name in theirs:
        if name not in taken:
            their_spelling.setdefault(spelt(name), []).append(name)
    our_spelling = Counter(spelt(name) for name in ours if name not in pairs)
    found: dict[str, str] = {}
    for name in ours:
        candidates = their_spelling.get(spelt(name), [])
        if name not in pairs and len(candidates) == 1 and our_spelling[spelt(name)] == 1:
            found[name] = candidates[0]
    return found


def _same_order(ours: Shapes, theirs: Shapes, pairs: Mapping[str, str]) -> dict[str, str]:
    """Match layers of the same kind and shape by their order, if the order of all such layers is the same in both."""
    taken = set(pairs.values())
    our_layers = _layers({name: shape for name, shape in ours.items() if name not in pairs})
    their_layers = _layers({name: shape for name, shape in theirs.items() if name not in taken})
    kinds = Counter(our_layers.values())
    if kinds != Counter(their_layers.values()):
        return {}
    repeated = [[kind for kind in layers.values() if kinds[kind] > 1] for layers in (our_layers, their_layers)]
    if repeated[0] != repeated[1]:
        return {}
    queues: dict[object, list[str]] = {}
    for layer, kind in their_layers.items():
        queues.setdefault(kind, []).append(layer)
    found: dict[str, str] = {}
    for layer, kind in our_layers.items():
        their_layer = queues[kind].pop(0)
        for leaf, _ in kind:
            found[_join(layer, leaf)] = _join(their_layer, leaf)
    return found


def _layers(shapes: Shapes) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
    """The layers in order, each with the names and shapes of its own weights."""
    layers: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        layer, _, leaf = name.rpartition(".")
        layers.setdefault(layer, []).append((leaf, shape))
    return {layer: tuple(sorted(leaves)) for layer, leaves in layers.items()}


def _join(layer: str, leaf: str) -> str:
    return f"{layer}.{leaf}" if layer else leaf


def _refuse_rest(ours: Shapes, theirs: Shapes, pairs: Mapping[str, str], argument: str) -> None:
    """Raise if a name is left over on either side or a shape differs."""
    missing = [name for name in ours if name not in pairs]
    unexpected = [name for name in theirs if name not in set(pairs.values())]
    wrong = [(name, their) for name, their in pairs.items() if ours[name] != theirs[their]]
    if not (missing or unexpected or wrong):
        return
    faults: list[str] = []
    for name, their in wrong[:4]:
        faults.append(f"{their} has shape {theirs[their]}, not {ours[name]}")
    for name in missing[:4]:
        close = difflib.get_close_matches(name, unexpected, n=1)
        faults.append(f"{name} is missing" + (f" (nearest: {close[0]})" if close else ""))
    faults += [f"{name} is unexpected" for name in unexpected[:4]]
    rest = len(wrong) + len(missing) + len(unexpected) - len(faults)
    found = "; ".join(faults) + (f"; and {rest} more" if rest > 0 else "")
    raise ModelError(argument, "the weights of the architecture", found, _remedy(theirs, wrong, missing, ours))


def _remedy(theirs: Shapes, wrong: list[tuple[str, str]], missing: list[str], ours: Shapes) -> str:
    heads = [
        name for name, _ in wrong if spelt(name).startswith("head.") and ours[name][1:] == theirs[dict(wrong)[name]][1:]
    ]
    if wrong and len(heads) == len(wrong):
        return f"The file has {theirs[dict(wrong)[heads[0]]][0]} classes: say so with --classes."
    if missing and all(spelt(name).startswith("norm.") for name in missing) and not wrong:
        return "The file's network has no last BatchNorm: it is another variant; give it as module:function."
    seen = guess(theirs)
    return (
        f"The file looks like {seen}."
        if seen
        else "Name the architecture and arguments that the file was trained with."
    )
