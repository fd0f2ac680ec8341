"""The training images that a run left aside: neither trained on nor held out, found by drawing its split again."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from ..core import ConfigError, DataError
from ..data import Dataset, Splits, open_parts, split
from ..report import read_json

_REMEDY = "Give the folder that `shaketable train` wrote, which has its config.json."


class Drawn(BaseModel):
    """What a run's config.json says about its images."""

    model_config = ConfigDict(frozen=True, strict=True)

    data: str
    train_count: int | None
    validation_count: int
    test_count: int | None
    seed: int
    unlabelled: str | None = None


@dataclass(frozen=True)
class LeftOver:
    """The images that a run left aside.

    Args:
        data: these images, in the data's own order.
        verified: whether the split was compared with the one that the run's report states.
        unlabelled: the pseudo-labelled images that the run trained on besides, which may be among these.
    """

    data: Dataset
    verified: bool
    unlabelled: str | None


def run_folder(model: str) -> Path | None:
    """The folder of the run that a model is from, if it is a run's folder or a file in one; None otherwise."""
    path = Path(model)
    folder = path if path.is_dir() else path.parent
    return folder if path.exists() and (folder / "config.json").is_file() else None


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


def left_over(folder: Path, *, data: str | None) -> LeftOver:
    """The images of the source that a run drew from that are in none of its three sets.

    Args:
        folder: the run's.
        data: where its images are now; None: where they were.

    Raises:
        ConfigError: no run's folder, or a run that left nothing.
        DataError: the images or their split are not those that the run's report states.

    Checked by tests/end_to_end/test_pseudolabel.py.
    """
    drawn = drawn_by(folder)
    source = data or drawn.data
    parts = open_parts(source)
    splits = split(
        parts.train, parts.test, train_count=drawn.train_count, validation_count=drawn.validation_count,
        test_count=drawn.test_count, seed=drawn.seed,
    )  # fmt: skip
    verified = _verified(folder, splits, source)
    used = [rows for name, rows in splits.indices.items() if name != "test" or parts.test is None]
    left = torch.ones(len(parts.train), dtype=torch.bool)
    left[torch.cat(used)] = False
    if not left.any():
        remedy = "Train with a --train-count that leaves some, or label other images with --data."
        found = f"none of {len(parts.train)}"
        raise ConfigError("part", "training images that the run did not use", found, remedy)
    name = f"{parts.train.name}, left by {folder.resolve().name}"
    rest = replace(parts.train.take(left.nonzero()[:, 0]), name=name)
    return LeftOver(rest, verified, drawn.unlabelled)


def _verified(folder: Path, splits: Splits, source: str) -> bool:
    """Whether the run's report states this split; False if there is no report of a training."""
    file = folder / "report.json"
    if not file.is_file():
        return False
    stated, drawn = read_json(file).hashes.splits, splits.hashes
    if "train.indices" not in stated:
        return False
    if wrong := [name for name, value in drawn.items() if stated.get(name) != value]:
        remedy = "Give the data that the run was trained on, with --data if it has moved."
        raise DataError(source, f"the images that {folder} states it was trained on", f"another {wrong[0]}", remedy)
    return True
