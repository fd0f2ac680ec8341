"""Dataset: what a batch is, what identifies a set, and what is refused."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from shaketable.core.errors import DataError, InputError
from shaketable.data import Dataset, from_arrays, open_dataset
from shaketable.data.pixels import Stored


@pytest.fixture
def small(write) -> Dataset:
    return from_arrays(write.images(7, 5, 4, 3), np.arange(7) % 3, classes=["a", "b", "c"], name="small")


def test_a_batch_is_the_pixels_over_255(small, write):
    batch = small.batch([5, 0, 5])
    expected = write.images(7, 5, 4, 3)[[5, 0, 5]].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    assert batch.x.dtype == torch.float32
    assert batch.x.shape == (3, 3, 5, 4)
    assert batch.x.is_contiguous()
    np.testing.assert_array_equal(batch.x.numpy(), expected)
    assert batch.y.tolist() == [2, 0, 2]
    assert batch.y.dtype == torch.int64
    assert len(batch.to("cpu")) == 3


def test_a_batch_is_a_copy(small):
    before = small.fingerprint
    batch = small.batch([0, 1])
    batch.x.zero_()
    batch.y.fill_(9)
    assert small.batch([0]).x.abs().sum() > 0
    assert small.take(range(7)).fingerprint == before


def test_its_facts(small):
    assert (len(small), small.channels, small.size, small.counts) == (7, 3, (5, 4), (3, 2, 2))
    assert repr(small) == "Dataset('small', 7 images of 3 x 5 x 4, 3 classes)"


def test_take_keeps_order_and_classes(small):
    part = small.take(torch.tensor([6, 2]))
    assert part.labels.tolist() == [0, 2]
    assert part.classes == small.classes
    assert torch.equal(part.batch([1]).x, small.batch([2]).x)
    assert torch.equal(part.take([1]).batch([0]).x, small.batch([2]).x)


def test_batches_cover_everything_once_and_in_order(small):
    parts = list(small.batches(3))
    assert [len(part) for part in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([part.x for part in parts]), small.batch(range(7)).x)
    order = [6, 1, 1, 0]
    assert torch.equal(torch.cat([part.x for part in small.batches(3, order)]), small.batch(order).x)
    assert list(small.batches(3, [])) == []


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_batches_refuse_a_size_at_once(small, size):
    with pytest.raises(InputError, match="size"):
        small.batches(size)


@pytest.mark.parametrize(
    "indices", [[7], [-1], [0.5], torch.tensor([True] * 7), [[0]], "ab", 3], ids=lambda value: repr(value)[:20]
)
def test_indices_out_of_range_or_of_another_type_are_refused(small, indices):
    with pytest.raises(InputError, match="indices"):
        small.batch(indices)


def test_an_empty_take_is_refused(small):
    with pytest.raises(DataError, match="at least one image"):
        small.take([])


def test_floats_are_kept_as_they_are():
    x = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    data = from_arrays(x, [0, 1, 0, 1])
    assert torch.equal(data.batch([2]).x[0], x[2])


def test_the_fingerprint_tells_images_labels_order_and_names_but_not_the_title(small, write):
    images, labels, names = write.images(7, 5, 4, 3), np.arange(7) % 3, ["a", "b", "c"]
    again = from_arrays(images, labels, classes=names, name="other")
    assert again.fingerprint == small.fingerprint
    changed = images.copy()
    changed[3, 2, 1, 0] ^= 1
    relabelled = labels.copy()
    relabelled[6] = 1
    others = [
        from_arrays(changed, labels, classes=names),
        from_arrays(images, relabelled, classes=names),
        from_arrays(images, labels, classes=["a", "b", "d"]),
        from_arrays(images.reshape(7, 4, 5, 3), labels, classes=names),
        small.take([1, 0, 2, 3, 4, 5, 6]),
        small.take(range(6)),
    ]
    prints = {small.fingerprint, *(other.fingerprint for other in others)}
    assert len(prints) == 7
    assert all(len(value) == 64 for value in prints)


def test_it_travels_to_other_processes(small, write, tmp_path: Path):
    lazy = open_dataset(write.zip(tmp_path / "x.zip", write.image_files(["a/0.png", "b/1.png"])))
    lazy.batch([0])
    for data in (small, lazy):
        there = pickle.loads(pickle.dumps(data))
        assert there.fingerprint == data.fingerprint
        assert torch.equal(there.batch([1]).x, data.batch([1]).x)


def test_in_memory_decodes_once(write, tmp_path: Path):
    root = write.folder(tmp_path / "set", write.image_files(["a/0.png", "b/1.png"]))
    lazy = open_dataset(root)
    kept = lazy.in_memory()
    before = lazy.batch([0, 1])
    for path in root.rglob("*.png"):
        path.unlink()
    assert torch.equal(kept.batch([0, 1]).x, before.x)
    assert kept.name == lazy.name
    with pytest.raises(DataError, match=r"0\.png"):
        lazy.batch([0])


def test_the_constructor_checks_what_it_is_given():
    pixels = Stored(torch.zeros(2, 1, 3, 3, dtype=torch.uint8))
    for labels, classes, word in [
        (torch.tensor([0, 2]), ("a", "b"), "labels from 0 to 2"),
        (torch.tensor([-1, 0]), ("a", "b"), "labels from -1 to 0"),
        (torch.tensor([0, 1, 1]), ("a", "b"), "3 labels for 2 images"),
        (torch.tensor([0, 1], dtype=torch.int32), ("a", "b"), "int32"),
        (torch.tensor([[0], [1]]), ("a", "b"), "shape"),
        (torch.tensor([0, 1]), ("a", ""), "non-empty names"),
        (torch.tensor([0, 0]), (), "non-empty names"),
    ]:
        with pytest.raises(DataError, match=word):
            Dataset("it", classes, labels, pixels)
    for images in (torch.zeros(2, 3, 3), torch.zeros(2, 2, 3, 3), torch.zeros(0, 1, 3, 3), torch.zeros(2, 1, 0, 3)):
        with pytest.raises(DataError, match="images"):
            Stored(images)
    with pytest.raises(DataError, match="float64"):
        Stored(torch.zeros(2, 1, 3, 3, dtype=torch.float64))
