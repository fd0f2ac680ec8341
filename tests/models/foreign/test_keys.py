"""Matching the names of weights: by spelling, by order, and not at all where it would be a guess."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shaketable.core.errors import ModelError
from shaketable.models.foreign.guesses import guess
from shaketable.models.foreign.keys import Shapes, match_keys, spelt
from shaketable.models.spec import ModelSpec, build

SPECS = [
    ModelSpec("small_cnn", classes=4, channels=1, size=(8, 8), arguments={"width": 6, "hidden": 10}),
    ModelSpec("small_cnn", classes=4, channels=1, size=(8, 8), arguments={"width": 6, "hidden": 10, "norm": "batch"}),
    ModelSpec("mlp", classes=4, channels=1, size=(8, 8), arguments={"width": 12, "depth": 3}),
    ModelSpec("mlp", classes=4, channels=1, size=(8, 8), arguments={"depth": 0}),
    ModelSpec("preact_resnet18", classes=4, channels=3, size=(8, 8), arguments={"width": 2}),
    ModelSpec("resnet18", classes=4, channels=3, size=(8, 8), arguments={"width": 2}),
    ModelSpec("wide_resnet", classes=4, channels=3, size=(8, 8), arguments={"depth": 22, "widen": 2}),
    ModelSpec("vit", classes=4, channels=3, size=(8, 8), arguments={"patch": 2, "dim": 12, "depth": 2, "heads": 2}),
]
GUESSES = [
    "small_cnn(width=6, hidden=10), channels 1, classes 4",
    "small_cnn(width=6, hidden=10), channels 1, classes 4",
    "mlp(depth=3, width=12), classes 4",
    "mlp(depth=0), classes 4",
    "preact_resnet18(width=2), channels 3, classes 4",
    "resnet18(width=2), channels 3, classes 4",
    "wide_resnet(depth=22, widen=2), channels 3, classes 4",
    "vit(patch=2, dim=12, depth=2), channels 3, classes 4",
]


def shapes_of(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in build(spec, 0).network.state_dict().items()}


def identity(shapes: Shapes) -> dict[str, str]:
    return {name: name for name in shapes if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(("spec", "expected"), list(zip(SPECS, GUESSES, strict=True)), ids=GUESSES)
def test_guesses(spec: ModelSpec, expected: str) -> None:
    shapes = shapes_of(spec)
    assert guess(shapes) == expected
    assert guess({f"module.{name}": shape for name, shape in shapes.items()}) == expected
    assert guess({}) is None
    assert guess({"w": (3,)}) is None


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(SPECS),
    st.lists(st.sampled_from(["module.", "_orig_mod.", "model.", "net.", "backbone.", "wrapped.", "a.b."]), max_size=4),
)
def test_prefixes_come_off(spec: ModelSpec, prefixes: list[str]) -> None:
    ours = shapes_of(spec)
    prefix = "".join(prefixes)
    matched = match_keys({prefix + name: shape for name, shape in ours.items()}, ours, argument="x")
    assert matched.names == {name: prefix + name for name in identity(ours)}
    assert all("order" not in note for note in matched.notes)


@pytest.mark.parametrize("spec", SPECS, ids=GUESSES)
def test_other_names_in_the_same_order_are_matched_and_told(spec: ModelSpec) -> None:
    """Every layer renamed to a number, the leaves kept, as after nn.Sequential: the order decides, and the notes say so."""
    ours = shapes_of(spec)
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in ours))
    theirs = {_numbered(name, layers): shape for name, shape in ours.items()}
    matched = match_keys(theirs, ours, argument="x")
    assert matched.names == {name: _numbered(name, layers) for name in identity(ours)}
    assert any("check the clean accuracy" in note for note in matched.notes)


def _numbered(name: str, layers: list[str]) -> str:
    layer, _, leaf = name.rpartition(".")
    return f"q{layers.index(layer)}.{leaf}" if layer else leaf


def _swap(names: list[str]) -> list[str]:
    return [names[1], names[0], *names[2:]]


AMBIGUOUS: dict[str, tuple[Shapes, Shapes]] = {
    "layers in another order": (
        {"a.weight": (2, 3), "b.weight": (4, 2), "c.weight": (2, 3), "d.weight": (4, 2)},
        {"p.weight": (2, 3), "q.weight": (2, 3), "r.weight": (4, 2), "s.weight": (4, 2)},
    ),
    "one layer too many": (
        {"a.weight": (2, 3), "b.weight": (2, 3), "c.weight": (2, 3)},
        {"p.weight": (2, 3), "q.weight": (2, 3)},
    ),
    "other leaves": ({"a.weight": (2, 3), "a.bias": (2,)}, {"p.weight": (2, 3), "p.running_mean": (2,)}),
    "two models alike": (
        {"left.a.weight": (2, 3), "right.a.weight": (2, 3)},
        {"a.weight": (2, 3)},
    ),
    "two names spelt alike": (
        {"fc.weight": (2, 3), "linear.weight": (2, 3)},
        {"head.weight": (2, 3)},
    ),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_could_be_read_in_two_ways_is_refused(name: str) -> None:
    theirs, ours = AMBIGUOUS[name]
    with pytest.raises(ModelError, match=r"missing|unexpected"):
        match_keys(theirs, ours, argument="x")


def test_a_layer_of_its_own_shape_may_lie_anywhere() -> None:
    theirs = {"a.weight": (9, 9), "b.weight": (2, 3), "c.weight": (2, 3)}
    ours = {"p.weight": (2, 3), "q.weight": (9, 9), "r.weight": (2, 3)}
    matched = match_keys(theirs, ours, argument="x")
    assert matched.names == {"p.weight": "b.weight", "q.weight": "a.weight", "r.weight": "c.weight"}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SPECS), st.randoms(use_true_random=False))
def test_the_order_of_a_file_does_not_matter_where_names_do(spec: ModelSpec, random: Callable[..., None]) -> None:
    ours = shapes_of(spec)
    names = list(ours)
    random.shuffle(names)  # type: ignore[attr-defined]
    matched = match_keys({name: ours[name] for name in names}, ours, argument="x")
    assert matched.names == identity(ours)
    assert matched.notes == ()


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("block1.layer.0.convShortcut.weight", "layer1.0.shortcut.weight"),
        ("layer2.0.shortcut.0.weight", "layer2.0.shortcut.weight"),
        ("layer2.0.downsample.0.weight", "layer2.0.shortcut.weight"),
        ("linear.weight", "fc.weight"),
        ("classifier.1.bias", "head.bias"),
        ("bn1.weight", "bn.weight"),
        ("layer1.0.batchnorm1.weight", "layer1.0.bn1.weight"),
    ],
)
def test_spellings(name: str, same: str) -> None:
    assert spelt(name) == spelt(same)


def test_spellings_keep_a_networks_own_names_apart() -> None:
    for spec in SPECS:
        names = list(shapes_of(spec))
        assert len({spelt(name) for name in names}) == len(names), spec.architecture
