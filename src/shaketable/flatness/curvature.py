"""The curvature of the loss as a measure of flatness: the largest eigenvalue of its Hessian."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import PGD, Ball, InputError
from ..core.places import Select
from ..stats import mean
from .eigenpairs import Eigenpairs, eigenpairs
from .hessian import loss_hessian
from .loss_at import ATTACK, INPUTS, LossAt, reference, require
from .points import attacked_points
from .presets import PAPER
from .result import Flatness
from .spectrum import trace

At = Literal["adversarial", "clean"]


@dataclass(frozen=True)
class Hessian:
    """lambda_max of the Hessian of the mean cross-entropy by the weights (Stutz, Hein & Schiele 2021, section 3.3).

    Args:
        top, bottom: eigenvalues from each end; the largest is the measure's value, the rest are facts.
        points: where the loss is taken: "adversarial" points, found once at w, or the "clean" images, as in the paper's
            table (AT 1990, TRADES 947, AWP 1200, batch size 8 3132).
        select: "matrices", tensors of more than one dimension, the paper's; or "all".
        tolerance, restarts: of Lanczos; see `eigenpairs`.
        probes: random vectors for an estimate of the trace as a fact; 0: none.

    It is not invariant: scaling the layers before a BatchNorm by a factor changes it by the factor's inverse square, and not
    the function. Within one training it follows overfitting; between models it does not go with robustness.

    Checked by tests/flatness/test_curvature.py.
    """

    top: int = 1
    bottom: int = 1
    points: At = "adversarial"
    select: Select = "matrices"
    tolerance: float = 1e-4
    restarts: int = 300
    probes: int = 0

    def __post_init__(self) -> None:
        if self.points not in get_args(At):
            raise InputError("points", "'adversarial' or 'clean'", repr(self.points), "Choose one of them.")
        if self.top < 1 or self.bottom < 0 or self.probes < 0:
            found = f"{self.top}, {self.bottom}, {self.probes}"
            raise InputError("top, bottom, probes", "top >= 1, bottom and probes >= 0", found, "Leave them out.")

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        *,
        seed: int,
        within: Ball = INPUTS,
        by: PGD = ATTACK,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Flatness:
        """Measure it.

        Args:
            model: in eval mode; never changed.
            seed: of the attack's starts and of Lanczos' first vector.
            within, by: the inputs' ball and attack, for adversarial points.
            batch_size: images a pass; None: 128, as the paper's. It orders the attack's starts.
            progress: called with (products done, products begun with); the total may grow.

        Returns: `value` is the mean over the images of the curvature of each one's own loss along the top eigenvector, which
        is lambda_max, with the 95 % Student interval over the images for this eigenvector; `per_image` has these.
        `reference` is the mean loss at the points. `facts`: "lambda_max", "lambda_2", ..., "lambda_min", "convexity"
        (|lambda_min| / |lambda_max|, not where that is 0), "residual" (the largest), "products", and "trace" with
        "trace_error" if asked for.

        Raises:
            InputError, GradientError: see `loss_hessian`, `eigenpairs` and `attacked_points`.

        Cost: two attacks, some tens of products of two forward and two backward passes each, and four of each for the images'
        own curvatures; with the defaults about 50 products.
        """
        robust, batch_size = self.points == "adversarial", PAPER.batch_size if batch_size is None else batch_size
        require(model, x, y, "robust" if robust else "clean")
        of = LossAt(model, x, y, "robust" if robust else "clean", within, by, batch_size=batch_size)
        base, facts = reference(of, seed, by.restarts)
        calls, at_points = base.calls, x
        if robust:
            points = attacked_points(model, x, y, seed=seed, within=within, by=by, batch_size=batch_size)
            calls, at_points = calls + points.calls, points.x
        hessian = loss_hessian(model, at_points, y, select=self.select, batch_size=batch_size)
        pairs = eigenpairs(
            hessian, seed=seed, top=self.top, bottom=self.bottom, tolerance=self.tolerance, restarts=self.restarts,
            progress=progress,
        )  # fmt: skip
        calls += pairs.calls
        facts = facts | _facts(pairs)
        if self.probes:
            found = trace(hessian, seed=seed, probes=self.probes)
            facts, calls = facts | {"trace": found.value.value, "trace_error": found.error}, calls + found.calls
        each = hessian.curvatures(_flat(pairs)).double().cpu()
        name = "hessian" if robust else "clean hessian"
        return Flatness(
            name, mean(each.tolist()), _loss(base.robust_loss), each, base.correct.cpu(), (pairs.top[0],), len(x),
            calls + hessian.cost(3), facts,
        )  # fmt: skip


def _flat(pairs: Eigenpairs) -> Tensor:
    return torch.cat([part.reshape(-1) for part in pairs.vectors[0].values()]).double()


def _loss(losses: Tensor) -> float:
    return float(losses.double().mean())


def _facts(pairs: Eigenpairs) -> dict[str, float]:
    found = {"lambda_max": pairs.top[0], "residual": max(pairs.residuals), "products": float(pairs.products)}
    found |= {f"lambda_{k}": value for k, value in enumerate(pairs.top[1:], 2)}
    if pairs.bottom:
        found |= {"lambda_min": pairs.bottom[0]}
    return found if math.isnan(pairs.convexity) else found | {"convexity": pairs.convexity}
