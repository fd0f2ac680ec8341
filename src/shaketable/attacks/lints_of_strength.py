"""Lints of how strong an attack is: against larger and smaller balls, noise, search, other starts and other models."""

from typing import Any

import torch

from ..core.seeds import generator
from .pgd import PGDAttack
from .probe import LEAST, Check, Probe, many
from .square import SquareAttack

DRAWS, QUERIES, TENTH = 20, 150, 0.1


def above_a_tenth(count: int, of: int) -> bool:
    """Whether so many are suspicious to `unbounded` and `restarts`, which honest models set off a little."""
    return count >= LEAST and count > TENTH * of


def monotone(probe: Probe) -> Check:
    """A smaller ball fools what a larger one does not (Carlini et al. 2019): it is inside it, so the search failed."""
    half, whole, double = probe.run(probe.attack, scale=0.5), probe.main, probe.run(probe.attack, scale=2.0)
    lost = [small.robust_correct < large.robust_correct for small, large in ((half, whole), (whole, double))]
    count = int((lost[0] | lost[1]).sum())
    accuracies = ", ".join(f"{100 * found.robust.value:.0f}" for found in (half, whole, double))
    measured = (
        f"{count} of {probe.n} images fall in a smaller ball and stand in a larger one "
        f"(at half the radius, the radius and twice {accuracies} % stand)"
    )
    return Check("monotone", not many(count, probe.n), measured, "More steps, another step size or restarts.", count)


def unbounded(probe: Probe) -> Check:
    """An attack that may change everything leaves images right (Carlini et al. 2019): it must reach 0."""
    ball = probe.within
    width = 1.0 if ball.box is None else float(ball.box[1] - ball.box[0])
    entries = probe.x[0].numel()
    radius = width * {"linf": 1.0, "l2": entries**0.5, "l1": float(entries), "l0": float(entries)}[ball.norm]
    if ball.mask is not None or float(ball.radius) == 0:
        return Check("unbounded", True, "not looked at: a region, or radius 0", "")
    found = probe.run(probe.attack, scale=radius / float(ball.radius))
    count = int(found.robust_correct.sum())
    measured = f"{count} of {probe.n} images stand when every pixel may take any value"
    remedy = "A working attack leaves none: look for masked gradients, and try attack='square' or a margin loss."
    return Check("unbounded", not above_a_tenth(count, probe.n), measured, remedy, count)


def noise(probe: Probe) -> Check:
    """Random noise fools what the attack does not (Carlini et al. 2019)."""
    rows = probe.standing
    if not len(rows):
        return Check("noise", True, "every image was fooled", "")
    x, y, source = probe.x[rows], probe.y[rows], generator(probe.seed, "lint", "noise")
    ball: Any = probe.within.on(x)
    fooled = torch.zeros(len(rows), dtype=torch.bool, device=x.device)
    for _ in range(DRAWS):
        point = ball.clip(x + ball.sample(x, source, law="sphere"))
        fooled |= probe.logits(point).argmax(1) != y
    count = int(fooled.sum())
    measured = f"{DRAWS} random draws fool {count} of the {len(rows)} images that survive the attack"
    return Check("noise", not many(count, probe.n), measured, "The attack is weaker than chance: mend it.", count)


def search(probe: Probe) -> Check:
    """An attack without gradients fools what the attack does not (Carlini et al. 2019, Athalye et al. 2018)."""
    if probe.within.norm not in SquareAttack.norms:
        return Check("search", True, f"not looked at: no random search in {probe.within.norm}", "")
    count = probe.fallen(SquareAttack(queries=QUERIES))
    measured = f"{QUERIES} queries of Square fool {count} of the {len(probe.standing)} images that survive the attack"
    remedy = "Gradients are masked: use attack='autoattack', or 'square' with its full 5000 queries."
    return Check("search", not many(count, probe.n), measured, remedy, count)


def restarts(probe: Probe) -> Check:
    """Another start and the margin loss change the answer by more than a tenth of the images: the attack was stuck."""
    count = probe.fallen(PGDAttack(loss="margin", steps=10), seed=probe.seed + 1)
    stood = len(probe.standing)
    measured = f"PGD-10 on the margin from another start fools {count} of the {stood} images that survive the attack"
    remedy = "Use restarts, more steps, or 'autoattack'."
    return Check("restarts", not above_a_tenth(count, probe.n), measured, remedy, count)


def transfer(probe: Probe) -> Check:
    """Points made for other models fool what the attack does not (Carlini et al. 2019)."""
    rows = probe.standing
    if not len(rows) or not probe.surrogates:
        why = "every image was fooled" if probe.surrogates else "not looked at: no surrogate was given"
        return Check("transfer", True, why, "")
    fooled = torch.zeros(len(rows), dtype=torch.bool, device=probe.x.device)
    for name, model in probe.surrogates.items():
        own = generator(probe.seed, "lint", "transfer", name)
        found = probe.attack(model, probe.x[rows], probe.y[rows], probe.within, generator=own)
        probe.calls += found.calls
        fooled |= probe.logits(found.point).argmax(1) != probe.y[rows]
    count = int(fooled.sum())
    measured = f"points of {len(probe.surrogates)} other models fool {count} of the {len(rows)} survivors"
    return Check("transfer", not many(count, probe.n), measured, "Gradients are masked: use 'autoattack'.", count)
