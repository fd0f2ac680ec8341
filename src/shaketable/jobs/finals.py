"""Trained models on whole splits: what a training is judged by, and the names under which its report has the numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..attacks import Evaluation, PGDAttack, evaluate
from ..core import PGD
from ..data import Dataset
from ..report import Metric, mean_metric, rate_metric
from ..runs import Progress, Quiet
from ..stats import Mean, difference, paired
from .ground import counted
from .measured import QUANTITIES
from .train import Trained, final_models


@dataclass(frozen=True, eq=False)
class Final:
    """A trained model on whole splits, every image attacked to the end.

    Args:
        which: "last" or "best".
        epoch: counted from 1.
        test: on the test split.
        train: on the training images, of the last model alone.
        sha256: of its weights.
    """

    which: str
    epoch: int
    test: Evaluation
    train: Evaluation | None
    sha256: str


def evaluate_final(trained: Trained, *, progress: Progress | None = None, label: str = "evaluate") -> list[Final]:
    """The last model on the training and test splits, and the best, where there is a rule for it, on the test split.

    By the plan's evaluation attack, to the end of it, so that robust losses are losses and robust accuracies are those of
    the last iterate, as the papers test and as the learning curves are made. A best model that is the last one is not
    evaluated twice. Cost: `attacks.evaluate` on these splits, shared by the processes.
    """
    from ..models import fingerprint

    plan, state, splits = trained.prepared.plan, trained.state, trained.prepared.splits
    processes = trained.prepared.processes
    share = processes if processes.count > 1 else None
    attack, finals = attack_of(plan.evaluation), list[Final]()
    same = not state.best or state.best_epoch == state.epoch
    images = len(splits.train) + (2 - same) * len(splits.test)
    with (progress or Quiet()).stage(label, -(-images // processes.count)) as stage:
        advance = counted(stage)

        def found(model: Any, data: Dataset) -> Evaluation:
            return evaluate(
                model, data, within=plan.within, attack=attack, seed=plan.seed, measure="loss", progress=advance,
                share=share,
            )  # fmt: skip

        for which, model in final_models(trained):
            sha256 = fingerprint(model)
            known = [final.test for final in finals if final.sha256 == sha256]
            test = known[0] if known else found(model, splits.test)
            epoch = state.epoch if which == "last" else (state.best_epoch or state.epoch)
            finals.append(Final(which, epoch, test, found(model, splits.train) if which == "last" else None, sha256))
    return finals


def attack_of(by: PGD) -> PGDAttack:
    """The ascent of the learning curves as an attack: the same steps, restarts and start."""
    return PGDAttack(steps=by.steps, step=by.step, restarts=by.restarts, momentum=by.momentum, keep=by.keep)


def accuracies(final: Final) -> tuple[Metric, Metric]:
    """Robust and clean accuracy on the test split."""
    rates = {"robust": final.test.robust, "clean": final.test.clean}
    robust, clean = (
        rate_metric(QUANTITIES[f"{key}_{final.which}"], rate, note=f"epoch {final.epoch}")
        for key, rate in rates.items()
    )
    return robust, clean


def final_metrics(finals: Sequence[Final]) -> tuple[Metric, ...]:
    """The numbers that other verbs read from the report of a training, by the names in `measured.QUANTITIES`.

    On the test split unless the name says otherwise: of each model its robust and clean accuracy and its robust loss; of
    the last one the robust accuracy and loss on the training images, the robust gap, and how far the robust loss has risen
    since the best epoch.
    """
    made: list[Metric] = []

    def add(key: str, value: Mean, note: str) -> None:
        made.append(mean_metric(QUANTITIES[key], value, note=note))

    for final in reversed(finals):
        note = f"epoch {final.epoch}"
        made += accuracies(final)
        add(f"loss_{final.which}", final.test.adversarial_loss, note)
        if final.train is not None:
            made.append(rate_metric(QUANTITIES["robust_train"], final.train.robust, note=note))
            add("loss_train", final.train.adversarial_loss, note)
    if (gap := robust_gap(finals)) is not None:
        add("gap", gap, "robust loss, test minus training images")
    if (rise := overfitting(finals)) is not None:
        add("overfitting", rise, "robust test loss, last minus best epoch")
    return tuple(made)


def robust_gap(finals: Sequence[Final]) -> Mean | None:
    """Robust loss on test images minus that on training images, of the last model, with its Welch interval."""
    last = finals[0]
    if last.train is None or min(len(last.test.sizes), len(last.train.sizes)) < 2:
        return None
    return difference(last.test.adversarial_losses.tolist(), last.train.adversarial_losses.tolist())


def overfitting(finals: Sequence[Final]) -> Mean | None:
    """Robust test loss of the last model minus that of the best, image by image; None if there is no best."""
    if len(finals) < 2:
        return None
    return paired(finals[0].test.adversarial_losses.tolist(), finals[-1].test.adversarial_losses.tolist())
