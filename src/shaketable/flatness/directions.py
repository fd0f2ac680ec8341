"""Directions in the space of weights along which a landscape is drawn: random, adversarial, Hessian eigenvectors.

Each is a value that, called with a model and images, makes `Axes`. How long a direction is, a ball of the weights says: a
coordinate of 1 lies on its border. `layers_ball(.5)` gives every layer's direction half of the layer's norm (the pictures
of Stutz et al. 2021); the same ball `per="filter"` does so for every filter (Li et al. 2018), and `per="all"` for the weights
as one vector, which keeps an eigenvector's direction. All three are equally long; by filter, small filters move less. (Stutz et
al. report shorter filter-wise directions, 21.5 against 33.1; as defined here, with all filters scaled, they are not.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from ..core import PGD, Ball, Calls, InputError, generator, perturb
from ..core.perturb import drawn_start
from ..core.places import Select
from ..core.tree import map_leaves
from .eigenpairs import eigenpairs
from .hessian import loss_hessian
from .joint import MeanLoss, joint_ball
from .layers import layers_ball
from .loss_at import ATTACK, INPUTS, LossAt, origin_and_ball
from .points import attacked_points
from .presets import PAPER

Combine = Literal["mean", "max"]
Told = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Axes:
    """Where a landscape lies: w(c) = origin + c_1 d_1 + c_2 d_2 + ...

    Args:
        origin: name -> tensor, the weights (and with a trajectory the buffers) that move.
        directions: one for each axis, of the same names and shapes.
        limits: name -> (least, largest), for what must stay within them.
        facts: what was found on the way, by name.
        calls: passes spent, in examples.
    """

    origin: dict[str, Tensor]
    directions: tuple[dict[str, Tensor], ...]
    limits: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    facts: Mapping[str, float] = field(default_factory=dict)
    calls: Calls = Calls()

    def at(self, coordinates: Sequence[float]) -> dict[str, Tensor]:
        """The weights at a point; exactly the origin at (0, 0, ...)."""
        if len(coordinates) != len(self.directions):
            found = f"{len(coordinates)}"
            raise InputError("coordinates", f"{len(self.directions)}, one for each axis", found, "Give one an axis.")
        tensors = dict(self.origin)
        for c, direction in zip(coordinates, self.directions, strict=True):
            if c:
                tensors = {name: w + c * direction[name] for name, w in tensors.items()}
        return {name: w.clamp(*self.limits[name]) if name in self.limits else w for name, w in tensors.items()}

    def cosine(self, i: int = 0, j: int = 1) -> float:
        """How parallel two axes are: 0 for orthogonal ones, NaN where one has no length."""
        a, b = (self.directions[k] for k in (i, j))
        return inner(a, b) / math.sqrt(inner(a, a) * inner(b, b)) if inner(a, a) * inner(b, b) else math.nan


class Directions(Protocol):
    """What makes the axes of a landscape.

    `combine` says how several lines of the same kind make one picture, `lines` how many there usually are in one dimension.
    """

    combine: ClassVar[Combine]
    lines: ClassVar[int]

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int, dims: int, line: int, within: Any, by: PGD,
        batch_size: int, progress: Told | None,
    ) -> Axes: ...  # fmt: skip


@dataclass(frozen=True)
class Random:
    """Gaussian directions, scaled onto the border of a ball; the same for every model of one architecture and seed.

    Args:
        scale: the paper's pictures have half of each layer's norm at a coordinate of 1.
        select: which weights, as `core.weights` takes it; None: every layer's but normalisation layers'.

    The k-th line's axes depend on the seed, k and the axis alone. Cost: none. Checked by tests/flatness/test_directions.py.
    """

    scale: Any = layers_ball(0.5)
    select: Select | None = None

    combine: ClassVar[Combine] = "mean"
    lines: ClassVar[int] = 10

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int, dims: int = 1, line: int = 0, within: Any = INPUTS,
        by: PGD = ATTACK, batch_size: int = PAPER.batch_size, progress: Told | None = None,
    ) -> Axes:  # fmt: skip
        """The axes of a line; images, attack and batch size play no part."""
        origin, ball = origin_and_ball(model, self.scale, self.select)
        drawn = [ball.sample(origin, generator(seed, "landscape", line, axis), "sphere") for axis in range(dims)]
        return Axes(origin, tuple(drawn))


@dataclass(frozen=True)
class Adversarial:
    """Directions in which the robust loss rises fast: where the joint ascent of the worst case ends (see `worst`).

    Args:
        scale: the paper's pictures have .025 of each layer's norm at a coordinate of 1.
        xi: radius of the ball, relative to each layer's norm, in which the ascent climbs; .00075, the paper's.
        step: of the weights, relative to each layer's norm; .001, the paper's.
        select: which weights; see `Random`.

    All images climb as one batch with one nu. With several axes each later ascent's end loses, tensor by tensor, its part
    along the axes before it, which is large: adversarial directions are much alike.

    Cost: `by.steps` forward and backward passes for each axis. Checked by tests/flatness/test_directions.py.
    """

    scale: Any = layers_ball(0.025)
    xi: float = PAPER.worst_xi
    step: float = PAPER.worst_step
    select: Select | None = None

    combine: ClassVar[Combine] = "max"
    lines: ClassVar[int] = 10

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int, dims: int = 1, line: int = 0, within: Any = INPUTS,
        by: PGD = ATTACK, batch_size: int = PAPER.batch_size, progress: Told | None = None,
    ) -> Axes:  # fmt: skip
        """The axes of a line: each from a random start of its own, of the weights and of the images.

        Raises:
            GradientError: the loss has no gradient by the weights and the images.
        """
        origin, scale = origin_and_ball(model, self.scale, self.select)
        of = LossAt(model, x, y, within=within, by=by, batch_size=batch_size)
        found: list[dict[str, Tensor]] = []
        calls = Calls()
        for axis in range(dims):
            nu, spent = self._ascent(of, origin, generator(seed, "landscape ascent", line, axis))
            for earlier in found:
                nu = map_leaves(_apart, nu, earlier)
            found.append(scaled(nu, origin, scale))
            calls += Calls(len(x) * spent.forward, len(x) * spent.backward)
            if progress is not None:
                progress(axis + 1, dims)
        return Axes(origin, tuple(found), calls=calls)

    def _ascent(self, of: LossAt, origin: dict[str, Tensor], source: torch.Generator) -> tuple[Any, Calls]:
        ball: Any = layers_ball(self.xi)
        start = {"weights": ball.sample(origin, source), "inputs": drawn_start("sample", of.x, of.within, source)}
        pace = self.step / self.xi if self.xi > 0 else 1.0
        limits, place = joint_ball(of.within, of.by.step, ball, pace, inputs=True), {"weights": origin, "inputs": of.x}
        by = replace(of.by, step=1.0, restarts=1)
        found = perturb(MeanLoss(of), place, limits, by=by, start=start, generator=source)
        return found.delta["weights"], found.calls


@dataclass(frozen=True)
class Eigenvectors:
    """The top eigenvectors of the Hessian, of the loss at adversarial points found once at w or at the clean images.

    Args:
        scale: by default the weights are one vector, so that the direction stays the eigenvector's; at a coordinate of 1 it
            has .05 of their norm.
        points, select, tolerance: see `Hessian`.

    Cost: an attack and some tens of products, see `eigenpairs`. `facts` has "lambda_1", ... of the axes.
    Checked by tests/flatness/test_directions.py.
    """

    scale: Any = Ball("l2", 0.05, per="all", relative=True)
    points: Literal["adversarial", "clean"] = "adversarial"
    select: Select = "matrices"
    tolerance: float = 1e-4

    combine: ClassVar[Combine] = "mean"
    lines: ClassVar[int] = 1

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int, dims: int = 1, line: int = 0, within: Any = INPUTS,
        by: PGD = ATTACK, batch_size: int = PAPER.batch_size, progress: Told | None = None,
    ) -> Axes:  # fmt: skip
        """The first `dims` eigenvectors; there is one line.

        Raises:
            InputError: a line beyond the first; see `eigenpairs`.
        """
        if line:
            raise InputError("lines", "1 line of eigenvectors", f"{line + 1}", "Use dims for more of them.")
        calls, place = Calls(), x
        if self.points == "adversarial":
            attacked = attacked_points(model, x, y, seed=seed, within=within, by=by, batch_size=batch_size)
            calls, place = attacked.calls, attacked.x
        hessian = loss_hessian(model, place, y, select=self.select, batch_size=batch_size)
        pairs = eigenpairs(hessian, seed=seed, top=dims, bottom=0, tolerance=self.tolerance, progress=progress)
        drawn = tuple(scaled(vector, hessian.origin, self.scale) for vector in pairs.vectors)
        facts = {f"lambda_{k}": value for k, value in enumerate(pairs.top, 1)}
        return Axes(hessian.origin, drawn, facts=facts, calls=calls + pairs.calls)


DIRECTIONS: dict[str, Any] = {"random": Random, "adversarial": Adversarial, "hessian": Eigenvectors}
"""Name -> a value that makes a landscape's axes."""


def scaled(direction: Any, origin: Any, scale: Any) -> Any:
    """A direction, each of the ball's groups of it at the group's radius; groups without length stay so."""
    zeros = map_leaves(torch.zeros_like, origin)
    unit = scale.steepest(direction, origin, zeros)
    return map_leaves(lambda u, r: u * r, unit, scale.reach(origin))


def inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The inner product of two directions, in float64."""
    return math.fsum(float((a[name].double() * b[name].double()).sum()) for name in a)


def _apart(tensor: Tensor, other: Tensor) -> Tensor:
    """What a tensor has beside its part along another one; a single number stays as it is."""
    size = (other * other).sum()
    if tensor.numel() < 2 or not bool(size > 0):
        return tensor
    return tensor - other * ((tensor * other).sum() / size)
