"""Worst-case flatness of the robust loss (Stutz, Hein & Schiele 2021, section 3.2 and supplement, section B)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import PGD, Ball, Calls, GradientError, InputError, generator, perturb
from ..core.ball import Law
from ..core.perturb import drawn_start
from ..core.places import Select
from ..core.seeds import own_random_state
from ..stats import mean
from .joint import MeanLoss, joint_ball
from .loss_at import (
    ATTACK,
    INPUTS,
    Logits,
    Loss,
    LossAt,
    at_least_zero,
    one_of,
    origin_and_ball,
    reference,
    require,
    require_finite,
)
from .presets import PAPER, Nu
from .result import Flatness

XI_WORST, XI_WORST_CLEAN = PAPER.worst_xi, PAPER.worst_xi_clean
"""The paper's radii for the robust and for the clean loss, relative to each layer's norm."""

WorstFlatness = Flatness
"""What `worst` returns."""

Start = Literal["sample", "zero"]


@dataclass(frozen=True)
class _Climb:
    """The joint ascent: the weights, their ball, how both are climbed, and from where."""

    origin: dict[str, Tensor]
    ball: Any
    by: PGD
    step: float
    law: Law
    start: Start
    seed: int


def worst(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    seed: int,
    xi: float | Any | None = None,
    within: Ball = INPUTS,
    by: PGD = ATTACK,
    step: float | None = None,
    iterations: int | None = None,
    restarts: int = PAPER.worst_restarts,
    reference_restarts: int = PAPER.worst_reference_restarts,
    law: Law = PAPER.worst_law,
    start: Start = "sample",
    loss: Loss = "robust",
    nu: Nu = PAPER.nu,
    select: Select | None = None,
    logits: Logits | None = None,
    batch_size: int = PAPER.batch_size,
    progress: Callable[[int, int], None] | None = None,
) -> Flatness:
    """Worst-case flatness, max_nu max_delta loss(x + delta; w + nu) - RLoss(w), by a joint ascent on nu and all deltas.

    Each iteration takes one pass of a batch, and from its gradients moves every delta by a signed step and every layer's nu by
    step * xi * ||w_l|| along g_l / ||g_l||; then both are projected, nu layer by layer onto ||nu_l|| <= xi ||w_l||. Which
    weights have a nu: see `average`.

    Args:
        model, x, y: in eval mode; see `average`.
        seed: of the random starts of nu and of the deltas.
        xi: None for the paper's: .00075 for the robust and .003 for the clean loss; or another ball of the weights.
        within, by: the inputs' ball and how they are attacked, at w by themselves and in the joint ascent with `by.step` (.007,
            the paper's), its momentum and `keep`, which are nu's as well. Its restarts stay 1.
        step: of nu, in units of the radius. None: the paper's .001 ||w_l||, which is .001 / xi radii, 4/3 for xi .00075 (the
            authors' code: .01 ||w_l||); 1/4 in another ball of the weights.
        iterations: of the joint ascent; None: `by.steps`, 20, the paper's.
        restarts: 10, the paper's; of a batch the one with the highest mean loss counts.
        reference_restarts: of the attack at w itself, 10, of which each **image** keeps the highest loss. With a strong
            reference and a weak search the value can be below 0, though the maximum is not: more steps or restarts help.
        law: how nu starts: "ball", uniform in it; "radius", as the authors' code; "sphere".
        start: "sample", or "zero", from w itself (the deltas still start at random).
        loss: "robust"; "clean": nu alone climbs, at the images themselves.
        nu: "batch", the paper's: each batch has its own nu and its own best restart, so the value depends on the batch size
            (a smaller one gives more); "all", as the authors' code: one nu for all images, with a step after a pass over
            all of them (their code steps after each batch).
        select, logits: see `average`.
        batch_size: 128, the paper's.
        progress: called with (restarts done, restarts), counted for each batch with nu="batch".

    Returns: `value` is the mean rise over the images at the worst point found, with its 95 % Student interval **over the
    images**, for this search; that another search may find more is not in it, and with nu="batch" the images of a batch
    share a nu. `draws` has the mean rise of each restart over all images; the highest of them is the value with one batch or
    nu="all", and at most the value else. `facts` has "xi" and "step".

    Raises:
        InputError, GradientError: as `average`; restarts below 1, a step below 0, an attack with restarts of its own.

    Cost: restarts * (iterations + 1) forward and restarts * iterations backward passes (to weights and inputs at once), and
    the reference's (see `average`): 422 and 400 an image with the defaults; the clean loss 211 and 200. Memory is
    that of a batch's graph and of a few copies of all images. Checked by tests/flatness/test_worst.py and test_quadratic.py.
    """
    of = LossAt(model, x, y, loss, within, by, logits, batch_size)
    _require(of, xi, step, restarts, law, start, nu)
    by = replace(by, step=1.0, steps=by.steps if iterations is None else iterations)
    xi = (PAPER.worst_xi if loss == "robust" else PAPER.worst_xi_clean) if xi is None else xi
    origin, ball = origin_and_ball(model, xi, select)
    base, facts = reference(of, seed, reference_restarts)
    pace = (PAPER.step(float(xi)) if isinstance(xi, Real) else 0.25) if step is None else step
    climb = _Climb(origin, ball, by, pace, law, start, seed)
    parts = list(of.batches()) if nu == "batch" else [of]
    best: list[Tensor] = []
    sums, calls = [0.0] * restarts, base.calls
    for k, part in enumerate(parts):
        top: Tensor | None = None
        for r in range(restarts):
            found, spent = _search(part, climb, k, r)
            sums[r] += float(found.sum())
            calls += spent
            if top is None or float(found.mean()) > float(top.mean()):
                top = found
            if progress is not None:
                progress(k * restarts + r + 1, len(parts) * restarts)
        assert top is not None
        best.append(top)
    rise = torch.cat(best) - base.robust_loss.double().cpu()
    at_w = float(base.robust_loss.double().mean())
    facts = facts | ({"xi": float(xi)} if isinstance(xi, Real) else {}) | {"step": pace}
    return Flatness(
        f"{loss} worst", mean(rise.tolist()), at_w, rise, base.correct.cpu(),
        tuple(total / len(x) - at_w for total in sums), len(x), calls, facts,
    )  # fmt: skip


def _search(of: LossAt, climb: _Climb, part: int, restart: int) -> tuple[Tensor, Calls]:
    """Each image's loss where one ascent from a new start ends, recomputed there, and what it cost."""
    source = generator(climb.seed, "flatness worst", part, restart)
    joint, count = of.loss == "robust", len(of.x)
    place: dict[str, Any] = {"weights": climb.origin} | ({"inputs": of.x} if joint else {})
    start: dict[str, Any] = {"weights": {name: torch.zeros_like(w) for name, w in climb.origin.items()}}
    if climb.start == "sample":
        start["weights"] = climb.ball.sample(climb.origin, source, climb.law)
    if joint:
        start["inputs"] = drawn_start("sample", of.x, of.within, source)
    limits = joint_ball(of.within, of.by.step, climb.ball, climb.step, inputs=joint)
    objective = MeanLoss(of)
    try:
        found = perturb(objective, place, limits, by=climb.by, start=start, generator=source)
        point, passes = found.point, found.calls
    except GradientError as error:
        if error.argument == "model":
            raise
        point, passes = _moved(place, start, of), Calls(1, 1)  # flat there: a constant predictor, or one that died
    with torch.no_grad(), own_random_state([of.x], source):
        losses = torch.cat(list(objective.losses(point)))
    require_finite(losses, "at moved weights")
    return losses.double().cpu(), Calls(count * (passes.forward + 1), count * passes.backward)


def _moved(place: dict[str, Any], start: dict[str, Any], of: LossAt) -> dict[str, Any]:
    weights = {name: w + start["weights"][name] for name, w in place["weights"].items()}
    inputs = {"inputs": of.within.clip(of.x + start["inputs"])} if "inputs" in place else {}
    return {"weights": weights} | inputs


def _require(of: LossAt, xi: Any, step: Any, restarts: int, law: str, start: str, nu: str) -> None:
    require(of.model, of.x, of.y, of.loss)
    if isinstance(xi, Real):
        at_least_zero("xi", float(xi), ".00075")
    at_least_zero("step", step, ".001 / xi, in units of the radius")
    if not isinstance(restarts, int) or restarts < 1:
        raise InputError("restarts", "a whole number >= 1", str(restarts), "The paper uses 10.")
    if of.by.restarts != 1:
        remedy = "Give the number to restarts, and that of the attack at w to reference_restarts."
        raise InputError("by", "an ascent with restarts=1", f"restarts={of.by.restarts}", remedy)
    one_of("law", law, get_args(Law))
    one_of("start", start, get_args(Start))
    one_of("nu", nu, get_args(Nu))
