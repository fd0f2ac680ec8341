"""One measurement of flatness as a cell of the ledger: what names it, what a worker does for it, and what it keeps.

cell, task = of a model, images, a measure, a seed; `fill` has `measure` called in a worker, `flatness_of` reads the result.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core import Calls, DataError, ModelError
from ...data import Dataset, open_dataset
from ...files import sha256_of
from ...flatness.remembered import new_memory, remembering
from ...flatness.result import Flatness
from ...models import Loaded, fingerprint, load
from ...runs import Cell, Task, canonical
from ...stats import Mean
from ..choices import spec_for
from .measures import Chosen
from .measures import to_json as choice_json

_references = new_memory()  # this process's: radii and cases of one model share theirs

RUN = "shaketable.jobs.flatness.cells:measure"


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is and how it is loaded: the options that `shaketable evaluate` has for it.

    `size` is (h, w) of the images; a model of another size resizes them first. None: they are as the model takes them.
    """

    source: str
    architecture: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    labels: str | None = None
    trust: bool = False
    size: tuple[int, int] | None = None

    def load(self, data: Dataset) -> Loaded:
        """The model, on the CPU; the data's classes are those of an architecture without its own."""
        spec = None
        if self.architecture is not None:
            mean, std = (None if value is None else tuple(value) for value in (self.mean, self.std))
            spec = spec_for(self.architecture, data, mean=mean, std=std)
        return load(
            self.source, spec=spec, mean=self.mean, std=self.std, size=None if self.size is None else (*self.size,),
            labels=self.labels, trust=self.trust,
        )  # fmt: skip


@dataclass(frozen=True)
class ImagePlace:
    """Where images are: some rows of a part of a data set."""

    source: str
    split: str
    rows: tuple[int, ...]
    size: int | None = None

    def open(self) -> Dataset:
        """These images."""
        split: Any = self.split
        return open_dataset(self.source, split=split, size=self.size).take(list(self.rows))


def model_hash(loaded: Loaded) -> str:
    """What a model's results depend on: its state, what it was built from, and the user's code, if that is a file.

    A checkpoint of ours has the hash of its spec and weights, whatever the file is called and says beside them.
    """
    spec = loaded.spec
    built = loaded.sha256 or loaded.source if spec is None else spec.to_json()
    code = [text.rpartition(":")[0] for text in (loaded.source, spec.architecture if spec else "")]
    files = [sha256_of(Path(name)) for name in code if name.endswith(".py") and Path(name).is_file()]
    parts = {"state": fingerprint(loaded.model), "built": built, "code": files}
    return hashlib.sha256(canonical.text(parts).encode()).hexdigest()


def task_of(
    model: ModelPlace, model_sha: str, images: ImagePlace, data_sha: str, chosen: Chosen, *, seed: int, device: str,
    threads: int | None,
) -> Task:  # fmt: skip
    """The task that measures one thing of one model on some images.

    Args:
        model_sha, data_sha: see `model_hash` and `Dataset.fingerprint`; the worker compares them with what it finds.
        device, threads: on which the last bits of the numbers depend; they are part of the cell.
    """
    settings = chosen.settings | {"device": device, "threads": threads}
    cell = Cell(model_sha, data_sha, chosen.name, chosen.version, settings, seed)
    arguments = {
        "model": vars(model), "model_sha": model_sha, "images": vars(images), "data_sha": data_sha,
        "measure": choice_json(chosen), "seed": seed, "device": device,
    }  # fmt: skip
    return Task(cell, RUN, arguments, cost=max(1.0, chosen.passes * len(images.rows)))


def measure(arguments: dict[str, Any], progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Do what a task says; called in a worker, which keeps the model and the images for its next cells.

    Raises:
        ModelError, DataError: the file is no longer the one of which the cell's hash was taken.
        ShaketableError: whatever the measure raises.
    """
    device = torch.device(arguments["device"])
    data, x, y = images_at(arguments["images"], arguments["data_sha"], str(device))
    loaded = model_at(arguments["model"], arguments["model_sha"], str(device), data)
    chosen = Chosen(**arguments["measure"])
    with remembering(_references):
        return to_json(chosen(loaded.model, x, y, seed=arguments["seed"], progress=progress))


def images_at(place: Mapping[str, Any], sha256: str, device: str) -> tuple[Dataset, Tensor, Tensor]:
    """The images of an `ImagePlace`, verified, as tensors on a device; a process keeps the last two of them.

    Raises:
        DataError: they are not those of the hash.
    """
    return _images(canonical.text(place), sha256, device)


def model_at(place: Mapping[str, Any], sha256: str, device: str, data: Dataset) -> Loaded:
    """The model of a `ModelPlace`, verified, on a device; a process keeps the last eight of them.

    Raises:
        ModelError: it is not the one of the hash; see `models.load`.
    """
    return _model(canonical.text(place), sha256, device, data)


@functools.lru_cache(maxsize=2)
def _images(place: str, sha256: str, device: str) -> tuple[Dataset, Tensor, Tensor]:
    wanted = canonical.read(place)
    data = ImagePlace(**wanted).open()
    if data.fingerprint != sha256:
        found, remedy = f"{data.fingerprint[:12]}…", "They have changed since the job began: start it again."
        raise DataError(wanted["source"], f"images with the hash {sha256[:12]}…", found, remedy)
    batch = data.batch(range(len(data))).to(device)
    return data, batch.x, batch.y


@functools.lru_cache(maxsize=8)
def _model(place: str, sha256: str, device: str, data: Dataset) -> Loaded:
    wanted = canonical.read(place)
    loaded = ModelPlace(**wanted).load(data)
    if (found := model_hash(loaded)) != sha256:
        remedy = "It has changed since the job began: start it again."
        raise ModelError(wanted["source"], f"a model with the hash {sha256[:12]}…", f"{found[:12]}…", remedy)
    return replace(loaded, model=loaded.model.to(device))


def to_json(found: Flatness) -> dict[str, Any]:
    """A result as JSON values, to the bit; `flatness_of` is the inverse."""
    return {
        "name": found.name, "value": vars(found.value), "reference": found.reference, "draws": list(found.draws),
        "per_image": found.per_image.double().tolist(), "correct": found.correct.tolist(), "examples": found.examples,
        "forward": found.calls.forward, "backward": found.calls.backward, "facts": dict(found.facts),
    }  # fmt: skip


def flatness_of(result: Mapping[str, Any]) -> Flatness:
    """What `measure` found, from a ledger's file."""
    return Flatness(
        result["name"], Mean(**result["value"]), result["reference"], torch.tensor(result["per_image"], dtype=torch.float64),
        torch.tensor(result["correct"], dtype=torch.bool), tuple(result["draws"]), result["examples"],
        Calls(result["forward"], result["backward"]), dict(result["facts"]),
    )  # fmt: skip
