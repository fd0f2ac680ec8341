"""The smallest shift onto a hyperplane within bounds, in three norms (Croce & Hein 2020).

    minimise ||t||_p  subject to  <w, t> + offset = 0,  low <= t <= high

for many problems at once, on the last dimension. The bounds hold 0, since the point that is shifted lies in its box. Where
no shift within the bounds reaches the plane, the result is the corner that comes nearest to it. Entries at which w is 0 are not
shifted.

An optimal shift moves each entry the way that brings the plane nearer, by ``room`` at most. For linf all move by one level, or
by their room; for l2 in proportion to |w|; for l1 those of the largest |w| move by their whole room. Cost: no pass of a model;
for linf and l2 a few sweeps over the entries (Newton's method on a concave piecewise linear function, which ends after finitely
many steps at the exact level; the authors sort), for l1 one sort.

Checked by tests/attacks/test_hyperplane.py: feasible, and as short as SciPy's linear program and optimiser find them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Shift = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def shift_linf(w: Tensor, offset: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The shift of smallest largest entry.

    Args:
        w: the hyperplane's normal, (..., m); it may broadcast against the bounds.
        offset: its value where nothing is shifted, (...).
        low, high: bounds of the shift, (..., m); low <= 0 <= high, infinite where there are none.
    """
    way, steep, room = _towards(w, offset, low, high)
    return torch.minimum(room, _level(steep, steep, None, room, offset.abs())).mul_(way)


def shift_l2(w: Tensor, offset: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The shift of smallest Euclidean length; see `shift_linf` for the arguments."""
    way, steep, room = _towards(w, offset, low, high)
    peak = steep.amax(-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)  # squares neither overflow nor vanish
    rate = steep / peak
    level = _level(rate, rate * rate, rate, room, offset.abs() / peak[..., 0])
    return torch.minimum(room, _number(level * rate)).mul_(way)


def shift_l1(w: Tensor, offset: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The shift of smallest sum of absolute entries; see `shift_linf` for the arguments."""
    way, steep, room = _towards(w, offset, low, high)
    need = offset.abs()[..., None]
    steep, order = steep.sort(dim=-1, descending=True, stable=True)
    order = order.expand_as(room)
    gain = torch.minimum(_number(steep * room.gather(-1, order)), need)
    before = gain.cumsum(-1) - gain
    wanted = _number((need - before).clamp_(min=0) / steep)
    return torch.minimum(torch.zeros_like(room).scatter_(-1, order, wanted), room).mul_(way)


SHIFTS: dict[str, Shift] = {"linf": shift_linf, "l2": shift_l2, "l1": shift_l1}


def _towards(w: Tensor, offset: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which way each entry moves, how steep the plane is there, and how far the entry may go: 0 where it is flat."""
    way = w.sign() * -offset.sign()[..., None]
    return way, w.abs(), _number(torch.maximum(way * high, way * low))


def _number(tensor: Tensor) -> Tensor:
    """0 for what is 0 * inf or 0 / 0, in place; much faster on a CPU than choosing entry by entry."""
    return tensor.nan_to_num_(0.0, torch.inf)


def _level(steep: Tensor, pull: Tensor, rate: Tensor | None, room: Tensor, need: Tensor) -> Tensor:
    """The level at which sum(steep * min(room, level * rate)) is `need`; infinite where it never is. Shape (..., 1).

    Newton from the left: at each step the entries that would exceed their room are set to it, for good, so that the level
    only rises; when none is left to set, the level is exact. `pull` is steep * rate; a rate of None is 1.
    """
    worth = (steep * room).nan_to_num_(0.0, 0.0)  # where there are no bounds, nothing is ever set
    need, free = need[..., None], room > 0
    left, product = free.to(worth), torch.empty_like(worth)
    while True:
        count = left.sum(-1, dtype=torch.float32)
        slope = torch.mul(pull, left, out=product).sum(-1, keepdim=True)
        spent = torch.mul(worth, left.neg_().add_(1), out=product).sum(-1, keepdim=True)
        level = torch.where(slope > 0, (need - spent).clamp(min=0) / slope, torch.inf)
        free &= room > (level if rate is None else level * rate)
        if torch.equal(left.copy_(free).sum(-1, dtype=torch.float32), count):
            return level
