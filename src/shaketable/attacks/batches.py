"""Images to be attacked, in whatever form they come, as batches with their balls."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..core.ball import Ball
from ..core.errors import InputError
from ..core.tree import leaves
from ..data.dataset import Batch, Dataset

SMALL = 4096  # entries; images of CIFAR-10 have 3072
Batches = Iterable[tuple[Tensor, Tensor]] | Iterable[Batch]


def usual_size(x: Any) -> int:
    """How many images of a tensor or a `Dataset` make a batch where nobody says it: 256 small ones, 100 larger ones.

    An attack that drops what is fooled soon has a few images left of each batch, whose passes cost nearly as much as those
    of many: on an ordinary small CNN on one CPU thread PGD-50 takes 1.4 times as long in batches of 100 as of 256. (RobustBench
    takes 250.) A network for large images may not have the memory for as many.
    """
    shape = (x.channels, *x.size) if isinstance(x, Dataset) else x.shape[1:]
    return 256 if math.prod(shape) <= SMALL else 100


def batches(x: Any, y: Any, within: Ball, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor, Ball]]:
    """Images, their labels and their ball, batch by batch, checked; empty batches are left out.

    Args:
        x, y: images and labels; or x is a `Dataset` or an iterable of batches, and y is None.
        within: the ball of all images, or with a tensor of each.
        batch_size: for a tensor or a Dataset; None is `usual_size`.

    Raises:
        InputError: anything else, and images that are not finite or outside the box.
    """
    size = batch_size
    if size is None:
        size = usual_size(x) if isinstance(x, Tensor | Dataset) else 1
    if type(size) is not int or size < 1:
        raise InputError("batch_size", "a whole number of at least 1", repr(batch_size), "Give 100, for example.")
    if isinstance(x, Tensor):
        images, labels = _pair(x, y)
        ball = within.on(images)
        for rows in torch.arange(len(images)).split(size):
            if len(rows):
                yield images[rows], labels[rows], ball.rows(rows)
        return
    if y is not None:
        raise InputError("y", "no labels besides batches that hold theirs", type(y).__name__, "Leave y out.")
    if not isinstance(x, Dataset) and batch_size is not None:
        found = f"batches in a {type(x).__name__}"
        raise InputError("batch_size", "nothing for batches that are given", found, "Leave it out, or give a tensor.")
    if not isinstance(x, Iterable) and not isinstance(x, Dataset):
        found = type(x).__name__
        raise InputError("x", "a tensor, a Dataset or an iterable of (x, y)", found, "Give one of these.")
    for batch in x.batches(size) if isinstance(x, Dataset) else x:
        if not isinstance(batch, Batch) and not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise InputError("x", "batches of the form (x, y)", type(batch).__name__, "Give pairs of tensors.")
        images, labels = _pair(batch.x, batch.y) if isinstance(batch, Batch) else _pair(*batch)
        own = [within.radius, *([] if within.mask is None else leaves(within.mask))]
        if any(isinstance(t, Tensor) and t.dim() in (1, images.dim()) and len(t) > 1 for t in own):
            found = "one of its own for each image"
            raise InputError("within", "one radius and one mask for all batches", found, "Give x and y as tensors.")
        if len(images):
            yield images, labels, within.on(images)


def _pair(x: Any, y: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError("x", "floating point inputs of shape (n, ...)", found, "For images: x.float() / 255.")
    if not isinstance(y, Tensor) or y.dtype not in (torch.int64, torch.int32, torch.uint8) or y.shape != x.shape[:1]:
        found = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise InputError("y", f"integer labels of shape ({len(x)},)", found, "Give one class index for each input.")
    if not bool(torch.isfinite(x).all()):
        found = f"{int((~torch.isfinite(x)).sum())} NaN or infinite entries"
        raise InputError("x", "finite values", found, "Remove or repair these images.")
    return x.detach(), y.long()
