"""The model that a training is judged by: averaged weights, with BatchNorm statistics of adversarial inputs."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from shaketable.core import PGD, Ball, ce, generator, perturb
from shaketable.training import EMA, SWA, EntropySGD, Epoch, Plan, State, begin, fit
from shaketable.training.state import Step

Make = Callable[..., Any]
PLAN = Plan(
    within=Ball("linf", 0.1, box=(0, 1)), attack=PGD(2), epochs=2, batch_size=6, rate=0.05, select=None,
    evaluation=PGD(2), evaluate_every=1, statistics_batches=3, seed=2,
)  # fmt: skip


def trained(
    plan: Plan, model: nn.Module, data: Any, slices: Any, watch: Callable[[State], None] | None = None
) -> State:
    state = begin(model, plan)
    for event in fit(state, plan, data, slices):
        if watch is not None and isinstance(event, Step):
            watch(state)
    return state


@pytest.mark.parametrize("average", [EMA(0.9), EMA(0.8, warmup=False), SWA(0.5)], ids=str)
def test_the_last_model_is_the_average_with_its_own_statistics(average: Any, dataset: Make, small: Make) -> None:
    data, plan = dataset(24), replace(PLAN, average=average)
    seen: list[dict[str, torch.Tensor]] = []

    def watch(state: State) -> None:
        seen.append({name: p.detach().double().clone() for name, p in state.model.named_parameters()})

    state = trained(plan, small(), data, {"test": dataset(10, seed=1)}, watch)
    assert len(seen) == 8
    for name, p in state.model.named_parameters():
        expected = None
        for t, weights in enumerate(seen, 1):
            if isinstance(average, SWA):
                continue
            decay = min(average.decay, (1 + t) / (10 + t)) if average.warmup else average.decay
            expected = weights[name] if expected is None else decay * expected + (1 - decay) * weights[name]
        if expected is None:
            first = next(t for t in range(8) if (t + 1) / 8 >= 0.5)
            choices = [torch.stack([w[name] for w in seen[k:]]).mean(0) for k in (first, first + 1)]
            assert min(float((state.last[name] - c).abs().max()) for c in choices) < 1e-6
        else:
            torch.testing.assert_close(state.last[name].double(), expected, rtol=1e-4, atol=1e-6)
        assert not torch.equal(state.last[name], p.detach()), name


def test_the_statistics_are_those_of_adversarial_points_at_the_averaged_weights(dataset: Make, small: Make) -> None:
    data, plan = dataset(24), replace(PLAN, average=EMA(0.9), epochs=1)
    state = trained(plan, small(), data, {})
    net = small()
    net.load_state_dict(state.last)
    order = torch.randperm(24, generator=generator(2, "order", 0))
    means, variances = [], []
    old = copy.deepcopy(net)
    old.load_state_dict({**state.model.state_dict(), **{n: p.detach() for n, p in net.named_parameters()}})
    for k in range(3):
        batch = data.batch(order[6 * k : 6 * k + 6])
        point = perturb(
            ce(old.train(), batch.y), batch.x, plan.within, by=plan.attack, start="sample",
            generator=generator(2, "statistics", 0, k),
        ).point  # fmt: skip
        features = net[0](point).double()
        means.append(features.mean((0, 2, 3)))
        variances.append(features.var((0, 2, 3), unbiased=True))
    torch.testing.assert_close(state.last["1.running_mean"].double(), torch.stack(means).mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        state.last["1.running_var"].double(), torch.stack(variances).mean(0), rtol=1e-4, atol=1e-6
    )
    assert not torch.allclose(state.last["1.running_mean"], state.model[1].running_mean, rtol=1e-3)


def test_records_and_the_best_model_are_the_averages(dataset: Make, small: Make) -> None:
    data, plan = dataset(24), replace(PLAN, average=EMA(0.9), select="validation", epochs=3)
    slices = {"validation": dataset(12, seed=3)}
    state = trained(plan, small(), data, slices)
    plain = trained(replace(plan, average=None), small(), data, slices)
    for a, b in zip(state.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(a, b)  # the average does not touch the training
    assert [e.slices["validation"].robust_loss for e in state.history] != [
        e.slices["validation"].robust_loss for e in plain.history
    ]
    assert plain.last == {}
    if state.best_epoch == 3:
        assert all(torch.equal(state.best[name], state.last[name]) for name in state.last)


def test_in_the_middle_of_a_cycle_entropy_sgd_is_judged_by_its_outer_weights(dataset: Make, small: Make) -> None:
    plan = replace(PLAN, optimiser=EntropySGD(steps=3), epochs=1)  # 4 steps an epoch
    state = trained(plan, small(), dataset(24), {})
    assert isinstance(state.history[-1], Epoch)
    outer = state.optimiser.outer_weights()  # type: ignore[attr-defined]
    for (name, p), x in zip(state.model.named_parameters(), outer, strict=True):
        assert torch.equal(state.last[name], x)
        assert not torch.equal(p, x), name
