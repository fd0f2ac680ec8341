"""`Ball`: projections, steepest directions and sizes against slow float64 references, over drawn cases."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from shaketable import core as st

NORMS, PERS = ("linf", "l2", "l1", "l0"), ("example", "element", "filter", "tensor", "all")
ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def groups(tree: Any, per: str) -> list[Tensor]:
    """The entries that share a norm, slowly: one float64 vector a group."""
    parts = list(tree.values()) if isinstance(tree, dict) else [tree]
    if per == "all":
        return [torch.cat([part.flatten() for part in parts]).double()]
    vectors: list[Tensor] = []
    for part in parts:
        if per == "element":
            vectors += list(part.reshape(-1, 1))
        elif per == "tensor" or part.dim() == 0:
            vectors.append(part.flatten())
        else:
            vectors += [row.flatten() for row in part]
    return [vector.double() for vector in vectors]


def norms(tree: Any, per: str, norm: str) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(v, ORDER[norm]) for v in groups(tree, per)])


@some.composite
def case(draw_one: Any) -> dict[str, Any]:
    norm, per = draw_one(some.sampled_from(NORMS)), draw_one(some.sampled_from(PERS))
    seed = draw_one(some.integers(0, 2**31))
    relative = norm != "l0" and draw_one(some.booleans())
    dtype = draw_one(some.sampled_from([torch.float32, torch.float64]))
    shapes = draw_one(some.sampled_from([[(3, 2, 4)], [(1, 5)], [(4,)], [(3, 2, 2), (3,), (3, 1)]]))
    origin = {f"t{i}": torch.sigmoid(draw(seed + i, *shape, dtype=dtype)) for i, shape in enumerate(shapes)}
    scale = draw_one(some.sampled_from([1e-3, 0.3, 30.0]))
    delta = {name: scale * draw(seed + 9 + i, *o.shape, dtype=dtype) for i, (name, o) in enumerate(origin.items())}
    mask = {name: draw(seed + 99 + i, *o.shape) > 0 for i, (name, o) in enumerate(origin.items())}
    if len(shapes) == 1:
        origin, delta, mask = origin["t0"], delta["t0"], mask["t0"]
    radius: Any = draw_one(some.integers(0, 3)) if norm == "l0" else draw_one(some.floats(0, 2))
    if per == "example" and draw_one(some.booleans()):
        count = len(mask) if isinstance(mask, Tensor) else 3
        own = draw(seed + 5, count).abs()
        radius = own.round() if norm == "l0" else own
    box = draw_one(some.sampled_from([None, (0.0, 1.0)]))
    ball = st.Ball(norm, radius, per=per, relative=relative, box=box, mask=mask if draw_one(some.booleans()) else None)
    return {"ball": ball.on(origin), "origin": origin, "delta": delta, "dtype": dtype}


def flat(tree: Any) -> Tensor:
    return torch.cat([t.flatten() for t in (tree.values() if isinstance(tree, dict) else [tree])])


def limits(ball: st.Ball, origin: Any) -> Tensor:
    """The radius of each group, in float64."""
    lengths = norms(origin, ball.per, ball.norm)
    radius = torch.as_tensor(ball.radius, dtype=torch.float64)
    if radius.dim():
        radius = radius.repeat(len(lengths) // len(radius))
    return radius * lengths if ball.relative else radius.expand(len(lengths))


def slack(ball: st.Ball, origin: Any, delta: Any, dtype: torch.dtype) -> Tensor:
    """What rounding may add: a unit in the last place of each entry of the point and of the radius."""
    unit = torch.finfo(dtype).eps
    entries = torch.tensor([float(v.numel()) for v in groups(origin, ball.per)])
    count = {"linf": 1.0, "l2": entries.sqrt(), "l1": entries, "l0": 0.0}[ball.norm]
    return count * unit * (flat(origin).abs().max().double() + flat(delta).abs().max()) + 4 * unit * limits(
        ball, origin
    )


@settings(max_examples=400, deadline=None, derandomize=True)
@given(case())
def test_projection_is_feasible_and_idempotent(case: dict[str, Any]) -> None:
    ball, origin, delta = case["ball"], case["origin"], case["delta"]
    found = ball.project(delta, origin)
    room = slack(ball, origin, found, case["dtype"])
    if ball.norm == "l1":  # in float64 the threshold cannot be found in anything wider
        room = room + torch.finfo(torch.float64).eps * flat(delta).abs().sum()
    assert flat(found).dtype == case["dtype"]
    assert flat(found).shape == flat(delta).shape
    assert bool((norms(found, ball.per, ball.norm) <= limits(ball, origin) + room).all())
    point = flat(ball.clip({k: origin[k] + found[k] for k in origin} if isinstance(origin, dict) else origin + found))
    if ball.box is not None:
        assert float(point.min()) >= 0
        assert float(point.max()) <= 1
    if ball.mask is not None:
        inside = flat(ball.mask)
        assert torch.equal(point[~inside], flat(origin)[~inside])
    again = flat(ball.project(found, origin))
    assert float((again - flat(found)).abs().max()) <= float(room.max())
    if ball.norm == "l0" and ball.box is None:
        assert torch.equal(again, flat(found))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(case())
def test_projection_leaves_a_feasible_delta(case: dict[str, Any]) -> None:
    ball, origin = case["ball"], case["origin"]
    inside = ball.project(case["delta"], origin)
    half = {k: v / 2 for k, v in inside.items()} if isinstance(inside, dict) else inside / 2
    found = ball.project(half, origin)
    allowed = 0 if ball.box is None else 2 * torch.finfo(case["dtype"]).eps
    assert float((flat(found) - flat(half)).abs().max()) <= allowed


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_projection_is_the_nearest_point(norm: str) -> None:
    delta, origin = draw(1, 5, 6, dtype=torch.float64) * 3, torch.zeros(5, 6, dtype=torch.float64)
    ball = st.Ball(norm, 1.0)
    found = ball.project(delta, origin)
    other = ball.sample(origin.repeat(4000, 1, 1).flatten(0, 1), st.generator(0), "sphere").reshape(4000, 5, 6)
    nearest = (found - delta).norm(dim=1)
    # variational inequality: <delta - P(delta), z - P(delta)> <= 0 for every z of the ball
    assert float(((delta - found) * (other - found)).sum(2).max()) <= 1e-12
    assert bool(((other - delta).norm(dim=2).min(0).values >= nearest).all())


def test_l1_projection_of_many_entries_keeps_the_radius() -> None:
    delta = draw(0, 3, 150_000)
    size = st.Ball("l1", 1.0).project(delta, torch.zeros_like(delta)).double().abs().sum(1)
    assert torch.allclose(size, torch.ones(3, dtype=torch.float64), rtol=1e-6)
    half = draw(0, 3, 3000).bfloat16()
    size = st.Ball("l1", 1.0).project(half, torch.zeros_like(half)).double().abs().sum(1)
    assert torch.allclose(size, torch.ones(3, dtype=torch.float64), rtol=8e-3)


def test_l0_projection_keeps_the_first_of_equals() -> None:
    tied = torch.tensor([[1.0, -1, 1, 1], [0, 0, 0, 0], [2, 2, 3, 2]])
    found = st.Ball("l0", 2).project(tied, torch.zeros(3, 4))
    assert found.tolist() == [[1, -1, 0, 0], [0, 0, 0, 0], [2, 0, 3, 0]]


def unit(norm: str, count: int, shape: torch.Size, radius: int, seed: int) -> Tensor:
    """Random directions of unit size: (count, *shape), rows are groups."""
    raw = draw(seed, count, *shape, dtype=torch.float64)
    if norm == "linf":
        return raw.sign()
    if norm == "l0":
        order = raw.abs().argsort(-1, descending=True).argsort(-1)
        return torch.where(order < radius, raw.sign(), 0.0)
    return raw / torch.linalg.vector_norm(raw, ORDER[norm], -1, keepdim=True)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("per", PERS)
def test_steepest_has_unit_size_and_beats_random_directions(norm: str, per: str) -> None:
    gradient = draw(3, 4, 5, dtype=torch.float64)
    radius = 1 if norm == "l0" and per == "element" else 2
    ball, zero = st.Ball(norm, radius, per=per), torch.zeros(4, 5, dtype=torch.float64)
    found = ball.steepest(gradient, zero, zero)
    rows, slopes = torch.stack(groups(found, per)), torch.stack(groups(gradient, per))
    expected = torch.full((len(rows),), float(radius) if norm == "l0" else 1.0, dtype=torch.float64)
    assert torch.allclose(torch.linalg.vector_norm(rows, ORDER[norm], 1), expected, rtol=1e-12)
    rivals = unit(norm, 500, slopes.shape, radius, 4)
    assert bool(((rows * slopes).sum(1) >= (rivals * slopes).sum(2).max(0).values - 1e-12).all())


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_is_zero_without_a_gradient_and_outside_the_mask(norm: str) -> None:
    mask = torch.tensor([1, 1, 0, 0])
    zero = torch.zeros(2, 4)
    ball = st.Ball(norm, 2, mask=mask).on(zero)
    found = ball.steepest(torch.tensor([[0.0, 0, 9, 9], [1, -2, 9, 9]]), zero, zero)
    assert found[0].tolist() == [0, 0, 0, 0]
    assert found[1, 2:].tolist() == [0, 0]
    assert float(found[1, 1]) < 0


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_l2_steepest_at_any_scale_of_float32(scale: float) -> None:
    gradient = torch.tensor([[3.0, 4.0]]) * scale
    found = st.Ball("l2", 1.0).steepest(gradient, torch.zeros(1, 2), torch.zeros(1, 2))
    assert torch.allclose(found, torch.tensor([[0.6, 0.8]]), rtol=1e-6)


@pytest.mark.parametrize(("norm", "radius", "expected"), [("l1", 1.0, [0, 0, -1, 0]), ("l0", 2, [0, 1, -1, 0])])
def test_steepest_passes_over_entries_that_the_box_holds(norm: str, radius: float, expected: list[float]) -> None:
    origin, delta = torch.tensor([[1.0, 0.5, 0.5, 0.2]]), torch.tensor([[0.0, 0, 0, -0.2]])
    gradient = torch.tensor([[9.0, 2, -3, -8]])
    found = st.Ball(norm, radius, box=(0, 1)).steepest(gradient, origin, delta)
    assert found.tolist() == [expected]


@pytest.mark.parametrize("norm", NORMS)
def test_ten_thousand_attacks_stay_in_ball_box_and_mask(norm: str) -> None:
    n, unit_place = 10_000, torch.finfo(torch.float32).eps
    source = torch.Generator().manual_seed(7)
    x = torch.rand(n, 2, 3, 3, generator=source)
    x[:100], x[100:200] = 0.0, 1.0
    mask = torch.rand(n, 1, 3, 3, generator=source) > 0.4
    slope = torch.randn(n, 2, 3, 3, generator=source)
    radius = torch.randint(0, 5, (n,), generator=source) if norm == "l0" else torch.rand(n, generator=source)
    ball = st.Ball(norm, radius, box=(0, 1), mask=mask)
    found = st.perturb(
        lambda p, rows: (p * slope).flatten(1).sum(1), x, ball, by=st.PGD(3, 0.5), start="sample", generator=source
    )
    point = found.point
    assert float(point.min()) >= 0
    assert float(point.max()) <= 1
    outside = ~mask.expand_as(x)
    assert torch.equal(point[outside], x[outside])
    moved = (point.double() - x.double()).flatten(1)
    size = torch.linalg.vector_norm(moved, ORDER[norm], 1)
    entries = {"linf": 1.0, "l2": 18**0.5, "l1": 18.0, "l0": 0.0}[norm]
    assert bool((size <= radius.double() * (1 + 4 * unit_place) + entries * unit_place).all())
    assert float((size / radius.clamp(min=1e-9)).median()) > 0.9  # and they do use their room


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("norm", NORMS)
def test_size_is_the_norm_of_each_group(norm: str, per: str) -> None:
    origin = {"a": draw(1, 3, 4, 2).abs() + 0.1, "b": draw(2, 3)}
    delta = {"a": draw(3, 3, 4, 2), "b": torch.tensor([0.0, 1, 2])}
    plain = st.Ball(norm, 1, per=per).size(delta, origin)
    assert torch.allclose(flat(plain).double(), norms(delta, per, norm), rtol=1e-5)
    if norm != "l0":
        relative = st.Ball(norm, 1, per=per, relative=True).size(delta, origin)
        expected = norms(delta, per, norm) / norms(origin, per, norm)
        assert torch.allclose(flat(relative).double(), expected, rtol=1e-5)


def test_a_group_of_norm_zero_stays_under_a_relative_radius() -> None:
    origin = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    ball = st.Ball("l2", 0.5, relative=True)
    found = ball.project(torch.ones(2, 2) * 9, origin)
    assert found[0].tolist() == [0, 0]
    assert ball.size(found, origin).tolist() == pytest.approx([0, 0.5], rel=1e-6)


def test_relative_radii_of_each_example_on_square_images() -> None:
    """A radius (n,) that met a norm (n, 1, 1, 1) carelessly would broadcast along the width where n equals it."""
    origin, delta = draw(1, 4, 1, 4, 4), 100 * draw(2, 4, 1, 4, 4)
    radius = torch.tensor([0.1, 0.2, 0.3, 0.4])
    ball = st.Ball("l2", radius, relative=True)
    assert torch.allclose(ball.size(ball.project(delta, origin), origin), radius, rtol=1e-5)
    drawn = ball.sample(origin, st.generator(0), "sphere")
    assert torch.allclose(ball.size(drawn, origin), radius, rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_one_ball_over_all_tensors_keeps_shapes_and_dtypes(norm: str) -> None:
    origin = {"number": torch.tensor(2.0), "half": torch.ones(3, dtype=torch.bfloat16), "matrix": draw(1, 2, 2)}
    ball = st.Ball(norm, 2, per="all").on(origin)
    for tree in (
        ball.project(origin, origin),
        ball.steepest(origin, origin, origin),
        ball.sample(origin, st.generator(0)),
    ):
        assert {k: (v.shape, v.dtype) for k, v in tree.items()} == {k: (v.shape, v.dtype) for k, v in origin.items()}


def test_rows_gives_the_ball_of_some_examples() -> None:
    mask = torch.arange(12).reshape(4, 3) % 2
    ball = st.Ball("linf", torch.tensor([0.1, 0.2, 0.3, 0.4]), mask=mask).on(torch.zeros(4, 3))
    part = ball.rows(torch.tensor([3, 1]))
    found = part.project(torch.ones(2, 3), torch.zeros(2, 3))
    assert found.tolist() == ball.project(torch.ones(4, 3), torch.zeros(4, 3))[[3, 1]].tolist()
    shared = st.Ball("linf", 0.1, mask=torch.tensor([1, 0, 1])).on(torch.zeros(4, 3)).rows(torch.tensor([2]))
    assert shared.project(torch.ones(1, 3), torch.zeros(1, 3)).tolist() == [[pytest.approx(0.1), 0, pytest.approx(0.1)]]
