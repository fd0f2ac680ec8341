"""`shaketable evaluate MODEL`: clean and robust accuracy, after checking that model and data belong together."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from ..attacks import ATTACKS, Attack, Evaluation, evaluate
from ..core import Ball, ConfigError, generator
from ..data import Dataset, open_dataset, parts_of
from ..models import Contract, Loaded, ModelSpec, check, load
from ..report import (
    Finding,
    Hashes,
    Metric,
    Report,
    Section,
    Table,
    elapsed_since,
    environment,
    mean_metric,
    number_metric,
    rate_metric,
    verdict_of,
)
from ..runs import Progress, Quiet
from .choices import choose, spec_for
from .config import EvaluateConfig
from .ground import Ground, config_of, counted, prepare

CHECKED = 512  # images that the contract is checked on


@dataclass(frozen=True)
class Subject:
    """A model and the images it is evaluated on, checked against each other."""

    config: EvaluateConfig
    ground: Ground
    loaded: Loaded
    data: Dataset
    contract: Contract
    within: Ball
    attack: Attack


def prepare_evaluation(config: EvaluateConfig) -> Subject:
    """Load the model and the data, and check the contract between them.

    Raises:
        ShaketableError: whatever cannot be; see `models.load`, `data.open_dataset` and `models.check`.
    """
    ground = prepare(config)
    within, attack = Ball(config.norm, config.eps, box=(0.0, 1.0)), choose(config.attack, ATTACKS, "attack")
    if not callable(attack):
        remedy = "Write a function or class with the signature of shaketable.attacks.Attack."
        raise ConfigError("attack", "something that can be called", type(attack).__name__, remedy)
    parts = parts_of(config.data)
    wanted = config.split if parts else "all"
    data = open_dataset(config.data, split=wanted, size=config.size)
    if config.count is not None and config.count < len(data):
        rows = torch.randperm(len(data), generator=generator(config.seed, "count"))[: config.count]
        data = data.take(rows.sort().values)
    loaded = load(
        config.model,
        spec=_spec(config, data),
        mean=config.mean,
        std=config.std,
        labels=config.labels,
        trust=config.trust,
    )
    name = f"{Path(config.model).resolve().name} ({loaded.name})" if Path(config.model).is_dir() else loaded.name
    loaded = replace(loaded, model=loaded.model.to(ground.device), name=name)
    rows = torch.randperm(len(data), generator=generator(config.seed, "contract"))[:CHECKED]
    sample = data.batch(rows).to(ground.device)
    contract = check(loaded, sample.x, sample.y)
    return Subject(config, ground, loaded, data, contract, within, cast(Attack, attack))


def run(config: EvaluateConfig, *, progress: Progress | None = None) -> Report:
    """Evaluate and report.

    Cost: `models.check` on 512 images, then `attacks.evaluate`. Checked by tests/end_to_end/test_evaluate.py.
    """
    subject = prepare_evaluation(config)
    with (progress or Quiet()).stage("evaluate", len(subject.data)) as stage:
        result = _evaluated(subject, counted(stage))
    return _report(subject, result)


def _evaluated(subject: Subject, advance: Any) -> Evaluation:
    """The evaluation; a model without gradients is looked at without an attack."""
    config, attack = subject.config, subject.attack
    if not subject.loaded.gradients:
        attack = choose("pgd(steps=0, start='zero')", ATTACKS, "attack")
    return evaluate(
        subject.loaded.model, subject.data, within=subject.within, attack=attack, seed=config.seed,
        batch_size=config.batch_size, progress=advance,
    )  # fmt: skip


def _spec(config: EvaluateConfig, data: Dataset) -> ModelSpec | None:
    """The architecture of a bare state dict, for these images."""
    if config.architecture is None:
        return None
    return spec_for(config.architecture, data, mean=config.mean, std=config.std)


def _report(subject: Subject, result: Evaluation) -> Report:
    config, loaded = subject.config, subject.loaded
    attacked = loaded.gradients
    findings = _findings(subject, result, attacked)
    headline = [rate_metric("Clean accuracy", result.clean)]
    ball = f"{config.norm}, eps {config.eps:.4g}"
    summary = [
        f"{loaded.name} is right on {100 * result.clean.value:.1f} % of {result.clean.n} images of {subject.data.name}."
    ]
    if attacked:
        headline.append(rate_metric("Robust accuracy", result.robust, note=f"{config.attack}, {ball}"))
        summary.append(f"Under {config.attack} ({ball}) it stays right on {100 * result.robust.value:.1f} %.")
        summary.append("That is an upper bound: a stronger attack can only lower it.")
    else:
        summary.append("It was not attacked: it has no gradients.")
    text = "\n\n".join(loaded.notes)
    return Report(
        verb="evaluate",
        title=f"Evaluation of {loaded.name} on {subject.data.name}",
        summary=tuple(summary),
        verdict=verdict_of(findings),
        headline=tuple(headline),
        findings=findings,
        sections=(
            Section(title="Accuracy", metrics=_metrics(result, attacked), tables=(_by_class(subject, result),)),
            Section(title="The model", text=text or "It was loaded as it is."),
        ),
        command=_command(config),
        config=config_of(config),
        environment=environment(device=str(subject.ground.device)),
        seeds={"seed": config.seed},
        hashes=Hashes(
            models={loaded.name: loaded.sha256} if loaded.sha256 else {},
            data={subject.data.name: subject.data.fingerprint},
        ),
        volatile=elapsed_since(subject.ground.started),
    )


def _metrics(result: Evaluation, attacked: bool) -> tuple[Metric, ...]:
    metrics = [rate_metric("Clean accuracy", result.clean), mean_metric("Clean loss", result.clean_loss)]
    if attacked:
        metrics += [
            rate_metric("Robust accuracy", result.robust),
            number_metric("Largest perturbation", result.size, note="recomputed in float64"),
            number_metric("Forward passes", result.calls.forward, unit="images"),
            number_metric("Backward passes", result.calls.backward, unit="images"),
        ]
    return tuple(metrics)


def _by_class(subject: Subject, result: Evaluation) -> Table:
    """Clean and robust accuracy of each class."""
    from ..stats import Rate

    labels, rows = subject.data.labels, []
    for index, name in enumerate(subject.data.classes):
        mine = labels == index
        if n := int(mine.sum()):
            clean, robust = (Rate(int(part[mine].sum()), n) for part in (result.clean_correct, result.robust_correct))
            rows.append((name, clean, robust) if subject.loaded.gradients else (name, clean, None))
    note = "95 % Wilson intervals over the images."
    return Table(
        title="By class", columns=("Class", "Clean accuracy", "Robust accuracy"), rows=tuple(rows), note=note
    )  # fmt: skip


def _findings(subject: Subject, result: Evaluation, attacked: bool) -> tuple[Finding, ...]:
    made = [
        Finding(level=f.level, code=f.code, message=f.message, remedy=f.remedy)
        for f in (*subject.contract.findings, *(result.findings if attacked else ()))
    ]
    loaded, data = subject.loaded, subject.data
    if not attacked and not any(f.code == "no-gradient" for f in made):
        message = "The model has no gradients, so the attack was skipped; its robust accuracy is not known."
        made.append(Finding(level="finding", code="no-gradient", message=message, remedy="Give its PyTorch form."))
    if loaded.labels is not None and loaded.labels != data.classes and set(loaded.labels) == set(data.classes):
        message = "The model and the data have the same classes in another order."
        remedy = "Give the data set's classes in the model's order."
        made.append(Finding(level="finding", code="class-order", message=message, remedy=remedy))
    return tuple(made)


def _command(config: EvaluateConfig) -> str:
    """The command line that makes this report again: every option that is not the default."""
    import shlex

    parts = ["shaketable", "evaluate", config.model]
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name in ("model", "out") or value == field.default:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parts.append(flag if value else f"--no-{flag[2:]}")
        else:
            parts += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return shlex.join(parts)
