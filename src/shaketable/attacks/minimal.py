"""Minimum-norm attacks: what they return, and the model and the images as they see them."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.ball import Ball
from ..core.errors import GradientError, InputError
from ..core.norms import norm as norm_of
from ..core.places import at
from ..core.record import Calls
from ..core.seeds import own_random_state
from ..core.tree import ordinary
from ..stats import Rate


@dataclass(frozen=True, eq=False, repr=False)
class Minimal:
    """For each image, the smallest perturbation that a minimum-norm attack found.

    Args:
        points: the adversarial image; the image itself where it is misclassified as it is, or where nothing was found.
        norms: of the perturbation; 0 where the image itself is misclassified, infinite where nothing was found.
        found: where there is an adversarial point.
        calls: all passes that were made, in images.
        queries: of an attack that sees decisions alone, how often each image's was asked for; None for others.
    """

    points: Float[Tensor, "n ..."]
    norms: Float[Tensor, " n"]
    found: Bool[Tensor, " n"]
    calls: Calls
    queries: Int[Tensor, " n"] | None = None

    def robust(self, radius: float) -> Rate:
        """The share of images that no perturbation of at most this norm was found for, with its 95 % interval.

        One run gives the whole curve of robust accuracy over radii. It is an upper bound, as with every attack.
        """
        return Rate(int((self.norms > radius).sum()), len(self.norms))

    def __repr__(self) -> str:
        hits = int(self.found.sum())
        median = f", median norm {float(self.norms[self.found].median()):.4g}" if hits else ""
        return f"Minimal({hits} of {len(self.found)} found{median})"


class Counted:
    """A model as a function of points, whose passes are counted and whose logits are checked."""

    def __init__(self, model: Any) -> None:
        self._function: Any = at(model)
        self.calls: Calls = Calls()

    def logits(self, points: Tensor) -> Tensor:
        """The logits of points; one forward pass."""
        found = self._function(points)
        self.calls += Calls(len(points))
        if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != len(points):
            seen = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise InputError("model", f"logits of shape ({len(points)}, classes)", seen, "Return the logits alone.")
        return found

    def sloped(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The points, as what gradients are taken by, and their logits with a graph; one forward pass."""
        points = points.detach().requires_grad_()
        with torch.enable_grad():
            logits = self.logits(points)
        if not logits.requires_grad:
            raise GradientError(
                "model", "logits that can be differentiated by the input", "detached logits",
                "Remove detach(), no_grad() or numpy() on the way, or use an attack without gradients.",
            )  # fmt: skip
        return points, logits

    def gradient(self, logits: Tensor, points: Tensor, weights: Tensor, *, again: bool = False) -> Tensor:
        """The gradient by the points of each example's logits, weighted; one backward pass."""
        (slope,) = torch.autograd.grad(logits, points, weights, retain_graph=again, allow_unused=True)
        self.calls += Calls(0, len(points))
        return torch.zeros_like(points) if slope is None else slope


def others(logits: Tensor, y: Tensor) -> Tensor:
    """The logits with that of y at minus infinity."""
    return logits.scatter(1, y[:, None], -torch.inf)


def margins(logits: Tensor, y: Tensor, *, targeted: bool = False) -> Tensor:
    """Positive where the attack has won: the largest other logit minus that of y, or with a target its negative."""
    margin = others(logits, y).amax(1) - logits.gather(1, y[:, None])[:, 0]
    return -margin if targeted else margin


def won(logits: Tensor, y: Tensor, *, targeted: bool = False) -> Tensor:
    """Whether the prediction is another class than y, or with a target y itself."""
    return (logits.argmax(1) == y) if targeted else (logits.argmax(1) != y)


def require_labels(y: Tensor, logits: Tensor) -> None:
    """Raise an `InputError` unless the model has a class for each label, and two or more."""
    if logits.shape[1] < 2:
        raise InputError("model", "two classes or more", f"{logits.shape[1]}", "Return a logit for each class.")
    if len(y) and int(y.max()) >= logits.shape[1]:
        found = f"label {int(y.max())} for {logits.shape[1]} classes"
        raise InputError("y", f"labels below {logits.shape[1]}", found, "Check the model's classes and the labels.")


def require_count(name: str, number: Any, least: int) -> None:
    """Raise an `InputError` unless a setting is a whole number of at least so much."""
    if type(number) is not int or number < least:
        raise InputError(name, f"a whole number >= {least}", repr(number), "Give the number of them.")


def prepared(x: Any, y: Any, ball: Ball, norms: tuple[str, ...]) -> tuple[Tensor, Tensor, Ball]:
    """Images, labels and their ball, checked.

    Args:
        ball: says the norm, the box and the mask; its radius is for the caller.
        norms: those that the attack serves.

    Raises:
        InputError: another norm; images that are not floating, not finite or outside the box; labels that are no class
            indices, one for each image; a ball that is not per example.
    """
    if ball.norm not in norms:
        raise InputError("norm", f"one of {', '.join(norms)}", repr(ball.norm), "This attack serves those alone.")
    if not ball.rowwise:
        raise InputError("within", "a ball with per='example'", f"per={ball.per!r}", "Attack each image by itself.")
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise InputError("x", "floating point inputs of shape (n, ...)", found, "For images: x.float() / 255.")
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if not isinstance(y, Tensor) or y.dtype not in whole or y.shape != x.shape[:1]:
        found = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise InputError("y", f"integer labels of shape ({len(x)},)", found, "Give one class index for each input.")
    if len(y) and int(y.min()) < 0:
        raise InputError("y", "labels >= 0", f"{int(y.min())}", "Leave out the examples without a label.")
    if not bool(torch.isfinite(x).all()):
        found = f"{int((~torch.isfinite(x)).sum())} NaN or infinite entries"
        raise InputError("x", "finite values", found, "Remove or repair these images.")
    x = ordinary(x)
    return x, ordinary(y).to(x.device).long(), ball.on(x)


@contextmanager
def apart(x: Tensor, generator: torch.Generator | None = None) -> Generator[None]:
    """No gradient is recorded, and the global random state is left as it was; a random model draws from the seed."""
    with torch.inference_mode(False), torch.no_grad(), own_random_state([x], generator):
        yield


def sizes(delta: Tensor, norm: str) -> Float[Tensor, " n"]:
    """The norm of each example's perturbation."""
    return norm_of(norm, delta.flatten(1))


class Nearest:
    """The nearest adversarial points of a batch, as an attack comes upon them."""

    def __init__(self, x: Tensor, norm: str) -> None:
        self.x, self.norm = x, norm
        self.points, self.norms = x.clone(), torch.full((len(x),), torch.inf, dtype=x.dtype, device=x.device)

    def keep(self, rows: Tensor, points: Tensor, hit: Tensor) -> Tensor:
        """Keep those of the points of some rows that hit and are nearer than before; returns the norms of all of them."""
        size = sizes(points - self.x[rows], self.norm)
        better = hit & (size < self.norms[rows])
        kept = rows[better]
        self.points[kept], self.norms[kept] = points[better], size[better]
        return size

    def begin(self, model: Counted, y: Tensor, *, targeted: bool) -> Tensor:
        """Keep the images that need no perturbation; returns the rows of the others. One forward pass."""
        rows = torch.arange(len(self.x), device=self.x.device)
        if not len(rows):
            return rows
        logits = model.logits(self.x)
        require_labels(y, logits)
        hit = won(logits, y, targeted=targeted)
        self.keep(rows, self.x, hit)
        return rows[~hit]

    def result(self, model: Counted, queries: Tensor | None = None) -> Minimal:
        """What was found."""
        return Minimal(self.points, self.norms, torch.isfinite(self.norms), model.calls, queries)


def margin_weights(logits: Tensor, y: Tensor, *, targeted: bool) -> Tensor:
    """The derivatives of `margins` by the logits."""
    top = others(logits, y).argmax(1, keepdim=True)
    weights = torch.zeros_like(logits).scatter_(1, top, 1.0).scatter_(1, y[:, None], -1.0)
    return -weights if targeted else weights


def require_slope(slope: Tensor) -> None:
    """Raise a `GradientError` if the first gradients are zero or not finite for every image."""
    peak = slope.flatten(1).abs().amax(1) if slope.numel() else slope.new_ones(1)
    if not bool((torch.isfinite(peak) & (peak > 0)).any()):
        raise GradientError(
            "model", "a gradient by the input", "zero or non-finite gradients for every image",
            "Look for a detached, quantised or saturated output; use an attack without gradients.",
        )  # fmt: skip
