"""Lints of what an attack gets to see: outputs, gradients and losses; and of what it returns."""

from typing import Any

import torch
from torch import Tensor, nn

from ..core.ball import Ball
from ..core.places import at
from ..core.record import Calls
from ..core.seeds import generator
from ..models.behaviour import gradient_findings, output_findings
from .probe import Check, Probe, many


def random(probe: Probe) -> Check:
    """Two passes over the same images differ (AutoAttack's flag): an attack on one draw says little of the next."""
    first, second = probe.logits(probe.x), probe.logits(probe.x)
    difference, scale = float((first - second).abs().max()), max(1.0, float(first.abs().max()))
    remedy = "Attack the expectation: attacks.eot(model), or AutoAttack's version 'rand'; report the spread over seeds."
    measured = f"two passes over the same {probe.n} images differ by at most {difference:.2g} in a logit"
    return Check("random", difference <= 1e-5 * scale, measured, remedy, probe.n)


def probabilities(probe: Probe) -> Check:
    """The outputs are probabilities (AutoAttack's flag): the cross-entropy of them has weak gradients."""
    found = [f for f in output_findings(probe.logits(probe.x)) if f.code == "probabilities"]
    measured = found[0].message if found else f"the outputs of {probe.n} images are no probabilities"
    remedy = "Take off the last softmax, or attack the logarithm of the outputs."
    return Check("probabilities", not found, measured, remedy, probe.n if found else 0)


def gradients(probe: Probe) -> Check:
    """Input gradients that are missing, exactly zero or not finite (AutoAttack's flag, Carlini et al. 2019)."""
    probe.calls += Calls(probe.n, 2 * probe.n)
    found = gradient_findings(probe.model, probe.x) if isinstance(probe.model, nn.Module) else []
    bad = [f for f in found if f.code != "saturated"]
    measured = bad[0].message if bad else f"the margin of all {probe.n} images has a gradient"
    remedy = "Attack a differentiable substitute (attacks.bpda), or without gradients: square, hopskipjump."
    return Check("gradients", not bad, measured, remedy, probe.n if bad else 0)


def saturated(probe: Probe) -> Check:
    """Cross-entropy that float32 cannot follow: where the true class's probability rounds to 1 its gradient is noise.

    Of each survivor, at the point that the attack left it at: the gradient of the cross-entropy by the logits in float32
    against that in float64 of the same logits; wrong by more than a tenth, or exactly zero.
    """
    rows = probe.standing
    if not len(rows) or probe.main.points is None:
        return Check("saturated", True, "no image survives, so none has a saturated loss", "")
    z = probe.logits(probe.main.points.to(probe.x)[rows])
    own = nn.functional.one_hot(probe.y[rows].long(), z.shape[1])
    narrow, wide = (w.softmax(1) - own for w in (z.float(), z.double()))
    off = (narrow.double() - wide).norm(dim=1) > 0.1 * wide.norm(dim=1)
    count = int((off | (narrow == 0).all(1)).sum())
    measured = f"the gradient of the cross-entropy is lost to rounding on {count} of {len(rows)} survivors"
    return Check("saturated", not many(count, len(rows)), measured, "Attack with loss='margin' or 'dlr'.", count)


def rising(probe: Probe) -> Check:
    """The loss does not rise along the attack (Pintor et al. 2022): of survivors, whether it ends above where it began."""
    rows = probe.standing
    if not len(rows):
        return Check("rising", True, "every image was fooled", "")
    before, after = (
        losses.to(probe.y.device)[rows] for losses in (probe.main.clean_losses, probe.main.adversarial_losses)
    )
    count = int((after <= before).sum())
    measured = f"the loss of {count} of {len(rows)} survivors is no higher at the end of the attack than at the image"
    remedy = "The attack does not climb: look at its step, its loss and the model's gradients; try attack='square'."
    return Check("rising", not many(count, len(rows)), measured, remedy, count)


def silent(probe: Probe) -> Check:
    """The attack meets points that fool the model and returns others (Pintor et al. 2022).

    Of an attack that drops images once they are fooled it cannot be. Of another one, every batch of all survivors that the
    model is asked for is looked at.
    """
    rows = probe.standing
    if hasattr(probe.attack, "until_fooled") or not len(rows):
        return Check("silent", True, "the attack keeps every point that fools the model", "")
    x, y = probe.x[rows], probe.y[rows]
    met = torch.zeros(len(rows), dtype=torch.bool, device=x.device)
    limits: Any = probe.within.on(x)

    def watched(point: Tensor) -> Tensor:
        logits = at(probe.model)(point)
        if point.shape == x.shape and bool((limits.size(point.detach() - x, x) <= _reach(probe.within)).all()):
            met.logical_or_(logits.detach().argmax(1) != y)
        return logits

    found = probe.attack(watched, x, y, probe.within, generator=generator(probe.seed, "lint", "silent"))
    probe.calls += found.calls
    count = int((met & (probe.logits(found.point).argmax(1) == y)).sum())
    measured = f"on {count} of {len(rows)} survivors the attack met a point that fools the model and returned another"
    return Check("silent", not many(count, probe.n), measured, "Keep the best point, not the last one.", count)


def _reach(ball: Ball) -> float:
    return float(ball.radius) * (1 + 1e-5) + 1e-6
