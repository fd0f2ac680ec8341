"""The report of a training: learning curves, and the best and the last model on the test split."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..attacks import Evaluation, PGDAttack, evaluate
from ..core import PGD
from ..report import (
    Chart,
    Finding,
    Hashes,
    Report,
    Section,
    Series,
    Table,
    elapsed_since,
    environment,
    rate_metric,
    verdict_of,
)
from ..runs import Progress, Quiet
from ..stats import Rate
from ..training import Epoch
from .config import TrainConfig
from .ground import config_of
from .train import Trained, final_models

STYLES: dict[str, Literal["solid", "dash", "dot"]] = {"train": "dot", "validation": "dash", "test": "solid"}


@dataclass(frozen=True)
class Final:
    """A trained model on the whole test split."""

    which: str
    epoch: int
    evaluation: Evaluation
    sha256: str


def evaluate_final(trained: Trained, *, progress: Progress | None = None, label: str = "evaluate") -> list[Final]:
    """The last model, and the best where there is a rule for it, on the test split, by the plan's evaluation attack."""
    from ..models import fingerprint

    plan, state, data = trained.prepared.plan, trained.state, trained.prepared.splits.test
    finals: list[Final] = []
    with (progress or Quiet()).stage(label, 1 + bool(state.best)) as stage:
        for which, model in final_models(trained):
            done = evaluate(
                model, data, within=plan.within, attack=attack_of(plan.evaluation), seed=plan.seed,
            )  # fmt: skip
            epoch = state.epoch if which == "last" else (state.best_epoch or state.epoch)
            finals.append(Final(which, epoch, done, fingerprint(model)))
            stage.update(len(finals), f"{which}: robust accuracy {done.robust}")
    return finals


def attack_of(by: PGD) -> PGDAttack:
    """The ascent of the learning curves as an attack: the same steps, restarts and start."""
    return PGDAttack(steps=by.steps, step=by.step, restarts=by.restarts, momentum=by.momentum, keep=by.keep)


def report(trained: Trained, *, progress: Progress | None = None) -> Report:
    """Evaluate the final models and put everything into a report."""
    finals = evaluate_final(trained, progress=progress)
    prepared, config = trained.prepared, trained.prepared.config
    notes = findings(trained)
    last = finals[0]
    best = finals[-1]
    return Report(
        verb="train",
        title=f"Training of {config.architecture} on {prepared.splits.train.name}",
        summary=(*_sentences(config, finals), *_gap_sentence(trained)),
        verdict=verdict_of(notes),
        headline=tuple(
            rate_metric(f"{name} accuracy, {f.which} epoch", rate, note=f"epoch {f.epoch}")
            for f in dict.fromkeys((best, last))
            for name, rate in (("Robust", f.evaluation.robust), ("Clean", f.evaluation.clean))
        ),
        findings=notes,
        sections=(final_section(config, finals), curve_section({"model": trained.state.history}, clean=True)),
        command=f"shaketable train --config {config.out}/config.json",
        config=config_of(config),
        environment=environment(device=str(prepared.ground.device)),
        seeds={"seed": config.seed},
        hashes=Hashes(models={f.which: f.sha256 for f in finals}, splits=prepared.splits.hashes),
        volatile=elapsed_since(prepared.ground.started, extra={"folder": str(trained.folder)}),
    )


def findings(trained: Trained) -> tuple[Finding, ...]:
    """What the reader of a training must know."""
    made: list[Finding] = []

    def add(level: Any, code: str, message: str, remedy: str) -> None:
        made.append(Finding(level=level, code=code, message=message, remedy=remedy))

    state, config, driven = trained.state, trained.prepared.config, trained.driven
    if driven.collapsed:
        message = f"The training collapsed: at {state.constant} evaluations in a row every image got the same class."
        add("finding", "collapsed", message, "Lower the learning rate or gamma, or give AWP a warm-up.")
    elif state.history and state.history[-1].constant:
        message = "The last model gives every image of the learning curves the same class."
        add("finding", "constant-predictor", message, "Train longer, or lower the learning rate, eps or gamma.")
    if driven.elsewhere:
        message = f"The run was resumed elsewhere, so its bits may differ: {'; '.join(driven.elsewhere)}."
        add("warning", "resumed-elsewhere", message, "Run it in one place, if its exact weights matter.")
    silent = sum(epoch.silent for epoch in state.history)
    if silent:
        message = f"In {silent} steps no example had a gradient, so the attack or AWP did nothing."
        add("warning", "silent-steps", message, "Look at the learning curves: the model may be saturated.")
    if config.select == "test":
        message = "The best epoch was chosen on the test split, as the papers do; its numbers are optimistic."
        add("warning", "selected-on-test", message, "Use --select validation for a number to quote.")
    leaks = {pair: n for pair, n in trained.prepared.splits.overlap.items() if n}
    if leaks:
        message = f"Some images are in two splits: {', '.join(f'{pair} {n}' for pair, n in leaks.items())}."
        add("finding", "overlap", message, "Remove the copies; accuracies on them are memory.")
    return tuple(made)


def final_section(config: TrainConfig, finals: list[Final]) -> Section:
    """Clean and robust accuracy of the best and the last epoch."""
    rows: tuple[Any, ...] = tuple(
        (f.which, f.epoch, f.evaluation.clean, f.evaluation.robust) for f in reversed(finals)
    )  # fmt: skip
    table = Table(
        title="On the whole test split",
        columns=("Model", "Epoch", "Clean accuracy", "Robust accuracy"),
        rows=rows,
        note=f"Attack: {config.evaluation}, {config.norm} {config.eps:.4g}. 95 % Wilson intervals over the images.",
    )
    return Section(title="The trained model", tables=(table,))


def curve_section(histories: dict[str, list[Epoch]], text: str = "", *, clean: bool = False) -> Section:
    """Robust loss and robust accuracy against the epoch, of each model and split; with `clean`, the clean ones too."""
    kinds = ("robust", "clean") if clean else ("robust",)
    charts = tuple(_curves(histories, kind, rates=rates) for kind in kinds for rates in (False, True))
    text = text or (
        "Measured on fixed slices of each split. Where the robust loss on test images rises while that on training "
        "images falls, the model overfits robustly."
    )
    return Section(title="Learning curves", text=text, charts=charts)


def _curves(histories: dict[str, list[Epoch]], kind: str, *, rates: bool) -> Chart:
    """The losses or accuracies of one kind ("robust" or "clean") over the epochs."""
    prefix = "robust_" if kind == "robust" else ""
    series: list[Series] = []
    for model, history in histories.items():
        measured = [epoch for epoch in history if epoch.slices]
        for split in measured[0].slices if measured else ():
            parts = [epoch.slices[split] for epoch in measured]
            counted = [Rate(getattr(part, f"{prefix}correct"), part.n) for part in parts]
            losses = tuple(getattr(part, f"{prefix}loss") for part in parts)
            series.append(
                Series(
                    name=split if len(histories) == 1 else f"{model}, {split}",
                    x=tuple(float(epoch.epoch) for epoch in measured),
                    y=tuple(rate.value for rate in counted) if rates else losses,
                    low=tuple(rate.interval[0] for rate in counted) if rates else None,
                    high=tuple(rate.interval[1] for rate in counted) if rates else None,
                    group=model,
                    dash=STYLES.get(split, "solid"),
                )
            )
    what = f"{kind} {'accuracy' if rates else 'loss'}"
    ends = "; ".join(f"{s.name}: {s.y[0]:.3f} at first, {s.y[-1]:.3f} at the end" for s in series if s.y)
    return Chart(
        kind="line", title=what.capitalize(), series=tuple(series), x_label="epoch",
        y_label=what if rates else f"{what} (cross-entropy)", y_format="percent" if rates else "number",
        description=f"The {what} over the epochs. {ends}.",
    )  # fmt: skip


def _sentences(config: TrainConfig, finals: list[Final]) -> tuple[str, ...]:
    lines: list[str] = []
    for final in reversed(finals):
        done = final.evaluation
        lines.append(
            f"The {final.which} model (epoch {final.epoch}) is right on {100 * done.clean.value:.1f} % of {done.clean.n} "
            f"test images, and stays right on {100 * done.robust.value:.1f} % under {config.evaluation} "
            f"({config.norm}, eps {config.eps:.4g})."
        )
    return tuple(lines)


def robust_gap(history: list[Epoch]) -> float:
    """The robust loss on test images minus that on training images, at the last evaluation; NaN if there is none."""
    measured = [epoch for epoch in history if "test" in epoch.slices and "train" in epoch.slices]
    if not measured:
        return math.nan
    return measured[-1].slices["test"].robust_loss - measured[-1].slices["train"].robust_loss


def _gap_sentence(trained: Trained) -> tuple[str, ...]:
    gap = robust_gap(trained.state.history)
    if math.isnan(gap):
        return ()
    return (f"The robust generalisation gap at the last epoch is {gap:.3f} in loss (test minus train).",)
