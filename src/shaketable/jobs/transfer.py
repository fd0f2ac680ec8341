"""`shaketable transfer MODEL MODEL ...`: of the perturbations made on each model, which fool the others."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..attacks import ATTACKS
from ..attacks.transfer import transfer_row
from ..attacks.transfer_attack import attack_row
from ..attacks.transfer_matrix import Transfer, collected
from ..core import Ball, ConfigError, ModelError, generator
from ..data import Dataset, open_dataset, parts_of
from ..models import Contract, check
from ..report import Report
from ..runs import Cell, Ledger, Outcome, Progress, Quiet, Task, fill
from .choices import choose, code_of
from .flatness.cells import ImagePlace, ModelPlace, images_at, model_at, model_hash
from .ground import Ground, prepare
from .run_images import common_rows
from .transfer_config import REGIONAL, TransferConfig

CELLS, RUN = "cells", "shaketable.jobs.transfer:measure"
VERSION, VERSION_IN_A_BALL = 5, 6  # of the regional attack, and of another one in its ball
CHECKED, EXAMPLES = 512, 4


@dataclass(frozen=True)
class Model:
    """A model that takes part."""

    name: str
    place: ModelPlace
    sha256: str
    file: str | None
    contract: Contract
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """All that is to be attacked, checked, and a sentence on the images where it is not plain which they are."""

    config: TransferConfig
    ground: Ground
    images: ImagePlace
    data: Dataset
    models: tuple[Model, ...]
    tasks: Mapping[tuple[str, str], Task]
    note: str = ""


def prepare_transfer(config: TransferConfig, *, progress: Progress | None = None) -> Job:
    """Load every model once, check it against the images, and name every cell; nothing is written.

    Raises:
        ConfigError: fewer than two models, or two of a name; regions that are given twice.
        ShaketableError: see `models.load`, `data.open_dataset` and `models.check`.
    """
    ground = prepare(config)
    if len(config.model) < 2:
        raise ConfigError("model", "two models or more", f"{len(config.model)}", "Name the models to transfer between.")
    if len(set(config.regions)) < len(config.regions) or not config.regions:
        raise ConfigError("regions", "at least one region, each once", " ".join(config.regions), "Name them.")
    if config.attack != REGIONAL:
        choose(config.attack, ATTACKS, "attack")
    images, data, note = _images(config)
    models = _models(config, data, ground, progress or Quiet())
    classes = {model.contract.classes for model in models}
    if len(classes) > 1:
        found = ", ".join(f"{m.name}: {m.contract.classes}" for m in models)
        raise ConfigError("model", "models of the same classes", found, "Compare models of one data set.")
    where = (images, data, str(ground.device), config.threads or torch.get_num_threads())
    tasks = {(m.name, r): _task(config, m, models, r, *where) for m in models for r in config.regions}
    return Job(config, ground, images, data, models, tasks, note)


def run(config: TransferConfig, *, progress: Progress | None = None) -> Report:
    """Attack and report; what the ledger in the report's folder has already is not attacked again.

    Raises:
        ConfigError: an attack failed; the first error says why.
        Interrupted: Ctrl-C or SIGTERM; the same command goes on.
        ShaketableError: see `prepare_transfer` and `runs.fill`.

    Cost: see `attacks.transfer`, of another attack `attack_row`; a cell is one source in one region. Checked by
    tests/end_to_end/test_transfer.py and test_transfer_attack.py.
    """
    from .transfer_report import report

    job = prepare_transfer(config, progress=progress)
    outcomes = fill(
        Ledger(config.out / CELLS), list(job.tasks.values()), workers=config.workers, threads=config.threads,
        progress=progress, label="transfer",
    )  # fmt: skip
    found = {key: outcomes[task.cell.key] for key, task in job.tasks.items()}
    _require_done(found)
    return report(job, matrix_of(job, {key: dict(o.result or {}) for key, o in found.items()}))


def matrix_of(job: Job, rows: Mapping[tuple[str, str], dict[str, Any]]) -> Transfer:
    """The whole matrix of the cells' rows."""
    made: list[dict[str, Any]] = []
    for model in job.models:
        parts = [rows[model.name, region] for region in job.config.regions]
        regions = {name: part for row in parts for name, part in row["regions"].items()}
        made.append(parts[0] | {"regions": regions})
    return collected(made)


def _require_done(found: Mapping[tuple[str, str], Outcome]) -> None:
    """Raise a `ConfigError` with the first error of a cell, if there is one."""
    failed = [f"{name}, {region}: {o.error}" for (name, region), o in found.items() if o.result is None]
    if failed:
        more = f" ({len(failed) - 1} more)" if len(failed) > 1 else ""
        said = f"{failed[0].removesuffix('.')}{more}"
        raise ConfigError("transfer", "attacks that run", said, "Correct it; what was done is kept.")


def measure(arguments: Mapping[str, Any], progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Do what a task says; called in a worker.

    Raises:
        ModelError, DataError: a file is no longer the one of which the cell's hash was taken.
        ShaketableError: what `attacks.transfer` raises.
    """
    device, done = str(arguments["device"]), 0
    data, x, y = images_at(arguments["images"], arguments["data_sha"], device)
    models = {name: model_at(place, sha, device, data).model for name, (place, sha) in arguments["models"].items()}

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, len(x))

    region, options = arguments["region"], dict(arguments["options"])
    shared: dict[str, Any] = {
        "regions": {region: None if region == "whole" else region}, "progress": advance, "examples": EXAMPLES,
    }  # fmt: skip
    if (text := options.pop("attack")) == REGIONAL:
        return transfer_row(arguments["source"], models, x, y, **shared, **options)
    ball = Ball(options.pop("norm"), options.pop("eps"), box=(0.0, 1.0))
    attack = choose(text, ATTACKS, "attack")
    return attack_row(arguments["source"], models, x, y, attack=attack, name=text, within=ball, **shared, **options)


def _images(config: TransferConfig) -> tuple[ImagePlace, Dataset, str]:
    wanted = config.split if parts_of(config.data) else "all"
    data = open_dataset(config.data, split=wanted, size=config.size)
    own = None if config.split == "all" else common_rows(config.model, config.data, config.split)
    rows, note = own or (torch.arange(len(data)), "")
    if config.count is not None and config.count < len(rows):
        rows = rows[torch.randperm(len(rows), generator=generator(config.seed, "count"))[: config.count].sort().values]
    return ImagePlace(config.data, wanted, tuple(rows.tolist()), config.size), data.take(rows), note


def _named(sources: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each source and a short name of it; the shortest ends of the paths that differ."""
    parts = [Path(source).with_suffix("").parts if ":" not in source else (source,) for source in sources]
    for length in range(1, 1 + max(map(len, parts))):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return list(zip(sources, names, strict=True))
    raise ConfigError("model", "each model once", " ".join(sources), "Leave out what is there twice.")


def _models(config: TransferConfig, data: Dataset, ground: Ground, progress: Progress) -> tuple[Model, ...]:
    named, models = _named(config.model), list[Model]()
    with progress.stage("check the models", len(named)) as stage:
        for source, name in named:
            stage.update(len(models), name)
            models.append(_model(config, source, name, data, ground))
        stage.update(len(named))
    return tuple(models)


def _model(config: TransferConfig, source: str, name: str, data: Dataset, ground: Ground) -> Model:
    labels = None if config.labels is None else str(config.labels)
    place = ModelPlace(source, None, config.mean, config.std, labels, config.trust, data.size)
    loaded = place.load(data)
    if not loaded.gradients:
        raise ModelError(source, "a model with gradients", "one without", "Give its PyTorch form.")
    digest = model_hash(loaded)
    loaded = replace(loaded, model=loaded.model.to(ground.device))
    rows = torch.randperm(len(data), generator=generator(config.seed, "contract"))[:CHECKED]
    batch = data.batch(rows).to(ground.device)
    return Model(name, place, digest, loaded.sha256, check(loaded, batch.x, batch.y), loaded.notes)


def _task(
    config: TransferConfig, source: Model, models: tuple[Model, ...], region: str, images: ImagePlace, data: Dataset,
    device: str, threads: int,
) -> Task:  # fmt: skip
    names = ("steps", "step", "loss") if config.attack == REGIONAL else ("norm", "eps")
    options = {name: getattr(config, name) for name in ("seed", "attack", "batch_size", *names)}
    targets = {m.name: m.sha256 for m in models if m is not source}
    settings = options | {
        "code": code_of(config.attack),
        "region": region,
        "targets": targets,
        "device": device,
        "threads": threads,
        "size": list(data.size),
    }
    version = VERSION if config.attack == REGIONAL else VERSION_IN_A_BALL
    cell = Cell(source.sha256, data.fingerprint, "transfer", version, settings, config.seed)
    arguments = {
        "source": source.name, "region": region, "images": vars(images), "data_sha": data.fingerprint, "device": device,
        "models": {m.name: (vars(m.place), m.sha256) for m in models}, "options": options,
    }  # fmt: skip
    return Task(cell, RUN, arguments, cost=float(len(data)))
