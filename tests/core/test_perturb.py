"""`perturb`: its result, its starts, and a table of bad inputs with the error that each must give."""

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable import core as st
from shaketable.core.perturb import search

Make = Callable[..., Any]
BALL = st.Ball("linf", 0.1, box=(0, 1))


def line(point: Tensor, rows: Tensor | None = None) -> Tensor:
    return point.flatten(1).sum(1)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_parts_of_the_result_agree(network: Make, images: Make, labels: Make, norm: str, keep: Any) -> None:
    model, x, y = network(), images(), labels()
    ball = st.Ball(norm, {"linf": 0.1, "l2": 0.8, "l1": 5.0, "l0": 6}[norm], box=(0, 1))
    found = st.perturb(st.ce(model, y), x, ball, by=st.PGD(8, keep=keep), start="sample", generator=st.generator(0))
    assert torch.equal(found.origin, x)
    assert torch.equal(found.point, (x + found.delta).clamp(0, 1))
    order = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    assert torch.allclose(found.size, torch.linalg.vector_norm(found.delta.flatten(1), order, 1), rtol=1e-6)
    assert bool(found.delta.any())
    assert not found.point.requires_grad
    with pytest.raises(FrozenInstanceError):
        found.point = x  # pyright: ignore
    if keep == "best":
        start = ball.sample(x, st.generator(0))
        assert found.value is not None
        assert torch.equal(found.value, st.ce(model, y)(found.point).detach())
        assert bool((found.value >= st.ce(model, y)((x + start).clamp(0, 1))).all())
    else:
        assert found.value is None


def test_the_result_of_weights(network: Make, images: Make, labels: Make) -> None:
    model, x, y = network(), images(), labels()
    loss = st.scalar(lambda w: st.cross_entropy(st.at(model, w)(x), y).mean())
    found = st.perturb(
        loss, st.weights(model), st.Ball("l2", 0.05, per="filter", relative=True), by=st.PGD(5, keep="best")
    )
    assert found.value is not None
    assert found.value.shape == (1,)
    assert torch.equal(found.value, loss(found.point).detach())
    assert float(found.value) > float(loss(st.weights(model)).detach())
    for name, w in st.weights(model).items():
        size = found.delta[name].flatten(1).norm(dim=1) / w.flatten(1).norm(dim=1)
        assert torch.allclose(found.size[name], size, rtol=1e-5)
        assert bool((size <= 0.05 * (1 + 1e-5)).all())


def test_starts() -> None:
    x = torch.full((3, 4), 0.95)
    still = st.PGD(0, keep="best")
    zero = st.perturb(line, x, BALL, by=still)
    assert torch.equal(zero.point, x)
    given = st.perturb(line, x, BALL, by=still, start=torch.full((3, 4), -7, dtype=torch.float64))
    assert given.delta.tolist() == [[pytest.approx(-0.1)] * 4] * 3
    boxed = st.perturb(line, x, BALL, by=still, start=torch.full((3, 4), 7))
    assert bool((boxed.point == 1).all())
    assert boxed.delta.dtype == torch.float32
    drawn = st.perturb(line, x, BALL, by=still, start="sample", generator=st.generator(0))
    assert torch.equal(drawn.delta, BALL.sample(x, st.generator(0)))
    noisy = st.perturb(
        line, x * 0.5, st.Ball("linf", 9.0), by=still, start=st.Gaussian(0.01), generator=st.generator(0)
    )
    assert torch.equal(noisy.delta, 0.01 * torch.randn(3, 4, generator=st.generator(0)))
    clipped = st.perturb(line, x, BALL, by=still, start=st.Gaussian(10.0), generator=st.generator(0))
    assert float(clipped.delta.abs().max()) <= 0.1 + 1e-7
    dicts = st.perturb(
        st.scalar(lambda w: w["w"].sum()), {"w": x}, st.Ball("linf", 1, per="all"), by=still, start={"w": x / 10}
    )
    assert torch.allclose(dicts.delta["w"], x / 10)


def test_an_objective_may_ask_for_its_start() -> None:
    class Asks:
        start = st.Gaussian(0.5)

        def __call__(self, point: Tensor, rows: Tensor | None) -> Tensor:
            return line(point)

    x, ball = torch.zeros(2, 3), st.Ball("linf", 9.0)
    with pytest.raises(st.InputError, match="generator"):
        st.perturb(Asks(), x, ball)
    own = st.perturb(Asks(), x, ball, by=st.PGD(0), generator=st.generator(0))
    assert torch.equal(own.delta, 0.5 * torch.randn(2, 3, generator=st.generator(0)))
    other = st.perturb(Asks(), x, ball, by=st.PGD(0), start="zero")
    assert not bool(other.delta.any())
    scalar = st.scalar(lambda w: w.sum(), start=torch.full((2, 3), 0.25))
    assert bool((st.perturb(scalar, x, st.Ball("linf", 1.0, per="all"), by=st.PGD(0)).delta == 0.25).all())


def test_a_users_own_ascent_and_constraint_serve() -> None:
    class Half:
        """The half space sum(delta) <= 1, as a constraint of the user's."""

        rowwise = True

        def on(self, origin: Any) -> "Half":
            return self

        def project(self, delta: Tensor, origin: Tensor) -> Tensor:
            return delta - (delta.sum(1, keepdim=True) - 1).clamp(min=0) / delta.shape[1]

        def steepest(self, gradient: Tensor, origin: Tensor, delta: Tensor) -> Tensor:
            return gradient.sign()

        def reach(self, origin: Any) -> float:
            return 1.0

        def sample(self, origin: Tensor, generator: torch.Generator) -> Tensor:
            return torch.zeros_like(origin)

        def size(self, delta: Tensor, origin: Tensor) -> Tensor:
            return delta.sum(1)

        def clip(self, point: Tensor) -> Tensor:
            return point

        def rows(self, index: Tensor) -> "Half":
            return self

    x = torch.zeros(2, 4)
    assert st.perturb(line, x, Half()).size.tolist() == pytest.approx([1, 1])

    def jump(objective: Any, origin: Tensor, within: Any, start: Any) -> st.Ascent:
        none = torch.zeros(2, dtype=torch.bool)
        return st.Ascent(within.project(start() + 9, origin), None, st.Calls(), st.Flags(none, none, none))

    assert st.perturb(line, x, BALL, by=jump).delta.tolist() == [[pytest.approx(0.1)] * 4] * 2


def model_of(images: Tensor) -> Tensor:
    return images.flatten(1)[:, :4] * 3


X, Y = torch.rand(5, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
ARGUMENTS = {"objective": st.ce(model_of, Y), "origin": X, "within": BALL}
LINE = {"objective": line}
SCALAR = st.scalar(lambda w: w["a"].sum())
BAD: dict[str, tuple[Any, str]] = {
    "NaN pixels": (lambda: {"origin": X * math.nan}, "origin: expected finite values, found 20 NaN"),
    "one infinite pixel": (lambda: {"origin": X.index_fill(0, torch.tensor([1]), math.inf)}, "origin.*found 4 NaN"),
    "images in 0..255": (lambda: {"origin": X * 255}, r"origin: expected values in \[0, 1\].*divide 0..255 by 255"),
    "normalised images": (lambda: {"origin": (X - 0.5) / 0.2}, r"origin: expected values in \[0, 1\]"),
    "integers": (lambda: {"origin": (X * 255).byte()}, "origin: expected floating point.*uint8.*255"),
    "a numpy array": (lambda: {"origin": X.numpy()}, "origin: expected a tensor.*ndarray"),
    "a number": (lambda: {"origin": torch.tensor(0.5), **LINE}, "origin: expected a batch"),
    "an empty dict": (lambda: {"origin": {}, "objective": SCALAR}, "origin: expected at least one tensor"),
    "weights, ball per example": (
        lambda: {"origin": {"a": torch.ones(2, 2), "b": torch.ones(3)}, "objective": SCALAR},
        "origin: expected as many examples.*per='tensor'",
    ),
    "one value for weights of equal lengths, ball per example": (
        lambda: {"origin": {"a": torch.ones(2, 2), "b": torch.ones(2)}, "objective": SCALAR},
        "objective: expected one value for each of the 2.*per tensor",
    ),
    "a mean loss": (
        lambda: {"objective": lambda p, r: line(p).mean()},
        "objective: expected one value for each of the 5",
    ),
    "a list": (lambda: {"objective": lambda p, r: [1.0] * 5}, "objective: expected one value.*found list"),
    "a scalar that is none": (
        lambda: {"objective": st.scalar(lambda w: w * 2), "within": st.Ball("l2", 1, per="all")},
        "function: expected one number",
    ),
    "too few labels": (lambda: {"objective": st.ce(model_of, Y[:3])}, "y: expected one for each of the 5"),
    "one-hot labels": (lambda: {"objective": st.ce(model_of, torch.eye(4)[Y])}, "y: expected integer labels"),
    "two-dimensional labels": (lambda: {"objective": st.ce(model_of, Y[:, None])}, r"y:.*\(5, 1\)"),
    "float labels": (lambda: {"objective": st.ce(model_of, Y.float())}, "y:.*float32"),
    "boolean labels": (lambda: {"objective": st.margin(model_of, Y > 1)}, "y:.*bool"),
    "a list of labels": (lambda: {"objective": st.dlr(model_of, [0, 1, 2, 3, 0])}, "y:.*list"),
    "labels out of range": (lambda: {"objective": st.ce(model_of, Y + 1)}, "y: expected labels below 4, found label 4"),
    "labels below zero": (lambda: {"objective": st.ce(model_of, Y - 100)}, "y: expected labels >= 0, found -100"),
    "a tuple from the model": (
        lambda: {"objective": st.ce(lambda x: (model_of(x), x), Y)},
        r"model: expected logits of shape \(5, classes\), found tuple",
    ),
    "another library's output": (
        lambda: {"objective": st.ce(lambda x: SimpleNamespace(logits=model_of(x)), Y)},
        "model:.*SimpleNamespace",
    ),
    "maps of logits": (lambda: {"objective": st.ce(lambda x: x, Y)}, r"model:.*\(5, 1, 2, 2\)"),
    "two classes for DLR": (
        lambda: {"objective": st.dlr(lambda x: model_of(x)[:, :2], Y % 2)},
        "logits: expected three",
    ),
    "no ball": (lambda: {"within": 0.1}, "within: expected a Ball"),
    "radii of another batch": (
        lambda: {"within": st.Ball("linf", torch.ones(4))},
        "radius: expected one for each of the 5",
    ),
    "a negative radius": (lambda: {"within": st.Ball("linf", -0.1)}, "radius: expected a finite number >= 0"),
    "a radius NaN": (lambda: {"within": st.Ball("l2", math.nan)}, "radius: expected a finite"),
    "one negative radius of many": (
        lambda: {"within": st.Ball("l2", torch.tensor([1.0, -1]))},
        "radius: expected a finite",
    ),
    "an infinite radius": (lambda: {"within": st.Ball("l2", math.inf)}, "radius: expected a finite"),
    "no radius": (lambda: {"within": st.Ball("l2", None)}, "radius: expected a number.*NoneType"),  # pyright: ignore
    "a list of radii": (lambda: {"within": st.Ball("l2", [0.1] * 5)}, "radius: expected a number.*list"),  # pyright: ignore
    "radii of tensors": (lambda: {"within": st.Ball("l2", torch.ones(5), per="tensor")}, "radius: expected one number"),
    "radii of pixels": (lambda: {"within": st.Ball("l2", torch.ones(5, 4))}, "radius: expected one number"),
    "half an entry": (lambda: {"within": st.Ball("l0", 1.5)}, "radius: expected a whole number"),
    "a fraction of entries": (lambda: {"within": st.Ball("l0", 1, relative=True)}, "radius: expected a whole number"),
    "an unknown norm": (lambda: {"within": st.Ball("l3", 1.0)}, "norm: expected one of linf, l2, l1, l0"),  # pyright: ignore
    "an unknown grouping": (lambda: {"within": st.Ball("l2", 1.0, per="row")}, "per: expected one of"),  # pyright: ignore
    "a reversed box": (lambda: {"within": st.Ball("l2", 1.0, box=(1, 0))}, r"box: expected \(low, high\)"),
    "an empty box": (lambda: {"within": st.Ball("l2", 1.0, box=(1, 1))}, "box: expected"),
    "a mask of another shape": (
        lambda: {"within": st.Ball("l2", 1.0, mask=torch.ones(3, 2))},
        "mask: expected a shape",
    ),
    "a mask of more examples": (
        lambda: {"within": st.Ball("l2", 1.0, mask=torch.ones(6, 1, 2, 2))},
        "mask:.*(6, 1, 2, 2)",
    ),
    "a mask with one dimension more": (lambda: {"within": st.Ball("l2", 1.0, mask=torch.ones(1, 5, 1, 2, 2))}, "mask:"),
    "masks by name": (lambda: {"within": st.Ball("l2", 1.0, mask={"a": X})}, "mask: expected one tensor"),
    "one mask for weights": (
        lambda: {"origin": {"a": X}, "objective": SCALAR, "within": st.Ball("l2", 1.0, per="all", mask=X)},
        r"mask: expected a dict with the names \['a'\]",
    ),
    "masks of other names": (
        lambda: {"origin": {"a": X}, "objective": SCALAR, "within": st.Ball("l2", 1.0, per="all", mask={"b": X})},
        "mask: expected a dict",
    ),
    "no generator": (lambda: {"start": "sample"}, "generator: expected a torch.Generator"),
    "no generator for noise": (lambda: {"start": st.Gaussian(0.1)}, "generator: expected a torch.Generator"),
    "an unknown start": (lambda: {"start": "random"}, "start: expected 'zero', 'sample'"),
    "a start of another shape": (lambda: {"start": X[:3]}, r"start: expected a tensor of shape \(5, 1, 2, 2\)"),
    "a start by name": (lambda: {"start": {"a": X}}, "start: expected a tensor"),
    "a start NaN": (lambda: {"start": X * math.nan}, "start: expected finite"),
    "a number to start from": (lambda: {"start": 0.1}, "start: expected a tensor"),
    "negative noise": (lambda: {"start": st.Gaussian(-1.0)}, "deviation: expected a number >= 0"),
    "negative steps": (lambda: {"by": st.PGD(-1)}, "steps: expected a whole number >= 0"),
    "half a step": (lambda: {"by": st.PGD(2.5)}, "steps: expected a whole number"),  # pyright: ignore
    "steps by name": (lambda: {"by": st.PGD("10")}, "steps: expected a whole number"),  # pyright: ignore
    "no restart": (lambda: {"by": st.PGD(restarts=0)}, "restarts: expected a whole number >= 1"),
    "a backward step": (lambda: {"by": st.PGD(step=-0.1)}, "step: expected a number >= 0"),
    "a step NaN": (lambda: {"by": st.PGD(step=math.nan)}, "step: expected a number >= 0"),
    "an infinite step": (lambda: {"by": st.PGD(step=math.inf)}, "step: expected a number >= 0"),
    "negative momentum": (lambda: {"by": st.PGD(momentum=-1.0)}, "momentum: expected a number >= 0"),
    "keep the first": (lambda: {"by": st.PGD(keep="first")}, "keep: expected 'last' or 'best'"),  # pyright: ignore
}


def call(**changes: Any) -> st.Perturbation:
    arguments = {**ARGUMENTS, **changes}
    return st.perturb(arguments.pop("objective"), arguments.pop("origin"), arguments.pop("within"), **arguments)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_an_error_that_names_the_argument(name: str) -> None:
    make, message = BAD[name]
    with pytest.raises(st.InputError, match=message) as caught:
        call(**make())
    assert caught.value.argument.split("[")[0] == message.split(":")[0].split(".")[0]
    assert caught.value.remedy.endswith((".", "?"))


def test_the_good_arguments_are_good() -> None:
    assert bool(call().delta.any())


@pytest.mark.parametrize("by", [st.PGD(0), st.PGD(1, 1.0), st.PGD(3), st.PGD(2, keep="best"), st.PGD(2, restarts=2)])
@pytest.mark.parametrize("start", ["zero", "sample"])
def test_search_finds_what_perturb_finds(network: Make, images: Make, labels: Make, by: st.PGD, start: Any) -> None:
    model, x, y = network(), images(), labels()
    ball = st.Ball("l2", 0.5, box=(0, 1))
    whole = st.perturb(st.ce(model, y), x, ball, by=by, start=start, generator=st.generator(5))
    found = search(st.ce(model, y), x, ball, by=by, start=start, generator=st.generator(5))
    assert isinstance(found.delta, Tensor)
    assert torch.equal(found.delta, whole.delta)
    assert found.calls == whole.calls
    found.delta.add_(1.0)  # it is a tensor of its own, with memory for each entry


def test_it_is_shown_in_a_line(network: Make, images: Make, labels: Make) -> None:
    """Of tensors, of dicts of tensors, and of an empty batch."""
    model, x, y = network(), images(), labels()
    found = st.perturb(st.ce(model, y), x, BALL, by=st.PGD(3, keep="last"))
    size = f"{float(found.size.max()):.4g}"
    passes = f"{found.calls.forward} forward and {found.calls.backward} backward passes"
    assert repr(found).startswith(f"Perturbation({len(x)} examples, largest size {size}, {passes}")
    loss = st.scalar(lambda w: st.cross_entropy(st.at(model, w)(x), y).mean())
    weights = st.perturb(loss, st.weights(model), st.Ball("l2", 0.05, per="filter", relative=True), by=st.PGD(2))
    size = f"{max(float(part.max()) for part in weights.size.values()):.4g}"
    assert repr(weights).startswith(f"Perturbation({len(weights.delta)} tensors, largest size {size}, ")
    flags = st.Flags(torch.tensor([True, False]), torch.tensor([False, False]), torch.tensor([True, True]))
    two = {"a": torch.ones(2, 3), "b": torch.zeros(2, 1)}
    sizes = {"a": torch.tensor([1.0, 0.5]), "b": torch.zeros(2)}
    made = st.Perturbation(two, two, two, None, sizes, st.Calls(4, 2), flags)
    shown = "2 examples, 2 tensors, largest size 1, 4 forward and 2 backward passes, 1 vanishing, 2 stopped"
    assert repr(made) == f"Perturbation({shown})"
    empty = st.perturb(st.ce(model, y[:0]), x[:0], BALL)
    assert repr(empty) == "Perturbation(0 examples, 0 forward and 0 backward passes)"
