"""Models that others made: state dicts, exported programs, ONNX files, libraries' identifiers, the user's own code.

`load` looks at what a source is and hands it to the module for its kind. Nothing that is read is ever unpickled with code
execution, and nothing that a file declares is allocated before it was measured; `trust` lifts that for one file.
"""

import dataclasses
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from shaketable.core.errors import InputError, ModelError
from shaketable.files import sha256_of
from shaketable.models.layers import normalised
from shaketable.models.spec import Loaded, ModelSpec
from shaketable.plugins import names_code, nearest_file

from .exported import Exported as Exported
from .exported import load_program
from .factory import load_factory
from .hubs import load_huggingface, load_timm
from .onnx import load_onnx
from .safety import sniff
from .state_dict import load_state_dict


def load(
    source: str,
    *,
    spec: ModelSpec | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
    labels: tuple[str, ...] | None = None,
    trust: bool | Collection[str] = False,
    limit: int | None = None,
) -> Loaded:
    """Load a model that was made elsewhere.

    Args:
        source: one of
            - a file of weights (`.pt`, `.pth`, `.ckpt`, `.bin`, `.safetensors`; also in RobustBench's layout), with `spec`;
            - a `.pt2` program of torch.export;
            - an `.onnx` file (no gradients);
            - `timm:NAME`, `hf:ORGANISATION/NAME` or a folder with Hugging Face's config.json: extras, which may download what
              is named;
            - `module:function` or `file.py:function`: your code, which is run.
        spec: the architecture, for files of weights.
        mean, std: the normalisation of images in [0, 1], one number a channel. None: the source's own, where it has one;
            empty: none.
        size: (h, w) of the images; a model of another size resizes them first.
        labels: the classes' names, instead of the source's.
        trust: True lifts the scan of files, and so runs what they bring; or the SHA-256 of files that are known to be good.
        limit: the most bytes that a file may declare; 20 GiB, or the memory that is available, if less.

    Returns a model in eval mode that takes float32 images in [0, 1] and gives logits, and what is known about it. The notes
    tell everything that was mended or assumed.

    Raises:
        ModelError: there is no such source, it holds no model, or the model does not fit.
        UnsafeFileError: the file would run code or take absurd memory.
        InputError: mean, std, size or labels that cannot be.

    Checked by tests/models/foreign.
    """
    if (mean is None) != (std is None):
        raise InputError("mean, std", "both or neither", "one of them", "Give --mean and --std together.")
    if source.startswith("timm:"):
        loaded = load_timm(source)
    elif source.startswith("hf:") or (Path(source) / "config.json").is_file():
        loaded = load_huggingface(f"hf:{source.removeprefix('hf:')}", trust=trust is True)
    elif names_code(source) and not Path(source).exists():
        loaded = load_factory(source)
    else:
        path = _existing(source)
        kind = sniff(path)
        trusted = trust is True or (not isinstance(trust, bool) and sha256_of(path) in set(trust))
        if kind == "exported":
            loaded = load_program(path, trust=trusted, limit=limit)
        elif kind == "onnx":
            loaded = load_onnx(path)
        else:
            spec = _with(spec, mean, std, labels)
            chosen = mean is None or len(mean) > 0
            loaded = load_state_dict(path, spec, trust=trusted, normalise=chosen, limit=limit)
    return _finish(loaded, mean, std, size, labels)


def _existing(source: str) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    expected = "a file, timm:NAME, hf:NAME, module:function or file.py:function"
    if path.is_dir():
        remedy = "Name a file in it; a Hugging Face folder is hf:FOLDER."
        raise ModelError(source, expected, "a folder that is no checkpoint of ours", remedy)
    known = re.match(r"([a-z]+):", source)
    found = f"nothing of the kind {known.group(1)}:" if known else "no such file"
    raise ModelError(source, expected, found, nearest_file(path))


def _with(
    spec: ModelSpec | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    labels: tuple[str, ...] | None,
) -> ModelSpec | None:
    """The spec with what was said besides."""
    if spec is None:
        return None
    if mean is not None and std is not None:
        spec = dataclasses.replace(spec, mean=tuple(mean), std=tuple(std))
    return dataclasses.replace(spec, labels=labels) if labels is not None else spec


def _finish(
    loaded: Loaded,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    size: tuple[int, int] | None,
    labels: tuple[str, ...] | None,
) -> Loaded:
    """Apply what was said to a model; one that has a spec was built with its mean, std and labels."""
    own = loaded.size
    resize = own if size is not None and own is not None and tuple(size) != own else None
    notes = loaded.notes
    if resize is not None and size is not None:
        notes += (f"Images of {size[0]} x {size[1]} are resized to {resize[0]} x {resize[1]} by the first layer.",)
    stated = loaded.spec is None and mean is not None and std is not None and (len(mean) or len(std))
    if stated and getattr(loaded.model, "normalise", None) is not None:
        found = f"{tuple(mean or ())} and {tuple(std or ())} besides"
        raise InputError("mean, std", "the model's own normalisation alone", found, "Leave them out.")
    model = loaded.model
    if stated or resize is not None:
        model = normalised(model, mean or () if stated else (), std or () if stated else (), resize=resize).eval()
    taken = (size[0], size[1]) if size is not None else own
    return dataclasses.replace(loaded, model=model, size=taken, labels=labels or loaded.labels, notes=notes)
