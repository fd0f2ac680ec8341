"""The conformance suite of attacks."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..attacks import Attack
from ..core import Ball, InputError, Perturbation, generator
from .outcome import require, run
from .problem import Problem, Untouched, problem

RADII = {"linf": 0.03, "l2": 0.3, "l1": 2.0, "l0": 4.0}
NormName = Literal["linf", "l2", "l1", "l0"]


def check_attack(attack: Attack, *, norms: Sequence[NormName] | None = None, strong: bool = True) -> tuple[str, ...]:
    """What evaluation, flatness and training rely on, on a small model with BatchNorm.

    Args:
        attack: a value with the signature of `Attack`.
        norms: those it is for; None: its own `norms`, or linf. In any other of linf, l2, l1, l0 it must raise InputError.
        strong: whether it must fool at least one image that the model gets right.

    Checks: points in ball, box and region to the bit; the same seed gives the same points; nothing is touched (weights,
    buffers, modes, gradients, images, labels, global random state); dtype and shape kept, in float64 too; one image, no
    image; NaN refused; radius 0 changes nothing; counted passes; until_fooled() fools no image less.

    Returns: the names of the checks. Raises: ConformanceError.
    """
    known = tuple(norms or getattr(attack, "norms", ("linf",)))
    checks: dict[str, Callable[[], None]] = {}
    for norm in known:
        checks[f"stays in an {norm} ball and the box"] = lambda norm=norm: _inside(attack, norm)
    for norm in (n for n in RADII if n not in known and norms is None and hasattr(attack, "norms")):
        checks[f"refuses {norm}"] = lambda norm=norm: _refuses_norm(attack, norm)
    first = known[0]
    checks |= {
        "keeps every pixel outside a region": lambda: _region(attack, first),
        "gives the same for the same seed": lambda: _repeats(attack, first),
        "touches nothing": lambda: _touches(attack, first),
        "keeps float64": lambda: _dtype(attack, first),
        "takes one image": lambda: _count(attack, first, 1),
        "takes no image": lambda: _count(attack, first, 0),
        "refuses NaN": lambda: _nan(attack, first),
        "changes nothing in a ball of radius 0": lambda: _zero(attack, first),
        "counts its passes": lambda: _passes(attack, first),
        "until_fooled() fools no image less": lambda: _until_fooled(attack, first),
    }
    if strong:
        checks["fools something"] = lambda: _fools(attack, first)
    return run(f"attack {attack!r}"[:120], checks)


def _ball(norm: Any, radius: float | None = None, mask: Tensor | None = None) -> Ball:
    return Ball(norm, RADII[norm] if radius is None else radius, box=(0.0, 1.0), mask=mask)


def _call(attack: Attack, of: Problem, ball: Ball, seed: int = 0) -> Perturbation:
    return attack(of.model, of.x, of.y, ball, generator=generator(seed, "conformance"))


def _inside(attack: Attack, norm: str) -> None:
    of = problem()
    point = _call(attack, of, _ball(norm)).point
    require(float(point.min()) >= 0 and float(point.max()) <= 1, f"values from {point.min():g} to {point.max():g}")
    size: Any = _ball(norm).size(point.double() - of.x.double(), of.x.double())
    require(
        bool((size <= RADII[norm] * (1 + 1e-5)).all()),
        f"a perturbation of {float(size.max()):g}, allowed {RADII[norm]:g}",
    )


def _refuses_norm(attack: Attack, norm: str) -> None:
    try:
        _call(attack, problem(2), _ball(norm))
    except InputError:
        return
    require(False, "no InputError")


def _region(attack: Attack, norm: str) -> None:
    of, mask = problem(), torch.zeros(1, 1, 12, 12)
    mask[..., 3:9, 4:10] = 1
    point = _call(attack, of, _ball(norm, mask=mask)).point
    outside = (mask == 0).expand_as(point)
    require(torch.equal(point[outside], of.x[outside]), "pixels outside have changed")


def _repeats(attack: Attack, norm: str) -> None:
    one, two = (_call(attack, problem(), _ball(norm), seed=3).point for _ in range(2))
    require(torch.equal(one, two), f"points differ by up to {float((one - two).abs().max()):g}")


def _touches(attack: Attack, norm: str) -> None:
    of = problem()
    before = Untouched.before(of)
    point = _call(attack, of, _ball(norm)).point
    require(not point.requires_grad, "the points are part of a graph")
    require(not (changed := before.changed()), f"it changed {', '.join(changed)}")


def _dtype(attack: Attack, norm: str) -> None:
    of = problem(4, dtype=torch.float64)
    point = _call(attack, of, _ball(norm)).point
    require(point.dtype == torch.float64 and point.shape == of.x.shape, f"{point.dtype} of shape {tuple(point.shape)}")


def _count(attack: Attack, norm: str, n: int) -> None:
    point = _call(attack, problem(n), _ball(norm)).point
    require(point.shape == (n, 1, 12, 12), f"shape {tuple(point.shape)}")


def _nan(attack: Attack, norm: str) -> None:
    of = problem(4)
    of.x[1, 0, 2, 2] = torch.nan
    try:
        _call(attack, of, _ball(norm))
    except InputError:
        return
    require(False, "no InputError")


def _zero(attack: Attack, norm: str) -> None:
    of = problem(4)
    require(torch.equal(_call(attack, of, _ball(norm, 0.0)).point, of.x), "the points differ from the images")


def _passes(attack: Attack, norm: str) -> None:
    of, spent = problem(8), 0

    class Counting(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal spent
            spent += len(x)
            return of.model(x)

    found = attack(Counting().eval(), of.x, of.y, _ball(norm), generator=generator(0, "conformance"))
    require(found.calls.forward == spent, f"{found.calls.forward} forward passes counted, {spent} made")


def _until_fooled(attack: Attack, norm: str) -> None:
    fast = getattr(attack, "until_fooled", None)
    if fast is None:
        return
    of = problem()
    right, quick = (of.model(_call(a, of, _ball(norm)).point).argmax(1) == of.y for a in (attack, fast()))
    require(int(quick.sum()) <= int(right.sum()), f"{int(quick.sum())} images stand, {int(right.sum())} without")


def _fools(attack: Attack, norm: str) -> None:
    of = problem()
    before, after = (of.model(x).argmax(1) == of.y for x in (of.x, _call(attack, of, _ball(norm)).point))
    require(bool((before & ~after).any()), f"none of {int(before.sum())} images at {norm} {RADII[norm]:g}")
