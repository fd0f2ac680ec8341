"""torchvision's data sets, as adapters: the library is asked for only when such a set is."""

import inspect
import operator
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import DataError
from ..plugins import extra, nearest
from .archives import Folder
from .arrays import channels_first, class_indices, from_arrays, numbered_classes, tensor_of
from .dataset import Dataset
from .decoding import header_of, pixels_of
from .fit import AS_IS, Fit
from .image_folder import shape_of
from .layout import Part
from .pixels import Decoded, Pixels, Stored

_PREFIX = "torchvision:"


def recognises(source: str) -> bool:
    """Whether the source is written ``torchvision:CLASS:ROOT``."""
    return source.startswith(_PREFIX)


def parts(source: str) -> tuple[Part, ...]:
    """Train and test, if the class's constructor takes ``train`` or ``split``; else none."""
    taken = inspect.signature(_class(source)).parameters
    return ("train", "test") if "train" in taken or "split" in taken else ()


def load(source: str, wanted: tuple[Part, ...], fit: Fit) -> Dataset:
    """Open ``torchvision:CIFAR10:/folder``: what torchvision has stored below the folder; nothing is downloaded.

    Note that torchvision reads some formats by its own means, CIFAR's pickles among them, after comparing their MD5 sums;
    the loaders of this room read the same files by themselves when they are given the folder.

    Raises:
        DataError: torchvision cannot be imported, has no such class, or does not find its files.

    Checked by tests/data/test_torchvision.py.
    """
    kind = _class(source)
    name, root = _words(source)
    sets = [from_torchvision(_made(kind, root, part), name=name, fit=fit) for part in wanted or (None,)]
    if len(sets) == 1:
        return sets[0]
    classes = max((part.classes for part in sets), key=len)
    return Dataset(name, classes, torch.cat([part.labels for part in sets]), _joined([part.pixels for part in sets]))


def from_torchvision(dataset: Any, *, name: str | None = None, fit: Fit = AS_IS) -> Dataset:
    """A data set from one of torchvision's objects, or any other that looks like it.

    Arrays (``data`` with ``targets`` or ``labels``, as CIFAR10, MNIST, SVHN) are taken as they are; an ``ImageFolder``
    is read from its files when a batch is; anything else is read item by item, as ``(image, label)``, into memory.
    ``torch.utils.data.Subset`` is followed.

    Args:
        dataset: the object; it must have no transform, since images are kept in [0, 1] and normalisation is the
            model's first layer (a resize is ``fit=Fit(size=...)``).
        name: what reports call it; by default its class's name.
        fit: the size and channels to bring the images to.

    Raises:
        DataError: a transform; items that are no pairs of image and whole number; what `from_arrays` refuses.

    Checked by tests/data/test_torchvision.py.
    """
    name = name or type(dataset).__name__
    for attribute in ("transform", "target_transform", "transforms"):
        if getattr(dataset, attribute, None) is not None:
            remedy = "Make it without: Shaketable needs raw images; pass fit=Fit(size=...) (--size) to resize them."
            raise DataError(f"{attribute} of {name}", "None", type(getattr(dataset, attribute)).__name__, remedy)
    if hasattr(dataset, "dataset") and hasattr(dataset, "indices"):
        return from_torchvision(dataset.dataset, name=name, fit=fit).take([int(i) for i in dataset.indices])
    classes = _names(getattr(dataset, "classes", None))
    labels = getattr(dataset, "targets", None) if hasattr(dataset, "targets") else getattr(dataset, "labels", None)
    if hasattr(dataset, "data") and labels is not None:
        return from_arrays(dataset.data, labels, classes=classes, name=name, fit=fit)
    if hasattr(dataset, "samples") and getattr(getattr(dataset, "loader", None), "__name__", "") == "default_loader":
        return _from_samples(dataset, classes or (), name, fit)
    return _from_items(dataset, classes, name, fit)


def _from_samples(dataset: Any, classes: tuple[str, ...], name: str, fit: Fit) -> Dataset:
    root = os.path.abspath(dataset.root)
    members = tuple(os.path.relpath(path, root) for path, _ in dataset.samples)
    labels = torch.tensor([int(label) for _, label in dataset.samples], dtype=torch.int64)
    folder = Folder(Path(root))
    return Dataset(name, classes, labels, Decoded(folder, members, shape_of(folder, members, fit), fit))


def _joined(pixels: list[Pixels]) -> Pixels:
    """Several parts' images: files stay files."""
    first, paths = pixels[0], []
    for part in pixels:
        if isinstance(part, Decoded) and isinstance(part.archive, Folder) and part.shape == pixels[0].shape:
            paths += [str(part.archive.path / member) for member in part.members]
    if isinstance(first, Decoded) and len(paths) == sum(len(part) for part in pixels):
        return Decoded(Folder(Path(os.sep)), tuple(paths), first.shape, first.fit)
    if len({part.shape for part in pixels}) > 1:
        found = " and ".join(str(part.shape) for part in pixels)
        raise DataError("split", "parts of one shape", found, "Pass size= (--size), or take one part.")
    return Stored(torch.cat([part.read(torch.arange(len(part))) for part in pixels]))


def _from_items(dataset: Any, classes: tuple[str, ...] | None, name: str, fit: Fit) -> Dataset:
    images: list[Tensor] = []
    labels: list[int] = []
    try:
        count = len(dataset)
    except TypeError as error:
        raise DataError(name, "a data set with a length", "none", "Collect a stream into a list first.") from error
    for index in range(count):
        item = dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            remedy = "Wrap the data set so that its items are pairs."
            raise DataError(f"{name}[{index}]", "a pair of image and label", type(item).__name__, remedy)
        images.append(fit.apply(_image(item[0], f"{name}[{index}]", fit))[0])
        labels.append(_label(item[1], f"{name}[{index}]"))
        if images[-1].shape != images[0].shape or images[-1].dtype != images[0].dtype:
            found = f"{tuple(images[-1].shape)} after {tuple(images[0].shape)}"
            remedy = "Pass fit=Fit(size=..., channels=...) (--size, --channels)."
            raise DataError(f"{name}[{index}]", "images of one shape and type", found, remedy)
    if not images:
        raise DataError(name, "at least one image", "none", "Check the data set.")
    y = class_indices(labels, f"labels of {name}")
    return Dataset(name, classes or numbered_classes(y, f"labels of {name}"), y, Stored(torch.stack(images)))


def _image(value: Any, where: str, fit: Fit) -> Tensor:
    if hasattr(value, "mode") and hasattr(value, "convert"):
        return pixels_of(value, fit.channels or header_of(value, where).channels).unsqueeze(0)
    return Stored(channels_first(tensor_of(value, where).unsqueeze(0), where)).images


def _label(value: Any, where: str) -> int:
    try:
        return operator.index(value.item() if isinstance(value, Tensor) else value)  # pyright: ignore[reportArgumentType]
    except (TypeError, RuntimeError) as error:
        found = f"{type(value).__name__} {value!r}"[:80]
        raise DataError(f"label of {where}", "a whole number", found, "Give the class's index.") from error


def _names(classes: Any) -> tuple[str, ...] | None:
    """Class names as texts; ImageNet's are tuples of synonyms."""
    if classes is None:
        return None
    return tuple(", ".join(map(str, name)) if isinstance(name, (tuple, list)) else str(name) for name in classes)


def _words(source: str) -> tuple[str, str]:
    name, _, root = source.removeprefix(_PREFIX).partition(":")
    if not name or not root:
        raise DataError("data", "torchvision:CLASS:ROOT", repr(source), "Write torchvision:CIFAR10:/path/to/folder.")
    return name, root


def _class(source: str) -> Any:
    name, _ = _words(source)
    datasets = extra("torchvision.datasets", "torchvision", source, error=DataError)
    kind = getattr(datasets, name, None)
    if not inspect.isclass(kind):
        remedy = nearest(name, datasets.__all__, "See torchvision.datasets for their names.")
        raise DataError(source, "a class of torchvision.datasets", repr(name), remedy)
    return kind


def _made(kind: Any, root: str, part: Part | None) -> Any:
    taken = inspect.signature(kind).parameters
    fixed: dict[str, Any] = {"root": root} | ({"download": False} if "download" in taken else {})
    if part is None:
        choices: list[dict[str, Any]] = [{}]
    elif "train" in taken:
        choices = [{"train": part == "train"}]
    else:
        choices = [{"split": "train"}] if part == "train" else [{"split": "test"}, {"split": "val"}]
    errors = []
    for choice in choices:
        try:
            return kind(**fixed, **choice)
        except Exception as error:  # what a constructor raises is its own affair
            errors.append(error)
    found = f"{type(errors[-1]).__name__}: {errors[-1]}"[:200]
    remedy = f"Fetch it first: torchvision.datasets.{kind.__name__}({root!r}, download=True)."
    raise DataError(f"torchvision:{kind.__name__}:{root}", "its files below the folder", found, remedy) from errors[0]
