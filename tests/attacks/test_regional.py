"""The paper's attack: against a hand-written loop, whatever is watched and however often; what is recorded of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shaketable.attacks import regions
from shaketable.attacks.events import norms
from shaketable.attacks.regional import PRESETS, RegionalAttack, regional
from shaketable.attacks.towards import other_class, precise_cross_entropy
from shaketable.attacks.trajectory import schedule
from shaketable.core import Ball, GradientError, InputError, cross_entropy, generator, logit_margin

Make = Callable[..., Any]
LOSSES = {"precise": precise_cross_entropy, "ce": cross_entropy, "margin": logit_margin}


def by_hand(model: Any, x: Tensor, target: Tensor, mask: Tensor, steps: int, step: float, loss: Any) -> list[Tensor]:
    """The paper's loop as one writes it down: all its iterates."""
    points = [x]
    for _ in range(steps):
        point = points[-1].clone().requires_grad_()
        gradient = torch.autograd.grad(loss(model(point), target).sum(), point)[0]
        points.append((points[-1] - step * gradient.sign() * mask).clamp(0, 1))
    return points


def first_of(hits: Tensor) -> Tensor:
    """The first row that is true in each column, -1 where there is none."""
    return torch.where(hits.any(0), hits.float().argmax(0), -1)


def others(problem: Make) -> dict[str, Any]:
    """Models that mostly agree with the problem's on clean images, since they are it with a little noise."""
    found = {}
    for k in range(3):
        model = problem().model
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.15 * torch.randn(parameter.shape, generator=generator(k, "others"))
        found[f"other{k}"] = model
    return found


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_equals_a_hand_written_loop_bit_for_bit(problem: Make, loss: Any) -> None:
    p = problem(20)
    mask = regions.centre(p.x.shape, area=0.5)
    found = regional(p.model, p.x, p.y, region=mask, seed=1, steps=12, step=0.0039, loss=loss, batch_size=20)
    points = by_hand(p.model, p.x, found.target, mask, 12, 0.0039, LOSSES[loss])
    assert found.point is not None
    assert torch.equal(found.point, points[-1])
    given = torch.stack([p.model(point).argmax(1) for point in points])
    assert torch.equal(found.left.first, first_of(given != p.y))
    assert torch.equal(found.reached.first, first_of(given == found.target))
    assert torch.equal(found.correct, given[0] == p.y)
    for event in (found.left, found.reached):
        for i, k in enumerate(event.first.tolist()):
            expected = norms(points[k][i : i + 1], p.x[i : i + 1], mask)
            assert event.points is not None
            assert torch.equal(event.points[i], points[k][i])
            assert event.norms.l2[i] == (float(expected.l2) if k >= 0 else torch.inf)
    assert (found.calls.forward, found.calls.backward) == (13 * 20, 12 * 20)
    assert torch.equal(found.point[~mask.expand_as(p.x)], p.x[~mask.expand_as(p.x)])


def test_targets_are_uniform_over_the_other_classes() -> None:
    draws = torch.rand(9000, generator=generator(0), dtype=torch.float64)
    y = torch.arange(9000) % 4
    target = other_class(draws, y, 4)
    assert bool((target != y).all())
    counts = torch.bincount(4 * y + target, minlength=16).reshape(4, 4)
    assert bool((counts.diag() == 0).all())
    assert int((counts + 750 * torch.eye(4, dtype=torch.long) - 750).abs().max()) < 100


@pytest.mark.parametrize("check", ["sparse", "every"])
def test_watched_models_are_judged_at_the_iterates_of_the_loop(problem: Make, check: Any) -> None:
    """Sparse checks find what each check finds, but for models that are fooled only between two checks."""
    p, watched = problem(40), others(problem)
    mask = regions.random(p.x.shape, 0.5, generator(0))
    found = regional(p.model, p.x, p.y, region=mask, seed=2, steps=40, watched=watched, check=check, batch_size=40)
    points = by_hand(p.model, p.x, found.target, mask, 40, 1 / 255, precise_cross_entropy)
    fooled_any = False
    for name, seen in found.watched.items():
        wrong = torch.stack([watched[name](point).argmax(1) != p.y for point in points])
        expected = first_of(wrong)
        if check == "sparse":
            expected = first_of(wrong & _visible(wrong, schedule(40, False)))
        assert torch.equal(seen.transfer.first, expected)
        assert torch.equal(seen.correct, ~wrong[0])
        assert torch.equal(seen.fixed, wrong[-1])
        assert torch.equal(seen.aimed, watched[name](points[-1]).argmax(1) == found.target)
        later = torch.nonzero(seen.transfer.first > 0)[:, 0]
        fooled_any |= bool(len(later))
        for i in later.tolist():
            assert seen.transfer.points is not None
            assert torch.equal(seen.transfer.points[i], points[int(seen.transfer.first[i])][i])
    assert fooled_any


def _visible(wrong: Tensor, checks: list[int]) -> Tensor:
    """Iterates that a walk back from the first check that sees an image fooled comes to."""
    seen = torch.zeros_like(wrong)
    for i in range(wrong.shape[1]):
        at = [k for k in checks if wrong[k, i]]
        if at:
            before = max([k for k in checks if k < at[0]], default=-1)
            seen[before + 1 : at[0] + 1, i] = True
    return seen


def test_sparse_checks_equal_every_check_where_models_do_not_recover() -> None:
    """On linear models the margin falls or rises steadily along the path."""
    source = torch.Generator().manual_seed(3)
    base = torch.randn(2, 30, generator=source)
    weights = [base + 0.8 * torch.randn(2, 30, generator=source) for _ in range(4)]
    models = {f"m{k}": (lambda z, w=w: (z - 0.5) @ w.T) for k, w in enumerate(weights)}
    x = 0.3 + 0.4 * torch.rand(60, 30, generator=source)
    y = models["m0"](x).argmax(1)
    rest = {name: model for name, model in models.items() if name != "m0"}
    sparse, every = (
        regional(models["m0"], x, y, seed=0, watched=rest, steps=60, step=0.004, check=check)
        for check in ("sparse", "every")
    )
    for name in rest:
        assert torch.equal(sparse.watched[name].transfer.first, every.watched[name].transfer.first)
        assert torch.equal(sparse.watched[name].transfer.norms.l2, every.watched[name].transfer.norms.l2)
        assert int((sparse.watched[name].transfer.first > 5).sum()) > 5
    assert sparse.checks.forward < every.checks.forward
    assert sparse.calls == every.calls


def test_the_path_is_the_same_whatever_is_watched(problem: Make) -> None:
    p, watched = problem(20), others(problem)
    alone = regional(p.model, p.x, p.y, region="centre:0.5", seed=2, steps=12)
    seen = regional(p.model, p.x, p.y, region="centre:0.5", seed=2, steps=12, watched=watched)
    assert alone.point is not None
    assert seen.point is not None
    assert torch.equal(alone.point, seen.point)
    assert alone.calls == seen.calls
    one = regional(p.model, p.x, p.y, region="centre:0.5", seed=2, steps=12, watched={"other1": watched["other1"]})
    assert torch.equal(one.watched["other1"].transfer.first, seen.watched["other1"].transfer.first)


def test_stopping_at_transfer_drops_images_and_changes_no_first(problem: Make) -> None:
    p, watched = problem(40), others(problem)
    full = regional(p.model, p.x, p.y, seed=2, steps=30, watched=watched)
    short = regional(p.model, p.x, p.y, seed=2, steps=30, watched=watched, stop="first-transfer", points=False)
    assert short.calls.forward < full.calls.forward
    assert short.point is None
    for name in watched:
        assert torch.equal(short.watched[name].transfer.first, full.watched[name].transfer.first)
        assert torch.equal(short.watched[name].transfer.norms.linf, full.watched[name].transfer.norms.linf)
        assert short.watched[name].fixed is None
        assert short.watched[name].aimed is None


def test_norms_are_of_pixel_positions() -> None:
    x = torch.zeros(1, 3, 4, 4)
    point = x.clone()
    point[0, :, 1, 1], point[0, 0, 2, 2] = torch.tensor([0.5, 0.5, 0.5]), -0.25
    found = norms(point, x, regions.box(x.shape, (0, 0, 4, 2)) | regions.box(x.shape, (2, 2, 3, 3)))
    assert found.l0.tolist() == [2 / 16]
    assert found.l0_inside.tolist() == [2 / 9]
    assert found.l2.tolist() == [pytest.approx((3 * 0.25 + 0.0625) ** 0.5)]
    assert found.linf.tolist() == [0.5]


def test_float64_log_softmax_outlasts_float32() -> None:
    """Logits 20 and 30 apart: the float32 loss is exactly 0, and says so; that in float64 is not."""
    weight = torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, -0.5]])
    x, y = torch.full((2, 3), 0.5), torch.tensor([0, 0])
    models = [lambda z, s=s: (z * s) @ weight.T + torch.tensor([0.0, 1.5 * s]) for s in (20.0, 30.0)]
    for model in models:
        plain = regional(model, x, y, seed=0, steps=3, loss="ce")
        fine = regional(model, x, y, seed=0, steps=3)
        assert bool(plain.saturated.all())
        assert not bool(fine.saturated.any())


def test_in_a_ball_of_radius_one_it_is_the_papers_attack(problem: Make) -> None:
    p = problem(20, dtype=torch.float64)
    mask = regions.frame(p.x.shape, width=2)
    ball = Ball("linf", 1.0, box=(0, 1), mask=mask)
    found = RegionalAttack(steps=12)(p.model, p.x, p.y, ball, generator=generator(4, "regional"))
    same = regional(p.model, p.x, p.y, region=mask, seed=4, steps=12, batch_size=20)
    assert same.point is not None
    assert torch.allclose(found.point, same.point, rtol=0, atol=1e-12)
    assert F.cross_entropy(p.model(found.point), same.target) < F.cross_entropy(p.model(p.x), same.target)


def test_presets_and_other_calls(problem: Make) -> None:
    p = problem(6)
    assert PRESETS["paper"]["step"] == 0.0039
    short = PRESETS["paper"] | {"steps": 3}
    found = regional(p.model, p.x, p.y, region="random:0.28", seed=0, watched=others(problem), **short)
    assert found.steps == 3
    aimed = regional(p.model, p.x, p.y, seed=0, steps=2, target=(p.y + 1) % 4)
    assert torch.equal(aimed.target, (p.y + 1) % 4)
    empty = regional(p.model, p.x[:0], p.y[:0], seed=0, steps=2, watched=others(problem))
    assert empty.calls.forward == 0
    assert empty.watched["other0"].transfer.first.shape == (0,)


@pytest.mark.parametrize(
    ("change", "argument", "error"),
    [
        ({"stop": "first"}, "stop", InputError),
        ({"stop": "first-transfer"}, "watched", InputError),
        ({"check": "some"}, "check", InputError),
        ({"loss": "hinge"}, "loss", InputError),
        ({"steps": -1}, "steps", InputError),
        ({"region": torch.ones(12, 12)}, "region", InputError),
        ({"region": torch.ones(7, 7, dtype=torch.bool)}, "region", InputError),
        ({"region": "center:0.2"}, "region", InputError),
        ({"target": torch.zeros(40, dtype=torch.long)}, "target", InputError),
        ({"target": torch.full((40,), 9)}, "y", InputError),
        ({"watched": {"small": lambda z: z.flatten(1)[:, :3]}}, "watched", InputError),
        ({"x": torch.full((40, 1, 12, 12), 2.0)}, "origin", InputError),
        ({"x": torch.full((40, 1, 12, 12), torch.nan)}, "x", InputError),
        ({"model": lambda z: z.round().flatten(1)[:, :4]}, "model", GradientError),
    ],
)
def test_mistakes_are_named(problem: Make, change: dict[str, Any], argument: str, error: type) -> None:
    p = problem()
    given = {"model": p.model, "x": p.x, "y": p.y, "seed": 0, "steps": 2} | change
    with pytest.raises(error) as caught:
        regional(given.pop("model"), given.pop("x"), given.pop("y"), **given)
    assert caught.value.argument == argument
