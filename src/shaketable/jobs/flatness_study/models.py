"""The models of a correlation study: which they are, what is measured of each through the ledger, and the table of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...models import load
from ...models.chance import LEVEL
from ...runs import Ledger, Progress, Task, fill
from ...stats import binomial_p
from ..flatness.cells import ModelPlace, flatness_of, model_hash, task_of
from ..flatness.config import FlatnessConfig
from ..flatness.measures import Chosen, chosen_of
from ..flatness.subjects import Images, images_of, sources_of, subject_of
from ..study.runs import Outcome
from . import standing
from .recipe import FlatnessPlan
from .standing import Standing, standing_of

STANDING = ("standing, test", "standing, train")


@dataclass(frozen=True)
class Row:
    """A model that is measured.

    Args:
        name: of the row, such as "at/seed-0/best".
        cell: the recipe's cell, or the name of a model that exists already.
        seed: of its training; None where that is not of the study.
        checkpoint: "last", "best" or "".
        config: where it is, and all that its measurements depend on, as `shaketable flatness` takes it.
        epoch: as the recipe has it; None: as the checkpoint says.
    """

    name: str
    cell: str
    seed: int | None
    checkpoint: str
    config: FlatnessConfig
    epoch: int | None = None


@dataclass(frozen=True)
class Found:
    """What was measured of a model.

    Args:
        test, train: its standing; None where that failed.
        flatness: text of a measure -> the value with the ends of its interval.
        constant: whether it predicts one class whatever it sees, or is no better than that: see `_useless`.
        errors: what was to be measured -> why it was not.
        sha256: of the model, see `flatness_cells.model_hash`.
        passes: spent on it, in images.
    """

    row: Row
    epoch: int | None
    test: Standing | None
    train: Standing | None
    flatness: Mapping[str, tuple[float, float, float]]
    constant: bool
    errors: Mapping[str, str]
    sha256: str
    passes: int


@dataclass(frozen=True)
class Measured:
    """All models of a study.

    Args:
        found: each with its numbers, in the recipe's order.
        same: name of a row -> the row of the same run that has the very same weights, and stands for it.
        measures: texts of the measures, which are columns.
        notes: how images were chosen, where that is not simply the first ones.
        data: what images -> their SHA-256.
    """

    found: tuple[Found, ...]
    same: Mapping[str, str]
    measures: tuple[str, ...]
    notes: tuple[str, ...]
    data: Mapping[str, str]

    def of(self, cell: str, seed: int, checkpoint: str) -> Found | None:
        """A cell's model of a seed; None if it is not there."""
        name = row_name(cell, seed, checkpoint)
        name = self.same.get(name, name)
        return next((f for f in self.found if f.row.name == name), None)


def row_name(cell: str, seed: int, checkpoint: str) -> str:
    """The name of a trained model: the run's folder and the checkpoint."""
    return f"{cell}/seed-{seed}/{checkpoint}"


def rows_of(plan: FlatnessPlan, outcomes: Mapping[str, Outcome]) -> list[Row]:
    """The checkpoints of the trainings that have ended, and the models that exist already."""
    shown, rows = {cell.name for cell in plan.cells}, list[Row]()
    for outcome in outcomes.values():
        run = outcome.run
        if outcome.report is None or run.cell.name not in shown:
            continue
        for which in plan.checkpoints(run.cell.name):
            path = run.folder / f"{which}.safetensors"
            if path.is_file():
                config = plan.config.model_copy(update={"model": (str(path),)})
                rows.append(Row(row_name(run.cell.name, run.seed, which), run.cell.name, run.seed, which, config))
    for name, model in plan.models.items():
        options = {"architecture": model.architecture, "mean": model.mean, "std": model.std, "trust": model.trust}
        config = plan.config.model_copy(update={"model": (model.path,), **options})
        rows.append(Row(name, name, None, "", config, model.epoch))
    return rows


@dataclass
class _Work:
    """A row with the tasks that are its."""

    row: Row
    sha256: str
    epoch: int | None
    tasks: dict[str, Task] = field(default_factory=dict)
    frequent: dict[str, float] = field(default_factory=dict)  # the share of the most frequent class, of each standing


def measure_all(
    plan: FlatnessPlan, rows: Sequence[Row], ledger: Path, *, workers: int, progress: Progress | None = None
) -> Measured:
    """Measure every model that has not been measured yet; what is in the ledger is read.

    Raises:
        ShaketableError: a model or images that cannot be loaded; see `runs.fill`.

    Cost: of each model that of every measure on `count` test images, and of an attack on its test and training images.
    Checked by tests/end_to_end/test_flatness_study.py.
    """
    chosen, notes, data = chosen_of(plan.config), dict[str, None](), dict[str, str]()
    work, same = list[_Work](), dict[str, str]()
    for row in rows:
        one = _work(plan, row, chosen, notes, data)
        twin = next((w.row.name for w in work if _twins(w, one)), None)
        if twin is None:
            work.append(one)
        else:
            same[row.name] = twin
    tasks = [task for one in work for task in one.tasks.values()]
    outcomes = fill(
        Ledger(ledger), tasks, workers=workers, threads=plan.table.threads, progress=progress, label="measure"
    )
    results = {key: (outcome.result, outcome.error) for key, outcome in outcomes.items()}
    return Measured(
        tuple(_found(one, results) for one in work), same, tuple(c.text for c in chosen), tuple(notes), data
    )  # fmt: skip


def _twins(one: _Work, other: _Work) -> bool:
    """Whether two rows are the same weights of the same run: the best epoch was the last."""
    return one.sha256 == other.sha256 and one.row.cell == other.row.cell and one.row.seed == other.row.seed


def _work(
    plan: FlatnessPlan, row: Row, chosen: Sequence[Chosen], notes: dict[str, None], data: dict[str, str]
) -> _Work:
    """What is to be measured of a row."""
    config, whole = row.config, row.config.model_copy(update={"count": plan.table.evaluate_count})
    (source,) = sources_of(config)
    parts = {"flatness": images_of(config, source, "test"), STANDING[0]: images_of(whole, source, "test")}
    parts[STANDING[1]] = images_of(whole, source, "train")
    place, sha256 = _model(row, source, parts["flatness"])
    for what, images in parts.items():
        note = f"{row.name}: {images.note}" if row.seed is None else images.note
        notes.update({f"{what}: {note}": None} if images.note else {})
        data[what if row.seed is None or what != STANDING[1] else f"{what}, seed {row.seed}"] = images.data.fingerprint
    work = _Work(row, sha256, row.epoch if row.epoch is not None else source.epoch)
    passes = standing.passes_of(config)
    for what in STANDING:
        images = parts[what]
        work.frequent[what] = float(images.data.labels.bincount().max()) / len(images.data)
        work.tasks[what] = standing.task_of(
            place, sha256, images.place, images.data.fingerprint, config, passes=passes
        )  # fmt: skip
    images = parts["flatness"]
    for one in chosen:
        work.tasks[one.text] = task_of(
            place, sha256, images.place, images.data.fingerprint, one, seed=config.seed, device=config.device,
            threads=config.threads,
        )  # fmt: skip
    return work


def _model(row: Row, source: Any, images: Images) -> tuple[ModelPlace, str]:
    """Where a model is, and its hash; of one that is not of this study the contract is checked too."""
    if row.seed is None:
        subject = subject_of(row.config, source, images, torch.device(row.config.device))
        return subject.place, subject.sha256
    place = ModelPlace(source.path)
    return place, model_hash(load(source.path))


def _found(one: _Work, results: Mapping[str, tuple[dict[str, Any] | None, str | None]]) -> Found:
    mine = {what: results[task.cell.key] for what, task in one.tasks.items()}
    standing = [None if mine[w][0] is None else standing_of(mine[w][0] or {}) for w in STANDING]
    flat = {w: flatness_of(r) for w, (r, _) in mine.items() if w not in STANDING and r is not None}
    useless = [_useless(found, one.frequent[what]) for what, found in zip(STANDING, standing, strict=True) if found]
    constant = all(useless) if useless else any(f.constant for f in flat.values())
    values = {w: (f.value.value, f.value.low, f.value.high) for w, f in flat.items()}
    errors = {what: error for what, (_, error) in mine.items() if error is not None}
    passes = sum(int(r["forward"]) + int(r["backward"]) for r, _ in mine.values() if r is not None)
    return Found(one.row, one.epoch, standing[0], standing[1], values, constant, errors, one.sha256, passes)


def _useless(standing: Standing, frequent: float) -> bool:
    """Whether a model is no better than a constant predictor on these images: it is one, or its accuracy is not
    significantly above the share of the most frequent class (exact binomial test, p < .01, as `models.check` judges)."""
    hits = round((1 - standing.clean_error) * standing.n)
    return standing.constant or binomial_p(hits, standing.n, frequent) >= LEVEL
