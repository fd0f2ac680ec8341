"""Models: what they are, how they are made, saved, loaded and checked.

`build` makes a model from a `ModelSpec`; `save` and `load` keep it in a checkpoint of our own; `load` also reads what
others trained; `check` says, before any job, whether a model and data fit each other.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from shaketable.core.errors import InputError, ModelError
from shaketable.plugins import nearest_file

from . import checkpoint
from .architectures import ARCHITECTURES as ARCHITECTURES
from .checkpoint import save as save
from .contract import Contract as Contract
from .contract import Finding as Finding
from .contract import check as check
from .fingerprint import fingerprint as fingerprint
from .layers import Normalise as Normalise
from .layers import Resize as Resize
from .layers import Wrapped as Wrapped
from .layers import normalised as normalised
from .manifest import Manifest as Manifest
from .manifest import is_checkpoint as is_checkpoint
from .manifest import read_manifest as read_manifest
from .spec import Loaded as Loaded
from .spec import ModelSpec as ModelSpec
from .spec import build as build
from .spec import read_labels as read_labels

RUN_FILES = ("best.safetensors", "last.safetensors", "model.safetensors")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pt2", ".onnx", ".tar")


def load(
    source: str | Path,
    *,
    spec: ModelSpec | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
    labels: str | Path | None = None,
    trust: bool | Collection[str] = False,
) -> Loaded:
    """Load a model, ours or anybody's, in eval mode, taking images in [0, 1] and returning logits.

    Args:
        source: a checkpoint of ours (`….safetensors`), a run's folder (its best.safetensors, else last.safetensors, else
            model.safetensors), or what `shaketable.models.foreign.load` takes: `.pt` weights, `.pt2` programs, ONNX,
            `module:function`, `timm:NAME` and `hf:NAME`.
        spec: the architecture of weights that come without one.
        mean, std: the normalisation of a model that comes without one, one number a channel for images in [0, 1].
        size: (h, w) of the images that it shall take; a model of another size resizes them first.
        labels: a JSON file of the classes' names, see `read_labels`.
        trust: run the code that the source names or holds: True, or the SHA-256 of files that are known to be good.

    Raises:
        InputError: no such file (the nearest names are suggested), labels that do not fit, or a normalisation that is
            not the one that our checkpoint states.
        CheckpointError: a checkpoint of ours that is damaged; see `shaketable.models.checkpoint.load`.
        ModelError, UnsafeFileError: what the foreign loaders refuse.

    Checked by tests/models/test_checkpoint.py.
    """
    names = None if labels is None else read_labels(labels)
    path = run_file(Path(source)) if Path(source).is_dir() else Path(source)
    if path.suffix in _SUFFIXES and not path.exists():
        raise _missing(path)
    foreign_weights = spec is not None and path.is_file() and not is_checkpoint(path)
    if path.suffix == ".safetensors" and not path.is_dir() and not foreign_weights:
        loaded = checkpoint.load(path, trust=trust)
        return _adapt(loaded, mean, std, size, names)
    from .foreign import load as load_foreign

    return load_foreign(str(source), spec=spec, mean=mean, std=std, size=size, labels=names, trust=trust)


def _adapt(
    loaded: Loaded,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    size: tuple[int, int] | None,
    labels: tuple[str, ...] | None,
) -> Loaded:
    """What a caller asked for, put onto a checkpoint of ours, which states everything itself."""
    spec = loaded.spec
    assert spec is not None
    for name, given, stated in (("mean", mean, spec.mean), ("std", std, spec.std)):
        if given is not None and tuple(given) != stated:
            expected = f"the checkpoint's own {stated or 'none'}"
            raise InputError(name, expected, str(tuple(given)), f"Leave out --{name}: the checkpoint states it.")
    if labels is not None:
        if len(labels) != spec.classes:
            found = f"{len(labels)} names"
            raise InputError("labels", f"{spec.classes} names, one a class", found, "Give the model's own classes.")
        loaded = replace(loaded, labels=labels)
    if size is not None and tuple(size) != spec.size:
        note = (
            f"images of {size[0]} x {size[1]} are resized to {spec.size[0]} x {spec.size[1]} by the model's first layer"
        )
        model = normalised(loaded.model, (), (), resize=spec.size)
        loaded = replace(loaded, model=model, size=(size[0], size[1]), notes=(*loaded.notes, note))
    return loaded


def run_file(folder: Path) -> Path:
    """The checkpoint of a run's folder; the folder itself if it is a library's (a Hugging Face model)."""
    for name in RUN_FILES:
        file = folder / name
        if file.is_file() and (
            name != "model.safetensors" or is_checkpoint(file) or not (folder / "config.json").exists()
        ):
            return file
    if (folder / "config.json").is_file():
        return folder
    there = sorted(p.name for p in folder.iterdir())[:5]
    found = f"{', '.join(there) or 'nothing'} in it"
    remedy = "Give a run's folder, or the model's file itself."
    raise ModelError(str(folder), f"a folder with {' or '.join(RUN_FILES)}", found, remedy)


def _missing(path: Path) -> InputError:
    """The error for a file that is not there, with the nearest names beside it."""
    folder = path.parent
    found = f"no file {path.name!r} in {str(folder)!r}" if folder.is_dir() else f"no folder {str(folder)!r}"
    return InputError("model", "a file that exists", found, nearest_file(path))
