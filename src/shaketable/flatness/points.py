"""Adversarial points that are found once, at the weights themselves, and then stay."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import PGD, Ball, Calls, GradientError, at, ce, generator, perturb
from .loss_at import ATTACK, INPUTS, require
from .presets import PAPER


@dataclass(frozen=True)
class Points:
    """Attacked inputs.

    Args:
        x: of the images' shape, inside ball and box.
        silent: (n,), for which images the attack saw no gradient, so that it did next to nothing.
        calls: passes spent, in examples.
    """

    x: Tensor
    silent: Tensor
    calls: Calls


def attacked_points(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    seed: int,
    within: Ball = INPUTS,
    by: PGD = ATTACK,
    batch_size: int = PAPER.batch_size,
) -> Points:
    """The images moved to where the ascent, from a random start, finds the cross-entropy high.

    Args:
        model: in eval mode; it is not changed.
        seed: of the starts, drawn batch after batch: the batch size is part of what is found. The measures' references at w
            start from the same points.
        within, by: eps 8/255 and PGD-20 with step .007, as the flatness paper's (Stutz et al. 2021).

    A batch of which no image has a gradient stays where it is, since a constant predictor's loss is rightly the clean
    one; but if the model's predictions do differ and no image at all has a gradient, the attack was blind.

    Raises:
        InputError: a model in train mode, no images, or another number of labels.
        GradientError: no image has a gradient, though the predictions differ.

    Cost: steps * restarts forward and backward passes. Checked by tests/flatness/test_curvature.py.
    """
    require(model, x, y, "robust")
    starts = generator(seed, "flatness starts", -1)
    parts: list[Tensor] = []
    silent: list[Tensor] = []
    calls = Calls()
    for first in range(0, len(x), batch_size):
        batch, labels = x[first : first + batch_size], y[first : first + batch_size]
        try:
            found = perturb(ce(model, labels), batch, within, by=by, start="sample", generator=starts)
        except GradientError:
            parts.append(batch.detach())
            silent.append(torch.ones(len(batch), dtype=torch.bool, device=x.device))
            calls += Calls(len(batch), len(batch))
            continue
        parts.append(found.point)
        silent.append(found.flags.vanishing)
        calls += found.calls
    points = Points(torch.cat(parts), torch.cat(silent), calls)
    if bool(points.silent.all()) and by.steps and not _constant(model, x[:batch_size]):
        remedy = "Look for a quantised or saturated output; the Hessian at clean images needs no attack."
        raise GradientError("model", "a gradient of the loss by the images", "none for any image", remedy)
    return points


def _constant(model: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        logits = at(model)(x)
    return bool((logits == logits[:1]).all())
