"""Random weight perturbation: the law of its draws on real nets, what it leaves alone, what it costs and refuses."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from shaketable.core import PGD, Ball, Calls, InputError, Perturbation, generator, perturb, scalar, weights
from shaketable.core import at as function_of
from shaketable.models import ModelSpec, build
from shaketable.training import AWP_STEP, WeightPerturbation, at, awp, rwp, sam

VIT = ModelSpec("vit", 4, 3, (6, 6), {"patch": 3, "dim": 8, "depth": 1, "heads": 2})
KEEPS = 1e-3  # a true law fails one test of a thousand; the seeds are fixed


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.double().parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return model.train()


def convolutional() -> nn.Module:
    """A tiny one, so that lengths in the ball vary: 4 filters of 3 entries, then 8 weights."""
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    return filled(nn.Sequential(*layers))


def never(_point: Any) -> Tensor:
    raise AssertionError("a pass was spent")


def drawn(value: WeightPerturbation, model: nn.Module, source: torch.Generator) -> Perturbation:
    """A draw as the training step takes it, with an objective that must not be asked."""
    return perturb(
        scalar(never), weights(model, value.select), value.within, by=PGD(0), start="sample", generator=source
    )


def groups(w: Tensor, norm: str) -> Tensor:
    return w.reshape({"layer": (1, -1), "filter": (len(w), -1), "element": (-1, 1)}[norm])


@pytest.mark.parametrize("norm", ["layer", "filter", "element"])
def test_draws_are_uniform_in_each_groups_ball(norm: Any) -> None:
    model, source = convolutional(), generator(3, norm)
    found = [drawn(rwp(0.2, norm=norm), model, source).delta for _ in range(400)]
    for name, w in weights(model).items():
        radii = 0.2 * groups(w, norm).norm(dim=1)
        v = torch.stack([groups(d[name], norm) for d in found]) / radii[:, None]  # (draws, groups, entries)
        entries = v.shape[2]
        for k in range(min(3, v.shape[1])):
            length = v[:, k].norm(dim=1)
            assert float(length.max()) <= 1 + 1e-12
            assert stats.kstest(length, lambda r: r**entries).pvalue > KEEPS  # noqa: B023
            ups = int((v[:, k] > 0).sum())
            assert stats.binomtest(ups, v[:, k].numel()).pvalue > KEEPS
        if entries > 1:
            law = stats.beta((entries - 1) / 2, (entries - 1) / 2)
            cosine = v[:, 0, 0] / v[:, 0].norm(dim=1)
            assert stats.kstest((cosine + 1) / 2, law.cdf).pvalue > KEEPS
        if v.shape[1] > 1:  # groups are drawn by themselves
            assert stats.pearsonr(v[:, 0, 0], v[:, 1, 0]).pvalue > KEEPS


def test_of_all_weights_as_one_the_ball_is_one() -> None:
    model, source = convolutional(), generator(5)
    origin = weights(model)
    whole = torch.cat([w.flatten() for w in origin.values()]).norm()
    sizes = []
    for _ in range(400):
        v = drawn(rwp(0.2, norm="global"), model, source).delta
        sizes.append(float(torch.cat([part.flatten() for part in v.values()]).norm() / whole / 0.2))
    assert stats.kstest(sizes, lambda r: r**20).pvalue > KEEPS


@pytest.mark.parametrize(
    "make",
    [
        convolutional,
        lambda: filled(nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(108, 4)))),
        lambda: filled(build(VIT, seed=0)),
    ],
    ids=["batch norm", "weight norm", "vit"],
)
def test_a_draw_costs_no_pass_and_leaves_the_model(make: Any) -> None:
    model = make()
    before, state = {name: t.clone() for name, t in model.state_dict().items()}, torch.get_rng_state()
    found = drawn(rwp(0.3), model, generator(0))
    assert found.calls == Calls(0, 0)
    assert list(found.delta) == list(weights(model, "matrices"))
    for name, v in found.delta.items():
        w = model.get_parameter(name).detach()
        assert 0 < float(v.norm()) <= 0.3 * float(w.norm()) * (1 + 1e-12)
        assert float(found.size[name]) == pytest.approx(float(v.norm() / w.norm()))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_generator_decides() -> None:
    model = convolutional()
    one, same = (drawn(rwp(), model, generator(1)).delta for _ in range(2))
    source = generator(1)
    first, second = (drawn(rwp(), model, source).delta for _ in range(2))
    for name, v in one.items():
        assert torch.equal(v, same[name])
        assert torch.equal(v, first[name])
        assert not torch.equal(v, second[name])


@pytest.mark.parametrize("norm", ["layer", "filter", "element"])
def test_zeros_stay(norm: Any) -> None:
    model = convolutional()
    with torch.no_grad():
        model.get_parameter("0.weight").zero_()
        model.get_parameter("5.weight")[1] = 0.0
    found = drawn(rwp(0.3, norm=norm), model, generator(0)).delta
    assert not bool(found["0.weight"].any())
    assert bool(found["5.weight"][0].all())
    assert bool(found["5.weight"][1].any()) is (norm == "layer")


def test_tied_weights_are_drawn_once() -> None:
    model = filled(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    model[2].weight = model[0].weight  # pyright: ignore
    assert list(drawn(rwp(), model, generator(0)).delta) == ["0.weight"]


def test_the_average_case_is_milder_than_the_worst() -> None:
    """In the same ball: the mean over draws rises less than along the gradient, and is of second order."""
    model = convolutional().eval()
    source = torch.Generator().manual_seed(4)
    x, y = torch.rand(16, 3, 6, 6, generator=source, dtype=torch.float64), torch.arange(16) % 2

    def loss(point: dict[str, Tensor]) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(function_of(model, point)(x), y))

    base, value = loss({}), awp(0.1)
    worst = perturb(at().weights(model, x, x, y), weights(model), value.within, by=value.by).point
    draws = generator(7)
    rises = [loss(drawn(rwp(0.1), model, draws).point) - base for _ in range(60)]
    assert max(rises) < loss(worst) - base
    assert abs(sum(rises) / len(rises)) < 0.2 * (loss(worst) - base)


def test_the_short_form() -> None:
    assert rwp() == awp(direction="random")
    assert rwp() == WeightPerturbation(Ball("l2", 0.01, per="tensor", relative=True), direction="random")
    value = rwp(0.5, warmup=2, every=3, norm="filter", select="all")
    assert value.within == Ball("l2", 0.5, per="filter", relative=True)
    assert (value.warmup, value.every, value.select, value.direction) == (2, 3, "all", "random")
    assert (value.by, value.shared, value.sync) == (AWP_STEP, False, "global")
    assert WeightPerturbation(sam().within, select="all", direction="random").within == sam().within


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"gamma": -0.1}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"gamma": "big"}, "gamma"),
        ({"warmup": -1}, "warmup, every"),
        ({"every": 0}, "warmup, every"),
        ({"norm": "layr"}, "norm"),
        ({"select": "matrixes"}, "select"),
    ],
)
def test_bad_values(given: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        rwp(**given)
    assert caught.value.argument == argument
    assert caught.value.remedy
