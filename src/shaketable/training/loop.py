"""The training loop, to be read from top to bottom. It yields what happened; its caller saves, shows and stops."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..core import InputError, bare, generator
from ..core.seeds import own_random_state
from ..data import Batch, Dataset
from .curves import evaluate_slices
from .entropy_sgd import EntropySGD
from .plan import Batches, Plan
from .processes import Alone, Processes
from .result import result_model
from .state import Epoch, SliceRecord, State, Step
from .step import train_step


def begin(model: nn.Module, plan: Plan, sample: Tensor | None = None) -> State:
    """The state before the first step: the model as the plan trains it, and the optimiser over all that is trained.

    Args:
        sample: a few images, for a loss that adds a head of its own to the model.
    """
    model = bare(model)
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError("model", "parameters that require gradients", "none", "Unfreeze some: p.requires_grad_(True).")
    prepare = getattr(plan.loss, "prepare", None)
    if prepare is not None:
        if sample is None:
            raise InputError("sample", f"images, which {type(plan.loss).__name__} needs", "None", "Give a few of them.")
        model = prepare(model, sample, plan.seed)
    if plan.update.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if plan.compile:
        model.compile()
    trained = [p for p in model.parameters() if p.requires_grad]
    scaler = None
    if plan.update.precision == "float16":
        scaler = torch.amp.GradScaler(trained[0].device.type)  # pyright: ignore[reportPrivateImportUsage]
    optimiser = plan.optimiser
    if isinstance(optimiser, EntropySGD):
        optimiser = replace(optimiser, seed=plan.seed)  # of its Langevin noise
    return State(model, optimiser(trained, plan.rate, plan.weight_decay), scaler=scaler)


def fit(
    state: State,
    plan: Plan,
    train: Dataset,
    slices: dict[str, Dataset],
    *,
    unlabelled: Dataset | None = None,
    processes: Processes = Alone(),
) -> Iterator[Step | Epoch]:
    """Train from a state to the plan's end.

    Yields a `Step` after every step and an `Epoch` after every epoch; between two of them the state is whole, so that its
    caller may save it, or stop there. Ends early when the training has collapsed or no longer gains (see `Plan`).

    Args:
        train: what is trained on.
        slices: name -> a fixed set of images on which losses and accuracies are followed: "train", "validation", "test".
        unlabelled: pseudo-labelled images, a share of each batch. An epoch has as many steps as without them, so that it
            sees a part of the labelled images (as in the code of Carmon et al. 2019).
        processes: that share the work; all see the same data and end in the same weights, which is asserted every epoch.

    Raises:
        InputError: the plan selects on a slice that is not there, or its loss needs what is not there.
        DivergenceError: a loss or a gradient was not finite.
        ProcessError: another process ended, or holds other weights.

    Cost: epochs * steps * `train_step`, and an evaluation of the slices every `evaluate_every` epochs.
    Checked by tests/training/test_loop.py.
    """
    _require(plan, slices, unlabelled)
    feed = _Feed(plan, train, unlabelled, plan.batches(len(train), None if unlabelled is None else len(unlabelled)))
    device = next(state.model.parameters()).device
    while not finished(state, plan):
        labelled, extra = feed.orders(state.epoch)
        state.model.train()
        while state.step < feed.batches.steps:
            batch = feed.batch(labelled, extra, state.step).to(device)
            loss = _step(state, plan, batch, feed.batches.steps, processes)
            state.loss_sum += loss
            state.step += 1
            yield Step(state.epoch + 1, state.step, feed.batches.steps, loss)
        yield _close(state, plan, slices, feed, processes)


def finished(state: State, plan: Plan) -> bool:
    """Whether the training has reached its last epoch, has collapsed, or no longer gains."""
    if state.epoch >= plan.epochs or state.constant >= plan.patience:
        return True
    return plan.stop_after is not None and state.since_best >= plan.stop_after


def _require(plan: Plan, slices: dict[str, Dataset], unlabelled: Dataset | None) -> None:
    if plan.select is not None and plan.select not in slices:
        found = ", ".join(slices) or "no slices"
        raise InputError(
            "slices", f"{plan.select!r}, on which the best epoch is chosen", found, "Add it, or select=None."
        )
    if getattr(plan.loss, "needs_unlabelled", False) and unlabelled is None:
        remedy = "Give them (`shaketable pseudolabel` makes them), or use TRADES, which it is without them."
        raise InputError("unlabelled", f"pseudo-labelled images for {type(plan.loss).__name__}", "none", remedy)


@dataclass(frozen=True)
class _Feed:
    """Where batches come from; what they hold depends on the seed, the epoch and the step alone."""

    plan: Plan
    train: Dataset
    unlabelled: Dataset | None
    batches: Batches

    def orders(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The labelled images in a new order; of the pseudo-labelled ones, as many as the epoch needs."""
        labelled = torch.randperm(len(self.train), generator=generator(self.plan.seed, "order", epoch))
        if self.unlabelled is None:
            return labelled, labelled[:0]
        need, rounds = self.batches.extra * self.batches.steps, list[Tensor]()
        source = generator(self.plan.seed, "unlabelled", epoch)
        while sum(map(len, rounds)) < need:
            rounds.append(torch.randperm(len(self.unlabelled), generator=source))
        return labelled, torch.cat(rounds)[:need]

    def batch(self, labelled: Tensor, extra: Tensor, step: int) -> Batch:
        """One step's images: labelled ones, then pseudo-labelled ones."""
        m, k = self.batches.labelled, self.batches.extra
        batch = self.train.batch(labelled[step * m : (step + 1) * m])
        if self.unlabelled is None:
            return batch
        more = self.unlabelled.batch(extra[step * k : (step + 1) * k])
        return Batch(torch.cat([batch.x, more.x]), torch.cat([batch.y, more.y]))


def _step(state: State, plan: Plan, batch: Batch, steps: int, processes: Processes) -> float:
    """Set the rate, augment, and take one step; all randomness comes from (seed, epoch, step)."""
    key, x, y = (state.epoch, state.step), batch.x, batch.y
    taken, done = state.epoch * steps + state.step, (state.epoch + state.step / steps) / plan.epochs
    for group in state.optimiser.param_groups:
        group["lr"] = plan.rate * plan.schedule(done)
    if plan.augment is not None:
        x = plan.augment(x, generator(plan.seed, "augment", *key))
    if plan.update.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    due = plan.weights is not None and plan.weights.due(state.epoch, taken)
    path = ("dropout", *key) if processes.rank == 0 else ("dropout", *key, processes.rank)
    with own_random_state([x], generator(plan.seed, *path)):
        stepped = train_step(
            state.model, state.optimiser, plan.loss, x, y, within=plan.within, by=plan.attack,
            weights=plan.weights if due else None, generator=generator(plan.seed, "attack", *key), update=plan.update,
            labels=plan.labels, processes=processes, scaler=state.scaler,
        )  # fmt: skip
    if plan.average is not None and not stepped.skipped:
        plan.average.update(state.average, state.model, step=taken + 1, done=(taken + 1) / (steps * plan.epochs))
    state.calls += stepped.calls
    state.silent += stepped.silent
    return stepped.loss


def _close(state: State, plan: Plan, slices: dict[str, Dataset], feed: _Feed, processes: Processes) -> Epoch:
    """End an epoch: evaluate if it is due, keep the weights if they are the best, write the history."""
    processes.require_same("the model's weights", state.model.state_dict())
    epoch = state.epoch + 1
    records: dict[str, SliceRecord] = {}
    constant, best = False, False
    if epoch % plan.evaluate_every == 0 or epoch == plan.epochs:
        model = result_model(state, plan, lambda k: feed.batch(*feed.orders(state.epoch), k), feed.batches.steps)
        found = evaluate_slices(model, plan, slices, processes=processes)
        records, constant = found.slices, found.constant
        state.constant = state.constant + 1 if constant else 0
        best = _is_best(state, plan, records)
        state.since_best = 0 if best else state.since_best + 1
        weights = {name: t.detach().clone() for name, t in model.state_dict().items()}
        if best:
            state.best = weights
        state.last = {} if model is state.plain else weights
    closed = Epoch(epoch, state.loss_sum / feed.batches.steps, records, best, constant, state.silent)
    state.history.append(closed)
    state.epoch, state.step, state.loss_sum, state.silent = epoch, 0, 0.0, 0
    return closed


def _is_best(state: State, plan: Plan, records: dict[str, SliceRecord]) -> bool:
    """By robust accuracy on the chosen slice; among equals the lower robust loss."""
    if plan.select is None or plan.select not in records:
        return False

    def score(record: SliceRecord) -> tuple[float, float]:
        loss = record.robust_loss if math.isfinite(record.robust_loss) else math.inf
        return record.robust_correct / record.n, -loss

    past = [score(e.slices[plan.select]) for e in state.history if plan.select in e.slices]
    return not past or score(records[plan.select]) > max(past)
