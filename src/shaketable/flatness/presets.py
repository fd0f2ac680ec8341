"""Where Stutz, Hein & Schiele 2021 and their code differ: each as a value. The paper is the default."""

from dataclasses import dataclass, replace
from typing import Literal

from ..core.ball import Law

Nu = Literal["all", "batch"]


@dataclass(frozen=True)
class Preset:
    """All that a measure of flatness leaves open; see `PAPER`, `AUTHORS` and `EQUAL`.

    Args:
        law: how nu is drawn for the average case, "ball" (uniform in the ball's volume) or "sphere" (its border). In tensors
            of hundreds of entries these are nearly the same; a bias of ten entries has .91 of the radius on average.
        nu: whether one nu holds for "all" images, or each "batch" has its own.
        batch_size: images a batch.
        samples: draws of nu for the average case (with nu="batch", for each batch).
        xi: the average case's radius, relative to each layer's norm.
        reference_restarts: of the attack at w itself against 1 at w + nu, of which each image keeps the highest loss. More
            than 1 raises the reference, and so lowers flatness.
        worst_xi, worst_xi_clean: the worst case's radius for the robust and for the clean loss.
        worst_step: how far nu goes at each iteration of the worst case, **relative to each layer's norm**: it moves by
            worst_step * ||w_l|| along its normalised gradient. `step` turns it into units of the radius xi ||w_l||, which is
            what `PGD` and `worst` count in.
        worst_restarts: of the worst case, of which the highest mean loss counts.
        worst_reference_restarts: of the attack at w itself, as above.
        worst_law: by which nu starts at random; "ball", or "radius" (a uniform length, about half of the radius).
    """

    law: Law = "ball"
    nu: Nu = "batch"
    batch_size: int = 128
    samples: int = 10
    xi: float = 0.5
    reference_restarts: int = 10
    worst_xi: float = 0.00075
    worst_xi_clean: float = 0.003
    worst_step: float = 0.001
    worst_restarts: int = 10
    worst_reference_restarts: int = 10
    worst_law: Law = "ball"

    def step(self, xi: float) -> float:
        """`worst_step` in units of the radius xi: 4/3 for .001 and xi .00075, so each step reaches across the ball."""
        return self.worst_step / xi if xi > 0 else 1.0


PAPER = Preset()
"""The paper and its supplement, section B: nu uniform in the ball and drawn for each batch of 128, .001 steps, xi .00075."""

AUTHORS = Preset(
    law="sphere", nu="all", reference_restarts=1, worst_xi=0.003, worst_step=0.01, worst_reference_restarts=1,
    worst_law="radius",
)  # fmt: skip
"""The authors' published examples: nu on the sphere, one for all images, .01 steps, xi .003, one restart of the reference.

Their example draws 5 times and says that the paper's 10 are meant; eps is .0314 there, which is 8/255 to three digits. One
difference is left: their worst case for all images steps after each batch, this one after a pass over all of them.
"""

EQUAL = replace(PAPER, reference_restarts=1)
"""The paper's, with the same budget for the reference as for what it is compared with: 1 restart against the average case's
1, and 10 against the worst case's 10 (which the paper has)."""

PRESETS: dict[str, Preset] = {
    "paper": PAPER,
    "authors": AUTHORS,
    "equal": EQUAL,
}
