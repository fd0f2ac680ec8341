"""The loop: it repeats to the bit, learns, keeps the best, and stops where going on is pointless."""

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaketable.core import PGD, Ball, InputError, generator
from shaketable.core.measure import measure
from shaketable.data import CropFlip
from shaketable.training import (
    AT,
    SGD,
    Constant,
    DivergenceError,
    Epoch,
    MultiStep,
    Plan,
    State,
    Step,
    WeightPerturbation,
    awp,
    begin,
    evaluate_slices,
    fit,
    steps_of,
    trades,
)

Make = Callable[..., Any]
LINF = Ball("linf", 0.1, box=(0.0, 1.0))
PLAN = Plan(within=LINF, attack=PGD(3), evaluation=PGD(4), epochs=4, batch_size=8, rate=0.05, select=None, seed=2)


def run(state: State, plan: Plan, train: Any, slices: dict[str, Any]) -> list[Any]:
    return list(fit(state, plan, train, slices))


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("loss", [AT(), trades()], ids=["at", "trades"])
def test_the_same_plan_gives_the_same_bits(loss: Any, dataset: Make, small: Make) -> None:
    plan = replace(PLAN, loss=loss, weights=awp(), augment=CropFlip(1), epochs=2)
    train, slices = dataset(20), {"test": dataset(10, seed=1)}
    states = [begin(small(dropout=0.3), plan) for _ in range(2)]
    events = []
    for k, state in enumerate(states):
        torch.manual_seed(k)  # the global state has no say
        events.append(run(state, plan, train, slices))
    assert events[0] == events[1]
    assert same(states[0].model, states[1].model)
    assert states[0].history == states[1].history
    other = begin(small(dropout=0.3), plan)
    run(other, replace(plan, seed=3), train, slices)
    assert not same(other.model, states[0].model)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_global_random_state_is_left_alone(dropout: float, dataset: Make, small: Make) -> None:
    plan = replace(PLAN, weights=awp(), augment=CropFlip(1), epochs=2)
    state, before = begin(small(dropout=dropout), plan), torch.get_rng_state()
    for _ in fit(state, plan, dataset(17), {"test": dataset(6)}):
        assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_drawn_anew_at_each_step_and_by_the_seed(dataset: Make, small: Make) -> None:
    model = small(dropout=0.5, norm="none")
    masks: list[Tensor] = []
    model[4].register_forward_hook(lambda _m, i, o: masks.append((o != 0) | (i[0] == 0)) if i[0].grad_fn else None)
    plan = replace(PLAN, attack=PGD(0), epochs=1, rate=1e-12)
    run(begin(model, plan), plan, dataset(16).take([0] * 16), {})
    assert len(masks) == 2
    assert not torch.equal(*masks)


def test_what_is_evaluated_does_not_change_what_is_trained(dataset: Make, small: Make) -> None:
    train, ends = dataset(20), []
    for every, slices in ((1, {"test": dataset(10, seed=1)}), (3, {"a": dataset(4), "b": dataset(6)}), (1, {})):
        state = begin(small(dropout=0.2), PLAN)
        run(state, replace(PLAN, evaluate_every=every), train, slices)
        ends.append(state.model)
        evaluated = [epoch.epoch for epoch in state.history if epoch.slices]
        assert evaluated == ({1: [1, 2, 3, 4], 3: [3, 4]}[every] if slices else [])
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_records_are_those_of_measure_from_the_same_starts_every_time(dataset: Make, small: Make) -> None:
    slices = {"train": dataset(12), "test": dataset(30, seed=5, flipped=0.2)}
    state = begin(small(), PLAN)
    run(state, PLAN, dataset(20), slices)
    again = evaluate_slices(state.model, PLAN, slices)
    assert again.slices == state.history[-1].slices
    assert not again.constant
    model = copy.deepcopy(state.model).eval()
    for name, part in slices.items():
        batch = part.batch(range(len(part)))
        found = measure(model, batch.x, batch.y, LINF, by=PGD(4), generator=generator(2, "slice", name, 0))
        record = again.slices[name]
        assert record.n == len(part)
        assert (record.correct, record.robust_correct) == (int(found.correct.sum()), int(found.robust_correct.sum()))
        assert record.robust_loss == pytest.approx(float(found.robust_loss.double().mean()), rel=1e-12)
        assert record.robust_loss > record.loss


def test_evaluating_leaves_every_module_in_its_mode(dataset: Make, small: Make) -> None:
    model = small(dropout=0.2).train()
    model[1].eval()
    before, modes = copy.deepcopy(model), [m.training for m in model.modules()]
    evaluate_slices(model, PLAN, {"test": dataset(6)})
    assert [m.training for m in model.modules()] == modes
    assert same(model, before)


def test_training_learns_to_withstand(dataset: Make, small: Make) -> None:
    """A radius of .1 can be withstood on these images: from near chance to nearly all, also on images not trained on."""
    slices = {"train": dataset(48), "test": dataset(100, seed=1)}
    for weights in (None, awp()):
        plan = replace(PLAN, weights=weights, epochs=12, rate=0.1)
        state = begin(small(), plan)
        before = evaluate_slices(state.model, plan, slices).slices
        events = run(state, plan, dataset(48), slices)
        after = state.history[-1].slices
        assert before["test"].robust_correct < 60
        assert after["test"].robust_correct > 90
        assert after["train"].robust_loss < before["train"].robust_loss / 2
        losses = [event.train_loss for event in events if isinstance(event, Epoch)]
        assert losses[-1] < losses[0] / 2


def test_steps_and_epochs_are_told_in_order(dataset: Make, small: Make) -> None:
    state = begin(small(), PLAN)
    events, losses = [], []
    for event in fit(state, replace(PLAN, epochs=2), dataset(20), {}):
        events.append((type(event).__name__, event.epoch, getattr(event, "step", None)))
        if isinstance(event, Step):
            assert event.steps == 3
            assert (state.epoch, state.step) == (event.epoch - 1, event.step)
            losses.append(event.loss)
        else:
            assert (state.epoch, state.step, state.loss_sum) == (event.epoch, 0, 0.0)
            assert event.train_loss == pytest.approx(sum(losses) / 3, rel=1e-12)
            losses = []
    steps = [("Step", 1, 1), ("Step", 1, 2), ("Step", 1, 3), ("Epoch", 1, None)]
    assert events == steps + [(name, 2, step) for name, _, step in steps]


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (MultiStep(), [1.0] * 6 + [0.1] * 3 + [0.01] * 3),
        (MultiStep(at=(0.25, 5 / 6), factor=0.5), [1.0] * 3 + [0.5] * 7 + [0.25] * 2),  # in the middle of an epoch, too
        (Constant(), [1.0] * 12),
    ],
)
def test_rates_follow_the_schedule(schedule: Any, factors: list[float], dataset: Make, small: Make) -> None:
    plan = replace(PLAN, schedule=schedule, rate=0.2)
    state = begin(small(), plan)
    assert [(g["momentum"], g["weight_decay"]) for g in state.optimiser.param_groups] == [(0.9, 5e-4)]
    rates = [
        state.optimiser.param_groups[0]["lr"] for event in fit(state, plan, dataset(20), {}) if isinstance(event, Step)
    ]
    assert rates == pytest.approx([0.2 * factor for factor in factors], rel=1e-12)


@pytest.mark.parametrize(
    ("n", "size", "steps", "sizes"),
    [
        (8, 4, 2, [4, 4]),
        (9, 4, 2, [4, 4]),
        (10, 4, 3, [4, 4, 2]),
        (2, 4, 1, [2]),
        (5, 100, 1, [5]),
    ],
)
def test_a_last_batch_of_one_is_left_out(
    n: int, size: int, steps: int, sizes: list[int], dataset: Make, small: Make
) -> None:
    assert steps_of(n, size) == steps
    plan = replace(PLAN, batch_size=size, epochs=2)
    state, seen = begin(small(), plan), list[int]()

    @dataclass(frozen=True)
    class Counting(AT):
        def outer(self, model: Any, x: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
            seen.append(len(x))
            return super().outer(model, x, adversarial, y)

    run(state, replace(plan, loss=Counting()), dataset(n), {})
    assert seen == sizes * 2


def test_one_image_is_a_batch_of_one_and_ones_stay_ones() -> None:
    assert steps_of(1, 4) == 1
    assert steps_of(3, 1) == 3


def test_every_image_is_seen_once_an_epoch_in_a_new_order(dataset: Make, small: Make) -> None:
    orders: list[Tensor] = []

    @dataclass(frozen=True)
    class Recording(AT):
        def outer(self, model: Any, x: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
            orders.append(x.detach().clone())
            return super().outer(model, x, adversarial, y)

    data = dataset(16)
    plan = replace(PLAN, loss=Recording(), epochs=2)
    run(begin(small(), plan), plan, data, {})
    first, second = torch.cat(orders[:2]), torch.cat(orders[2:])
    images = data.batch(range(16)).x

    def ranks(x: Tensor) -> list[int]:
        return [int((images == image).flatten(1).all(1).nonzero()) for image in x]

    assert sorted(ranks(first)) == sorted(ranks(second)) == list(range(16))
    assert ranks(first) != ranks(second)


@pytest.mark.parametrize("augment", [None, CropFlip(2)], ids=["starts", "crops"])
def test_every_step_draws_anew(augment: Any, dataset: Make, small: Make) -> None:
    """In two epochs of two batches of one and the same image."""
    drawn: list[Tensor] = []

    @dataclass(frozen=True)
    class Recording(AT):
        def outer(self, model: Any, x: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
            drawn.append((x if augment else adversarial).detach())
            return super().outer(model, x, adversarial, y)

    plan = replace(PLAN, loss=Recording(), attack=PGD(0), augment=augment, epochs=2, batch_size=4)
    run(begin(small(), plan), plan, dataset(8).take([0] * 8), {})
    assert len(drawn) == 4
    assert not any(torch.equal(drawn[i], drawn[j]) for i in range(4) for j in range(i))
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_awp_waits_for_its_epoch_and_its_step(dataset: Make, small: Make) -> None:
    calls: list[str] = []

    @dataclass(frozen=True)
    class Counting(PGD):
        def __call__(self, *given: Any) -> Any:
            calls.append("v")
            return super().__call__(*given)

    weights = WeightPerturbation(by=Counting(1, 1.0), warmup=1, every=3)
    plan = replace(PLAN, weights=weights, epochs=3, batch_size=4)
    for event in fit(begin(small(), plan), plan, dataset(16), {}):
        calls.append("step" if isinstance(event, Step) else "epoch")
    assert calls == [*["step"] * 4, "epoch", "step", "step", "v", "step", "step", "epoch",
                     "step", "v", "step", "step", "step", "epoch"]  # fmt: skip


@pytest.mark.parametrize("select", ["validation", "test"])
def test_the_best_weights_are_kept_by_the_rule(select: Any, dataset: Make, small: Make) -> None:
    plan = replace(PLAN, select=select, epochs=8, rate=0.3)
    slices = {
        "validation": dataset(40, seed=7, flipped=0.1),
        "test": dataset(30, seed=3, flipped=1.0),
    }  # all labels wrong
    state, weights = begin(small(), plan), list[dict[str, Tensor]]()
    for event in fit(state, plan, dataset(20, flipped=0.2), slices):
        if isinstance(event, Epoch):
            weights.append(copy.deepcopy(state.model.state_dict()))
    scores = {
        name: [(e.slices[name].robust_correct, -e.slices[name].robust_loss) for e in state.history] for name in slices
    }
    best = max(range(8), key=scores[select].__getitem__)
    other = max(range(8), key=scores["test" if select == "validation" else "validation"].__getitem__)
    assert best != other  # so that the two rules are told apart
    assert state.best_epoch == best + 1
    assert state.best.keys() == weights[best].keys()
    assert all(torch.equal(state.best[name], weights[best][name]) for name in state.best)
    flags = [score == max(scores[select][: k + 1]) for k, score in enumerate(scores[select])]
    assert [epoch.best for epoch in state.history] == flags


def test_without_a_rule_nothing_is_kept(dataset: Make, small: Make) -> None:
    state = begin(small(), PLAN)
    run(state, PLAN, dataset(16), {"validation": dataset(8)})
    assert (state.best, state.best_epoch) == ({}, None)


class Constantly(nn.Module):
    """The same logits for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.bias = nn.Linear(36, 2), nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return 0 * self.body(x.flatten(1)) + self.bias


def test_a_training_that_has_collapsed_ends_after_its_patience(dataset: Make) -> None:
    plan = replace(PLAN, epochs=50, evaluate_every=2, patience=3, weights=awp(), rate=1e-3)
    state = begin(Constantly(), plan)
    run(state, plan, dataset(16), {"train": dataset(16), "test": dataset(8)})
    assert [epoch.epoch for epoch in state.history] == [1, 2, 3, 4, 5, 6]
    assert [epoch.constant for epoch in state.history] == [False, True] * 3
    assert state.constant == 3
    assert all(epoch.silent == 2 for epoch in state.history)  # every step says so
    record = state.history[-1].slices["test"]
    assert record.robust_loss == record.loss
    assert record.robust_correct == record.correct == 4
    assert run(state, plan, dataset(16), {}) == []  # and a resumed one does not go on


def test_one_good_evaluation_ends_the_count(dataset: Make, small: Make) -> None:
    plan = replace(PLAN, epochs=12, rate=0.1)
    state = begin(small(), plan)
    run(state, plan, dataset(48), {})
    state.constant = 1
    run(state, replace(plan, epochs=13, patience=2), dataset(48), {"test": dataset(16)})
    assert not state.history[-1].constant
    assert state.constant == 0


def test_a_loss_that_explodes_is_an_error_from_before_the_step(dataset: Make, small: Make) -> None:
    plan = replace(PLAN, rate=1e30, weights=awp(), epochs=5)
    state = begin(small(norm="none"), plan)
    before: dict[str, Tensor] = {}

    def train() -> None:
        for _ in fit(state, plan, dataset(16), {}):
            before.update(copy.deepcopy(state.model.state_dict()))

    with pytest.raises(DivergenceError, match="Lower the learning rate") as caught:
        train()
    assert isinstance(caught.value, ValueError)
    assert all(torch.equal(w, before[name]) for name, w in state.model.state_dict().items())
    assert before
    assert all(bool(torch.isfinite(w).all()) for w in before.values())


@pytest.mark.parametrize(
    ("values", "argument"),
    [
        ({"epochs": 0}, "epochs"),
        ({"epochs": 2.5}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"patience": -1}, "patience"),
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"stop_after": 0}, "stop_after"),
        ({"stop_after": 2, "select": None}, "stop_after"),
        ({"share": 1.0}, "share"),
        ({"weight_decay": -1e-4}, "rate"),
    ],
)
def test_plans_that_cannot_be(values: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        Plan(**values)
    assert caught.value.argument == argument
    assert caught.value.remedy


def test_a_model_without_anything_to_train_is_refused(small: Make) -> None:
    with pytest.raises(InputError, match="model: expected parameters that require gradients"):
        begin(small().requires_grad_(False), PLAN)


def test_a_rule_on_a_slice_that_is_not_there_is_refused(dataset: Make, small: Make) -> None:
    plan = replace(PLAN, select="validation")
    with pytest.raises(InputError, match="slices: expected 'validation'"):
        run(begin(small(), plan), plan, dataset(16), {"test": dataset(8)})


def test_the_defaults_are_the_papers() -> None:
    plan = Plan()
    found = (
        plan.epochs,
        plan.batch_size,
        plan.rate,
        plan.optimiser,
        plan.weight_decay,
        plan.attack.steps,
        plan.evaluation.steps,
    )
    assert found == (200, 128, 0.1, SGD(momentum=0.9), 5e-4, 10, 20)
    assert (plan.within.norm, plan.within.radius, plan.select) == ("linf", 8 / 255, "validation")
    assert dataclasses.is_dataclass(plan.loss)
    assert plan.loss == AT()
