"""Train, validation and test sets: disjoint, stratified, drawn from a seed, and told by their hashes."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from ..core.errors import DataError, InputError
from ..core.seeds import generator
from .dataset import Dataset


@final
@dataclass(frozen=True, eq=False)
class Splits:
    """Three disjoint sets; `validation` is None if none was asked for.

    `indices` has each set's indices in its source, by the set's name ("train", "validation", "test").
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset
    indices: dict[str, Int[Tensor, " n"]] = field(repr=False)

    @property
    def sets(self) -> dict[str, Dataset]:
        """The sets that there are, by name."""
        sets = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: data for name, data in sets.items() if data is not None}

    @cached_property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of each set's indices and of its content: ``train.indices``, ``train.content``, and so on."""
        hashes = {}
        for name, data in self.sets.items():
            hashes[f"{name}.indices"] = hashlib.sha256(self.indices[name].contiguous().numpy().data).hexdigest()
            hashes[f"{name}.content"] = data.fingerprint
        return hashes

    @cached_property
    def overlap(self) -> dict[str, int]:
        """How many images of the second set are, pixel for pixel, also in the first: ``"train/test"``, and so on.

        Anything but 0 is a leak: a copy that was trained on counts as generalisation. Labels are not compared. Every
        image is read once (and decoded, if it is in a file); then it is remembered.
        """
        return overlaps(self.sets, [("train", "validation"), ("train", "test"), ("validation", "test")])


def overlaps(sets: dict[str, Dataset], pairs: list[tuple[str, str]]) -> dict[str, int]:
    """For each pair of sets that are there, how many images of the second are, pixel for pixel, also in the first."""
    there = [(first, second) for first, second in pairs if first in sets and second in sets]
    digests = {name: _digests(sets[name]) for name in dict.fromkeys(name for pair in there for name in pair)}
    known = {first: set(digests[first]) for first, _ in there}
    return {f"{first}/{second}": sum(digest in known[first] for digest in digests[second]) for first, second in there}


def split(
    train: Dataset,
    test: Dataset | None,
    *,
    train_count: int | None = None,
    validation_count: int = 0,
    test_count: int | None = None,
    seed: int,
) -> Splits:
    """Draw disjoint training, validation and test sets, stratified by class.

    Each source is put in one stratified order by the seed: at any point of it the classes have had shares as near to
    the source's as whole numbers allow (classes in proportion, not made equal). Training is the order's beginning;
    validation is taken from its end backwards. If there is no test set, it is taken from the end first. So

    - the same seed gives the same split, on every machine;
    - sets nest: a larger `train_count` contains the smaller ones, a larger `validation_count` too, and neither depends on
      the other;
    - the first k images of any set are themselves a stratified draw.

    Args:
        train: what training and validation images are drawn from, and the test images if `test` is None.
        test: what test images are drawn from.
        train_count: how many; None is all that the other sets leave.
        validation_count: how many; 0 is none.
        test_count: how many; None is all of `test`, and has to be given if `test` is None.
        seed: any integer.

    Raises:
        InputError: a count that cannot be, or more images asked for than there are.
        DataError: `train` and `test` differ in classes, channels or size.

    Checked by tests/data/test_splits.py.
    """
    _check_counts(train_count, validation_count, test_count, seed)
    order = stratified_order(train, seed, "train")
    ends = order.flip(0)
    if test is None:
        if test_count is None:
            remedy = "Pass test_count=, since the source has no test part of its own."
            raise InputError("test_count", "a number of images to hold out", "None", remedy)
        cut, source, tested = test_count, train, ends[:test_count]
    else:
        _check_alike(train, test)
        cut, source, tested = 0, test, stratified_order(test, seed, "test")
        if test_count is not None and test_count > len(test):
            found = f"{test_count} of {len(test)}"
            raise InputError("test_count", "no more images than there are", found, "Ask for fewer.")
        tested = tested[:test_count]
    left = len(order) - cut - validation_count
    if left < (train_count or 1):
        found = f"{train_count or 'some'} beside {validation_count} for validation and {cut} for testing"
        remedy = "Ask for fewer images."
        raise InputError("train_count", f"at most the {len(order)} images of {train.name} in all", found, remedy)
    held_out, trained = ends[cut : cut + validation_count], order[: train_count or left]
    indices = {"train": trained, "validation": held_out, "test": tested}
    validation = train.take(held_out) if validation_count else None
    kept = {name: rows for name, rows in indices.items() if len(rows)}
    return Splits(train.take(trained), validation, source.take(tested), kept)


def stratified_order(data: Dataset, seed: int, use: str) -> Int[Tensor, " n"]:
    """All indices, ordered so that every beginning and every end of the order is a stratified random draw.

    The i-th image of a class of n, in a random order within the class, has the key (i + 1/2) / n; images are sorted by
    their keys, and by class where keys are equal. A beginning of N images then has, for each class, its proportional
    share of N to within one image where classes are equally large (Webster's method of apportionment in general).
    """
    count = len(data)
    shuffled = torch.randperm(count, generator=generator(seed, "split", use))
    labels = data.labels[shuffled]
    by_class = torch.argsort(labels, stable=True)
    sizes = torch.bincount(labels, minlength=len(data.classes))
    starts = torch.cumsum(sizes, 0) - sizes
    grouped = labels[by_class]
    rank = torch.arange(count) - starts[grouped]
    keys = (rank.double() + 0.5) / sizes[grouped].double()
    return shuffled[by_class[torch.argsort(keys, stable=True)]]


def _check_counts(train_count: int | None, validation_count: int, test_count: int | None, seed: int) -> None:
    counts = {"train_count": train_count, "validation_count": validation_count, "test_count": test_count}
    for name, count in counts.items():
        lowest = 0 if name == "validation_count" else 1
        missing = count is None and name != "validation_count"
        if not missing and (type(count) is not int or count < lowest):
            raise InputError(
                name, f"a whole number of at least {lowest}", repr(count), f"Pass {name}=100, for example."
            )
    if type(seed) is not int:
        raise InputError("seed", "a whole number", repr(seed), "Pass seed=0, for example.")


def _check_alike(train: Dataset, test: Dataset) -> None:
    if train.classes != test.classes:
        found = f"{len(train.classes)} classes for training, {len(test.classes)} for testing, or other names"
        raise DataError("test", "the same classes as the training set", found, "Give two parts of one data set.")
    if train.pixels.shape != test.pixels.shape:
        found = f"{test.pixels.shape} beside {train.pixels.shape} (channels, height, width)"
        raise DataError("test", "the training set's shape", found, "Open both with the same size= and channels=.")


def _digests(data: Dataset) -> list[bytes]:
    return [
        hashlib.sha256(image.numpy().data).digest() for batch in data.batches(256) for image in batch.x.contiguous()
    ]
