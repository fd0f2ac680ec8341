"""open_dataset: which loader is asked, which part is given, and what the errors say."""

import pickle
from pathlib import Path

import pytest
import torch

from shaketable.core.errors import DataError, InputError
from shaketable.data import EMBEDDED, LOADERS, Dataset, Split, open_dataset, open_parts, parts_of


@pytest.fixture
def sources(write, tmp_path: Path) -> dict[str, str]:
    import numpy as np
    from scipy.io import savemat

    (tmp_path / "ti.pickle").write_bytes(
        pickle.dumps({"data": write.images(4, 32, 32, 3), "extrapolated_targets": np.arange(4)})
    )
    files = write.image_files(["train/a/0.png", "train/b/1.png", "test/a/2.png"], shape=(32, 32, 3))
    np.savez(tmp_path / "x.npz", images=write.images(4, 8, 8), labels=np.arange(4))
    (tmp_path / "svhn").mkdir()
    for part in ("train", "test"):
        variables = {"X": write.images(32, 32, 3, 4, seed=len(part)), "y": np.array([[10], [1], [2], [3]], np.uint8)}
        savemat(tmp_path / "svhn" / f"{part}_32x32.mat", variables)
    return {
        "fashion-mnist": "fashion-mnist",
        "idx": str(write.idx_folder(tmp_path / "idx")),
        "cifar-binary": str(write.cifar10_binary(tmp_path / "bin")),
        "cifar-python": str(write.cifar10_python(tmp_path / "py")),
        "svhn": str(tmp_path / "svhn"),
        "carmon-pickle": str(tmp_path / "ti.pickle"),
        "npz": str(tmp_path / "x.npz"),
        "image-zip": str(write.zip(tmp_path / "x.zip", files)),
        "image-folder": str(write.folder(tmp_path / "folder", files)),
    }


OURS = [name for name in LOADERS if name not in ("torchvision", "huggingface")]


@pytest.mark.parametrize("kind", OURS)
def test_contract_of_every_loader(sources, kind):
    """The first loader that recognises a source is its own; parts, shapes, ranges and fingerprints are as promised."""
    source = sources[kind]
    assert next(name for name, loader in LOADERS.items() if loader.recognises(source)) == kind
    parts = parts_of(source)
    sets: dict[Split, Dataset] = {split: open_dataset(source, split=split) for split in (*parts, "all")}
    assert sum(len(sets[part]) for part in parts) == (len(sets["all"]) if parts else 0)
    split: Split
    for split, data in sets.items():
        batch = data.batch(torch.arange(min(len(data), 50)))
        assert batch.x.dtype == torch.float32
        assert 0 <= batch.x.min() <= batch.x.max() <= 1
        assert batch.x.max() > 0.1
        assert batch.x.shape[1:] == data.pixels.shape
        assert int(batch.y.max()) < len(data.classes)
        again = open_dataset(Path(source) if kind not in EMBEDDED else source, split=split)
        assert again.fingerprint == data.fingerprint
        assert again.name == data.name
    if "test" in parts:
        assert sets["train"].fingerprint != sets["test"].fingerprint
        assert sets["train"].classes == sets["test"].classes == sets["all"].classes
    default: Split = "test" if "test" in parts else "all"
    assert open_dataset(source).fingerprint == sets[default].fingerprint


@pytest.mark.parametrize("kind", OURS)
def test_every_loader_brings_images_to_size_and_channels(sources, kind):
    for channels in (1, 3):
        data = open_dataset(sources[kind], split="all", size=12, channels=channels)
        assert data.batch([0]).x.shape == (1, channels, 12, 12)
        assert data.name.endswith(f" 12 px, {channels} channel{'s' if channels > 1 else ''}")


@pytest.mark.parametrize("kind", OURS)
def test_parts_for_training(sources, kind):
    pair = open_parts(sources[kind], size=8)
    assert pair.train.size == (8, 8)
    assert (pair.test is None) == ("test" not in parts_of(sources[kind]))
    if pair.test is not None:
        assert pair.test.name.partition(" ")[2] == "test 8 px"


def test_a_source_without_parts_says_so(sources):
    with pytest.raises(DataError, match=r"not divided into parts.*split='all'"):
        open_dataset(sources["npz"], split="test")


def test_a_part_that_is_not_there_is_named(sources):
    with pytest.raises(DataError, match="only train and test"):
        open_dataset(sources["idx"], split="validation")


def test_a_wrong_split_gets_the_nearest_name(sources):
    with pytest.raises(InputError, match="Did you mean 'test'"):
        open_dataset(sources["idx"], split="tests")  # pyright: ignore[reportArgumentType]


def test_unknown_names_get_the_nearest(sources, tmp_path: Path):
    with pytest.raises(DataError, match="Did you mean 'fashion-mnist'"):
        open_dataset("fashion_mnist")
    with pytest.raises(DataError, match=r"Did you mean '.*/folder'"):
        open_dataset(tmp_path / "foldr")
    with pytest.raises(DataError, match=r"does not exist.*Check the path"):
        open_dataset("/qqqqqq/zzzzz")


@pytest.mark.parametrize(
    ("name", "word"), [("x.tar.gz", "Unpack"), ("x.txt", "folder that holds"), ("x", "another kind")]
)
def test_files_of_other_kinds_are_refused(tmp_path: Path, name, word):
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(DataError, match=word) as caught:
        open_dataset(tmp_path / name)
    assert "idx, cifar-binary" in caught.value.expected


def test_a_folder_named_like_an_embedded_set_is_reached_by_its_path(write, tmp_path: Path, monkeypatch):
    write.folder(tmp_path / "fashion-mnist", write.image_files(["a/0.png", "b/1.png"]))
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("fashion-mnist")) == 2000
    assert len(open_dataset("./fashion-mnist")) == 2


@pytest.mark.parametrize("arguments", [{"size": -1}, {"channels": 4}, {"size": 8, "crop": 2.0}])
def test_bad_fits_are_refused(arguments):
    with pytest.raises(InputError):
        open_dataset("fashion-mnist", **arguments)


@pytest.mark.parametrize("source", ["", "  ", None, 3, b"bytes"])
def test_what_is_no_path_is_refused(source):
    with pytest.raises(InputError, match="data"):
        open_dataset(source)


@pytest.mark.parametrize("source", ["x" * 5000, "nul\0nul", "a\nb"])
def test_odd_paths_are_refused(source):
    with pytest.raises(DataError, match="data"):
        open_dataset(source)


def test_the_current_folder_has_its_name(write, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(write.idx_folder(tmp_path / "digits"))
    assert open_dataset(".").name == "digits test"
