"""The report of a training: learning curves, and the best and the last model on whole splits."""

from collections.abc import Sequence
from typing import Any, Literal

from ..report import (
    Chart,
    Finding,
    Hashes,
    Metric,
    Report,
    Section,
    Series,
    Table,
    elapsed_since,
    environment,
    verdict_of,
)
from ..runs import Progress
from ..stats import Mean, Rate
from ..training import Epoch
from .finals import Final, accuracies, evaluate_final, final_metrics, overfitting, robust_gap
from .findings import reported
from .ground import config_of
from .train import Trained
from .train_config import TrainConfig

STYLES: dict[str, Literal["solid", "dash", "dot"]] = {"train": "dot", "validation": "dash", "test": "solid"}


def report(trained: Trained, *, progress: Progress | None = None) -> Report:
    """Evaluate the final models and put everything into a report."""
    finals = evaluate_final(trained, progress=progress)
    prepared, config = trained.prepared, trained.prepared.config
    notes = (*findings(trained), *_doubts(finals))
    metrics = final_metrics(finals)
    return Report(
        verb="train",
        title=f"Training of {config.architecture} on {prepared.splits.train.name}",
        summary=(*_sentences(config, finals), *_gap_sentences(finals)),
        verdict=verdict_of(notes),
        headline=tuple(m for f in reversed(finals) for m in accuracies(f)),
        findings=notes,
        sections=(
            final_section(config, finals, metrics),
            curve_section({"model": trained.state.history}, clean=True),
        ),
        command=f"shaketable train --config {config.out}/config.json",
        config=config_of(config),
        environment=environment(device=str(prepared.ground.device)),
        seeds={"seed": config.seed},
        hashes=Hashes(models={f.which: f.sha256 for f in finals}, splits=prepared.hashes),
        volatile=elapsed_since(prepared.ground.started, extra={"folder": str(trained.folder)}),
    )


def _doubts(finals: Sequence[Final]) -> tuple[Finding, ...]:
    """What the evaluations themselves found suspicious."""
    return tuple(
        reported(f, f"{final.which} model, {part} images: ")
        for final in finals
        for part, done in (("test", final.test), ("training", final.train))
        if done is not None
        for f in done.findings
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
    if (begun := trained.prepared.begun) is not None:
        new = f"; new: {', '.join(begun.new)}" if begun.new else ""
        message = f"Fine-tuned: {begun.copied} tensors were taken over from {begun.source}{new}."
        add("info", "fine-tuned", message, "")
    if leaks := trained.prepared.leaks:
        message = f"Some images are in two splits: {', '.join(f'{pair} {n}' for pair, n in leaks.items())}."
        add("finding", "overlap", message, "Remove the copies; accuracies on them are memory.")
    return tuple(made)


def final_section(config: TrainConfig, finals: Sequence[Final], metrics: tuple[Metric, ...] = ()) -> Section:
    """Accuracies and robust loss of the best and the last epoch."""
    rows: tuple[Any, ...] = tuple(
        (f.which, f.epoch, part, done.clean, done.robust, done.adversarial_loss)
        for f in reversed(finals)
        for part, done in (("test", f.test), ("training", f.train))
        if done is not None
    )
    table = Table(
        title="On whole splits",
        columns=("Model", "Epoch", "Images", "Clean accuracy", "Robust accuracy", "Robust loss"),
        rows=rows,
        note=f"Attack: {config.evaluation}, {config.norm} {config.eps:.4g}, every image to the attack's end, as the papers "
        "test; `shaketable evaluate` counts an image as lost at the first step that fools the model. 95 % intervals over "
        "the images: Wilson for rates, Student for losses.",
    )
    return Section(title="The trained model", metrics=metrics, tables=(table,))


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


def _sentences(config: TrainConfig, finals: Sequence[Final]) -> tuple[str, ...]:
    lines: list[str] = []
    for final in reversed(finals):
        done = final.test
        lines.append(
            f"The {final.which} model (epoch {final.epoch}) is right on {100 * done.clean.value:.1f} % of {done.clean.n} "
            f"test images, and stays right on {100 * done.robust.value:.1f} % under {config.evaluation} "
            f"({config.norm}, eps {config.eps:.4g})."
        )
    return tuple(lines)


def _gap_sentences(finals: Sequence[Final]) -> tuple[str, ...]:
    lines: list[str] = []
    if (gap := robust_gap(finals)) is not None:
        lines.append(f"The robust generalisation gap at the last epoch is {_ends(gap)} in loss (test minus training).")
    if (rise := overfitting(finals)) is not None and finals[0].epoch != finals[-1].epoch:
        lines.append(f"From the best epoch to the last the robust test loss has changed by {_ends(rise, '+')}.")
    return tuple(lines)


def _ends(value: Mean, sign: str = "") -> str:
    return f"{value.value:{sign}.3f} [{value.low:{sign}.3f}, {value.high:{sign}.3f}]"
