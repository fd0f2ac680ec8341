"""One step of an ascent, with few temporaries: what counts where passes are cheap, or weights are many."""

from typing import Any

import torch
from torch import Tensor

from .ball import Ball
from .constraint import Constraint
from .norms import broadcast_norm
from .tree import Tree, leaves, map_leaves


def moved(
    within: Constraint, origin: Tree, delta: Tree, gradient: Tree, step: float, reach: Any, *, first: bool
) -> Tree:
    """project(delta + step * reach * steepest(gradient)); entries of the gradient that are not finite count as 0.

    Args:
        reach: one radius, for each leaf, as ``within.reach(origin)`` gives it.
        first: whether delta is 0 and the step no longer than the radius, so that an l2 step needs no projection.

    The same bits as the ball's own methods, but for the first l2 step of weights, which may differ in the last place.
    Checked by tests/core/test_moves.py.
    """
    if type(within) is Ball and within.mask is None:
        if within.norm == "linf":
            box = within.box
            return map_leaves(lambda d, g, r, o: _along_signs(d, g, step, r, o, box), delta, gradient, reach, origin)
        if within.norm == "l2" and within.box is None and first and within.per in ("tensor", "filter"):
            sizes = map_leaves(lambda g: broadcast_norm("l2", g, within.per), gradient)
            if _ordinary(leaves(sizes)):
                return map_leaves(lambda g, n, r: g * (step * r / n), gradient, sizes, reach)
    direction = within.steepest(map_leaves(finite, gradient), origin, delta)
    return within.project(map_leaves(lambda d, s, r: d + step * r * s, delta, direction, reach), origin)


def finite(gradient: Tensor) -> Tensor:
    """A gradient, with 0 for entries that are not finite; a new tensor."""
    return gradient.nan_to_num(0.0, 0.0, 0.0)


def _along_signs(delta: Tensor, gradient: Tensor, step: float, reach: Any, origin: Tensor, box: Any) -> Tensor:
    """The step in an linf ball, in one new tensor."""
    new = finite(gradient).sign_().mul_(step * reach).add_(delta)
    new = new.clamp_(-reach, reach) if isinstance(reach, float) else new.clamp_(min=-reach, max=reach)
    return new if box is None else new.add_(origin).clamp_(*box).sub_(origin)


def _ordinary(sizes: list[Tensor]) -> bool:
    """Whether all norms are well above underflow, and finite; one wait for the device."""
    ends = torch.stack([torch.stack(torch.aminmax(size)) for size in sizes if size.numel()])
    return bool((ends[:, 0].amin() > 1e-15) & torch.isfinite(ends[:, 1].amax()))


def per_entry(gradient: Tree, rowwise: bool) -> Tree:
    """A gradient divided by its mean absolute value: of each example, or of all entries of the place at once."""
    if rowwise:
        return map_leaves(
            lambda g: g / _floored(g.abs().mean(tuple(range(1, g.dim())), True) if g.dim() > 1 else g), gradient
        )
    parts = [g for g in leaves(gradient) if g.numel()]
    mean = torch.stack([g.abs().sum().to(parts[0]) for g in parts]).sum() / sum(g.numel() for g in parts)
    return map_leaves(lambda g: g / _floored(mean.to(g)), gradient)


def _floored(size: Tensor) -> Tensor:
    return size.abs().clamp(min=torch.finfo(size.dtype).tiny)
