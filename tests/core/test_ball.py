"""`Ball`: projections and sizes against slow float64 references, over drawn cases."""

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

    def rise(point: Tensor, rows: Tensor | None) -> Tensor:
        assert float(point.detach().min()) >= 0  # nor does the objective ever see anything else
        assert float(point.detach().max()) <= 1
        return (point * slope).flatten(1).sum(1)

    found = st.perturb(rise, x, ball, by=st.PGD(3, 0.5), start="sample", generator=source)
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


def test_a_box_with_odd_ends_holds_although_sums_are_rounded() -> None:
    low, high = torch.tensor([-1.7, 2.3]).tolist()  # as float32 has them
    x = low + (high - low) * torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) * 0.999
    slope = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(1))
    looks: list[Tensor] = []

    def rise(point: Tensor, rows: Tensor | None) -> Tensor:
        looks.append(point.detach())
        return (point * slope).sum(1)

    found = st.perturb(rise, x, st.Ball("linf", 9.0, box=(low, high)), by=st.PGD(4, 0.5))
    rounded = x + found.delta
    assert float(rounded.max()) > high or float(rounded.min()) < low  # or the test would show nothing
    for point in (*looks, found.point):
        assert float(point.max()) <= high
        assert float(point.min()) >= low


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


@pytest.mark.parametrize("per", PERS)
@pytest.mark.parametrize("norm", NORMS)
def test_tensors_without_entries_are_carried_along(norm: str, per: str) -> None:
    for shape in ((0, 3), (2, 0)):
        origin = {"a": torch.ones(2, 3), "b": torch.ones(shape)}
        ball = st.Ball(norm, 1, per=per, relative=norm != "l0", box=(0, 2)).on(origin)
        drawn = ball.sample(origin, st.generator(0))
        for tree in (drawn, ball.project(drawn, origin), ball.steepest(origin, origin, drawn)):
            assert {k: v.shape for k, v in tree.items()} == {"a": (2, 3), "b": shape}
        assert bool(torch.isfinite(flat(ball.size(drawn, origin))).all())


def test_any_nonzero_entry_of_a_mask_counts_and_a_low_box_is_checked() -> None:
    ball = st.Ball("linf", 0.5, mask=torch.tensor([0.3, 0.0, -1.0])).on(torch.zeros(1, 3))
    assert ball.project(torch.ones(1, 3), torch.zeros(1, 3)).tolist() == [[0.5, 0, 0.5]]
    with pytest.raises(st.InputError, match=r"origin: expected values in \[0, 1\], found \[-0.1, 0.5\]"):
        st.Ball("linf", 0.5, box=(0, 1)).on(torch.tensor([[-0.1, 0.5]]))


def test_an_l0_ball_in_a_half_open_box_steps_by_one() -> None:
    ball, origin = st.Ball("l0", 1, box=(0, float("inf"))), torch.ones(2, 3)
    assert ball.reach(origin) == 1.0
    found = st.perturb(lambda p, rows: p @ torch.tensor([1.0, 2, 3]), origin, ball, by=st.PGD(4, 0.25))
    assert found.delta.tolist() == [[0, 0, 1], [0, 0, 1]]


def test_a_radius_of_one_number_as_a_tensor() -> None:
    for radius in (torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)):
        ball = st.Ball("linf", radius).on(torch.zeros(2, 3))
        assert ball.project(torch.ones(2, 3), torch.zeros(2, 3)).tolist() == [[0.5] * 3] * 2


def test_rows_gives_the_ball_of_some_examples() -> None:
    mask = torch.arange(12).reshape(4, 3) % 2
    ball = st.Ball("linf", torch.tensor([0.1, 0.2, 0.3, 0.4]), mask=mask).on(torch.zeros(4, 3))
    part = ball.rows(torch.tensor([3, 1]))
    found = part.project(torch.ones(2, 3), torch.zeros(2, 3))
    assert found.tolist() == ball.project(torch.ones(4, 3), torch.zeros(4, 3))[[3, 1]].tolist()
    shared = st.Ball("linf", 0.1, mask=torch.tensor([1, 0, 1])).on(torch.zeros(4, 3)).rows(torch.tensor([2]))
    assert shared.project(torch.ones(1, 3), torch.zeros(1, 3)).tolist() == [[pytest.approx(0.1), 0, pytest.approx(0.1)]]
