"""Splits: disjoint, stratified, nested, the same for the same seed; leaks are counted."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as s

from shaketable.core.errors import DataError, InputError
from shaketable.data import Dataset, from_arrays, open_parts, split
from shaketable.data.splits import stratified_order


def _numbered(labels: list[int], *, classes: int = 4, offset: int = 0) -> Dataset:
    """Every image is told by its pixels."""
    numbers = np.arange(offset, offset + len(labels))
    images = (
        np.stack([numbers % 256, numbers // 256, 0 * numbers, 0 * numbers + 9], 1).reshape(-1, 2, 2).astype(np.uint8)
    )
    return from_arrays(images, labels, classes=[f"class {i}" for i in range(classes)], name="numbered")


LABELS = s.lists(s.integers(0, 3), min_size=6, max_size=120)


@settings(max_examples=60, deadline=None)
@given(LABELS, s.data(), s.integers(-(2**40), 2**40))
def test_sets_are_disjoint_and_of_the_size_asked_for(labels, data, seed):
    pool = _numbered(labels)
    test_count = data.draw(s.integers(1, len(labels) - 2))
    validation_count = data.draw(s.integers(0, len(labels) - test_count - 1))
    train_count = data.draw(s.one_of(s.none(), s.integers(1, len(labels) - test_count - validation_count)))
    counts = {"train_count": train_count, "validation_count": validation_count, "test_count": test_count}
    made = split(pool, None, **counts, seed=seed)
    rows = torch.cat(list(made.indices.values()))
    assert rows.unique().numel() == rows.numel()
    assert len(made.test) == test_count
    assert len(made.validation) if made.validation else validation_count == 0
    assert len(made.train) == (train_count or len(labels) - test_count - validation_count)
    for name, part in made.sets.items():
        assert torch.equal(part.labels, pool.labels[made.indices[name]])
        assert torch.equal(part.batch([0]).x, pool.batch(made.indices[name][:1]).x)
    assert set(made.overlap.values()) == {0}
    again = split(pool, None, **counts, seed=seed)
    assert again.hashes == made.hashes


@settings(max_examples=60, deadline=None)
@given(LABELS, s.integers(0, 10**6), s.data())
def test_every_beginning_and_end_of_the_order_is_stratified(labels, seed, data):
    """Oracle: Webster's method, seat by seat: the next image is of the class with the largest size / (2 seats + 1)."""
    pool = _numbered(labels)
    order = stratified_order(pool, seed, "train")
    assert sorted(order.tolist()) == list(range(len(labels)))
    sizes = np.bincount(labels, minlength=4)
    for rows in (order, order.flip(0)):
        count = data.draw(s.integers(1, len(labels)))
        seats = np.zeros(4, int)
        for label in pool.labels[rows[:count]].tolist():
            seats[label] += 1
        present = sizes > 0
        best = (sizes[present] / (2 * seats[present] + 1)).max()
        taken = seats > 0
        assert (sizes[taken] / (2 * seats[taken] - 1) >= best - 1e-12).all()


def test_balanced_sources_give_balanced_sets():
    pool = _numbered([i % 4 for i in range(100)])
    made = split(pool, None, train_count=40, validation_count=20, test_count=22, seed=3)
    assert made.train.counts == (10,) * 4
    assert made.validation is not None
    assert made.validation.counts == (5,) * 4
    assert sorted(made.test.counts) == [5, 5, 6, 6]
    assert made.train.take(range(8)).counts == (2,) * 4


def test_sets_nest_and_do_not_depend_on_each_other():
    train, test = _numbered([i % 4 for i in range(90)]), _numbered([i % 4 for i in range(50)], offset=1000)
    small = split(train, test, train_count=20, validation_count=10, test_count=15, seed=7)
    large = split(train, test, train_count=60, validation_count=25, test_count=50, seed=7)
    for name in ("train", "validation", "test"):
        assert large.indices[name][: len(small.indices[name])].tolist() == small.indices[name].tolist()


def test_other_seeds_give_other_sets():
    pool = _numbered([i % 4 for i in range(90)])
    made = [split(pool, None, train_count=20, test_count=15, seed=seed) for seed in range(5)]
    assert len({splits.hashes["train.indices"] for splits in made}) == 5
    assert len({splits.hashes["test.content"] for splits in made}) == 5


def test_drawing_leaves_the_global_generator_alone():
    pool = _numbered([i % 4 for i in range(20)])
    state = torch.get_rng_state()
    split(pool, None, test_count=5, seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_hashes_name_every_set():
    pool = _numbered([i % 4 for i in range(20)])
    made = split(pool, None, validation_count=4, test_count=5, seed=0)
    kinds = [f"{name}.{what}" for name in ("train", "validation", "test") for what in ("indices", "content")]
    assert list(made.hashes) == kinds
    assert made.hashes["test.content"] == made.test.fingerprint
    assert "validation.indices" not in split(pool, None, test_count=5, seed=0).hashes


def test_the_split_of_the_embedded_images_is_fixed():
    """A golden value: another draw would change every number that was measured on a split."""
    parts = open_parts("fashion-mnist")
    made = split(parts.train, parts.test, train_count=500, validation_count=500, test_count=1000, seed=0)
    assert made.train.counts == (50,) * 10
    assert made.overlap == {"train/validation": 0, "train/test": 0, "validation/test": 0}
    assert made.hashes["train.indices"] == "969024d5b8236c62dc2d3ffd20cf26c307d641bedc3314661b34b6984640e13f"
    assert made.hashes["train.content"] == "8b1fa4362402cde046cfd4776a07b0112f9b91c242506440b36b867fef751916"


def test_leaks_are_counted():
    train = _numbered([0, 1, 2, 3, 0, 1, 2, 3])
    test = from_arrays(
        torch.cat(
            [train.pixels.read(torch.tensor([2, 2, 5])), _numbered([0, 1], offset=500).pixels.read(torch.arange(2))]
        ),
        [3, 2, 1, 0, 1],
        classes=train.classes,
    )
    assert split(train, test, seed=0).overlap == {"train/test": 3}
    as_floats = from_arrays(test.batch(range(5)).x, test.labels, classes=test.classes)
    assert split(train, as_floats, seed=0).overlap == {"train/test": 3}


def test_leaks_are_counted_between_file_formats(write, tmp_path):
    from shaketable.data import open_dataset

    array = write.images(8, 8, 3)
    root = write.folder(
        tmp_path / "png", {"a/0.png": write.encoded(array, "png"), "b/1.png": write.encoded(array[::-1], "png")}
    )
    other = write.folder(
        tmp_path / "bmp", {"a/0.bmp": write.encoded(array, "bmp"), "b/1.bmp": write.encoded(255 - array, "bmp")}
    )
    assert split(open_dataset(root), open_dataset(other), seed=0).overlap == {"train/test": 1}


def test_everything_that_is_left_is_training():
    pool = _numbered([i % 4 for i in range(20)])
    made = split(pool, _numbered([0, 1, 2, 3], offset=100), validation_count=4, seed=0)
    assert (len(made.train), len(made.test)) == (16, 4)


BAD = {
    "no test count": ({"test_count": None}, "test_count"),
    "too many tests": ({"test_count": 20}, "train_count"),
    "too many in all": ({"train_count": 16}, "train_count"),
    "nothing left": ({"validation_count": 15}, "train_count"),
    "no training": ({"train_count": 0}, "train_count"),
    "negative": ({"validation_count": -1}, "validation_count"),
    "None for validation": ({"validation_count": None}, "validation_count"),
    "a fraction": ({"test_count": 0.2}, "test_count"),
    "a bool": ({"train_count": True}, "train_count"),
    "no seed": ({"seed": None}, "seed"),
}


@pytest.mark.parametrize("case", BAD)
def test_counts_that_cannot_be_are_refused(case):
    changed, word = BAD[case]
    arguments = {"train_count": None, "validation_count": 0, "test_count": 5, "seed": 0} | changed
    with pytest.raises(InputError, match=word) as caught:
        split(_numbered([i % 4 for i in range(20)]), None, **arguments)
    assert caught.value.argument == word


def test_more_tests_than_there_are_and_sets_that_differ_are_refused():
    train, test = _numbered([0, 1, 2, 3]), _numbered([0, 1, 2, 3], offset=9)
    with pytest.raises(InputError, match="5 of 4"):
        split(train, test, test_count=5, seed=0)
    with pytest.raises(DataError, match="classes"):
        split(train, _numbered([0, 1], classes=5), seed=0)
    wide = from_arrays(np.full((4, 2, 3), 9, np.uint8), [0, 1, 2, 3], classes=train.classes)
    with pytest.raises(DataError, match="shape"):
        split(train, wide, seed=0)
