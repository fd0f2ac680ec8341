"""A model and images that a verb names: loaded, checked against each other, and their classes compared."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from ..core import ConfigError, generator
from ..data import UNLABELLED, Dataset
from ..models import Contract, Loaded, check, load, read_labels
from .choices import spec_for

CHECKED = 512  # images that the contract is checked on


class Named(Protocol):
    """What a config says about a model: the fields that `EvaluateConfig` and `PseudolabelConfig` share."""

    @property
    def model(self) -> str: ...
    @property
    def architecture(self) -> str | None: ...
    @property
    def mean(self) -> tuple[float, ...] | None: ...
    @property
    def std(self) -> tuple[float, ...] | None: ...
    @property
    def labels(self) -> Path | None: ...
    @property
    def trust(self) -> bool: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class Match:
    """A model that fits some images, and what their classes have to do with each other.

    Args:
        loaded: the model, on its device.
        contract: what the check found.
        classes: the names of the classes that `label` gives: the data's where they are the model's, else the model's.
        order: of each logit, the index of its class in `classes`.
        true: whether the data's labels are of these classes, so that labels can be compared.
    """

    loaded: Loaded
    contract: Contract
    classes: tuple[str, ...]
    order: Int[Tensor, " k"]
    true: bool

    def label(self, logits: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The classes of these logits' indices."""
        return self.order[logits]


def match(config: Named, data: Dataset, device: torch.device) -> Match:
    """Load a model, and check it against images, with their labels where these are of the model's classes.

    Raises:
        ConfigError: weights without an architecture's classes, where neither the images nor --labels tell them.
        ShaketableError: see `models.load` and `models.check`.

    Cost: see `models.check`, on at most 512 images; twice for a model that does not name its classes. Checked by
    tests/end_to_end/test_pseudolabel.py.
    """
    loaded = _load(config, data)
    loaded = replace(loaded, model=loaded.model.to(device))
    rows = torch.randperm(len(data), generator=generator(config.seed, "contract"))[:CHECKED]
    sample = data.batch(rows).to(device)
    contract = None if loaded.labels is not None else check(loaded, sample.x)
    names = loaded.labels or tuple(map(str, range(contract.classes if contract else 0)))
    places = _places(names, data.classes)
    if places is None:
        return Match(loaded, contract or check(loaded, sample.x), names, torch.arange(len(names)), False)
    order = torch.tensor(places)
    logit_of = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
    contract = check(loaded, sample.x, logit_of.to(device)[sample.y])
    return Match(loaded, contract, data.classes, order, True)


def _load(config: Named, data: Dataset) -> Loaded:
    spec = None
    if config.architecture is not None:
        if data.classes == UNLABELLED and config.labels is None:
            remedy = "Give --labels, a JSON list of the classes' names in the model's order."
            raise ConfigError("architecture", "images with classes, or --labels", "images without labels", remedy)
        named = data if data.classes != UNLABELLED or config.labels is None else _named(data, config.labels)
        spec = spec_for(config.architecture, named, mean=config.mean, std=config.std)
    loaded = load(config.model, spec=spec, mean=config.mean, std=config.std, labels=config.labels, trust=config.trust)
    is_folder = Path(config.model).is_dir()
    return replace(loaded, name=f"{Path(config.model).resolve().name} ({loaded.name})") if is_folder else loaded


def _named(data: Dataset, labels: Path) -> Dataset:
    return replace(data, classes=read_labels(labels))


def _places(model: Sequence[str], data: Sequence[str]) -> list[int] | None:
    """Of each of the model's classes, its index in the data; None if these are other classes.

    Classes with the same names are the same, in whatever order. Where one side only numbers as many classes, they are
    taken to be in the same order.
    """
    if set(model) == set(data) and len(set(model)) == len(model) == len(data):
        return [list(data).index(name) for name in model]
    numbers = [str(index) for index in range(len(model))]
    if len(model) == len(data) and tuple(data) != UNLABELLED and numbers in (list(model), list(data)):
        return list(range(len(model)))
    return None
