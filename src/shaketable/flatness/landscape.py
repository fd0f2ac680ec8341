"""The adversarial loss around a model's weights, attacked anew at every point (Stutz et al. 2021, figure 3; Li et al. 2018)."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import PGD, Calls, InputError, generator
from ..stats import Mean, Rate, mean
from .directions import Axes, Combine, Directions, Random
from .loss_at import ATTACK, INPUTS, LossAt, require
from .presets import PAPER


@dataclass(frozen=True)
class Point:
    """The losses at one point.

    Args:
        coordinates: of the point; 0 is at the model's own weights.
        robust_loss, clean_loss: mean cross-entropy over the images, attacked there and not; NaN or infinite where the
            network overflows.
        robust, clean: how many images are right: robust asks for right before and after the attack.
        silent: the share of images whose attack saw no gradient.
        calls: passes spent, in examples.
    """

    coordinates: tuple[float, ...]
    robust_loss: float
    clean_loss: float
    robust: Rate
    clean: Rate
    silent: float
    calls: Calls


def grid(points: int, low: float = -1.0, high: float = 1.0) -> tuple[float, ...]:
    """Equidistant coordinates; a grid with equal and opposite ends is symmetric and, with an odd number, has 0 exactly.

    Raises:
        InputError: fewer than two points, or ends in the wrong order.
    """
    if points < 2 or not low < high or not (math.isfinite(low) and math.isfinite(high)):
        found = f"{points} from {low} to {high}"
        raise InputError("points", "two or more, from low to high", found, "The paper has 51 from -1 to 1.")
    last = points - 1
    if low == -high:
        return tuple(high * ((2 * k - last) / last) for k in range(points))
    return (*(low + (high - low) * (k / last) for k in range(last)), high)


def landscape_point(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    axes: Axes,
    coordinates: Sequence[float],
    seed: int,
    within: Any = INPUTS,
    by: PGD = ATTACK,
    batch_size: int = PAPER.batch_size,
) -> Point:
    """The losses at one point of a landscape, by itself.

    Args:
        model: in eval mode; it is not changed.
        axes: made by a value of `DIRECTIONS`, or by `trajectory`.
        coordinates: one for each axis.
        seed: of the attack's starts, which are the same at every point and for every model: what differs is the loss.
        within, by: the inputs' ball and attack; eps 8/255 and PGD-20 with step .007, the paper's.
        batch_size: images a pass; it is part of the result, since it orders the attack's starts.

    A pure function of its arguments. At the origin it is what `core.measure` gives for the model itself.

    Raises:
        InputError: a model in train mode, no images, another number of coordinates than axes.

    Cost: steps + 2 forward and steps backward passes. Checked by tests/flatness/test_landscape.py.
    """
    require(model, x, y, "robust")
    of = LossAt(model, x, y, within=within, by=by, batch_size=batch_size)
    found = of(axes.at(coordinates), generator(seed, "flatness starts", -1))
    n = len(x)
    return Point(
        tuple(float(c) for c in coordinates),
        float(found.robust_loss.double().mean()),
        float(found.loss.double().mean()),
        Rate(int(found.robust_correct.sum()), n),
        Rate(int(found.correct.sum()), n),
        float(found.silent.double().mean()),
        found.calls,
    )


@dataclass(frozen=True)
class Landscape:
    """A landscape: points on a grid, along one or several lines of directions of one kind.

    Args:
        grids: the coordinates of each axis.
        lines: of each line its points, in the order of `itertools.product(*grids)`.
        combine: how the lines make one picture: their "mean", or the "max" of the losses (the least of the accuracies).
        facts: of each line's axes, by name.
        calls: passes spent, the making of the axes included.
    """

    grids: tuple[tuple[float, ...], ...]
    lines: tuple[tuple[Point, ...], ...]
    combine: Combine
    facts: tuple[dict[str, float], ...]
    calls: Calls

    def values(self, name: str) -> tuple[Mean, ...]:
        """One quantity at every point, over the lines.

        Args:
            name: "robust_loss", "clean_loss", "robust" or "clean" (the accuracies).

        Returns: for combine="mean" the mean over the lines with its 95 % Student interval, which is about the choice of
        directions: the images are fixed; for "max" the largest (of accuracies the least), whose interval is not known.
        """
        return tuple(
            combined([_value(point, name) for point in same], self.combine, name)
            for same in zip(*self.lines, strict=True)
        )


def combined(values: Sequence[float], combine: Combine, name: str) -> Mean:
    """The value of several lines at one point; see `Landscape.values`."""
    if combine == "mean":
        return mean(values)
    worst = math.nan if any(map(math.isnan, values)) else min(values) if name in ("robust", "clean") else max(values)
    return Mean(worst, -math.inf, math.inf, len(values), math.nan)


def landscape(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    seed: int,
    along: Directions = Random(),
    dims: int = 1,
    lines: int | None = None,
    points: int = 51,
    within: Any = INPUTS,
    by: PGD = ATTACK,
    batch_size: int = PAPER.batch_size,
    progress: Callable[[int, int], None] | None = None,
) -> Landscape:
    """The clean and the robust loss, and the accuracies, on a grid around the model's weights; every point is attacked anew.

    Args:
        model: in eval mode; it is not changed.
        x, y: the images; the paper takes 128 of the test set.
        seed: of the directions and of the attack's starts. Models of one architecture get the same random directions,
            each scaled to its own weights.
        along: `Random()`, `Adversarial()`, `Eigenvectors()`, with the scale that a coordinate of 1 has.
        dims: axes; 1 for curves, 2 for surfaces, 3 for volumes.
        lines: pictures of different directions that are combined. None: the paper's in one dimension, 10 random ones of which
            the mean, 10 adversarial ones of which the maximum is drawn; 1 else.
        points: along each axis, from -1 to 1; 51, the paper's. An odd number has the model itself in it.
        within, by: the inputs' ball and attack; see `landscape_point`.
        progress: called with (points done, points).

    Raises:
        InputError: dims other than 1, 2 or 3, fewer than 2 points or 1 line; see `landscape_point` and the directions.

    Cost: lines * points ** dims times that of `landscape_point`, and of the directions. Memory does not grow with them.
    Checked by tests/flatness/test_landscape.py: known losses, and each point equal to the same one by itself.
    """
    require(model, x, y, "robust")
    count = (along.lines if dims == 1 else 1) if lines is None else lines
    if dims not in (1, 2, 3) or count < 1:
        raise InputError("dims, lines", "1, 2 or 3 axes and 1 line or more", f"{dims}, {count}", "Use dims=1.")
    grids = (grid(points),) * dims
    made: list[tuple[Point, ...]] = []
    facts: list[dict[str, float]] = []
    calls, total, done = Calls(), count * points**dims, 0
    for line in range(count):
        axes = along(
            model, x, y, seed=seed, dims=dims, line=line, within=within, by=by, batch_size=batch_size, progress=None
        )
        facts.append(dict(axes.facts))
        row: list[Point] = []
        for coordinates in itertools.product(*grids):
            point = landscape_point(
                model, x, y, axes=axes, coordinates=coordinates, seed=seed, within=within, by=by, batch_size=batch_size
            )
            row.append(point)
            calls, done = calls + point.calls, done + 1
            if progress is not None:
                progress(done, total)
        made.append(tuple(row))
        calls += axes.calls
    return Landscape(grids, tuple(made), along.combine, tuple(facts), calls)


def _value(point: Point, name: str) -> float:
    found = getattr(point, name)
    return found.value if isinstance(found, Rate) else found
