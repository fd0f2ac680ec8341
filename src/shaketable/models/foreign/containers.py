"""Finding the weights within what people save around them, and the normalisation within the weights."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shaketable.core.errors import ModelError

CONTAINERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights", "module"),
    *("backbone", "student", "last", "best", "state_dict_ema", "model_ema", "ema", "teacher"),
)
"""Names under which a state dict is saved, the likelier first. Of "last" and "best" it is "last", as in RobustBench."""

_OTHERS = ("optim", "sched", "scaler", "swa", "awp", "discriminator")
_PAIRS = {"mean": "std", "mu": "sigma", "_mean": "_std", "means": "stds", "image_mean": "image_std"}
_PAIRS |= {"pixel_mean": "pixel_std"}


def unwrap(value: Any, argument: str, notes: list[str]) -> dict[str, Any]:
    """The state dict within a saved object: names with tensors (or `TensorEntry`, before loading).

    Args:
        value: what the file holds.
        argument: how errors name the file.
        notes: sentences about what was chosen are added.

    Raises:
        ModelError: no state dict in it, or several of which none is the likelier.
    """
    place = ""
    for _ in range(6):
        if not isinstance(value, dict):
            found = f"a {type(value).__name__}" + (f" under {place!r}" if place else "")
            raise ModelError(argument, "a state dict: names with tensors", found, "Save model.state_dict().")
        tensors = {name: item for name, item in value.items() if isinstance(name, str) and _has_shape(item)}
        inner = {
            name: item
            for name, item in value.items()
            if isinstance(name, str) and isinstance(item, dict) and _holds_tensors(item, 4)
        }
        named = [name for name in CONTAINERS if name in inner]
        if tensors and not (named and len(inner[named[0]]) > len(tensors)):
            return tensors
        inner = {name: item for name, item in inner.items() if not name.lower().startswith(_OTHERS)}
        chosen = named[0] if named else next(iter(inner)) if len(inner) == 1 else None
        if chosen is None:
            found = f"the entries {', '.join(map(str, list(value)[:8]))}" if value else "an empty dictionary"
            remedy = "Save the state dict alone: torch.save(model.state_dict(), ...)."
            raise ModelError(argument, "a state dict, alone or under a name such as state_dict", found, remedy)
        others = [name for name in named if name != chosen]
        more = f"; {', '.join(others)} was not used" if others else ""
        notes.append(f"The weights were read from the entry {chosen!r}{more}.")
        place, value = chosen, inner[chosen]
    raise ModelError(argument, "a state dict", "entries nested more than six deep", "Save model.state_dict() alone.")


@dataclass(frozen=True)
class Separated:
    """A state dict without its normalisation buffers, and these as mean and std of images in [0, 1]; empty: none."""

    weights: dict[str, Tensor]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


def take_normalisation(tensors: Mapping[str, Tensor], channels: int) -> Separated:
    """Separate a pair of normalisation buffers from the weights.

    Args:
        tensors: a state dict.
        channels: of the images; a pair must have one number, or as many as this.

    A pair lies side by side under names such as mu and sigma, normalize.mean and normalize.std. Numbers above 2 are of
    images in 0..255 and are divided by 255.
    """
    for name, mean in tensors.items():
        place, _, last = name.rpartition(".")
        if last not in _PAIRS:
            continue
        partner = (f"{place}." if place else "") + _PAIRS[last]
        std = tensors.get(partner)
        if std is None or mean.numel() not in (1, channels) or std.numel() not in (1, channels):
            continue
        means, stds = (_spread(values, channels) for values in (mean, std))
        if max((*means, *stds)) > 2:
            means, stds = tuple(v / 255 for v in means), tuple(v / 255 for v in stds)
        rest = {key: value for key, value in tensors.items() if key not in (name, partner)}
        if all(math.isfinite(v) for v in means + stds) and min(stds) > 0:
            return Separated(rest, means, stds)
    return Separated(dict(tensors))


def _spread(values: Tensor, channels: int) -> tuple[float, ...]:
    numbers = [float(v) for v in values.detach().double().flatten()]
    return tuple(numbers * channels if len(numbers) == 1 else numbers)


def _has_shape(item: Any) -> bool:
    return hasattr(item, "shape") and isinstance(item.shape, tuple)


def _holds_tensors(item: dict[Any, Any], depth: int) -> bool:
    values = list(item.values())
    if any(_has_shape(value) for value in values):
        return True
    return depth > 0 and any(isinstance(value, dict) and _holds_tensors(value, depth - 1) for value in values)
