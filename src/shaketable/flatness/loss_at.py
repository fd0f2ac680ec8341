"""The loss of some images as a function of a model's weights: what every measure of flatness evaluates."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from numbers import Real
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..core import PGD, Ball, Calls, GradientError, InputError, at, ce, generator
from ..core.measure import Measured, measure
from ..core.places import Select, weights
from ..core.seeds import own_random_state
from .layers import layer_weights, layers_ball
from .remembered import recalled

Loss = Literal["robust", "clean"]
Logits = Callable[[Tensor], Tensor]

INPUTS = Ball("linf", 8 / 255, box=(0.0, 1.0))
"""The papers' ball of the perturbed input."""

ATTACK = PGD(20, step=0.007 * 255 / 8)
"""PGD-20 with steps of .007 (Stutz et al. 2021)."""

FEW = 20
"""From so many images on, one predicted class for all of them means a constant predictor, if their labels differ."""


@dataclass(frozen=True)
class LossAt:
    """Called with weights, it gives each image's loss there; the images are attacked anew at every call.

    Args:
        model: in eval mode; never changed.
        x, y: the images and labels.
        loss: "robust", the cross-entropy at the attacked images, or "clean", at the images themselves.
        within, by: the inputs' ball and ascent; not used for the clean loss.
        logits: what is done to the logits before the loss is taken, by the attack as well; None: nothing.
        batch_size: images a pass.

    Cost of a call: steps + 2 forward and steps backward passes, times the restarts; 1 forward pass for the clean loss.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    loss: Loss = "robust"
    within: Any = INPUTS
    by: PGD = ATTACK
    logits: Logits | None = None
    batch_size: int = 64

    def function(self, tensors: Mapping[str, Tensor] | None = None) -> Callable[[Tensor], Tensor]:
        """From images to logits, with some of the weights replaced."""
        call, change = at(self.model, tensors), self.logits
        return call if change is None else lambda x: change(call(x))

    def __call__(
        self, tensors: Mapping[str, Tensor] | None, starts: torch.Generator, *, restarts: int | None = None
    ) -> Measured:
        """The losses with these weights in the place of the model's own.

        Args:
            tensors: name -> weight; None: the model as it is.
            starts: draws the attack's starts, batch after batch; it is advanced.
            restarts: of the attack; None: those of `by`.

        `robust_loss` of the result is the loss that is measured, clean or robust.
        """
        function = self.function(tensors)
        if self.loss == "clean":
            return self._clean(function, starts)
        by = self.by if restarts is None else replace(self.by, restarts=restarts)
        return measure(function, self.x, self.y, self.within, by=by, generator=starts, batch_size=self.batch_size)

    def batches(self) -> Iterator["LossAt"]:
        """The same of each batch of the images."""
        for first in range(0, len(self.x), self.batch_size):
            rows = slice(first, first + self.batch_size)
            yield replace(self, x=self.x[rows], y=self.y[rows])

    def _clean(self, function: Callable[[Tensor], Tensor], source: torch.Generator) -> Measured:
        parts: list[Measured] = []
        for batch in self.batches():
            with torch.no_grad(), own_random_state([batch.x], source):
                logits = function(batch.x)
                loss = ce(lambda _x, logits=logits: logits, batch.y)(batch.x)
            predicted = logits.argmax(1)
            right = predicted == batch.y
            parts.append(Measured(predicted, loss, right, loss, right, torch.zeros_like(right), Calls(len(batch.x))))
        return joined(parts)


def joined(parts: list[Measured]) -> Measured:
    """Several batches' losses as one."""
    names = ("predicted", "loss", "correct", "robust_loss", "robust_correct", "silent")
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return Measured(**columns, calls=reduce(Calls.__add__, (part.calls for part in parts)))


def origin_and_ball(model: nn.Module, xi: Any, select: Select | None) -> tuple[dict[str, Tensor], Any]:
    """The weights that are moved, and the ball that they are moved in.

    Args:
        xi: the radius of the layers' balls, or a ball of its own.
        select: which weights, as `core.weights` takes it; None: every layer's but normalisation layers'.
    """
    origin = layer_weights(model) if select is None else weights(model, select)
    for name, w in origin.items():
        if not bool(torch.isfinite(w).all()):
            raise InputError("model", "finite weights", f"NaN or infinite entries in {name}", "Repair the checkpoint.")
    return origin, layers_ball(float(xi)) if isinstance(xi, Real) else xi


def reference(of: LossAt, seed: int, restarts: int) -> tuple[Measured, dict[str, float]]:
    """The losses at the weights themselves, and the facts that each measure reports of them; see also `remembering`.

    Raises:
        GradientError: the attack saw no gradient for any image, though the predictions differ.
        InputError: a loss that is not finite.
    """
    parts = (of.model, of.x, of.y, of.loss, of.within, of.by, of.logits, of.batch_size, seed, restarts)
    return recalled(parts, lambda: _reference(of, seed, restarts))


def _reference(of: LossAt, seed: int, restarts: int) -> tuple[Measured, dict[str, float]]:
    found = of(None, generator(seed, "flatness starts", -1), restarts=restarts)
    require_finite(found.robust_loss, "at the weights themselves")
    constant, calls = _constant(of, found, seed)
    blind = of.loss == "robust" and bool(found.silent.all()) and torch.equal(found.loss, found.robust_loss)
    if blind and not constant and not _same(of, of.x[: of.batch_size]):
        remedy = "Look for a quantised or saturated output; the flatness of a masked model cannot be measured so."
        raise GradientError("model", "a gradient of the loss by the images", "none for any image", remedy)
    facts = {
        "constant": float(constant),
        "classes": float(len(found.predicted.unique())),
        "silent": float(found.silent.double().mean()),
    }
    return replace(found, calls=found.calls + calls), facts


def require_finite(losses: Tensor, where: str) -> None:
    """Raise an `InputError` unless all losses are finite."""
    if not bool(torch.isfinite(losses).all()):
        found = f"{int((~torch.isfinite(losses)).sum())} NaN or infinite losses {where}"
        raise InputError(
            "model", "a finite loss of every image", found, "Look for overflow; use float32, a smaller xi."
        )


def require(model: nn.Module, x: Tensor, y: Tensor, loss: str) -> None:
    """Raise an `InputError` for a model in train mode, no images, other labels than images, or an unknown loss."""
    if any(module.training for module in model.modules()):
        raise InputError("model", "a model in eval mode", "train mode", "Call model.eval() first.")
    if len(x) == 0 or len(x) != len(y):
        raise InputError("x, y", "as many labels as images, one or more", f"{len(x)} and {len(y)}", "Pair them.")
    one_of("loss", loss, get_args(Loss))
    if loss == "clean" and not bool(torch.isfinite(x).all()):
        raise InputError("x", "finite values", "NaN or infinite entries", "Remove or repair these images.")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise an `InputError` unless a value is one of the known ones."""
    if value not in known:
        raise InputError(name, f"one of {', '.join(known)}", repr(value), "Choose one of them.")


def at_least_zero(name: str, value: float | None, usual: str) -> None:
    """Raise an `InputError` unless a value is None or a finite number >= 0."""
    if value is not None and (not isinstance(value, Real) or not 0 <= float(value) < math.inf):
        raise InputError(name, "a finite number >= 0", repr(value), f"Usual is {usual}.")


def _constant(of: LossAt, found: Measured, seed: int) -> tuple[bool, Calls]:
    """Whether the model predicts the same whatever it sees, and what it cost to find out."""
    if len(found.predicted.unique()) > 1:
        return False, Calls()
    if len(of.x) >= FEW and len(of.y.unique()) > 1:
        return True, Calls()
    low, high = torch.aminmax(of.x)
    noise = torch.rand(2, *of.x.shape[1:], generator=generator(seed, "flatness noise"), dtype=torch.float32)
    seen = torch.cat([of.x[: of.batch_size], low + (high - low) * noise.to(of.x)])
    return _same(of, seen), Calls(len(seen))


def _same(of: LossAt, x: Tensor) -> bool:
    """Whether the logits are the same for all of these images, bit for bit."""
    with torch.no_grad(), own_random_state([x]):
        logits = of.function()(x)
    return bool((logits == logits[:1]).all())
