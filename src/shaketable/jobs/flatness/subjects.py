"""Which models and images `shaketable flatness` measures: checkpoints of a run, its own training images, checked to fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ...core import ConfigError, ModelError, generator
from ...data import Dataset, open_dataset, open_parts, parts_of
from ...data.splits import stratified_order
from ...models import RUN_FILES, Contract, Loaded, check, is_checkpoint, read_manifest
from ..kept_epochs import FOLDER, kept
from ..run_images import Drawn, drawn, same_data, splits_of, training_of
from ..train_config import TrainConfig
from .cells import ImagePlace, ModelPlace, model_hash
from .config import FlatnessConfig

CHECKED = 512  # images that the contract is checked on
PartName = Literal["test", "train"]


@dataclass(frozen=True)
class Source:
    """A model that is to be measured, before it is loaded.

    Args:
        name: how the report calls it.
        path: what is loaded.
        run: the training that made it, where that is known.
        epoch: of the checkpoint, where it says so.
    """

    name: str
    path: str
    run: TrainConfig | None
    epoch: int | None


@dataclass(frozen=True)
class Images:
    """Images of one split. `note` says how they were chosen, where that is not simply the first ones of the split."""

    part: PartName
    place: ImagePlace
    data: Dataset
    note: str = ""


@dataclass(frozen=True)
class Subject:
    """A model that fits its images.

    Args:
        sha256: see `model_hash`.
        file: the SHA-256 of its file, or None.
        contract: what the check found.
        notes: of the loading.
    """

    source: Source
    place: ModelPlace
    sha256: str
    file: str | None
    contract: Contract
    notes: tuple[str, ...]


def sources_of(config: FlatnessConfig) -> tuple[Source, ...]:
    """The models that are named; with --checkpoints all of each run's folder, in the order of their epochs.

    Raises:
        ConfigError: --checkpoints with what is no folder, or a folder that has none.
    """
    found: list[Source] = []
    for model in config.model:
        run, prefix = training_of(Path(model)), f"{Path(model).resolve().name}: " if len(config.model) > 1 else ""
        if not config.checkpoints:
            found.append(Source(Path(model).name or model, model, run, epoch_of(Path(model))))
        for path in _checkpoints(Path(model)) if config.checkpoints else ():
            epoch = epoch_of(path)
            at = "" if epoch is None else f"epoch {epoch}" if path.parent.name == FOLDER else f" (epoch {epoch})"
            name = at if path.parent.name == FOLDER and at else f"{path.stem}{at}"
            found.append(Source(f"{prefix}{name}", str(path), run, epoch))
    return tuple(_with_own_names(found))


def _checkpoints(folder: Path) -> list[Path]:
    if not folder.is_dir():
        remedy = "Give a run's folder, or leave out --checkpoints."
        raise ConfigError("checkpoints", "a run's folder", f"{folder}, which is none", remedy)
    files = kept(folder) or sorted(path for path in folder.glob("*.safetensors") if path.name not in RUN_FILES)
    files += [folder / name for name in RUN_FILES[:2] if (folder / name).is_file()]
    if not files:
        raise ConfigError("checkpoints", "checkpoints, *.safetensors", f"none in {folder}", "Give a run's folder.")
    return sorted(files, key=lambda path: (epoch_of(path) or 0, path.parent.name != FOLDER))


def _with_own_names(sources: list[Source]) -> Iterator[Source]:
    """The sources, those that would be called the same by their paths."""
    names = [source.name for source in sources]
    for source in sources:
        yield source if names.count(source.name) == 1 else replace(source, name=source.path)


def epoch_of(path: Path) -> int | None:
    """The epoch that a checkpoint of ours says it is of."""
    path = next((path / name for name in RUN_FILES if (path / name).is_file()), path) if path.is_dir() else path
    if path.suffix != ".safetensors" or not path.is_file() or not is_checkpoint(path):
        return None
    epoch = read_manifest(path).facts.get("epoch")
    return epoch if isinstance(epoch, int) else None


def images_of(config: FlatnessConfig, source: Source, part: PartName) -> Images:
    """The first `count` images of a split; of a run on the same data, its own split.

    Training images are those that the run was trained on. Where the first images are not of all classes (files sorted by
    class), they are drawn by class instead.

    Raises:
        ConfigError: training images of data that is not divided, by a model whose training is not known.
        ShaketableError: see `data.open_dataset`.
    """
    run = source.run if source.run is not None and same_data(config.data, source.run.data) else None
    own = None if run is None else drawn(run)
    return _images(config.data, config.size, config.count, config.seed, part, own)


@lru_cache(maxsize=8)
def _images(
    source: str, size: int | None, count: int | None, seed: int, part: PartName, run: Drawn | None
) -> Images:  # fmt: skip
    parts, note = parts_of(source), ""
    within: str = part if parts else "all"
    data = open_dataset(source, split=within, size=size)  # pyright: ignore[reportArgumentType]
    rows = torch.arange(len(data))
    if run is not None and (part == "train" or not parts):
        splits = splits_of(run, open_parts(source, size=size))
        rows, note = splits.indices[part], f"the run's own {part} images"
    elif part == "train" and not parts:
        remedy = "Give the folder of the run, or --split test for all images."
        raise ConfigError("split", "a training that is known, or data with a train part", "neither", remedy)
    elif part == "train":
        note = "which images the model was trained on is not known: the train part of the data was taken"
    rows, chosen = _first(data, rows, count, seed)
    note = "; ".join(text for text in (note, chosen) if text)
    place = ImagePlace(source, within, tuple(rows.tolist()), size)
    return Images(part, place, data.take(rows), note)


def _first(data: Dataset, rows: Tensor, count: int | None, seed: int) -> tuple[Tensor, str]:
    """So many of the rows, and what is to be said of it."""
    if count is None or count >= len(rows):
        return rows, ""
    first = rows[:count]
    if len(data.labels[first].unique()) >= min(count, len(data.labels[rows].unique())):
        return first, ""
    order = stratified_order(data.take(rows), seed, "flatness")
    return rows[order[:count]], "drawn by class, since the first ones are not of all classes"


def subject_of(config: FlatnessConfig, source: Source, images: Images, device: torch.device) -> Subject:
    """Load a model and check it against its images.

    A constant predictor passes: it is reported, and not refused. So does a checkpoint from within a training that is
    still at chance.

    Raises:
        ModelError: a model without gradients; see `models.load` and `models.check`.

    Cost: see `models.check`, on at most 512 images.
    """
    labels = None if config.labels is None else str(config.labels)
    place = ModelPlace(source.path, config.architecture, config.mean, config.std, labels, config.trust)
    loaded = place.load(images.data)
    if not loaded.gradients:
        raise ModelError(source.path, "a model with gradients", "one without", "Give its PyTorch form.")
    digest = model_hash(loaded)
    loaded = replace(loaded, model=loaded.model.to(device))
    rows = torch.randperm(len(images.data), generator=generator(config.seed, "contract"))[:CHECKED]
    batch = images.data.batch(rows).to(device)
    trained = Path(source.path).parent.name != FOLDER
    try:
        contract = check(loaded, batch.x, batch.y, trained=trained)
    except ModelError:
        if not _constant(loaded, batch.x):
            raise
        contract = check(loaded, batch.x, batch.y, trained=False)
    return Subject(source, place, digest, loaded.sha256, contract, loaded.notes)


def _constant(loaded: Loaded, x: Tensor) -> bool:
    """Whether a model predicts one class for all images."""
    with torch.no_grad():
        found = {int(label) for part in x.split(64) for label in loaded.model(part).argmax(1)}
    return len(found) == 1
