"""Flatness to a stated standard error: a known expectation, the draws of `average`, what is counted and what is kept."""

import copy
import gc
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.core import PGD, Ball, GradientError, InputError
from shaketable.flatness.average import average
from shaketable.flatness.precision import Estimated, difference, estimate

Make = Callable[..., Any]
EPS, XI, N = 0.05, 0.5, 11
OPTIONS: dict[str, Any] = {
    "xi": XI,
    "within": Ball("linf", EPS, box=(0.0, 1.0)),
    "by": PGD(5, 0.5),  # of a linear model, the optimum
    "levels": (PGD(1, 0.3),),
    "images": 4,
    "reference_restarts": 1,
    "pilot": 8,
}


def data(n: int = N) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    x = 0.2 + 0.6 * torch.rand(n, 10, generator=source, dtype=torch.float64)  # the box does not bind
    return x, torch.randint(0, 2, (n,), generator=source)


def rise(model: nn.Linear, x: Tensor, y: Tensor, draws: int = 20_000) -> Tensor:
    """RLoss(w + nu) - RLoss(w) of a linear model of two classes in closed form, of draws in which the package has no part."""
    source, moved = torch.Generator().manual_seed(11), []
    for t in (model.weight.detach(), model.bias.detach()):
        g = torch.randn(draws, t.numel(), generator=source, dtype=torch.float64)
        g = (
            g
            / g.norm(dim=1, keepdim=True)
            * torch.rand(draws, 1, generator=source, dtype=torch.float64) ** (1 / t.numel())
        )
        moved.append(t + XI * t.norm() * g.reshape(draws, *t.shape))

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        slope, shift = weight[:, 1] - weight[:, 0], bias[:, 1] - bias[:, 0]
        margin = (2 * y - 1) * (slope @ x.T + shift[:, None])
        return F.softplus(EPS * slope.abs().sum(1, keepdim=True) - margin).mean(1)

    return loss(*moved) - loss(model.weight.detach()[None], model.bias.detach()[None])


def off(found: Estimated, truth: Tensor) -> float:
    """In standard errors of both."""
    error = math.hypot(found.standard_error, float(truth.std()) / math.sqrt(len(truth)))
    return (found.value.value - float(truth.mean())) / error


def test_one_model_of_known_expectation(fill: Make) -> None:
    """Unequal blocks of images, pairs, and a cheap attack that is far off by itself."""
    model, (x, y) = fill(nn.Linear(10, 2), scale=1.0), data()
    truth = rise(model, x, y)
    found = estimate(model, x, y, seed=0, standard_error=0.03, **OPTIONS | {"pilot": 16})
    assert abs(off(found, truth)) < 3.5
    assert found.standard_error == pytest.approx(0.03, rel=0.35)
    assert found.plan.totals[0] > 2 * found.plan.totals[1] >= 32
    assert found.reached
    cheap = estimate(model, x, y, seed=0, standard_error=0.03, **OPTIONS | {"levels": (), "by": PGD(1, 0.3)})
    apart = found.value.value + found.reference - cheap.value.value - cheap.reference
    assert apart > 5 * math.hypot(found.standard_error, cheap.standard_error)


def test_repeats_scatter_about_the_expectation_as_they_say(fill: Make) -> None:
    model, (x, y) = fill(nn.Linear(10, 2), scale=1.0), data()
    truth = rise(model, x, y)
    found = [estimate(model, x, y, seed=seed, standard_error=0.1, **OPTIONS) for seed in range(8)]
    offs = torch.tensor([off(one, truth) for one in found])
    assert abs(float(offs.mean())) < 3.5 / math.sqrt(8)
    assert 0.5 < float(offs.std()) < 1.6
    assert sum(one.value.low <= float(truth.mean()) <= one.value.high for one in found) >= 6


def test_the_variance_of_one_independent_draw(fill: Make) -> None:
    """Found from few images a draw, against the closed form of many draws for all images."""
    model, (x, y) = fill(nn.Linear(10, 2), scale=1.0), data()
    truth = float(rise(model, x, y).var())
    found = estimate(model, x, y, seed=0, standard_error=9.0, **OPTIONS | {"levels": (), "pilot": 80})
    assert abs(found.single.value - truth) < 4 * found.single.deviation / math.sqrt(found.single.n)
    assert found.single.low > 0.1 * truth
    assert found.single_passes == N * (2 * 5 + 1)
    low, high = found.independent_passes
    assert low < truth / found.standard_error**2 * found.single_passes < high


def test_a_difference_has_common_draws(fill: Make) -> None:
    a, b, (x, y) = fill(nn.Linear(10, 2), scale=1.0), fill(nn.Linear(10, 2), scale=1.0), data()
    with torch.no_grad():
        b.weight.mul_(0.8)
    truth = rise(a, x, y) - rise(b, x, y)
    one = difference(a, b, x, y, seed=0, standard_error=0.04, **OPTIONS)
    assert abs(off(one, truth)) < 3.5
    assert one.standard_error < 0.06
    two = difference(b, a, x, y, seed=0, standard_error=0.04, **OPTIONS)
    assert (two.value.value, two.standard_error) == pytest.approx((-one.value.value, one.standard_error), rel=1e-9)
    assert two.reference == pytest.approx(-one.reference)
    same = difference(a, copy.deepcopy(a), x, y, seed=0, standard_error=0.04, **OPTIONS)
    assert (same.value.value, same.standard_error, same.reference) == (0.0, 0.0, 0.0)
    apart = [estimate(model, x, y, seed=0, standard_error=9.0, **OPTIONS) for model in (a, b)]
    together = difference(a, b, x, y, seed=0, standard_error=9.0, **OPTIONS)
    assert together.standard_error**2 < 0.2 * sum(one.standard_error**2 for one in apart)
    assert together.value.value == pytest.approx(apart[0].value.value - apart[1].value.value)
    assert together.single.value == pytest.approx(sum(one.single.value for one in apart))


def test_models_of_two_architectures(fill: Make) -> None:
    a, b = fill(nn.Linear(10, 2)), fill(nn.Sequential(nn.Linear(10, 3), nn.ReLU(), nn.Linear(3, 2)))
    x, y = data()
    found = difference(a, b, x, y, seed=0, standard_error=9.0, **OPTIONS)
    assert found.standard_error > 0
    assert found.plan.passes == (2 * 4 * 2 * 4, 2 * 4 * 2 * 12)


def test_with_all_images_the_draws_are_those_of_average(fill: Make) -> None:
    model, (x, y) = fill(nn.Sequential(nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 2))), data()
    options = {key: OPTIONS[key] for key in ("xi", "within", "by", "reference_restarts")}
    options |= {"seed": 4, "batch_size": 4, "law": "sphere"}
    theirs = average(model, x, y, samples=8, **options)
    ours = estimate(model, x, y, standard_error=9.0, levels=(), images=N, antithetic=False, pilot=8, **options)
    assert ours.value.value == pytest.approx(theirs.value.value, rel=1e-12)
    assert ours.standard_error == pytest.approx(theirs.value.deviation / math.sqrt(8), rel=1e-9)
    assert ours.reference == theirs.reference
    assert ours.single.value == pytest.approx(theirs.value.deviation**2, rel=1e-9)
    assert ours.calls + ours.reference_calls == theirs.calls


class Watched(nn.Module):
    """Counts the images it is given, and the backward passes to them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.forwards, self.backwards = nn.Linear(10, 2), [], [0]

    def forward(self, x: Tensor) -> Tensor:
        self.forwards.append(len(x))
        if x.requires_grad:
            x.register_hook(lambda g: self.backwards.append(len(g)))
        return self.inner(x)


@pytest.mark.parametrize("change", [{}, {"antithetic": False}, {"levels": ()}, {"by": PGD(3, keep="best", restarts=2)}])
def test_passes_are_counted(change: dict[str, Any], fill: Make) -> None:
    model, (x, y) = fill(Watched(), scale=1.0), data()
    found = estimate(model, x, y, seed=0, standard_error=0.1, **OPTIONS | change)
    total = found.calls + found.reference_calls
    assert sum(model.forwards) == total.forward
    assert sum(model.backwards) == total.backward
    assert found.calls.forward + found.calls.backward == found.plan.cost
    first = model.forwards.index(4)
    assert set(model.forwards[first:]) == {4}  # after the reference, never more than a draw's images
    assert (found.examples, found.value.n) == (N, found.plan.totals[0])


def test_the_seed_decides_and_nothing_is_changed(fill: Make) -> None:
    model, (x, y) = fill(nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))), data()
    before, state, kept = copy.deepcopy(model.state_dict()), torch.get_rng_state(), x.clone()
    one, two, other = (estimate(model, x, y, seed=s, standard_error=0.1, **OPTIONS) for s in (1, 1, 2))
    assert one == two
    assert one.plan == two.plan
    assert other.value != one.value
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_memory_does_not_grow_with_the_draws(fill: Make) -> None:
    """Of a draw there remain numbers: neither its weights nor its images."""
    model, (x, y) = fill(nn.Sequential(nn.Linear(10, 400), nn.ReLU(), nn.Linear(400, 2))), data()
    alive: dict[int, int] = {}

    def look(done: int, _of: int) -> None:
        if done in (8, 32):
            tensors = [t for t in gc.get_objects() if type(t) is Tensor]
            alive[done] = sum(t.numel() * t.element_size() for t in tensors)

    estimate(model, x, y, seed=0, standard_error=9.0, progress=look, **OPTIONS | {"pilot": 32})
    assert alive[32] - alive[8] <= 24 * 2 * 4 * 8  # both signs, four images, eight bytes; the weights have 40,000


def test_a_budget_that_does_not_suffice_is_said(fill: Make) -> None:
    model, (x, y) = fill(nn.Linear(10, 2), scale=1.0), data()
    found = estimate(model, x, y, seed=0, standard_error=0.001, most=1600, **OPTIONS)
    assert not found.reached
    assert found.standard_error > 0.001
    assert 1400 < found.plan.cost <= 1600
    usual = estimate(model, x, y, seed=0, standard_error=1e-9, **OPTIONS | {"by": PGD(1), "levels": (), "images": N})
    assert not usual.reached
    assert 0.95 * 200 * N * 3 < usual.plan.cost <= 200 * N * 3  # by itself, as 200 draws of the paper's


def test_a_constant_predictor_needs_no_more_than_the_pilot(fill: Make) -> None:
    model, (x, y) = fill(nn.Linear(10, 2)), data()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    found = estimate(model, x, y, seed=0, standard_error=0.01, **OPTIONS)
    assert (found.value.value, found.standard_error, found.reached) == (0.0, 0.0, True)
    assert found.plan.totals == (8, 8)


def test_masked_gradients_are_an_error(fill: Make) -> None:
    class Rounded(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward((8 * input).round() / 8)

    x, y = data()
    with pytest.raises(GradientError, match="model: expected a gradient of the loss by the images"):
        estimate(fill(Rounded(10, 2)), x, y, seed=0, standard_error=0.1, **OPTIONS)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"standard_error": 0.0}, "standard_error"),
        ({"pilot": 6}, "pilot"),
        ({"most": 100}, "most"),
        ({"images": 1}, "images"),
        ({"images": 4.0}, "images"),
        ({"levels": (PGD(5, 0.3),)}, "levels"),
        ({"levels": (PGD(2), PGD(1))}, "levels"),
        ({"xi": -0.1}, "xi"),
        ({"xi": Ball("l2", 0.5, per="tensor", box=(-1.0, 2.0))}, "xi"),
        ({"law": "box"}, "law"),
        ({"reference_restarts": 0}, "restarts"),
        ({"x": torch.zeros(0, 10).double()}, "x, y"),
        ({"y": torch.zeros(5, dtype=torch.long)}, "x, y"),
        ({"x": torch.full((N, 10), 200.0).double()}, "origin"),
    ],
)
def test_bad_input(change: dict[str, Any], argument: str, fill: Make) -> None:
    x, y = data()
    given = {"x": x, "y": y, "standard_error": 0.1, **OPTIONS} | change
    with pytest.raises(InputError) as caught:
        estimate(fill(nn.Linear(10, 2)), given.pop("x"), given.pop("y"), seed=0, **given)
    assert caught.value.argument == argument
    assert caught.value.remedy


def test_a_model_in_train_mode_is_refused(fill: Make) -> None:
    x, y = data()
    with pytest.raises(InputError, match="expected a model in eval mode"):
        difference(fill(nn.Linear(10, 2)), fill(nn.Linear(10, 2)).train(), x, y, seed=0, standard_error=0.1, **OPTIONS)
