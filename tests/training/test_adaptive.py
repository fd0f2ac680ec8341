"""ASAM's ellipsoid: every method of a constraint, against its definition in the coordinates T^-1 v."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from shaketable.core import PGD, Ball, InputError, generator, perturb, scalar
from shaketable.core.constraint import Joint, constraint
from shaketable.training.adaptive import AdaptiveBall

SEEDS = st.integers(0, 2**31 - 1)
RADII = st.floats(1e-3, 1e3)
ETAS = st.sampled_from([0.0, 1e-3, 0.01, 1.0])
MANY = settings(max_examples=60, deadline=None)
SHAPES = {"a.weight": (4, 3), "a.bias": (4,), "b.weight": (2, 4, 1, 2), "norm.weight": (5,), "gate": ()}


def drawn(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=source, dtype=torch.float64) for name, shape in SHAPES.items()}


def flat(tree: Any) -> Tensor:
    return torch.cat([tree[name].double().flatten() for name in SHAPES])


def lengths(w: dict[str, Tensor], eta: float, biases: bool = False) -> Tensor:
    """The diagonal of T as one vector: |w| + eta, and 1 for the bias."""
    return flat({k: t.abs() + eta if biases or k != "a.bias" else torch.ones_like(t) for k, t in w.items()})


@given(SEEDS, RADII, ETAS, st.booleans())
@MANY
def test_steepest_is_the_closed_form_and_no_feasible_direction_rises_more(
    seed: int, radius: float, eta: float, biases: bool
) -> None:
    w, g = drawn(seed), drawn(seed + 1, 1e-3)
    ball, t, slope = AdaptiveBall(radius, eta, biases), lengths(w, eta, biases), flat(g)
    v = flat(ball.steepest(g, w, g)) * radius
    expected = radius * t**2 * slope / (t * slope).norm()
    assert torch.allclose(v, expected, rtol=1e-10, atol=0)
    best = float(v @ slope)
    assert best == pytest.approx(radius * float((t * slope).norm()), rel=1e-10)
    source = torch.Generator().manual_seed(seed + 2)
    for _ in range(20):
        u = torch.randn(len(t), generator=source, dtype=torch.float64)
        assert float((radius * t * u / u.norm()) @ slope) <= best * (1 + 1e-12)
    near = t * (v / t + 0.05 * radius * u)  # just beside it, brought back to the border
    near = near * radius / (near / t).norm()
    assert float(near @ slope) < best


@given(SEEDS, RADII, ETAS, st.sampled_from([1e-9, 0.1, 1.0, 1e6]))
@MANY
def test_project_is_feasible_idempotent_and_nearest_in_its_metric(
    seed: int, radius: float, eta: float, far: float
) -> None:
    w, delta = drawn(seed), drawn(seed + 1, far)
    ball, t = AdaptiveBall(radius, eta), lengths(w, eta)
    found = ball.project(delta, w)
    size = ball.size(found, w)
    assert size.shape == (1,)
    assert float(size) <= radius * (1 + 1e-12)
    assert float(size) == pytest.approx(float((flat(found) / t).norm()), rel=1e-12)
    again = ball.project(found, w)
    assert torch.allclose(flat(again), flat(found), rtol=1e-14, atol=0)
    start = flat(delta) / t
    if float(start.norm()) <= radius:
        assert torch.equal(flat(found), flat(delta))
    distance = float((start - flat(found) / t).norm())
    for k in range(10):
        other = flat(ball.sample(w, generator(seed, k), "sphere" if k % 2 else "ball")) / t
        assert float((start - other).norm()) >= distance * (1 - 1e-12)


def test_entries_at_zero_stay_without_eta_and_move_with_it() -> None:
    w = {"weight": torch.tensor([0.0, 2.0, -1.0]), "zero.weight": torch.zeros(2, 2)}
    g = {name: torch.ones_like(t) for name, t in w.items()}
    ball = AdaptiveBall(0.5, 0.0)
    step = ball.steepest(g, w, g)
    assert step["weight"].tolist() == pytest.approx([0.0, 4 / 5**0.5, 1 / 5**0.5])
    assert not bool(step["zero.weight"].any())
    inside = ball.project(g, w)
    assert inside["weight"][0] == 0
    assert not bool(inside["zero.weight"].any())
    assert float(ball.size(inside, w)) == pytest.approx(0.5)
    assert float(ball.size(g, w)) == float("inf")
    assert float(ball.size({name: torch.zeros_like(t) for name, t in w.items()}, w)) == 0
    draw = ball.sample(w, generator(0))
    assert draw["weight"][0] == 0
    assert bool(draw["weight"][1:].all())
    assert not bool(draw["zero.weight"].any())
    assert float(ball.size(ball.sample(w, generator(0), "sphere"), w)) == pytest.approx(
        0.5
    )  # held entries take no share
    nothing = {"weight": torch.zeros(3)}
    assert not bool(ball.sample(nothing, generator(0))["weight"].any())
    moved = AdaptiveBall(0.5, 0.01).steepest(g, w, g)
    assert float(moved["zero.weight"].min()) > 0


def test_without_a_gradient_there_is_no_direction() -> None:
    w = drawn(0)
    none = {name: torch.zeros_like(t) for name, t in w.items()}
    assert not bool(flat(AdaptiveBall(0.5).steepest(none, w, none)).any())
    some = none | {"a.bias": torch.ones(4, dtype=torch.float64)}
    found = AdaptiveBall(0.5).steepest(some, w, none)
    assert torch.allclose(found["a.bias"], torch.full((4,), 0.5, dtype=torch.float64))
    assert not bool(found["a.weight"].any())


@pytest.mark.parametrize("law", ["ball", "sphere", "radius"])
def test_sample_is_the_image_of_the_l2_balls_law(law: Any) -> None:
    w = {"weight": torch.tensor([[1.0, -3.0], [0.2, 5.0]], dtype=torch.float64), "bias": torch.ones(1).double() * 9}
    ball, t = AdaptiveBall(0.7, 0.1), torch.tensor([1.1, 3.1, 0.3, 5.1, 1.0], dtype=torch.float64)
    source = generator(1, law)
    draws = [ball.sample(w, source, law) for _ in range(800)]
    u = torch.stack([torch.cat([d["weight"].flatten(), d["bias"]]) for d in draws]) / t / 0.7
    r = u.norm(dim=1)
    if law == "sphere":
        assert torch.allclose(r, torch.ones_like(r), rtol=1e-12)
    else:
        assert stats.kstest(r, (lambda q: q**5) if law == "ball" else "uniform").pvalue > 1e-3
    cosine = stats.beta(2, 2)  # of a coordinate of the 4-sphere, moved to [0, 1]
    for column in (u / r[:, None]).T:
        assert stats.kstest((column + 1) / 2, cosine.cdf).pvalue > 1e-3
    again = ball.sample(w, generator(1, law), law)
    assert torch.equal(again["weight"], draws[0]["weight"])


def test_which_tensors_are_biases() -> None:
    names = {
        "bias": True,
        "0.bias": True,
        "attention.in_proj_bias": True,
        "attention.bias_k": True,
        "rnn.bias_hh_l0": True,
        "0.parametrizations.bias.original0": True,
        "0.weight": False,
        "bn.weight": False,
        "bias_free.weight": False,
        "token": False,
        "unbiased.in_proj_weight": False,
        "0.parametrizations.weight.original1": False,
        "bias.parametrizations.weight.original0": False,
    }
    w = {name: torch.full((2,), 3.0) for name in names}
    v = {name: torch.ones(2) for name in names}
    for name, bias in names.items():
        only = {k: t if k == name else torch.zeros(2) for k, t in v.items()}
        assert float(AdaptiveBall(1.0, 1.0).size(only, w)) == pytest.approx(2**0.5 / (1 if bias else 4)), name
        assert float(AdaptiveBall(1.0, 1.0, biases=True).size(only, w)) == pytest.approx(2**0.5 / 4)
    alone = AdaptiveBall(1.0, 1.0).size(torch.ones(2), torch.full((2,), 3.0))  # a place without names
    assert float(alone) == pytest.approx(2**0.5 / 4)


@pytest.mark.parametrize("factor", [2.0**-90, 2.0**90])
def test_neither_small_nor_large_gradients_are_lost(factor: float) -> None:
    w = {name: t.float() for name, t in drawn(3).items()}
    g = {name: t.float() for name, t in drawn(4).items()}
    ball = AdaptiveBall(0.5)
    plain = flat(ball.steepest(g, w, g))
    scaled = flat(ball.steepest({name: t * factor for name, t in g.items()}, w, g))
    assert torch.allclose(scaled, plain, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_are_kept_and_lengths_are_wide(dtype: torch.dtype) -> None:
    w, g = ({name: t.to(dtype) for name, t in drawn(k).items()} for k in (5, 6))
    ball = AdaptiveBall(0.5)
    fine = AdaptiveBall(0.5).steepest(
        {name: t.double() for name, t in g.items()}, {name: t.double() for name, t in w.items()}, g
    )
    close = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2**-11, torch.bfloat16: 2**-8}[dtype]
    for tree in (ball.steepest(g, w, g), ball.project(g, w), ball.sample(w, generator(0))):
        assert {t.dtype for t in tree.values()} == {dtype}
        assert {name: t.shape for name, t in tree.items()} == {name: t.shape for name, t in w.items()}
    assert torch.allclose(flat(ball.steepest(g, w, g)), flat(fine), rtol=close, atol=6e-8)
    assert float(ball.size(ball.project(g, w), w)) == pytest.approx(0.5, rel=close)


def test_perturb_takes_it_alone_and_in_a_joint_place() -> None:
    w, goal = drawn(7), drawn(8)
    rise = scalar(lambda p: torch.stack([(p[name] * goal[name]).sum() for name in SHAPES]).sum())
    for by in (PGD(1, 1.0), PGD(4, 0.25), PGD(5, 1.0, momentum=0.9)):
        found = perturb(rise, w, AdaptiveBall(0.5), by=by)
        t, slope = lengths(w, 0.01), flat(goal)
        if not by.momentum:  # of a linear function one direction is steepest throughout
            assert torch.allclose(flat(found.delta), 0.5 * t**2 * slope / (t * slope).norm(), rtol=1e-9)
        assert float(found.size) <= 0.5 * (1 + 1e-12)
    best = perturb(
        rise, w, AdaptiveBall(0.5), by=PGD(3, 0.4, restarts=2, keep="best"), start="sample", generator=generator(0)
    )
    assert float(best.size) <= 0.5 * (1 + 1e-12)
    drawn_alone = perturb(rise, w, AdaptiveBall(0.5), by=PGD(0), start="sample", generator=generator(2))
    assert torch.equal(flat(drawn_alone.delta), flat(AdaptiveBall(0.5).sample(w, generator(2))))
    x = torch.full((3, 2), 0.5, dtype=torch.float64)
    both = scalar(lambda p: p["x"].sum() + p["w"]["a.weight"].sum())
    joint = {"x": Ball("linf", 0.1, box=(0, 1)), "w": AdaptiveBall(0.5)}
    found = perturb(both, {"x": x, "w": w}, joint, by=PGD(1, 1.0))
    assert torch.allclose(found.delta["x"], torch.full_like(x, 0.1))
    t = w["a.weight"].abs() + 0.01
    assert torch.allclose(found.delta["w"]["a.weight"], 0.5 * t**2 / t.norm())


def test_it_is_a_constraint_of_the_whole_place() -> None:
    ball, w = AdaptiveBall(0.5), drawn(0)
    assert constraint(ball) is ball.on(w) is ball.rows(torch.tensor([0])) is ball
    assert isinstance(constraint({"w": ball}), Joint)
    assert ball.rowwise is False
    assert ball.clip(w) is w
    assert ball.reach(w) == dict.fromkeys(SHAPES, 0.5)
    assert not bool(flat(AdaptiveBall(0).project(w, w)).any())
    assert hash(ball) == hash(AdaptiveBall(0.5, 0.01, False))


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"radius": -1.0}, "radius"),
        ({"radius": float("nan")}, "radius"),
        ({"radius": float("inf")}, "radius"),
        ({"radius": "0.5"}, "radius"),
        ({"radius": torch.tensor([0.5, 1.0])}, "radius"),
        ({"radius": 0.5, "eta": -0.01}, "eta"),
        ({"radius": 0.5, "eta": float("nan")}, "eta"),
        ({"radius": 0.5, "eta": None}, "eta"),
        ({"radius": 0.5, "biases": "no"}, "biases"),
    ],
)
def test_bad_values(given: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        AdaptiveBall(**given)
    assert caught.value.argument == argument
    assert caught.value.remedy
