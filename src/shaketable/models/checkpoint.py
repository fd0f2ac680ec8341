"""Checkpoints of our own: saving a model with its spec, and loading it back, verified."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shaketable.core.errors import CheckpointError, ModelError, ShaketableError, UnsafeFileError
from shaketable.files import write_atomically

from .architectures import ARCHITECTURES
from .fingerprint import plain_tensor
from .layers import Wrapped
from .manifest import RESTORE, decode, encode, read_bytes
from .spec import Loaded, ModelSpec, assemble, build


def save(path: str | Path, model: nn.Module, spec: ModelSpec, *, facts: Mapping[str, Any] | None = None) -> str:
    """Write a model's weights with its spec, atomically: a crash leaves the old file or the new one.

    Args:
        path: of the file, `….safetensors`; missing folders are made.
        model: as `build(spec, seed)` made it, on any device, in any mode.
        spec: of the model; the weights must fit it, so that the file can be loaded again.
        facts: about the training, JSON values (NaN and infinities are written as Python's json does).

    Returns:
        The file's SHA-256, as `sha256sum` prints it. The same weights, spec and facts give the same bytes.

    Raises:
        ModelError: weights that do not fit the spec, or of a kind that safetensors cannot hold.
        InputError: facts that are no JSON.
        StorageError: the place cannot be written; an older file stays as it was.

    Cost: one copy of the weights on the CPU and two of the file in memory. Checked by tests/models/test_checkpoint.py.
    """
    tensors, tied = _tensors(model)
    _check_wrapper(model, spec)
    _check_fit(_skeleton(spec), tensors | {name: tensors[kept] for name, kept in tied.items()}, ModelError, "model")
    content = encode(tensors, spec, facts or {}, tied)
    write_atomically(Path(path), content)
    return hashlib.sha256(content).hexdigest()


def load(path: str | Path, *, trust: bool | Collection[str] = False) -> Loaded:
    """Read a checkpoint that `save` wrote, and verify it, whole, before anything of it is used.

    Args:
        path: of the file.
        trust: also import, hence run, the code that a `module:name` or `file.py:name` architecture names: True, or the
            SHA-256 of the files for which that is allowed.

    Returns:
        The model on the CPU in eval mode, with the weights' own dtype; `sha256` is the file's.

    Raises:
        CheckpointError: missing, truncated, damaged anywhere, without a manifest, of another version, or with weights
            that do not fit its spec.
        UnsafeFileError: its architecture is code outside this package, and it is not trusted.

    Nothing is allocated for the model before its spec's shapes were compared with the file's. Cost: the file is hashed
    twice; memory three times its size. Checked by tests/models/test_checkpoint.py (every byte of a header changed,
    bits flipped everywhere, truncated at every length).
    """
    import safetensors.torch

    where, content = str(path), read_bytes(path)
    manifest = decode(path, content)
    spec, ours = manifest.spec, manifest.spec.architecture in ARCHITECTURES
    trusted = trust is True or (not isinstance(trust, bool) and manifest.sha256 in set(trust))
    if not ours and not trusted:
        found = f"{spec.architecture!r}, code that loading would run"
        raise UnsafeFileError(where, "an architecture of this package", found, "Read that code, then give --trust.")
    try:
        tensors = safetensors.torch.load(content)
        tensors |= {name: tensors[kept] for name, kept in manifest.tied.items()}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
        raise CheckpointError(where, "a readable safetensors file", str(error), RESTORE) from error
    try:
        dtype = _check_fit(_skeleton(spec), tensors, CheckpointError, where)
        model = build(spec, 0).to(dtype)
    except CheckpointError:
        raise
    except ShaketableError as error:
        raise CheckpointError(where, "a spec that can be built", str(error), RESTORE) from error
    model.load_state_dict(tensors)
    notes = () if ours else (f"architecture {spec.architecture} is code from outside the package, run on trust",)
    return Loaded(model.eval(), spec, Path(path).stem, where, manifest.sha256, spec.size, spec.labels, notes=notes)


def _tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict as separate dense CPU tensors, and which names are other names of a tensor that is there."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            found = f"{type(value).__name__} under {name!r}"
            raise ModelError("model", "a state dict of tensors", found, "Remove get_extra_state from the module.")
        plain = plain_tensor(name, value)
        place = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and place in seen:
            tied[name] = seen[place]
        else:
            seen[place] = name
            tensors[name] = plain.clone()
    return tensors, tied


def _skeleton(spec: ModelSpec) -> nn.Module:
    """The spec's model without its memory; code from outside the package may not cope with that, so it is built."""
    if spec.architecture not in ARCHITECTURES:
        return build(spec, 0)
    with torch.device("meta"):
        return assemble(spec)


def _check_wrapper(model: nn.Module, spec: ModelSpec) -> None:
    """What a state dict does not hold, the layers before the network, must agree with the spec."""
    if not isinstance(model, Wrapped):
        remedy = "Build it by models.build(spec, seed), or wrap it: models.normalised(network, spec.mean, spec.std)."
        raise ModelError("model", "a model that build(spec, seed) made", type(model).__name__, remedy)
    statistics = model.normalise.statistics if model.normalise is not None else ((), ())
    if statistics != (spec.mean, spec.std) or model.resize is not None:
        found = f"{statistics}{'' if model.resize is None else ' after resizing'}"
        remedy = "Save it with the spec that it was built from, without resizing."
        raise ModelError("spec", f"the model's own normalisation, {spec.mean}, {spec.std}", found, remedy)


def _check_fit(
    skeleton: nn.Module, tensors: Mapping[str, Tensor], error: type[ShaketableError], where: str
) -> torch.dtype:
    """The floating dtype of the tensors, if they are exactly those of the skeleton; raises `error` otherwise."""
    wanted = skeleton.state_dict()
    remedy = "The spec is of another model: use the one that the weights belong to."
    for name in [*wanted, *tensors]:
        if name not in tensors or name not in wanted:
            found = f"no {name!r}" if name not in tensors else f"{name!r}, which that has not"
            raise error(where, "the tensors of the spec's model", found, remedy)
        if tensors[name].shape != wanted[name].shape:
            expected = f"{name!r} of shape {tuple(wanted[name].shape)}"
            raise error(where, expected, str(tuple(tensors[name].shape)), remedy)
    kinds = {tensors[name].dtype for name, tensor in wanted.items() if tensor.is_floating_point()}
    others = [name for name, tensor in wanted.items() if not tensor.is_floating_point()]
    odd = [name for name in others if tensors[name].dtype != wanted[name].dtype]
    if len(kinds) > 1 or odd or not all(kind.is_floating_point for kind in kinds):
        found = ", ".join(sorted({str(tensor.dtype) for tensor in tensors.values()}))
        raise error(where, "one floating dtype", found, "Convert the model by .float() before it is saved.")
    return next(iter(kinds), torch.float32)
