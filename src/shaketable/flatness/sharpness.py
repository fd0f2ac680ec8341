"""Further measures of sharpness: `average` and `worst` in other balls of the weights, and of other logits.

They were made for the clean loss, which is their default; with loss="robust" they are measured on attacked inputs.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..core import PGD, Ball, Tree
from ..core.ball import Law
from ..core.tree import map_leaves
from .average import average
from .logits import LOGITS, LogitScale
from .loss_at import ATTACK, INPUTS, Loss, at_least_zero, one_of
from .measures import Progress, given
from .presets import PAPER, Nu
from .result import Flatness
from .worst import worst

Case = Literal["worst", "average"]


@dataclass(frozen=True)
class AdaptiveNoise:
    """nu_i normal with a standard deviation of rho |w_i|: what `average` draws from for adaptive sharpness.

    Args:
        rho: in units of each weight.
    """

    rho: float

    def sample(self, origin: Tree, generator: torch.Generator, law: Law = "ball") -> Tree:
        """A draw; there is one law."""

        def draw(w: Tensor) -> Tensor:
            wide = torch.promote_types(w.dtype, torch.float32)
            noise = torch.randn(w.shape, generator=generator, device=generator.device, dtype=wide)
            return self.rho * w.abs() * noise.to(w)

        return map_leaves(draw, origin)


@dataclass(frozen=True)
class AdaptiveSharpness:
    """Adaptive (element-wise) sharpness with normalised logits (Andriushchenko, Croce, Mueller, Hein & Flammarion 2023).

    case="worst": max over |nu_i| <= rho |w_i| of the loss at w + nu, minus the loss at w. case="average": the mean over nu_i
    normal with deviation rho |w_i|. Both do not change when layers, or units within them, are rescaled, and with
    normalised logits not when the logits are either, whose scale the cross-entropy would otherwise see.

    Args:
        rho: in units of each weight; None: .002 (worst) and .1 (average), from the middle of the ranges that the authors
            searched for a ResNet-18 (.001 to .008, and .05 to .4).
        case: "worst" or "average".
        logits: "deviation", the paper's: centred and divided by their standard deviation over the classes; "length", the
            authors' code: by their length, sqrt(classes) smaller; "plain", as they are. Of two classes, only the sign is
            left by either, and there is nothing to climb.
        loss: "clean", the paper's; or "robust", on inputs that are attacked with the same normalised logits.
        steps, restarts: of the worst case; 20 and 1, from w itself, the best point kept, as the authors. With more restarts
            the starts are drawn.
        samples: of the average case; the authors' 20.
        nu: "batch", the authors' (m-sharpness, m = 128), or "all".

    All parameters move, normalisation layers' as well, as in the authors' code. Difference from the paper: plain sign
    steps of a quarter of the radius instead of Auto-PGD; only its l-infinity ball in the worst case.

    Cost: restarts * (steps + 2) + 1 forward and restarts * steps backward passes, 23 and 20 an image with the defaults; the
    average case 21 forward. Checked by tests/flatness/test_sharpness.py.
    """

    rho: float | None = None
    case: Case = "worst"
    logits: LogitScale = "deviation"
    loss: Loss = "clean"
    steps: int = 20
    restarts: int = 1
    samples: int = 20
    nu: Nu = "batch"

    def __post_init__(self) -> None:
        one_of("case", self.case, get_args(Case))
        one_of("logits", self.logits, get_args(LogitScale))
        one_of("loss", self.loss, get_args(Loss))
        one_of("nu", self.nu, get_args(Nu))
        at_least_zero("rho", self.rho, ".002")

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int,
        within: Ball = INPUTS,
        by: PGD = ATTACK,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Flatness:
        """Measure; see `measures.Measure` for the arguments."""
        scale, size = LOGITS[self.logits], given(batch_size, PAPER.batch_size)
        common: dict[str, Any] = {
            "loss": self.loss, "nu": self.nu, "logits": scale, "select": "all", "batch_size": size, "progress": progress,
        }  # fmt: skip
        if self.case == "average":
            noise = AdaptiveNoise(given(self.rho, 0.1))
            found = average(
                model, x, y, seed=seed, xi=noise, within=within, by=by, samples=self.samples, reference_restarts=1,
                **common,
            )  # fmt: skip
            return _named(found, "adaptive average", self.loss, noise.rho)
        rho = given(self.rho, 0.002)
        found = worst(
            model, x, y, seed=seed, xi=Ball("linf", rho, per="element", relative=True), within=within,
            by=replace(by, keep="best"), iterations=self.steps, step=0.25, restarts=self.restarts,
            reference_restarts=self.restarts, start="zero" if self.restarts == 1 else "sample", **common,
        )  # fmt: skip
        return _named(found, "adaptive worst", self.loss, rho)


@dataclass(frozen=True)
class SAMSharpness:
    """SAM's sharpness: max over ||nu||_2 <= rho of the loss at w + nu, minus the loss at w (Foret et al. 2021, equation 1).

    One l2 ball for all parameters as one vector, so it changes with the scale of layers.

    Args:
        rho: the radius; .05, the paper's.
        steps: of the ascent; 20 steps of a quarter of the radius. 1 is the paper's own estimate, one step of the full radius
            along the gradient.
        restarts: 1, from w itself; with more the starts are drawn.
        loss: "clean", the paper's; or "robust".
        nu: "all", one for all images; "batch" for m-sharpness, where each batch has its own.

    Cost: restarts * (steps + 2) + 1 forward and restarts * steps backward passes: 23 and 20 an image with the defaults.
    Checked by tests/flatness/test_sharpness.py and test_quadratic.py (the constrained optimum).
    """

    rho: float = 0.05
    steps: int = 20
    restarts: int = 1
    loss: Loss = "clean"
    nu: Nu = "all"

    def __post_init__(self) -> None:
        at_least_zero("rho", self.rho, ".05")
        one_of("loss", self.loss, get_args(Loss))
        one_of("nu", self.nu, get_args(Nu))

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int,
        within: Ball = INPUTS,
        by: PGD = ATTACK,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Flatness:
        """Measure; see `measures.Measure` for the arguments."""
        found = worst(
            model, x, y, seed=seed, xi=Ball("l2", self.rho, per="all"), within=within, by=replace(by, keep="best"),
            iterations=self.steps, step=1.0 if self.steps == 1 else 0.25, restarts=self.restarts,
            reference_restarts=self.restarts, start="zero" if self.restarts == 1 else "sample", loss=self.loss, nu=self.nu,
            select="all", batch_size=given(batch_size, PAPER.batch_size), progress=progress,
        )  # fmt: skip
        return _named(found, "sam", self.loss, self.rho)


@dataclass(frozen=True)
class FilterNormalised:
    """Average- or worst-case flatness with a ball for each filter instead of each layer: ||nu_f|| <= xi ||w_f||.

    The normalisation of Li et al. 2018 (a convolution's filter, a linear layer's row) in the measures of Stutz et al. 2021,
    who note that its perturbations are shorter (21.5 against 33.1), so that nets look flatter. As in Li et al., biases and
    normalisation layers stay.

    Args:
        case: "average" or "worst".
        xi: None: .5 (average), .00075 (worst, robust) or .003 (worst, clean), as for layers.
        loss: "robust" or "clean".
        samples, restarts: of the average and of the worst case; 10.
        reference_restarts: 10, the paper's; see `average`.
        nu: "batch" or "all".

    Cost: as `average` and `worst`. Checked by tests/flatness/test_sharpness.py.
    """

    case: Case = "average"
    xi: float | None = None
    loss: Loss = "robust"
    samples: int = 10
    restarts: int = 10
    reference_restarts: int = 10
    nu: Nu = "batch"

    def __post_init__(self) -> None:
        one_of("case", self.case, get_args(Case))
        at_least_zero("xi", self.xi, ".5")
        one_of("loss", self.loss, get_args(Loss))
        one_of("nu", self.nu, get_args(Nu))

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        seed: int,
        within: Ball = INPUTS,
        by: PGD = ATTACK,
        batch_size: int | None = None,
        progress: Progress | None = None,
    ) -> Flatness:
        """Measure; see `measures.Measure` for the arguments."""
        usual = (
            PAPER.xi if self.case == "average" else PAPER.worst_xi if self.loss == "robust" else PAPER.worst_xi_clean
        )
        xi = given(self.xi, usual)
        common: dict[str, Any] = {
            "xi": Ball("l2", xi, per="filter", relative=True), "within": within, "by": by, "loss": self.loss, "nu": self.nu,
            "reference_restarts": self.reference_restarts, "select": "matrices", "progress": progress,
            "batch_size": given(batch_size, PAPER.batch_size),
        }  # fmt: skip
        if self.case == "average":
            return _named(
                average(model, x, y, seed=seed, samples=self.samples, **common), "filter average", self.loss, xi
            )
        found = worst(model, x, y, seed=seed, restarts=self.restarts, step=PAPER.step(xi), **common)
        return _named(found, "filter worst", self.loss, xi)


def _named(found: Flatness, name: str, loss: Loss, radius: float) -> Flatness:
    return replace(found, name=f"{loss} {name}", facts=found.facts | {"xi": radius})
