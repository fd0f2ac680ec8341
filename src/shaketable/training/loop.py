"""The training loop, to be read from top to bottom. It yields what happened; its caller saves, shows and stops."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..core import PGD, Ball, InputError, generator
from ..core.measure import measure
from ..core.seeds import own_random_state
from ..data import Batch, Dataset
from .at import AT
from .awp import WeightPerturbation
from .losses import RobustLoss
from .schedule import MultiStep, Schedule
from .state import Epoch, Evaluated, SliceRecord, State, Step
from .step import in_mode, train_step


@dataclass(frozen=True)
class Plan:
    """Everything that decides a training, so that the same plan on the same data ends in the same weights.

    Args:
        loss: AT by default.
        weights: the perturbation of the weights, or None.
        within, attack: the ball and the ascent of the inputs while training.
        epochs, batch_size: a last batch of one example is left out (BatchNorm cannot use it), others are not.
        rate, momentum, weight_decay: of SGD; .1, .9 and 5e-4 on all parameters are the recipe of AT and AWP.
        schedule: the factor of the rate; /10 at 50 % and 75 %.
        augment: a function of (x, generator), or None.
        evaluate_every: epochs between two evaluations of the slices; the last epoch is always evaluated.
        evaluation: the ascent of those evaluations; PGD-20 as the papers test.
        select: which slice decides the best epoch: "validation"; or "test", which is the papers' and AWP's own way but picks
            the best on the data that the result is quoted on. None: the last epoch is the result.
        patience: consecutive evaluations with one and the same predicted class after which the training is called
            collapsed and ends.
        seed: of the order, the attacks' starts, the augmentation and dropout. Draws depend on the seed, the epoch and the
            step alone, so a resumed training draws what an uninterrupted one does.
    """

    loss: RobustLoss = AT()
    weights: WeightPerturbation | None = None
    within: Ball = Ball("linf", 8 / 255, box=(0.0, 1.0))
    attack: PGD = PGD(10)
    epochs: int = 200
    batch_size: int = 128
    rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = MultiStep()
    augment: Any = None
    evaluate_every: int = 1
    evaluation: PGD = PGD(20)
    select: Literal["validation", "test"] | None = "validation"
    patience: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every", "patience"):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 1:
                raise InputError(name, "a whole number >= 1", repr(number), "Raise it, or round it.")
        if not (self.rate > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            found = f"rate {self.rate}, momentum {self.momentum}, weight_decay {self.weight_decay}"
            raise InputError("rate", "rate > 0, 0 <= momentum < 1, weight_decay >= 0", found, "Use .1, .9 and 5e-4.")


def begin(model: nn.Module, plan: Plan) -> State:
    """The state before the first step, with SGD over all parameters that are trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise InputError("model", "parameters that require gradients", "none", "Unfreeze some: p.requires_grad_(True).")
    optimiser = torch.optim.SGD(trained, plan.rate, momentum=plan.momentum, weight_decay=plan.weight_decay)
    return State(model, optimiser)


def fit(state: State, plan: Plan, train: Dataset, slices: dict[str, Dataset]) -> Iterator[Step | Epoch]:
    """Train from a state to the plan's last epoch.

    Yields a `Step` after every step and an `Epoch` after every epoch; between two of them the state is whole, so that its
    caller may save it, or stop there. Ends early when the training has collapsed (see `Plan.patience`).

    Args:
        train: what is trained on.
        slices: name -> a fixed set of images on which losses and accuracies are followed: "train", "validation", "test".

    Raises:
        InputError: the plan selects on a slice that is not there.
        DivergenceError: a loss or a gradient was not finite.

    Cost: epochs * steps * `train_step`, and an evaluation of the slices every `evaluate_every` epochs.
    Checked by tests/training/test_loop.py.
    """
    if plan.select is not None and plan.select not in slices:
        found = ", ".join(slices) or "no slices"
        raise InputError(
            "slices", f"{plan.select!r}, on which the best epoch is chosen", found, "Add it, or select=None."
        )
    device = next(state.model.parameters()).device
    steps = steps_of(len(train), plan.batch_size)
    while state.epoch < plan.epochs and state.constant < plan.patience:
        order = torch.randperm(len(train), generator=generator(plan.seed, "order", state.epoch))
        state.model.train()
        while state.step < steps:
            rows = order[state.step * plan.batch_size : (state.step + 1) * plan.batch_size]
            loss = _step(state, plan, train.batch(rows).to(device), steps)
            state.loss_sum += loss
            state.step += 1
            yield Step(state.epoch + 1, state.step, steps, loss)
        yield _close(state, plan, slices, steps)


def steps_of(count: int, batch_size: int) -> int:
    """Steps an epoch: a last batch of a single example is left out."""
    full, rest = divmod(count, batch_size)
    return full + (rest > 1 or (rest == 1 and full == 0))


def _step(state: State, plan: Plan, batch: Batch, steps: int) -> float:
    """Set the rate, augment, and take one step; all randomness comes from (seed, epoch, step)."""
    key, x, y = (state.epoch, state.step), batch.x, batch.y
    for group in state.optimiser.param_groups:
        group["lr"] = plan.rate * plan.schedule((state.epoch + state.step / steps) / plan.epochs)
    if plan.augment is not None:
        x = plan.augment(x, generator(plan.seed, "augment", *key))
    due = plan.weights is not None and plan.weights.due(state.epoch, state.epoch * steps + state.step)
    with own_random_state([x], generator(plan.seed, "dropout", *key)):
        done = train_step(
            state.model, state.optimiser, plan.loss, x, y, within=plan.within, by=plan.attack,
            weights=plan.weights if due else None, generator=generator(plan.seed, "attack", *key),
        )  # fmt: skip
    state.calls += done.calls
    state.silent += done.silent
    return done.loss


def _close(state: State, plan: Plan, slices: dict[str, Dataset], steps: int) -> Epoch:
    """End an epoch: evaluate if it is due, keep the weights if they are the best, write the history."""
    epoch = state.epoch + 1
    records: dict[str, SliceRecord] = {}
    constant = False
    if epoch % plan.evaluate_every == 0 or epoch == plan.epochs:
        found = evaluate_slices(state.model, plan, slices)
        records, constant = found.slices, found.constant
        state.constant = state.constant + 1 if constant else 0
    best = _is_best(state, plan, records)
    if best:
        state.best = {name: t.detach().clone() for name, t in state.model.state_dict().items()}
    closed = Epoch(epoch, state.loss_sum / steps, records, best, constant, state.silent)
    state.history.append(closed)
    state.epoch, state.step, state.loss_sum, state.silent = epoch, 0, 0.0, 0
    return closed


def evaluate_slices(model: nn.Module, plan: Plan, slices: dict[str, Dataset]) -> Evaluated:
    """Each slice's record by the plan's evaluation, in eval mode, from the same starts every time; the model is not changed."""
    device = next(model.parameters()).device
    records, classes = dict[str, SliceRecord](), set[int]()
    with in_mode(model, "eval"):
        for name, part in slices.items():
            batch = part.batch(torch.arange(len(part))).to(device)
            found = measure(
                model, batch.x, batch.y, plan.within, by=plan.evaluation, generator=generator(plan.seed, "slice", name)
            )
            classes |= set(found.predicted.tolist())
            records[name] = SliceRecord(
                len(batch), float(found.loss.double().mean()), int(found.correct.sum()),
                float(found.robust_loss.double().mean()), int(found.robust_correct.sum()),
            )  # fmt: skip
    return Evaluated(records, len(classes) == 1 and sum(r.n for r in records.values()) > 1)


def _is_best(state: State, plan: Plan, records: dict[str, SliceRecord]) -> bool:
    """By robust accuracy on the chosen slice; among equals the lower robust loss."""
    if plan.select is None or plan.select not in records:
        return False

    def score(record: SliceRecord) -> tuple[float, float]:
        loss = record.robust_loss if math.isfinite(record.robust_loss) else math.inf
        return record.robust_correct / record.n, -loss

    past = [score(e.slices[plan.select]) for e in state.history if plan.select in e.slices]
    return not past or score(records[plan.select]) > max(past)
