"""The conformance suite of constraint sets."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core import generator
from ..core.tree import add, leaves, map_leaves
from .outcome import require, run

DRAWS = 20


def check_constraint(constraint: Any, origin: Any = None, *, tolerance: float = 1e-5) -> tuple[str, ...]:
    """What ascents rely on: the methods of `core.constraint.Constraint`.

    Args:
        constraint: a set, before `on` is called.
        origin: the point around which; a tensor or a dict of them. None: 6 images (1, 8, 8) in [.1, .9].
        tolerance: relative, of sizes.

    Checks: a feasible delta stays; what is projected is feasible, and projecting it again changes nothing; draws are feasible
    and come from the generator alone; the steepest direction ascends at least as fast as 20 random feasible ones; sizes have
    the unit of the radius; `clip` changes nothing that is feasible; a set of rows is that of the whole; nothing is changed.

    Returns: the names of the checks. Raises: ConformanceError.
    """
    source = torch.Generator().manual_seed(1)
    place = 0.1 + 0.8 * torch.rand(6, 1, 8, 8, generator=source, dtype=torch.float64) if origin is None else origin
    held = map_leaves(torch.clone, place)
    run(f"constraint {constraint!r}"[:120], {"fits the origin": lambda: constraint.on(place)})
    limits = constraint.on(place)
    checks: dict[str, Callable[[], None]] = {
        "projects into itself, and only once": lambda: _projects(limits, place, tolerance),
        "leaves what is feasible": lambda: _leaves_alone(limits, place),
        "draws what is feasible, from the generator alone": lambda: _draws(limits, place, tolerance),
        "goes the steepest way": lambda: _steepest(limits, place),
        "clips nothing that is feasible": lambda: _clips(limits, place),
        "is the same for some of the rows": lambda: _rows(limits, place),
        "changes nothing": lambda: require(_same(held, place, 0.0), "the origin has changed"),
    }
    return run(f"constraint {constraint!r}"[:120], checks)


def _noise(place: Any, seed: int, scale: float = 1.0) -> Any:
    source = torch.Generator().manual_seed(seed)
    return map_leaves(lambda t: scale * torch.randn(t.shape, generator=source, dtype=torch.float64).to(t), place)


def _same(a: Any, b: Any, tolerance: float) -> bool:
    return all(torch.allclose(s, t, rtol=0.0, atol=tolerance) for s, t in zip(leaves(a), leaves(b), strict=True))


def _drawn(limits: Any, place: Any, seed: int) -> Any:
    return limits.sample(place, generator(seed, "conformance"))


def _largest(limits: Any, place: Any) -> list[float]:
    """Of many drawn deltas, projected: the largest sizes; the radius is not known by name."""
    sizes = [limits.size(limits.project(_noise(place, k, 100.0), place), place) for k in range(3)]
    return [max(float(t.max()) for t in leaves(size)) for size in sizes]


def _projects(limits: Any, place: Any, tolerance: float) -> None:
    for k, scale in enumerate((1e-3, 0.1, 1.0, 100.0)):
        once = limits.project(_noise(place, k, scale), place)
        size = max(float(t.max()) for t in leaves(limits.size(once, place)))
        top = max(_largest(limits, place))
        require(size <= top * (1 + tolerance) + 1e-12, f"a size of {size:g} where others are {top:g} at most")
        require(_same(once, limits.project(once, place), 1e-7), "projecting again changes it")


def _leaves_alone(limits: Any, place: Any) -> None:
    inside = map_leaves(lambda t: 0.5 * t, limits.project(_noise(place, 5), place))
    require(_same(inside, limits.project(inside, place), 1e-7), "half of a feasible delta is moved")


def _draws(limits: Any, place: Any, tolerance: float) -> None:
    random = torch.get_rng_state()
    one, two, other = (_drawn(limits, place, seed) for seed in (0, 0, 1))
    require(torch.equal(random, torch.get_rng_state()), "it draws from the global random state")
    require(_same(one, two, 0.0), "the same seed gives another draw")
    size = max(float(t.max()) for t in leaves(limits.size(one, place)))
    require(size == 0 or not _same(one, other, 0.0), "another seed gives the same draw")
    require(_same(one, limits.project(one, place), 10 * tolerance), "a draw is not feasible")


def _steepest(limits: Any, place: Any) -> None:
    gradient = _noise(place, 9)
    nothing = map_leaves(torch.zeros_like, place)
    reach = limits.reach(place)
    step = map_leaves(lambda s, r: s * r, limits.steepest(gradient, place, nothing), _broad(reach, place))
    best = _inner(gradient, step)
    for k in range(DRAWS):
        other = _inner(gradient, _drawn(limits, place, 10 + k))
        require(best >= other - 1e-9 * abs(best), f"a random delta rises by {other:g}, the steepest by {best:g}")


def _broad(reach: Any, place: Any) -> Any:
    return reach if isinstance(reach, dict) else map_leaves(lambda t: reach, place)


def _inner(a: Any, b: Any) -> float:
    return sum(float((s * t).sum()) for s, t in zip(leaves(a), leaves(b), strict=True))


def _clips(limits: Any, place: Any) -> None:
    point = add(place, limits.project(_noise(place, 4), place))
    require(_same(point, limits.clip(point), 1e-6), "a feasible point is moved")


def _rows(limits: Any, place: Any) -> None:
    if not limits.rowwise or not isinstance(place, Tensor):
        return
    rows = torch.tensor([2, 0])
    delta = _noise(place, 8)
    whole, part = limits.project(delta, place)[rows], limits.rows(rows).project(delta[rows], place[rows])
    require(_same(whole, part, 1e-9), "the projection of two rows is not that of the whole batch")
