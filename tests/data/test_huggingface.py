"""Hugging Face data sets: a table that looks like theirs always, the library itself where it is installed."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shaketable.core.errors import DataError, UnsafeFileError
from shaketable.data import Fit, from_huggingface, open_dataset, open_parts, parts_of
from shaketable.data.pixels import Decoded

INSTALLED = importlib.util.find_spec("datasets") is not None
real = pytest.mark.skipif(not INSTALLED, reason="needs the library datasets (extra huggingface)")


@dataclass
class Image:
    decode: bool = True


@dataclass
class ClassLabel:
    names: list[str]

    def int2str(self, value: int) -> str:
        return self.names[value]


@dataclass
class Value:
    dtype: str = "int64"


@dataclass
class Table:
    """The part of ``datasets.Dataset`` that the adapter uses: columns, features, and views of them."""

    columns: dict[str, list[Any]]
    features: dict[str, Any]
    format: str | None = field(default="torch")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: int | str) -> Any:
        assert self.format is None, "read in the user's format"
        return self.columns[key] if isinstance(key, str) else {name: self._cell(name, key) for name in self.columns}

    def _cell(self, name: str, row: int) -> Any:
        assert not getattr(self.features[name], "decode", False), "decoded by the library"
        return self.columns[name][row]

    def with_format(self, kind: None) -> "Table":
        return replace(self, format=kind)

    def select_columns(self, names: list[str]) -> "Table":
        return replace(self, columns={n: self.columns[n] for n in names}, features={n: self.features[n] for n in names})

    def cast_column(self, name: str, feature: object) -> "Table":
        return replace(self, features=self.features | {name: feature})


def _like(columns: dict[str, list[Any]], names: dict[str, list[str]], images: tuple[str, ...]) -> Any:
    kinds = {n: Image() if n in images else ClassLabel(names[n]) if n in names else Value() for n in columns}
    return Table(columns, kinds)


def _library(columns: dict[str, list[Any]], names: dict[str, list[str]], images: tuple[str, ...]) -> Any:
    import datasets

    kinds = {
        name: datasets.Image()
        if name in images
        else datasets.ClassLabel(names=names[name])
        if name in names
        else datasets.Value("int64")
        for name in columns
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds)).with_format("torch")


@pytest.fixture(params=[pytest.param(_like, id="like"), pytest.param(_library, id="library", marks=real)])
def table(request) -> Callable[..., Any]:
    def make(columns: dict[str, list[Any]], names: dict[str, list[str]], images: tuple[str, ...] = ("img",)) -> Any:
        return request.param(columns, names, images)

    return make


@pytest.fixture
def cells(write) -> list[dict[str, Any]]:
    return [{"bytes": content, "path": None} for content in write.image_files([f"{i}.png" for i in range(4)]).values()]


NAMES = {"label": ["cat", "dog"]}


def test_images_are_decoded_when_read(table, cells, write):
    data = from_huggingface(table({"img": cells, "label": [1, 0, 1, 1]}, NAMES), name="pets")
    assert isinstance(data.pixels, Decoded)
    assert (data.name, data.classes, data.labels.tolist()) == ("pets", ("cat", "dog"), [1, 0, 1, 1])
    expected = torch.from_numpy(write.images(8, 8, 3, seed=2)).permute(2, 0, 1) / 255
    assert torch.equal(data.batch([2]).x[0], expected)
    small = from_huggingface(table({"img": cells, "label": [1, 0, 1, 1]}, NAMES), fit=Fit(size=4, channels=1))
    assert small.take([3, 1]).batch([0, 1]).x.shape == (2, 1, 4, 4)


def test_images_may_be_files(table, write, tmp_path: Path):
    root = write.folder(tmp_path, write.image_files(["0.png", "1.png"]))
    cells = [{"bytes": None, "path": str(root / f"{i}.png")} for i in range(2)]
    data = from_huggingface(table({"img": cells, "label": [1, 0]}, NAMES))
    assert torch.equal(data.batch([1]).x[0], torch.from_numpy(write.images(8, 8, 3, seed=1)).permute(2, 0, 1) / 255)
    (root / "1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png"):
        data.batch([1])


def test_columns_are_found_or_asked_for(table, cells):
    labels = [1, 0, 1, 1]
    plain = table({"img": cells, "label": [4, 0, 1, 2]}, {})
    assert from_huggingface(plain).classes == ("0", "1", "2", "3", "4")
    fine = {"fine_label": ["a", "b"], "coarse_label": ["c", "d"]}
    cifar100 = table({"img": cells, "fine_label": labels, "coarse_label": [0] * 4}, fine)
    assert from_huggingface(cifar100).classes == ("a", "b")
    assert from_huggingface(cifar100, label="coarse_label").classes == ("c", "d")
    odd = table({"img": cells, "sex": labels, "age": labels}, {"sex": ["f", "m"], "age": ["old", "young"]})
    with pytest.raises(DataError, match="Pass label="):
        from_huggingface(odd)
    with pytest.raises(DataError, match="column among"):
        from_huggingface(odd, label="height")
    two = table({"left": cells, "right": cells, "label": labels}, NAMES, ("left", "right"))
    with pytest.raises(DataError, match="Pass image="):
        from_huggingface(two)
    assert len(from_huggingface(two, image="right")) == 4


def test_bad_tables_are_refused(table, cells):
    with pytest.raises(DataError, match="1 rows without"):
        from_huggingface(table({"img": cells, "label": [0, None, 1, 0]}, NAMES))
    with pytest.raises(DataError, match="empty cell"):
        from_huggingface(table({"img": [*cells[:3], None], "label": [0, 0, 1, 0]}, NAMES))
    with pytest.raises(DataError, match="labels from -1"):
        from_huggingface(table({"img": cells, "label": [0, -1, 1, 0]}, {}))
    with pytest.raises(DataError, match=r"hugging.*/3"):
        from_huggingface(table({"img": [*cells[:3], {"bytes": b"<html>", "path": None}], "label": [0, 0, 1, 0]}, NAMES))
    with pytest.raises(DataError, match="at least one"):
        from_huggingface(table({"img": [], "label": []}, NAMES))
    with pytest.raises(DataError, match="Pass image="):
        from_huggingface(table({"number": [1], "label": [0]}, NAMES))


@pytest.mark.parametrize("thing", [{"train": 1}, [1, 2], 3])
def test_other_things_are_refused(thing):
    with pytest.raises(DataError, match="Pick a split"):
        from_huggingface(thing)


def test_a_bomb_in_a_table_is_refused(table, cells, monkeypatch):
    monkeypatch.setattr("shaketable.data.decoding.MAX_PIXELS", 63)
    with pytest.raises(UnsafeFileError, match="pixels"):
        from_huggingface(table({"img": cells, "label": [0, 0, 1, 0]}, NAMES))


@pytest.mark.skipif(INSTALLED, reason="the library datasets is installed here")
def test_a_missing_library_is_named_with_its_extra(tmp_path: Path):
    with pytest.raises(DataError, match=r"pip install 'shaketable\[huggingface\]'"):
        open_dataset(f"hf:{tmp_path}")


@real
def test_the_library_opens_what_it_has_saved(cells, tmp_path: Path):
    import datasets

    one = _library({"img": cells, "label": [1, 0, 1, 1]}, NAMES, ("img",))
    one.save_to_disk(str(tmp_path / "one"))
    assert parts_of(f"hf:{tmp_path / 'one'}") == ()
    alone = open_dataset(f"hf:{tmp_path / 'one'}", size=4)
    assert (alone.name, alone.labels.tolist()) == ("one 4 px", [1, 0, 1, 1])
    two = datasets.DatasetDict({"train": one, "validation": one.select([1, 2])})
    two.save_to_disk(str(tmp_path / "two"))
    parts = open_parts(f"hf:{tmp_path / 'two'}")
    assert parts.test is not None
    assert (len(parts.train), parts.test.name, parts.test.labels.tolist()) == (4, "two test", [0, 1])
    both = open_dataset(f"hf:{tmp_path / 'two'}", split="all")
    assert both.labels.tolist() == [1, 0, 1, 1, 0, 1]
    assert torch.equal(both.batch([5]).x, parts.test.batch([1]).x)


@real
def test_the_library_finds_nothing(tmp_path: Path):
    with pytest.raises(DataError, match="save_to_disk"):
        open_dataset(f"hf:{tmp_path / 'none'}")
