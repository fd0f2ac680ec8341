"""The training images that a run left aside: neither trained on nor held out, found by drawing its split again."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..core import ConfigError
from ..data import Dataset, open_parts
from .run_images import drawn_by, splits_of, verified


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
    splits = splits_of(drawn, parts)
    compared = verified(folder, splits, source)
    used = [rows for name, rows in splits.indices.items() if name != "test" or parts.test is None]
    left = torch.ones(len(parts.train), dtype=torch.bool)
    left[torch.cat(used)] = False
    if not left.any():
        remedy = "Train with a --train-count that leaves some, or label other images with --data."
        found = f"none of {len(parts.train)}"
        raise ConfigError("part", "training images that the run did not use", found, remedy)
    name = f"{parts.train.name}, left by {folder.resolve().name}"
    rest = replace(parts.train.take(left.nonzero()[:, 0]), name=name)
    return LeftOver(rest, compared, drawn.unlabelled)
