"""The report of `shaketable evaluate`: accuracies, their curve, classes, checks of the evaluation, the model."""

from collections.abc import Sequence
from typing import Any

from ..attacks import Lints, SelfTest
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
    number_metric,
    rate_metric,
    verdict_of,
)
from ..stats import Rate
from .command import command_of
from .config import EvaluateConfig
from .evaluate import Evaluated, Subject
from .findings import reported
from .ground import config_of

HEADLINE = 5  # radii among the key numbers
_SAME = {"gradients": ("no-gradient", "zero-gradient", "bad-gradient")}  # lints that the contract makes too


def report(subject: Subject[EvaluateConfig], found: Evaluated) -> Report:
    """All of it."""
    config, loaded = subject.config, subject.loaded
    findings = _findings(subject, found)
    return Report(
        verb="evaluate",
        title=f"Evaluation of {loaded.name} on {subject.data.name}",
        summary=_summary(subject, found),
        verdict=verdict_of(findings),
        headline=_headline(subject, found),
        findings=findings,
        sections=(
            _accuracy(subject, found),
            *_checks(found.lints, found.selftest),
            Section(title="The model", text="\n\n".join(loaded.notes) or "It was loaded as it is."),
        ),
        command=command_of("evaluate", config),
        config=config_of(config),
        environment=environment(device=str(subject.ground.device)),
        seeds={"seed": config.seed},
        hashes=Hashes(
            models={loaded.name: loaded.sha256} if loaded.sha256 else {},
            data={subject.data.name: subject.data.fingerprint},
        ),
        volatile=elapsed_since(subject.ground.started).model_copy(
            update={"extra": {"batches kept from before": found.kept}}
        ),
    )


def _summary(subject: Subject[EvaluateConfig], found: Evaluated) -> tuple[str, ...]:
    config, clean = subject.config, found.curve.clean
    lines = [f"{subject.loaded.name} is right on {100 * clean.value:.1f} % of {clean.n} images of {subject.data.name}."]
    lines += [subject.note] if subject.note else []
    if not subject.attacked:
        return (*lines, "It was not attacked: it has no gradients. An attack that needs none: --attack square.")
    where = "" if config.region is None else f" in {config.region}"
    pairs = list(zip(found.curve.radii, found.curve.rates, strict=True))
    if len(pairs) == 1:
        ((radius, rate),) = pairs
        lines.append(
            f"Under {config.attack} ({config.norm}, eps {radius:.4g}{where}) it stays right on {100 * rate.value:.1f} %."
        )
    else:
        curve = ", ".join(f"{100 * rate.value:.1f} % at {radius:.4g}" for radius, rate in pairs)
        lines.append(f"Under {config.attack} ({config.norm}{where}) it stays right on {curve}.")
    lines.append("That is an upper bound: a stronger attack can only lower it.")
    if found.lints is not None and not found.lints.passed:
        names = ", ".join(check.code for check in found.lints.checks if not check.passed)
        lines.append(f"Do not believe it yet: the evaluation itself failed the checks {names}.")
    if found.half is not None:
        lines.append(f"The search was in bfloat16, each success confirmed in float32: {found.half}.")
    if found.selftest is not None:
        lines.append(
            f"Self-test: the attack found {found.selftest.found.hits} of {found.selftest.found.n} planted points."
        )
    elif config.selftest and not max(config.eps) > 0:
        lines.append("The self-test was not run: in a ball of radius 0 nothing can be planted.")
    return tuple(lines)


def _headline(subject: Subject[EvaluateConfig], found: Evaluated) -> tuple[Metric, ...]:
    made = [rate_metric("Clean accuracy", found.curve.clean)]
    if subject.attacked:
        made += _rates(subject, found)
    return tuple(made[: 1 + HEADLINE])


def _rates(subject: Subject[EvaluateConfig], found: Evaluated) -> list[Metric]:
    config, curve = subject.config, found.curve
    several = len(curve.radii) > 1
    return [
        rate_metric(
            f"Robust accuracy at {radius:.4g}" if several else "Robust accuracy",
            rate,
            note=f"{config.attack}, {config.norm}, eps {radius:.4g}",
        )
        for radius, rate in zip(curve.radii, curve.rates, strict=True)
    ]


def _accuracy(subject: Subject[EvaluateConfig], found: Evaluated) -> Section:
    curve, first = found.curve, found.curve.evaluations[0]
    metrics = [rate_metric("Clean accuracy", curve.clean), mean_metric("Clean loss", first.clean_loss)]
    if subject.attacked:
        metrics += _rates(subject, found)
        metrics += [
            number_metric("Largest perturbation", max(e.size for e in curve.evaluations), note="recomputed in float64"),
            number_metric("Forward passes", curve.calls.forward, unit="images"),
            number_metric("Backward passes", curve.calls.backward, unit="images"),
        ]
    charts = (_chart(subject, found),) if subject.attacked and len(curve.radii) > 1 else ()
    tables = (*_by_attack(found), _by_class(subject, found))
    return Section(title="Accuracy", metrics=tuple(metrics), charts=charts, tables=tables)


def _by_attack(found: Evaluated) -> list[Table]:
    """What each attack of an ensemble broke, at each radius."""
    made = []
    for radius, evaluation in zip(found.curve.radii, found.curve.evaluations, strict=False):
        rows: tuple[Any, ...] = tuple(
            (m.name, m.attacked, m.broken, m.calls.forward, m.calls.backward) for m in evaluation.members
        )
        if rows:
            title = "By attack" if len(found.curve.radii) == 1 else f"By attack, at {radius:.4g}"
            columns = ("Attack", "Images", "Fooled", "Forward passes", "Backward passes")
            made.append(Table(title=title, columns=columns, rows=rows, note="Each is run on what those above it left."))
    return made


def _chart(subject: Subject[EvaluateConfig], found: Evaluated) -> Chart:
    curve = found.curve
    low, high = zip(*(rate.interval for rate in curve.rates), strict=True)
    values = tuple(rate.value for rate in curve.rates)
    series = Series(name="robust accuracy", x=curve.radii, y=values, low=low, high=high)
    said = "; ".join(f"{radius:.4g}: {rate}" for radius, rate in zip(curve.radii, curve.rates, strict=True))
    return Chart(
        kind="line", title="Robust accuracy by radius", series=(series,), x_label=f"eps, {subject.config.norm}",
        y_label="robust accuracy", y_format="percent", description=f"{said}.",
        caption="95 % Wilson intervals over the images. An image that falls at a radius counts as fallen at all larger ones.",
    )  # fmt: skip


def _by_class(subject: Subject[EvaluateConfig], found: Evaluated) -> Table:
    """Clean and robust accuracy of each class, at each radius."""
    labels, curve, rows = subject.data.labels, found.curve, []
    columns = [f"Robust at {r:.4g}" for r in curve.radii] if len(curve.radii) > 1 else ["Robust accuracy"]
    for index, name in enumerate(subject.data.classes):
        mine = labels == index
        if n := int(mine.sum()):
            rates = [Rate(int(part[mine].sum()), n) for part in (curve.evaluations[0].clean_correct, *curve.robust)]
            rows.append((name, rates[0], *(rates[1:] if subject.attacked else [None] * len(columns))))
    note = "95 % Wilson intervals over the images."
    return Table(title="By class", columns=("Class", "Clean accuracy", *columns), rows=tuple(rows), note=note)


def _checks(lints: Lints | None, selftest: SelfTest | None) -> Sequence[Section]:
    """What was done to find out whether the attack, and not the model, failed."""
    rows = [(c.code, "ok" if c.passed else "look", c.measured) for c in (lints.checks if lints else ())]
    if selftest is not None:
        rows.append(("selftest", "ok" if selftest.passed else "look", str(selftest)))
    if not rows:
        return ()
    images = f"of {lints.images} images that the model gets right" if lints else ""
    text = (
        "Signs that a robust accuracy says more of the attack than of the model, looked for at the smallest radius "
        f"{images}. They are signs, not proofs: what passes may still be broken by a better attack."
    )
    table = Table(title="Checks", columns=("Check", "", "Measured"), rows=tuple(rows))
    return (Section(title="Can the evaluation be believed?", text=" ".join(text.split()), tables=(table,)),)


def _findings(subject: Subject[EvaluateConfig], found: Evaluated) -> tuple[Finding, ...]:
    loaded, data = subject.loaded, subject.data
    made = list(subject.findings)
    for f in found.curve.findings if subject.attacked else ():
        made.append(reported(f))
    known = {f.code for f in made}
    for f in (*(found.lints.findings if found.lints else ()), *([found.selftest.finding] if found.selftest else [])):
        if f is not None and f.code not in known and not known & set(_SAME.get(f.code, ())):
            made.append(reported(f))
    if found.misfits:
        message = f"{subject.config.attack} does not keep to the interface of attacks: {'; '.join(found.misfits)}."
        remedy = "Mend it; shaketable.testing.check_attack shows the same."
        made.append(Finding(level="finding", code="conformance", message=message, remedy=remedy))
    if not subject.attacked and "no-gradient" not in known:
        message = "The model has no gradients, so the attack was skipped; its robust accuracy is not known."
        made.append(Finding(level="finding", code="no-gradient", message=message, remedy="Give its PyTorch form."))
    if loaded.labels is not None and loaded.labels != data.classes and set(loaded.labels) == set(data.classes):
        message = "The model and the data have the same classes in another order."
        remedy = "Give the data set's classes in the model's order."
        made.append(Finding(level="finding", code="class-order", message=message, remedy=remedy))
    return tuple(made)
