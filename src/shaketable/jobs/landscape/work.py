"""What a worker does for `shaketable landscape`: make the axes of a line, and measure a point on them."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core import CheckpointError
from ...files import sha256_of, write_atomically
from ...flatness.directions import Axes
from ...flatness.landscape import landscape_point
from ...flatness.trajectory import trajectory
from ...models import load
from ...runs import canonical
from ..flatness.cells import ImagePlace, ModelPlace, images_at, model_at
from ..flatness.measures import attack_of
from .cells import Line, Place


def make_axes(arguments: dict[str, Any], progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Do what an axes' task says; called in a worker.

    Raises:
        ShaketableError: whatever the direction or the trajectory raises.
        StorageError: the file cannot be written.
    """
    import safetensors.torch

    place, line = _place(arguments), _line(arguments)
    model, x, y = _subject(place)
    more: dict[str, Any] = {}
    if line.checkpoints:
        found = trajectory([_checkpoint(*given) for given in line.checkpoints], dims=line.dims)
        axes = found.axes
        more = {"path": found.path, "explained": found.explained, "off": found.off, "spans": found.spans()}
    else:
        axes = line.value(
            model, x, y, seed=place.seed, dims=line.dims, line=line.line, within=place.within, by=attack_of(place.attack),
            batch_size=place.batch_size, progress=progress,
        )  # fmt: skip
    tensors = {f"{k}/{name}": t for k, direction in enumerate(axes.directions) for name, t in direction.items()}
    tensors |= {f"{end}/{name}": pair[k] for name, pair in axes.limits.items() for k, end in enumerate(("low", "high"))}
    content = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
    write_atomically(Path(arguments["file"]), content)
    pairs = [(i, j) for i in range(line.dims) for j in range(i + 1, line.dims)]
    return {
        "sha256": hashlib.sha256(content).hexdigest(), "facts": dict(axes.facts), "forward": axes.calls.forward,
        "backward": axes.calls.backward, "cosines": [axes.cosine(i, j) for i, j in pairs], **more,
    }  # fmt: skip


def measure_point(arguments: dict[str, Any]) -> dict[str, Any]:
    """Do what a point's task says; called in a worker, which keeps model, images and axes for its next points."""
    place = _place(arguments)
    model, x, y = _subject(place)
    if arguments["line"] is None:
        axes = Axes({}, ())
    elif arguments["axes"]:
        axes = _kept_axes(canonical.text(arguments["axes"]))
    else:
        axes = _drawn_axes(canonical.text({key: arguments[key] for key in ("place", "line")}))
    point = landscape_point(
        model, x, y, axes=axes, coordinates=arguments["coordinates"], seed=place.seed, within=place.within,
        by=attack_of(place.attack), batch_size=place.batch_size,
    )  # fmt: skip
    return {
        "coordinates": list(point.coordinates), "robust_loss": point.robust_loss, "clean_loss": point.clean_loss,
        "robust": point.robust.hits, "clean": point.clean.hits, "n": point.clean.n, "silent": point.silent,
        "forward": point.calls.forward, "backward": point.calls.backward,
    }  # fmt: skip


def _place(arguments: Mapping[str, Any]) -> Place:
    given = arguments["place"]
    model, images = ModelPlace(**given["model"]), ImagePlace(**given["images"])
    return Place(**{**given, "model": model, "images": images})


def _line(arguments: Mapping[str, Any]) -> Line:
    given = arguments["line"]
    places = tuple((ModelPlace(**model), sha) for model, sha in given["checkpoints"])
    return Line(**{**given, "checkpoints": places})


def _subject(place: Place) -> tuple[nn.Module, Tensor, Tensor]:
    data, x, y = images_at(asdict(place.images), place.data_sha, place.device)
    return model_at(asdict(place.model), place.model_sha, place.device, data).model, x, y


def _checkpoint(place: ModelPlace, sha256: str) -> nn.Module:
    if sha256_of(Path(place.source)) != sha256:
        remedy = "It has changed since the job began: start it again."
        raise CheckpointError(place.source, f"a file with the hash {sha256[:12]}…", "another", remedy)
    return load(place.source, trust=place.trust).model


@functools.lru_cache(maxsize=2)
def _drawn_axes(text: str) -> Axes:
    """Axes that cost nothing to make again."""
    arguments = canonical.read(text)
    place, line = _place(arguments), _line(arguments)
    model, x, y = _subject(place)
    return line.value(model, x, y, seed=place.seed, dims=line.dims, line=line.line)


@functools.lru_cache(maxsize=2)
def _kept_axes(text: str) -> Axes:
    """Axes from their file, which is made again if it is not there."""
    import safetensors.torch

    arguments = canonical.read(text)
    place, line, path = _place(arguments), _line(arguments), Path(arguments["file"])
    if not path.is_file():
        make_axes(arguments)
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != arguments["sha256"]:
        remedy = f"Remove {path.parent}, and the ledger's cells beside it: all is measured again."
        raise CheckpointError(str(path), f"axes with the hash {arguments['sha256'][:12]}…", f"{found[:12]}…", remedy)
    tensors = {name: t.to(place.device) for name, t in safetensors.torch.load(content).items()}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, own = name.partition("/")
        parts.setdefault(part, {})[own] = tensor
    model = _subject(place)[0]
    own = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    directions = tuple({name: parts[str(k)][name] for name in own if name in parts[str(k)]} for k in range(line.dims))
    limits = {name: (low, parts["high"][name]) for name, low in parts.get("low", {}).items()}
    with torch.no_grad():
        origin = {name: own[name].detach() for name in directions[0]}
    return Axes(origin, directions, limits)
