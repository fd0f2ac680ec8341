"""The loss and the correctness of each example, clean and at its worst point: what training curves and flatness count."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ascent import PGD
from .errors import GradientError, InputError
from .losses import ce, cross_entropy
from .perturb import perturb
from .places import at
from .record import Calls
from .seeds import own_random_state


@dataclass(frozen=True)
class Measured:
    """Per example, each of shape (n,): the predicted class, cross-entropy and correctness, clean and perturbed.

    `robust_correct` asks for both: right before and right after. `silent` says for which examples the attack saw no
    gradient, so that it did next to nothing. `calls` counts the passes spent, in examples.
    """

    predicted: Tensor
    loss: Tensor
    correct: Tensor
    robust_loss: Tensor
    robust_correct: Tensor
    silent: Tensor
    calls: Calls


def measure(
    model: Any, x: Tensor, y: Tensor, within: Any, *, by: PGD, generator: torch.Generator, batch_size: int = 64
) -> Measured:
    """Measure clean and robust loss and accuracy; no example is dropped, since each one's loss counts.

    Args:
        model: a module, or any function from inputs to logits; in the mode in which it is to be measured.
        x, y: inputs in the ball's box and labels.
        within: the ball of the perturbed input.
        by: the ascent, from a random start; with keep="last" and one restart the loss is that of the last point, with
            restarts the highest, as in RLoss of Stutz et al. 2021.
        generator: draws the starts, batch after batch: the batch size is part of what is measured.

    A batch of which no example has a gradient (a constant predictor, dead or saturated units) stays where it is, and is
    marked in `silent`: whether that makes the measurement worthless is for its caller to say.

    Raises:
        InputError: a batch size below 1, another number of labels than inputs, or what `perturb` refuses.
        GradientError: outputs that cannot be differentiated by the inputs at all.

    Cost: steps * restarts + 2 forward and steps * restarts backward passes (with restarts, one forward more for each).
    Checked by tests/core/test_measure.py.
    """
    if batch_size < 1:
        raise InputError("batch_size", "a whole number >= 1", str(batch_size), "Use 64.")
    if len(x) != len(y):
        raise InputError("y", f"one label for each of the {len(x)} inputs", f"{len(y)}", "Give those of the same set.")
    parts: list[tuple[Tensor, ...]] = []
    calls = Calls()
    for first in range(0, len(x), batch_size):
        batch, labels = x[first : first + batch_size], y[first : first + batch_size]
        point, silent, spent = _attacked(model, batch, labels, within, by, generator)
        calls += spent + Calls(2 * len(batch))
        with torch.no_grad(), own_random_state([batch], generator):
            clean, worst = at(model)(batch), at(model)(point)
        predicted = clean.argmax(1)
        right = predicted == labels
        parts.append((
            predicted, cross_entropy(clean, labels), right, cross_entropy(worst, labels), right & (worst.argmax(1) == labels),
            silent,
        ))  # fmt: skip
    if not parts:
        none = x.new_zeros(0)
        return Measured(none.long(), none, none.bool(), none, none.bool(), none.bool(), calls)
    return Measured(*(torch.cat(column) for column in zip(*parts, strict=True)), calls)  # pyright: ignore[reportCallIssue, reportArgumentType]


def _attacked(
    model: Any, x: Tensor, y: Tensor, within: Any, by: PGD, generator: torch.Generator
) -> tuple[Tensor, Tensor, Calls]:
    """The attacked points, for which of them there was no gradient, and what it cost."""
    try:
        found = perturb(ce(model, y), x, within, by=by, start="sample", generator=generator)
    except GradientError:
        with torch.enable_grad(), own_random_state([x], generator):
            differentiable = at(model)(x.detach().requires_grad_()).requires_grad
        if not differentiable:
            raise
        return x, torch.ones(len(x), dtype=torch.bool, device=x.device), Calls(2 * len(x), len(x))
    return found.point, found.flags.vanishing, found.calls
