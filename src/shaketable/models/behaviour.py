"""What a model does that an evaluation must know of: it may be a defence's purpose, so it is reported, not refused."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Finding:
    """One thing about a model that its evaluation must take into account.

    Args:
        code: a fixed word for programs, for example "random".
        message: what was seen, with numbers.
        remedy: what to do about it.
        level: always "finding"; what makes a job meaningless raises instead.
    """

    code: str
    message: str
    remedy: str
    level: Literal["finding"] = "finding"


def output_findings(logits: Float[Tensor, "n k"]) -> list[Finding]:
    """Whether the outputs are probabilities or their logarithms instead of logits."""
    totals = logits.double().sum(1)
    if float(logits.min()) >= 0 and float(logits.max()) <= 1 and bool(((totals - 1).abs() < 1e-3).all()):
        message = f"the outputs are probabilities: within [0, 1], and every one of {len(logits)} rows sums to 1"
        remedy = (
            "Leave out the last softmax: a cross-entropy on probabilities has weak gradients, an attack looks weak."
        )
        return [Finding("probabilities", message, remedy)]
    if float(logits.max()) <= 1e-6 and bool((logits.double().logsumexp(1).abs() < 1e-3).all()):
        message = "the outputs are log-probabilities: their exponentials sum to 1 in every row"
        remedy = "None is needed for attacks, whose losses do not see the shift; penalties on the logits' size do."
        return [Finding("log-probabilities", message, remedy)]
    return []


def forward_findings(forward: Forward, x: Float[Tensor, "n c h w"]) -> list[Finding]:
    """Randomness, dependence on the rest of the batch, and inputs that are changed in place.

    Args:
        forward: the model's logits without gradients.
        x: at most a few images. Cost: two forward passes of them, three with two images or more.
    """
    found: list[Finding] = []
    given = x.clone()
    first = forward(given)
    if not torch.equal(given, x):
        message = "the model changes its input in place"
        found.append(Finding("input-changed", message, "Copy the input in forward; here every call gets a copy."))
    second = forward(x.clone())
    difference, scale = _difference(first, second), max(1.0, float(first.abs().max()))
    if not difference <= 1e-5 * scale:
        message = f"two passes over the same images differ, by up to {difference:.2g} in a logit"
        remedy = "Attack the expectation over several passes, and report the spread over seeds."
        return [*found, Finding("random", message, remedy)]
    if len(x) > 1:
        others = torch.cat([x[:1], 1 - x[1:]])  # the same first image among other images
        difference = _difference(first[:1], forward(others)[:1])
        if not difference <= torch.finfo(first.dtype).eps ** 0.5 * scale:
            message = f"an image's logits depend on the rest of its batch, by up to {difference:.2g}"
            remedy = (
                "Evaluate images one by one, or look for statistics over the batch (BatchNorm without running ones)."
            )
            found.append(Finding("batch-dependent", message, remedy))
    return found


def gradient_findings(model: nn.Module, x: Float[Tensor, "n c h w"]) -> list[Finding]:
    """Whether gradient-based attacks can work: input gradients that are missing, zero, vanishing or not finite.

    Args:
        model: called directly, with gradients.
        x: at most a few images. Cost: one forward and two backward passes of them.
    """
    remedy = "Gradient-based attacks say nothing here: use random search, transfer, or a differentiable surrogate."
    with torch.inference_mode(False), torch.enable_grad():
        images = x.detach().clone().requires_grad_()
        try:
            logits = model(images.clone())  # not the leaf, which a model could not change in place
            top = logits.topk(2, 1).values
            losses = (top[:, 0] - top[:, 1], nn.functional.cross_entropy(logits, logits.argmax(1), reduction="none"))
            gradients = [
                torch.autograd.grad(loss.sum(), images, retain_graph=True, allow_unused=True)[0] for loss in losses
            ]
        except Exception as error:  # whatever a layer without a derivative raises
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            return [Finding("no-gradient", f"the input has no gradient: {text}", remedy)]
    if gradients[0] is None or gradients[1] is None:
        return [Finding("no-gradient", "the logits do not depend on the input as far as autograd can see", remedy)]
    margin, entropy = (g.flatten(1) for g in gradients)
    n = len(x)
    broken = int((~torch.isfinite(margin)).any(1).logical_or((~torch.isfinite(entropy)).any(1)).sum())
    if broken:
        message = f"the input gradient is NaN or infinite for {broken} of {n} images"
        return [Finding("bad-gradient", message, "Look for sqrt or log of 0, or a division by 0, in the model.")]
    flat = (margin == 0).all(1)
    vanished = (entropy == 0).all(1) & ~flat
    found = []
    if bool(flat.any()):
        message = f"the gradient of the margin is exactly 0 for {int(flat.sum())} of {n} images"
        found.append(Finding("zero-gradient", message, remedy))
    if bool(vanished.any()):
        message = f"the gradient of the cross-entropy underflows to 0 for {int(vanished.sum())} of {n} images"
        found.append(Finding("saturated", message, "Attack the margin or DLR, which do not saturate (loss='dlr')."))
    return found


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
