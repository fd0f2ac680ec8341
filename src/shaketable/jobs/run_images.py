"""The images of a run: which training made a model, and its split drawn again and compared with what its report states."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int
from pydantic import BaseModel, ValidationError
from torch import Tensor

from ..core import ConfigError, DataError
from ..data import Dataset, Parts, Splits, open_parts, parts_of, split
from ..report import read_json
from .kept_epochs import FOLDER
from .train_config import TrainConfig

_REMEDY = "Give the folder that `shaketable train` wrote, which has its config.json."


class Drawn(BaseModel, frozen=True, strict=True):
    """What a run's config.json says about its images."""

    data: str
    train_count: int | None
    validation_count: int
    test_count: int | None
    seed: int
    unlabelled: str | None = None


@dataclass(frozen=True)
class Chosen:
    """Images, and a sentence on which they are; none where that is plain."""

    data: Dataset
    note: str = ""


def folder_of(path: Path) -> Path:
    """The folder of the run that a model is in, if it is in one."""
    return path if path.is_dir() else path.parent.parent if path.parent.name == FOLDER else path.parent


def run_folder(model: str) -> Path | None:
    """The folder of the run that a model is from, if it is a run's folder or a file in one; None otherwise."""
    path = Path(model)
    folder = folder_of(path)
    return folder if path.exists() and (folder / "config.json").is_file() else None


def training_of(path: Path) -> TrainConfig | None:
    """The options of the training in whose folder a model is; None if it is in none."""
    try:
        return TrainConfig(**json.loads((folder_of(path) / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, ValidationError):
        return None


def drawn_by(folder: Path) -> Drawn:
    """What a run says about its images.

    Raises:
        ConfigError: its config.json cannot be read, or is no training's.
    """
    file = folder / "config.json"
    try:
        return Drawn.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = f"{error.error_count()} keys missing or wrong" if isinstance(error, ValidationError) else str(error)
        raise ConfigError(str(file), "the options of a training", found[:160], _REMEDY) from error


def drawn(training: TrainConfig) -> Drawn:
    """The same, of the options of a training."""
    return Drawn.model_validate_json(training.model_dump_json())


def same_data(a: str, b: str) -> bool:
    """Whether two sources are one."""
    return a == b or (Path(a).exists() and Path(b).exists() and Path(a).resolve() == Path(b).resolve())


def splits_of(run: Drawn, parts: Parts) -> Splits:
    """The split that a run made of these images.

    Raises:
        InputError: fewer images than the run has drawn; see `data.split`.
    """
    return split(
        parts.train, parts.test, train_count=run.train_count, validation_count=run.validation_count,
        test_count=run.test_count, seed=run.seed,
    )  # fmt: skip


def verified(folder: Path, splits: Splits, source: str) -> bool:
    """Whether a run's report states this split; False if there is no report of a training.

    Raises:
        DataError: it states another one.
    """
    file = folder / "report.json"
    if not file.is_file():
        return False
    stated, found = read_json(file).hashes.splits, splits.hashes
    if "train.indices" not in stated:
        return False
    if wrong := [name for name, value in found.items() if stated.get(name) != value]:
        remedy = "Give the data that the run was trained on, with --data if it has moved."
        raise DataError(source, f"the images that {folder} states it was trained on", f"another {wrong[0]}", remedy)
    return True


@dataclass(frozen=True)
class OwnRows:
    """The rows of a run's test or training images in the data that it split, and whether its report states them."""

    run: Path
    data: Dataset
    rows: Int[Tensor, " n"]
    checked: bool


def own_rows(model: str, source: str, part: Literal["train", "test"]) -> OwnRows | None:
    """Which images of data without a test part were the test or training images of the run that a model is from.

    None where the data has such a part, where the model is in no training's folder, or where the training was on other data.

    Raises:
        DataError: the run's report states other images.
        ShaketableError: see `data.open_parts` and `splits_of`.

    Cost: every image of the run's split is read once, for its hash. Checked by tests/end_to_end/test_evaluate_own.py.
    """
    folder = run_folder(model)
    training = None if folder is None else training_of(folder)
    if folder is None or training is None or "test" in parts_of(source) or not same_data(source, training.data):
        return None
    parts = open_parts(source)
    splits = splits_of(drawn(training), parts)
    return OwnRows(folder, parts.train, splits.indices[part], verified(folder, splits, source))


def common_rows(
    models: Sequence[str], source: str, part: Literal["train", "test"]
) -> tuple[Int[Tensor, " n"], str] | None:
    """The images that all the runs that models are from have as test (or training) images, and a sentence on them.

    Models that are from no run on this data ask for nothing. None where `own_rows` is None for all.

    Raises:
        ConfigError: the runs have no such image in common.
        DataError, ShaketableError: see `own_rows`.

    Cost: that of `own_rows` a model. Checked by tests/end_to_end/test_evaluate_own.py.
    """
    found = [own for model in models if (own := own_rows(model, source, part)) is not None]
    if not found:
        return None
    common = set.intersection(*(set(own.rows.tolist()) for own in found))
    word = "training" if part == "train" else "test"
    runs = ", ".join(dict.fromkeys(own.run.resolve().name for own in found))
    if not common:
        remedy = f"Train with one seed and the same counts, or choose --split {'test' if part == 'train' else 'all'}."
        raise ConfigError("model", f"runs with {word} images in common", f"none: {runs}", remedy)
    note = f"{found[0].data.name} has no test part: these are the {word} images that {runs} have in common."
    return torch.tensor(sorted(common)), note


def own_images(model: str, source: str, part: Literal["train", "test"], *, size: int | None = None) -> Chosen | None:
    """The images of `own_rows`, and a sentence on them.

    Args:
        size: as `data.open_dataset` takes it; the split is compared as the training opened its images.

    Raises, cost: see `own_rows`.
    """
    own = own_rows(model, source, part)
    if own is None:
        return None
    data = own.data if size is None else open_parts(source, size=size).train
    word = "training" if part == "train" else "test"
    name = f"{data.name}, the run's own {word} images"
    ending = "as its report states" if own.checked else "which has no report to compare them with"
    note = f"{data.name} has no test part: these are the {word} images of the run {own.run.resolve().name}, {ending}."
    return Chosen(replace(data.take(own.rows), name=name), note)
