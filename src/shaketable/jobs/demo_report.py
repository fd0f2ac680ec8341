"""The report of the demo: what was measured, in sentences that the intervals allow, and in charts and tables."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from ..attacks import Evaluation
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
    mean_metric,
    rate_metric,
    verdict_of,
)
from ..stats import Mean, difference, mean, paired
from .config import DemoConfig
from .demo import Shown
from .findings import reported
from .ground import config_of
from .train_report import curve_section
from .train_report import findings as training_findings

FEW_DRAWS = 5


def report(config: DemoConfig, shown: Sequence[Shown]) -> Report:
    """The whole demo as a report."""
    plain, awp = shown
    prepared = plain.trained.prepared
    findings = _findings(config, shown)
    return Report(
        verb="demo",
        title="Robust overfitting, and what adversarial weight perturbation does about it",
        summary=_summary(plain, awp),
        verdict=verdict_of(findings),
        headline=tuple(metric for one in shown for metric in _headline(one)),
        findings=findings,
        sections=(_accuracy(config, shown), _curves(shown), _gaps(shown), _flatness(config, shown)),
        command=f"shaketable demo --seed {config.seed} --epochs {config.epochs} --train-count {config.train_count} "
        f"--test-count {config.test_count} --flatness-count {config.flatness_count} "
        f"--flatness-samples {config.flatness_samples} --eps {config.eps:g} --gamma {config.gamma:g} "
        f"--warmup {config.warmup}",
        config=config_of(config),
        environment=environment(device=str(prepared.ground.device)),
        seeds={"seed": config.seed},
        hashes=Hashes(
            models={name: sha for s in shown for name, sha in s.hashes.items()}, splits=prepared.splits.hashes
        ),
        volatile=elapsed_since(_started(shown)),
    )


def _headline(one: Shown) -> tuple[Metric, ...]:
    """A row of the page's cards."""
    return (
        rate_metric(f"Robust accuracy, {one.name}", one.last.robust, note="last epoch", group=one.name),
        mean_metric(f"Robust gap, {one.name}", gap(one), note="loss, test minus train", group=one.name),
        mean_metric(f"Flatness, {one.name}", one.flatness.value, note="smaller is flatter", group=one.name),
    )


def gap(one: Shown) -> Mean:
    """Robust loss on test images minus that on training images, with its Welch interval over the images."""
    return difference(one.last.adversarial_losses.tolist(), one.train.adversarial_losses.tolist())


def gap_closed(plain: Shown, awp: Shown) -> Mean:
    """How much smaller AWP's gap is. The nets share their images, so each image's difference counts once."""
    test = (plain.last.adversarial_losses - awp.last.adversarial_losses).tolist()
    train = (plain.train.adversarial_losses - awp.train.adversarial_losses).tolist()
    return difference(test, train)


def overfitting(one: Shown) -> Mean:
    """Robust test loss of the last epoch minus that of the best, image by image."""
    return paired(one.last.adversarial_losses.tolist(), one.best.adversarial_losses.tolist())


def flatter(plain: Shown, awp: Shown) -> Mean:
    """How much flatter AWP's net is, draw by draw: both nets are moved along the same random directions."""
    return paired(plain.flatness.draws, awp.flatness.draws)


def _verdict(value: Mean, yes: str, no: str) -> str:
    """`yes` if the interval is above 0, `no` if it is below, else that nothing is shown."""
    if value.low > 0:
        return yes
    return no if value.high < 0 else "which of the two is larger cannot be told at this size"


def _summary(plain: Shown, awp: Shown) -> tuple[str, ...]:
    over, closed, flat = overfitting(plain), gap_closed(plain, awp), flatter(plain, awp)
    robust = paired(awp.last.robust_correct.double().tolist(), plain.last.robust_correct.double().tolist())
    return (
        _overfitting_sentence(plain, over),
        f"The gap: AT's robust loss is {gap(plain).value:.2f} higher on test than on training images, AT-AWP's "
        f"{gap(awp).value:.2f}; the difference is {_signed(closed)}: "
        f"{_verdict(closed, 'AWP narrows the gap', 'AWP widens the gap')}.",
        f"Robust accuracy at the last epoch: AT-AWP minus AT is {_signed(robust, 100, ' points')}: "
        f"{_verdict(robust, 'AWP holds better', 'AWP holds worse')}.",
        f"Flatness: moving the weights at random raises the robust loss by {plain.flatness.value.value:.2f} for AT and "
        f"{awp.flatness.value.value:.2f} for AT-AWP; the difference is {_signed(flat)}: "
        f"{_verdict(flat, 'AWP ends in the flatter minimum', 'AWP ends in the sharper minimum')}.",
        "All intervals are over images or draws, for one training of each kind: another seed moves these numbers too.",
    )


def _overfitting_sentence(plain: Shown, over: Mean) -> str:
    state = plain.trained.state
    if state.best_epoch == state.epoch:
        return f"Robust overfitting: AT's best epoch on validation images is its last, {state.epoch}; none shows."
    return (
        f"Robust overfitting: AT's robust test loss at its last epoch minus that at its best epoch ({state.best_epoch}, "
        f"chosen on validation images) is {_signed(over)}: {_verdict(over, 'it overfits', 'it does not overfit')}."
    )


def _signed(value: Mean, factor: float = 1.0, unit: str = "") -> str:
    digits = 1 if factor == 100 else 2
    numbers = [f"{factor * v:+.{digits}f}" for v in (value.value, value.low, value.high)]
    return f"{numbers[0]}{unit} [{numbers[1]}, {numbers[2]}]"


def _accuracy(config: DemoConfig, shown: Sequence[Shown]) -> Section:
    rows: tuple[Any, ...] = tuple(
        (s.name, which, epoch, done.clean, done.robust, mean(done.adversarial_losses.tolist()))
        for s in shown
        for which, epoch, done in (
            ("best", s.trained.state.best_epoch, s.best),
            ("last", s.trained.state.epoch, s.last),
        )
    )
    table = Table(
        title="On the test images",
        columns=("Model", "Checkpoint", "Epoch", "Clean accuracy", "Robust accuracy", "Robust loss"),
        rows=rows,
        note=f"PGD-20, linf, eps {config.eps:g}, random start, {shown[0].last.robust.n} images. Best: the highest robust "
        f"accuracy on {_counts(shown[0])['validation']} validation images. 95 % intervals: Wilson for rates, Student for "
        "losses.",
    )
    return Section(title="Accuracy", charts=(_bars(shown),), tables=(table,))


def _bars(shown: Sequence[Shown]) -> Chart:
    def series(one: Shown) -> Series:
        rates = (one.best.clean, one.last.clean, one.best.robust, one.last.robust)
        return Series(
            name=one.name,
            x=("clean, best", "clean, last", "robust, best", "robust, last"),
            y=tuple(r.value for r in rates),
            low=tuple(r.interval[0] for r in rates),
            high=tuple(r.interval[1] for r in rates),
        )

    values = "; ".join(f"{s.name}: clean {_percent(s.last, False)}, robust {_percent(s.last, True)}" for s in shown)
    return Chart(
        kind="bar", title="Accuracy on the test images", series=tuple(series(s) for s in shown), x_label="",
        y_label="accuracy", y_format="percent",
        description=f"Clean and robust accuracy at the best and the last epoch. At the last epoch, {values}.",
    )  # fmt: skip


def _percent(done: Evaluation, robust: bool) -> str:
    return f"{100 * (done.robust if robust else done.clean).value:.1f} %"


def _curves(shown: Sequence[Shown]) -> Section:
    counts = ", ".join(f"{n} of {name}" for name, n in _counts(shown[0]).items())
    text = (
        f"Robust loss and accuracy during training, on fixed images ({counts}), attacked anew at each evaluation. A "
        "test loss that rises while the training loss falls is robust overfitting; the distance between the two is the "
        "robust generalisation gap."
    )
    return curve_section({s.name: s.trained.state.history for s in shown}, text)


def _counts(one: Shown) -> dict[str, int]:
    """How many images of each split the learning curves are measured on."""
    return {name: len(part) for name, part in one.trained.prepared.slices.items()}


def _gaps(shown: Sequence[Shown]) -> Section:
    plain, awp = shown
    rows: tuple[Any, ...] = (
        *((f"{s.name}: robust gap", "test minus training loss, last epoch", gap(s)) for s in shown),
        ("AT minus AT-AWP", "difference of the gaps", gap_closed(plain, awp)),
        *((f"{s.name}: overfitting", "robust test loss, last minus best epoch", overfitting(s)) for s in shown),
    )
    table = Table(
        title="Robust generalisation gap",
        columns=("What", "How", "Value"),
        rows=rows,
        note=f"All {shown[0].train.robust.n} training and {shown[0].last.robust.n} test images, PGD-20. 95 % intervals: "
        "Welch for gaps, paired Student for overfitting.",
    )
    return Section(title="The gap that AWP closes", tables=(table,))


def _flatness(config: DemoConfig, shown: Sequence[Shown]) -> Section:
    plain, awp = shown
    draws = tuple(str(k + 1) for k in range(len(plain.flatness.draws)))
    chart = Chart(
        kind="scatter", title="Rise of the robust loss along each random direction",
        series=tuple(Series(name=s.name, x=draws, y=s.flatness.draws) for s in shown),
        x_label="draw of the weights", y_label="robust loss(w + nu) - robust loss(w)",
        description="; ".join(f"{s.name}: {s.flatness.value}" for s in shown) + ". Smaller is flatter.",
    )  # fmt: skip
    rows: tuple[Any, ...] = (
        *((s.name, s.flatness.reference, s.flatness.value) for s in shown),
        ("AT minus AT-AWP, same draws", None, flatter(plain, awp)),
    )
    table = Table(
        title="Average-case robust flatness", columns=("Model", "Robust loss at w", "Mean rise"), rows=rows,
        note=f"{len(draws)} draws within half of each layer's norm, the same directions for both nets; "
        f"{plain.flatness.examples} test images, attacked anew with PGD-20 for every draw. Student intervals over the draws.",
    )  # fmt: skip
    text = (
        "How much the robust loss rises when the weights are moved at random, the inputs attacked anew each time (Stutz, "
        "Hein and Schiele 2021). The paper finds that flatter nets generalise better robustly."
    )
    return Section(title="Flatness", text=text, charts=(chart,), tables=(table,))


def _findings(config: DemoConfig, shown: Sequence[Shown]) -> tuple[Finding, ...]:
    made = [
        finding.model_copy(update={"message": f"{s.name}: {finding.message}"})
        for s in shown
        for finding in training_findings(s.trained)
    ]
    if config.flatness_samples < FEW_DRAWS:
        message = f"Flatness is averaged over {config.flatness_samples} draws; its interval is wide."
        made.append(Finding(level="info", code="few-draws", message=message, remedy="Use --flatness-samples 24."))
    for s in shown:
        for f in s.last.findings:
            made.append(reported(f, f"{s.name}: "))
    return tuple(made)


def _started(shown: Sequence[Shown]) -> datetime:
    return min(s.trained.prepared.ground.started for s in shown)
