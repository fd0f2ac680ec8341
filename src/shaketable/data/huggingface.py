"""Hugging Face data sets, as adapters: the library is asked for only when such a set is."""

import dataclasses
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, final

from ..core.errors import DataError
from ..plugins import extra
from .archives import Folder
from .arrays import class_indices, numbered_classes
from .dataset import Dataset
from .fit import AS_IS, Fit
from .image_folder import shape_of
from .layout import PARTS, Part
from .pixels import Decoded

_PREFIX = "hf:"


def recognises(source: str) -> bool:
    """Whether the source is written ``hf:FOLDER``."""
    return source.startswith(_PREFIX)


def parts(source: str) -> tuple[Part, ...]:
    """The parts of a saved ``DatasetDict`` by their names; none of a single data set."""
    return tuple(_tables(_opened(source)))


def load(source: str, wanted: tuple[Part, ...], fit: Fit) -> Dataset:
    """Open ``hf:FOLDER``: what ``save_to_disk`` of the library ``datasets`` has written; nothing is downloaded or run.

    Raises:
        DataError: the library cannot be imported, the folder holds no such set, or what `from_huggingface` refuses.

    Checked by tests/data/test_huggingface.py.
    """
    opened, name = _opened(source), Path(source.removeprefix(_PREFIX)).name
    if not wanted:
        return from_huggingface(opened, name=name, fit=fit)
    tables = [_tables(opened)[part] for part in wanted]
    if len(tables) > 1:
        from datasets import concatenate_datasets

        return from_huggingface(concatenate_datasets(tables), name=name, fit=fit)
    return from_huggingface(tables[0], name=name, fit=fit)


def from_huggingface(
    dataset: Any, *, image: str | None = None, label: str | None = None, name: str = "huggingface", fit: Fit = AS_IS
) -> Dataset:
    """A data set from a ``datasets.Dataset`` with an ``Image`` column and a ``ClassLabel`` (or whole-number) column.

    Images stay where the library keeps them (memory-mapped) and are decoded by this package, under its limits, when a
    batch is read. Formats and transforms set on the object are undone: images are kept in [0, 1], raw.

    Args:
        dataset: one table, not a ``DatasetDict`` or a stream.
        image: the image column; by default the only one.
        label: the label column; by default the only ``ClassLabel``, or the one named "label" or "fine_label".
        name: what reports call it.
        fit: the size and channels to bring the images to.

    Raises:
        DataError: a dict of tables, a stream, a column that is missing or in doubt, a missing label, or what image
            folders refuse.

    Checked by tests/data/test_huggingface.py.
    """
    features = getattr(dataset, "features", None)
    if hasattr(dataset, "keys") or not hasattr(dataset, "__len__") or features is None:
        remedy = "Pick a split, dataset['train'], and load it without streaming."
        raise DataError("dataset", "one datasets.Dataset", type(dataset).__name__, remedy)
    images = [column for column, kind in features.items() if type(kind).__name__ == "Image"]
    image = _column(image, images, features, "image", ("image", "img"))
    labels = [column for column, kind in features.items() if hasattr(kind, "names") and hasattr(kind, "int2str")]
    labels = labels or [column for column in ("label", "labels") if column in features]
    label = _column(label, labels, features, "label", ("label", "fine_label"))
    if len(dataset) == 0:
        raise DataError(name, "at least one image", "none", "Check the data set.")
    plain = dataset.with_format(None)
    values = list(plain[label])
    if any(value is None for value in values):
        found = f"{sum(value is None for value in values)} rows without one"
        raise DataError(f"{label} of {name}", "a label in every row", found, "Filter these rows out first.")
    y = class_indices(values, f"labels of {name}")
    names = getattr(features[label], "names", None)
    classes = tuple(names) if names else numbered_classes(y, f"labels of {name}")
    undecoded = dataclasses.replace(features[image], decode=False)
    rows = Rows(name, plain.select_columns([image]).cast_column(image, undecoded), image)
    members = tuple(str(row) for row in range(len(y)))
    return Dataset(name, classes, y, Decoded(rows, members, shape_of(rows, members, fit), fit))


@final
@dataclasses.dataclass(frozen=True)
class Rows:
    """A column of undecoded images, read by the row's number."""

    name: str
    table: Any
    column: str

    @contextmanager
    def stream(self, member: str) -> Iterator[IO[bytes]]:
        where = f"{self.name}/{member}"
        cell = self.table[int(member)][self.column] or {}
        content, path = cell.get("bytes"), cell.get("path")
        if content is None and path is None:
            raise DataError(where, "an image", "an empty cell", "Filter such rows out first.")
        if content is not None:
            yield io.BytesIO(content)
            return
        with Folder(Path(str(path)).parent).stream(Path(str(path)).name) as stream:
            yield stream


def _column(asked: str | None, known: list[str], features: Any, what: str, usual: tuple[str, ...]) -> str:
    if asked is not None:
        if asked not in features:
            raise DataError(what, f"a column among {sorted(features)}"[:120], repr(asked), "Name one of these.")
        return asked
    chosen = known if len(known) == 1 else [column for column in usual if column in known][:1]
    if not chosen:
        found = f"{len(known)} of them among {sorted(features)}"[:120]
        raise DataError(what, f"one {what} column", found, f"Pass {what}= with the column's name.")
    return chosen[0]


def _opened(source: str) -> Any:
    datasets = extra("datasets", "huggingface", source, error=DataError)
    path = Path(source.removeprefix(_PREFIX))
    try:
        return datasets.load_from_disk(str(path.absolute()))
    except Exception as error:  # the library's and Arrow's own errors
        found = f"{type(error).__name__}: {error}"[:160]
        remedy = "Save it with save_to_disk of the library datasets, and give that folder."
        raise DataError(source, "a folder that save_to_disk has written", found, remedy) from error


def _tables(opened: Any) -> dict[Part, Any]:
    if not hasattr(opened, "keys"):
        return {}
    tables: dict[Part, Any] = {}
    for key in opened:
        if str(key).lower() in PARTS:
            tables[PARTS[str(key).lower()]] = opened[key]
    if "validation" in tables and "test" not in tables:
        tables["test"] = tables.pop("validation")
    return tables
