"""One step of robust training: attack the inputs, perturb the weights, step the optimiser, take the perturbation off."""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import PGD, Calls, GradientError, ShaketableError, at, perturb, perturbed
from ..core import weights as weights_of
from .awp import WeightPerturbation
from .losses import RobustLoss


class DivergenceError(ShaketableError):
    """A training whose loss is no longer finite."""


@dataclass(frozen=True)
class Stepped:
    """What a step did.

    Args:
        loss: the robust loss that was minimised, at w + v.
        calls: passes of the attack and of the weight perturbation, in examples, as they were counted by `perturb`: the forward
            pass that makes TRADES' reference is not among them. The step itself is one forward-backward.
        silent: the attack or the weight perturbation found no gradient at all and did nothing.
    """

    loss: float
    calls: Calls
    silent: bool


def train_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: RobustLoss,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    within: Any,
    by: PGD,
    weights: WeightPerturbation | None,
    generator: torch.Generator,
) -> Stepped:
    """One step, as algorithm 1 of Wu et al. 2020: x' at w, then v at x', then the optimiser at w + v, then v off.

    Args:
        model: in train mode; its parameters, buffers and gradients change.
        optimiser: over any of its parameters. Its weight decay and momentum act at w + v, as in the authors' code.
        loss: AT, TRADES, ...
        within, by: the ball and the ascent of the inputs.
        weights: the perturbation of the weights, or None.
        generator: of the attack's start.

    Raises:
        DivergenceError: the loss, or a gradient, is NaN or infinite; the weights are as they were before the step (a
            BatchNorm's running statistics may have moved).

    Cost: that of the attack, of the weight perturbation, and one forward-backward. Checked by tests/training/test_steps.py.
    """
    silent = False
    with in_mode(model, loss.attack_mode):
        try:
            found = perturb(loss.inner(model, x, y), x, within, by=by, start=loss.start, generator=generator)
            adversarial, calls = found.point, found.calls
        except GradientError:
            adversarial, calls, silent = x, Calls(), True
            with torch.no_grad():
                _require_finite("loss", loss.outer(at(model), x, x, y))
    swap: Any = nullcontext()
    if weights is not None:
        try:
            worst = perturb(
                loss.weights(model, x, adversarial, y), weights_of(model, weights.select), weights.within,
                by=weights.by, generator=generator,
            )  # fmt: skip
            calls += Calls(worst.calls.forward * len(x), worst.calls.backward * len(x))
            swap = perturbed(model, worst.delta)
        except GradientError:
            silent = True
    optimiser.zero_grad(set_to_none=True)
    with swap:
        value = loss.outer(model, x, adversarial, y)
        _require_finite("loss", value)
        value.backward()
        _require_finite("gradient", *(p.grad for p in model.parameters() if p.grad is not None))
        optimiser.step()
    return Stepped(float(value.detach()), calls, silent)


def _require_finite(name: str, *tensors: Tensor) -> None:
    """Raise a `DivergenceError` unless all entries are finite; one wait for the device."""
    peaks = [t.detach().abs().amax().float() for t in tensors if t.numel()]
    if peaks and not bool(torch.isfinite(torch.stack(peaks)).all()):
        found = f"{float(tensors[0].detach())}" if name == "loss" else "NaN or infinite entries"
        remedy = "Lower the learning rate or gamma, or add a warm-up; the last checkpoint is from before this step."
        raise DivergenceError(name, "a finite number", found, remedy)


@contextmanager
def in_mode(model: nn.Module, mode: Literal["train", "eval"]) -> Generator[None]:
    """The model in eval mode for a while, each module's own mode restored after; "train" leaves it as it is."""
    before = [(module, module.training) for module in model.modules()]
    try:
        if mode == "eval":
            model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training
