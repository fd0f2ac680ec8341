"""State dicts that others saved (`.pt`, `.pth`, `.ckpt`, `.bin`, `.safetensors`), loaded into our architectures."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shaketable.core.errors import ModelError
from shaketable.files import sha256_of
from shaketable.models.architectures import ARCHITECTURES
from shaketable.models.layers import Wrapped
from shaketable.models.spec import Loaded, ModelSpec, build

from . import robustbench
from .containers import take_normalisation, unwrap
from .guesses import guess
from .keys import match_keys
from .safety import Kind, memory_limit, scan, sniff


def load_state_dict(
    path: Path, spec: ModelSpec | None, *, trust: bool = False, normalise: bool = True, limit: int | None = None
) -> Loaded:
    """Load somebody's weights into the architecture that a spec names.

    Args:
        path: a file of torch.save (also before torch 1.6) or of safetensors. Wrapped state dicts are unwrapped, prefixes
            taken off, names matched (`keys.match_keys`); the notes say what was done.
        spec: the architecture. None is an error that says what the file looks like. Where the spec has no mean and std,
            they are taken from the file's own buffers (mu and sigma, normalize.mean, ...) or from what is known of
            RobustBench's entry at that path.
        trust: unpickle whatever the file holds, which runs its code; a whole pickled module is then taken as it is.
        normalise: False: the spec's mean and std are meant, also where it has none.
        limit: the most bytes that the file may declare; see `safety.memory_limit`.

    Raises:
        ModelError: no spec, another format, damage, or weights that do not fit.
        UnsafeFileError: a pickle that would run code or a trap; see `safety.scan`.

    The floating-point weights are cast to float32. Checked by tests/models/foreign/test_state_dict.py.
    """
    kind, notes = sniff(path), []
    entry = robustbench.entry_of(path)
    value = _read_trusted(path, kind) if trust else _read(path, kind, spec, memory_limit(limit))
    if trust and kind != "safetensors":
        notes.append("The file was unpickled without a check, as asked: whatever code it holds has run.")
    digest = sha256_of(path)
    if isinstance(value, nn.Module):
        return Loaded(value.eval(), None, path.stem, str(path), digest, notes=tuple(notes))
    tensors = unwrap(value, str(path), notes)
    if spec is None:
        raise _needs_spec(path, tensors)
    separated = take_normalisation(tensors, spec.channels)
    mean, std = separated.mean, separated.std
    spec = _normalised_spec(spec, mean, std, entry, notes) if normalise else spec
    if mean and normalise is False and (mean, std) != (spec.mean, spec.std):
        notes.append(f"The file's own normalisation, mean {mean} and std {std}, was not used: another was asked for.")
    if entry is not None and entry.other:
        expected = f"an entry of RobustBench whose network is {spec.architecture}"
        raise ModelError(str(path), expected, f"{entry.name}: {entry.other}", "Give its network as module:function.")
    model = _fill(build(spec, 0), separated.weights, str(path), notes)
    return Loaded(model.eval(), spec, path.stem, str(path), digest, spec.size, spec.labels, notes=tuple(notes))


def shapes_of(path: Path, *, limit: int | None = None) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the weights in a file, without running what it holds.

    Raises:
        ModelError, UnsafeFileError: see `load_state_dict`.
    """
    tensors = unwrap(_read(path, sniff(path), None, memory_limit(limit)), str(path), [])
    return {name: tuple(item.shape) for name, item in tensors.items()}


def _read(path: Path, kind: Kind, spec: ModelSpec | None, limit: int) -> Any:
    """What the file holds, by readers that run no code; without a spec, its shapes alone."""
    if kind == "safetensors":
        return _read_safetensors(path, limit)
    if kind not in ("torch-zip", "torch-legacy"):
        raise ModelError(str(path), "a file of weights", f"a file of kind {kind}", "Keep its ending, .pt2 or .onnx.")
    shapes = scan(path, limit=limit).value
    if spec is None:
        return shapes
    try:
        with torch.serialization.safe_globals(_numbers()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        remedy = "Fetch the file again; or save the state dict again with torch.save(model.state_dict(), ...)."
        raise ModelError(str(path), "a whole weights file", f"{type(error).__name__}: {first}", remedy) from error


def _read_safetensors(path: Path, limit: int) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.stat().st_size > limit:
        found = f"{path.stat().st_size}"
        raise ModelError(str(path), f"a file of at most {limit} bytes", found, "Use a machine with more memory.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        remedy = "Fetch the file again; it is damaged."
        raise ModelError(str(path), "a whole safetensors file", str(error)[:200], remedy) from error


def _read_trusted(path: Path, kind: Kind) -> Any:
    if kind == "safetensors":
        return _read_safetensors(path, memory_limit())
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
        raise ModelError(str(path), "a file that unpickles", found, "Make its code importable (PYTHONPATH).") from error


def _numbers() -> list[Any]:
    """NumPy's scalars, which many training loops save beside the weights; `pickles` lets only those of numbers through."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in "bBhHiIlLqQefd?"}
    names = [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *kinds]
    return list(names)


def _needs_spec(path: Path, tensors: Mapping[str, Any]) -> ModelError:
    seen = guess({name: tuple(item.shape) for name, item in tensors.items()})
    found = f"weights alone ({len(tensors)} tensors), which do not say" + (f"; they look like {seen}" if seen else "")
    known = ", ".join(ARCHITECTURES)
    remedy = f"Say --architecture NAME, with --classes, --channels and --size; known are {known}, or module:function."
    return ModelError(str(path), "the architecture of these weights", found, remedy)


def _normalised_spec(
    spec: ModelSpec,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    entry: robustbench.Entry | None,
    notes: list[str],
) -> ModelSpec:
    """The spec with the normalisation that is meant: the spec's own, the file's, or RobustBench's."""
    if entry is not None:
        notes.append(f"RobustBench's entry {entry.name} for {entry.dataset}, {entry.threat}, by its path.")
    if spec.mean:
        if mean and (mean, std) != (spec.mean, spec.std):
            notes.append(
                f"The file's own normalisation, mean {mean} and std {std}, was not used: another was asked for."
            )
        return spec
    if not mean and entry is not None and entry.normalisation is not None:
        mean, std = entry.normalisation
        notes.append(f"Normalised with mean {mean} and std {std}, as RobustBench's code of this entry does.")
    elif not mean and entry is not None and entry.dataset != "cifar10":
        notes.append(
            f"How RobustBench normalises for {entry.dataset} is not known here: give --mean and --std if it does."
        )
    elif mean:
        notes.append(f"Normalised with mean {mean} and std {std}, which the file holds.")
    return dataclasses.replace(spec, mean=mean, std=std)


def _fill(model: Wrapped, tensors: Mapping[str, Tensor], argument: str, notes: list[str]) -> Wrapped:
    """Put the weights into the network under its own names."""
    own = model.network.state_dict()
    shapes = {name: tuple(item.shape) for name, item in tensors.items()}
    matched = match_keys(shapes, {name: tuple(item.shape) for name, item in own.items()}, argument=argument)
    notes.extend(matched.notes)
    others = sorted({str(tensors[name].dtype) for name in matched.names.values()} - {"torch.float32"})
    if others:
        notes.append(f"Weights of type {', '.join(others)} were cast to float32.")
    filled = own | {ours: tensors[theirs] for ours, theirs in matched.names.items()}
    model.network.load_state_dict(filled)
    return model
