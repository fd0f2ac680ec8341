"""The plane in which a training went: principal directions of its checkpoints, and its path in them (Li et al. 2018)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import InputError
from .directions import Axes

_LEAST = 1e-12  # of the variance: less along a direction is rounding


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A training's checkpoints, seen in their principal directions.

    Args:
        axes: the origin is the last checkpoint; each direction has length 1, so coordinates are distances in the weights.
        path: each checkpoint's coordinates, in order; the last one's are 0.
        explained: the share of the checkpoints' variance that lies along each axis; they sum to at most 1.
        off: how far each checkpoint is from the plane, relative to its distance from the last one (0 for the last).
    """

    axes: Axes
    path: tuple[tuple[float, ...], ...]
    explained: tuple[float, ...]
    off: tuple[float, ...]

    def spans(self, margin: float = 0.25) -> tuple[tuple[float, float], ...]:
        """(low, high) of each axis: the path's extent and a share of it beyond at both ends.

        An axis along which the path has less than a tenth of its largest extent is shown that wide.
        """
        columns = list(zip(*self.path, strict=True))
        widest = max(max(column) - min(column) for column in columns) or 1.0
        ends: list[tuple[float, float]] = []
        for column in columns:
            middle, half = (max(column) + min(column)) / 2, (max(column) - min(column)) / 2
            half = max(half, widest / 20) * (1 + 2 * margin)
            ends.append((middle - half, middle + half))
        return tuple(ends)


def trajectory(models: Sequence[nn.Module], *, dims: int = 2) -> Trajectory:
    """Principal directions of a training's checkpoints, in order.

    Args:
        models: one for each checkpoint, of one architecture; two or more, and more than `dims`.
        dims: how many directions.

    The principal components are those of all parameters (tied ones once), about their mean. Running statistics and other
    floating buffers are no part of the distances, but move along: each direction, a sum of checkpoints with weights, is the
    same sum of their buffers, so that a point on the path has the buffers that the training had there. A buffer stays within
    what it was at the checkpoints, since a running variance must not become negative.

    Each direction points to where the path is farthest from the last checkpoint: that coordinate is positive.

    Raises:
        InputError: too few checkpoints, other names or shapes, weights that are not finite, or checkpoints that do not span
            so many directions.

    Cost: no pass; as many copies of the weights as checkpoints. Checked by tests/flatness/test_trajectory.py.
    """
    if not 1 <= dims < len(models):
        found = f"{len(models)} checkpoints, {dims} directions"
        raise InputError("models, dims", "1 <= dims < number of checkpoints", found, "Keep more checkpoints.")
    states = [_state(model) for model in models]
    for k, state in enumerate(states):
        _require_alike(state, states[-1], k)
    parameters = [name for name, _ in models[-1].named_parameters() if name in states[-1]]
    rows = torch.stack([torch.cat([s[name].reshape(-1).double().cpu() for name in parameters]) for s in states])
    if not bool(torch.isfinite(rows).all()):
        raise InputError("models", "finite weights", "NaN or infinite entries", "Leave out the diverged checkpoints.")
    mixes, shares = _components(rows, dims)
    coordinates = rows - rows[-1]
    path, planes = [], []
    for mix in mixes:
        direction = mix @ (rows - rows.mean(0))
        along = coordinates @ direction
        sign = -1.0 if float(along[along.abs().argmax()]) < 0 else 1.0
        path.append(sign * along + 0.0)  # no -0
        planes.append(sign * mix)
    axes = Axes(states[-1], tuple(_direction(mix, states) for mix in planes), _limits(states, parameters))
    left = (coordinates.norm(dim=1) ** 2 - sum(p**2 for p in path)).clamp(min=0).sqrt()
    off = [float(a / b) if b > 0 else 0.0 for a, b in zip(left, coordinates.norm(dim=1), strict=True)]
    return Trajectory(axes, tuple(tuple(row) for row in torch.stack(path).T.tolist()), shares, tuple(off))


def _components(rows: Tensor, dims: int) -> tuple[list[Tensor], tuple[float, ...]]:
    """For each principal direction the checkpoints' weights in it, and its share of the variance."""
    centred = rows - rows.mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = float(values.sum())
    if not total > 0 or float(values[dims - 1]) <= _LEAST * total:
        found = f"{int((values > _LEAST * total).sum()) if total > 0 else 0}"
        raise InputError("models", f"checkpoints that span {dims} directions", found, "Ask for fewer, or give others.")
    mixes = [vectors[:, k] / math.sqrt(float(values[k])) for k in range(dims)]
    return mixes, tuple(float(values[k]) / total for k in range(dims))


def _direction(mix: Tensor, states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The sum of the checkpoints' distances from their mean, with these weights."""
    made: dict[str, Tensor] = {}
    for name, last in states[-1].items():
        stack = torch.stack([state[name].double().cpu() for state in states])
        made[name] = torch.tensordot(mix, stack - stack.mean(0), 1).to(last)
    return made


def _limits(states: list[dict[str, Tensor]], parameters: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    made: dict[str, tuple[Tensor, Tensor]] = {}
    for name in states[-1]:
        if name not in parameters:
            stack = torch.stack([state[name] for state in states])
            made[name] = (stack.amin(0), stack.amax(0))
    return made


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, tied ones once, and buffers; floating ones alone."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named if tensor.is_floating_point()}


def _require_alike(state: dict[str, Tensor], last: dict[str, Tensor], k: int) -> None:
    odd = sorted(set(state) ^ set(last)) or [name for name in last if state[name].shape != last[name].shape]
    if odd:
        found = f"other tensors in checkpoint {k + 1}: {', '.join(odd[:3])}"
        raise InputError("models", "checkpoints of one architecture", found, "Give those of one training.")
