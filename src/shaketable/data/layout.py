"""Which image is of which class and part, read from the names of files and folders."""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal, final

from ..core.errors import DataError
from .archives import Listing
from .decoding import SUFFIXES

Part = Literal["train", "validation", "test"]
PARTS: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_FLAT = re.compile(r"(\d{1,5})_(n\d{8})_(.+)\.[A-Za-z]+")
_IMAGENET = 1000


@final
@dataclass(frozen=True)
class Labelled:
    """The image files of one part, by name, and their labels."""

    members: tuple[str, ...]
    labels: tuple[int, ...]


@final
@dataclass(frozen=True)
class Layout:
    """What the names say: the classes and the images of each part; ``parts[None]`` where there are no parts."""

    classes: tuple[str, ...]
    parts: dict[Part | None, Labelled]


def layout(listing: Listing, where: str) -> Layout:
    """Read classes and parts off the names in a folder or zip.

    Three layouts are known, each also one folder deeper:

    - ``class/…/image.jpg``: a folder for each class; classes are numbered in the order of their names as texts, which is
      torchvision's rule ("10" comes before "2").
    - ``train/class/…`` with ``test/`` and perhaps ``val/``: as ImageNet's. Classes are numbered by the training part (by
      all the parts if there is none), and the others may lack some, but have no new ones. A ``val`` without a labelled
      ``test`` beside it counts as the test part. A part whose images lie in no class folder is unlabelled and left out.
    - ``IIII_wnid_name.jpg``, flat: IIII is ImageNet's class index; there are 1000 classes, those without an image are
      named by their number.

    Files with other suffixes and hidden ones are skipped, and so is a folder that is named like an image file.

    Raises:
        DataError: no image at all; images beside class folders; a class folder without images in the training part; a
            class in one part alone; one class index with two wnids.

    Checked by tests/data/test_layout.py.
    """
    images = [name for name in listing.files if _is_image(name)]
    if not images:
        expected = f"images ({', '.join(SUFFIXES)}) in class folders"
        found = f"{len(listing.files)} files, none of them an image"
        raise DataError(where, expected, found, "Give the folder that holds the class folders, or train/ and test/.")
    images, folders = _without_common_root(images, list(listing.folders))
    paths = [name.split("/") for name, _ in images]
    if all(len(path) == 1 and _FLAT.fullmatch(path[0]) for path in paths):
        return _flat(images, where)
    if all(path[0].lower() in PARTS for path in paths):
        return _parted(images, folders, where)
    if loose := [path[0] for path in paths if len(path) == 1]:
        expected = "class folders, or files named IIII_wnid_name.jpg"
        found = f"{len(loose)} images in no class folder, such as {loose[0]!r}"
        raise DataError(where, expected, found, "Sort the images into a folder for each class, or remove them.")
    classes = _folders_in(folders, "") | {path[0] for path in paths}
    return _by_class(tuple(sorted(classes)), {None: [(full, name.split("/")[0]) for name, full in images]}, where, None)


def loose_images(listing: Listing) -> tuple[str, ...]:
    """The images of a folder or zip in which all of them lie in no folder and none is named by ImageNet's classes; else none.

    These names tell no classes. Checked by tests/data/test_unlabelled.py.
    """
    images = tuple(name for name in listing.files if _is_image(name))
    return () if any("/" in name or _FLAT.fullmatch(name) for name in images) else images


def _is_image(name: str) -> bool:
    *folders, last = name.lower().split("/")
    return last.endswith(SUFFIXES) and not any(folder.endswith(SUFFIXES) for folder in folders)


def _without_common_root(images: list[str], folders: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Pairs of shortened and full name, without a folder around everything; a lone class folder is not one."""
    named = [(name, name) for name in images]
    while True:
        firsts = {short.split("/")[0] for short, _ in named}
        rests = [short.partition("/")[2] for short, _ in named]
        deep = all("/" in rest for rest in rests) or all(_FLAT.fullmatch(rest) for rest in rests)
        if len(firsts) != 1 or not deep or next(iter(firsts)).lower() in PARTS:
            return named, folders
        root = f"{next(iter(firsts))}/"
        named = [(rest, full) for rest, (_, full) in zip(rests, named, strict=True)]
        folders = [folder.removeprefix(root) for folder in folders if folder.startswith(root)]


def _folders_in(folders: list[str], root: str) -> set[str]:
    inside = {folder.removeprefix(root) for folder in folders if folder.startswith(root)}
    return {name for name in inside if name and "/" not in name and not name.lower().endswith(SUFFIXES)}


def _parted(images: list[tuple[str, str]], folders: list[str], where: str) -> Layout:
    parts: dict[Part | None, list[tuple[str, str]]] = {}
    known: set[str] = set()  # the training part's class folders, whether they hold images or not
    for folder in sorted({short.split("/")[0] for short, _ in images}):
        inside = [(short.split("/")[1:], full) for short, full in images if short.startswith(f"{folder}/")]
        loose = [full for path, full in inside if len(path) == 1]
        if len(loose) == len(inside):
            continue
        if loose:
            found = f"{len(loose)} images beside the class folders, such as {loose[0]!r}"
            raise DataError(f"{where}/{folder}", "class folders", found, "Sort these images into class folders.")
        part = PARTS[folder.lower()]
        if part in parts:
            raise DataError(where, f"one {part} folder", f"two, one of them {folder!r}", "Merge or rename them.")
        parts[part] = [(full, path[0]) for path, full in inside]
        known |= _folders_in(folders, f"{folder}/") if part == "train" else set()
    if not parts:
        raise DataError(where, "class folders within each part", "images only", "Sort the images into class folders.")
    if "validation" in parts and "test" not in parts:
        parts["test"] = parts.pop("validation")
    source: list[Part | None] = ["train"] if "train" in parts else list(parts)
    classes = known | {name for part in source for _, name in parts[part]}
    return _by_class(tuple(sorted(classes)), parts, where, "train" if "train" in parts else None)


def _by_class(
    classes: tuple[str, ...], parts: dict[Part | None, list[tuple[str, str]]], where: str, complete: Part | None
) -> Layout:
    index = {name: label for label, name in enumerate(classes)}
    for part, pairs in parts.items():
        here = {name for _, name in pairs}
        if new := sorted(here - index.keys()):
            expected = f"the {len(classes)} classes of the training part"
            raise DataError(f"{where}, {part}", expected, f"the class {new[0]!r}", "Rename or remove the class folder.")
        if part == complete and (empty := sorted(index.keys() - here)):
            expected = "images in every class folder"
            remedy = "Remove the empty folder, or fill it: it would shift the classes' numbers."
            raise DataError(where, expected, f"none in {empty[0]!r}", remedy)
    order: tuple[Part | None, ...] = (None, "train", "validation", "test")
    labelled: dict[Part | None, Labelled] = {
        part: Labelled(tuple(full for full, _ in parts[part]), tuple(index[name] for _, name in parts[part]))
        for part in order
        if part in parts
    }
    return Layout(classes, labelled)


def _flat(images: list[tuple[str, str]], where: str) -> Layout:
    names: dict[int, str] = {}
    wnids: dict[int, set[str]] = defaultdict(set)
    labels = []
    for short, _ in images:
        match = _FLAT.fullmatch(short)
        assert match is not None
        label = int(match[1])
        labels.append(label)
        wnids[label].add(match[2])
        names.setdefault(label, match[3].replace("_", " "))
        if len(wnids[label]) > 1:
            found = f"class {label} as {' and '.join(sorted(wnids[label]))}"
            raise DataError(where, "one wnid for each class index", found, "Correct the file names.")
    count = max(_IMAGENET, max(labels) + 1)
    classes = tuple(names.get(label, f"class {label}") for label in range(count))
    return Layout(classes, {None: Labelled(tuple(full for _, full in images), tuple(labels))})
