"""The friendly attack, PGD-K-tau, of friendly adversarial training (FAT, Zhang et al., ICML 2020)."""

from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core import PGD, Ascent, Constraint, InputError, Tree
from ..core.tree import leaves


@dataclass(frozen=True)
class Friendly:
    """PGD that stops, for each example, tau steps after it is misclassified: algorithm 1 (PGD-K-tau) of Zhang et al. 2020.

    Before each of the K steps the example is looked at. Misclassified with no steps left of its tau: it stays there. Else a
    misclassified look takes one off its tau (they need not follow on one another), and the step is taken. tau = 0 stops at
    the first misclassified point, an example that is misclassified at the start included; tau >= K is PGD, bit for bit.

    Args:
        steps: K, at most; 10, as the paper.
        step: in units of the ball's radius; .25 (the authors: .007 for .031, about the same).
        tau: the paper raises it with the epochs from 0 to 2 (the authors' code, of 120 epochs: 1 after 50 and 2 after 90);
            here it stays what it is.

    What "misclassified" means is the objective's: for one of labels (AT, MART), another class than the label; for one of
    reference logits (TRADES' divergence), another class than the reference's, that is than the clean prediction (the
    authors' code compares with the true label there too). The examples stay in their order, and there is no noise within
    the steps (the authors' code adds .001 Gaussian noise at each; omega).

    Attack in eval mode, as the authors (``AT(attack_mode="eval")``): with a BatchNorm in train mode, stopped examples
    are missing from the others' batch statistics.

    Cost: a forward and a backward pass for each look, at most K; a stopped example costs nothing more. Examples that run to
    the end cost one forward pass more, for their value. Any start and any ball per example serve.

    Errors: `InputError` for an objective that cannot say what is misclassified, or a ball that is not per example.
    Checked by tests/training/test_friendly.py against a loop written from the algorithm, in float64.
    """

    steps: int = 10
    step: float = 0.25
    tau: int = 0

    def __post_init__(self) -> None:
        PGD(self.steps, self.step)
        if not isinstance(self.tau, int) or self.tau < 0:
            raise InputError("tau", "a whole number >= 0", repr(self.tau), "The paper uses 0 to 3.")

    def __call__(self, objective: Any, origin: Tree, within: Constraint, start: Any) -> Ascent:
        """Run the ascent; see `perturb`, which checks its arguments first."""
        if not within.rowwise:
            remedy = "Use PGD for weights and joint places; images need a ball per='example'."
            raise InputError("within", "a ball per example, so that each can stop", "one for all", remedy)
        counted = _Counted(stopping(objective), self.tau, leaves(origin)[0])
        return PGD(self.steps, self.step)(counted, origin, within, start)


def stopping(objective: Any) -> Any:
    """The same objective, such that ``judge(point, rows)`` gives its values and which examples are misclassified.

    Raises:
        InputError: it cannot say so: it has no `judge`, or neither stops nor has a field `stops` to be set.
    """
    if hasattr(objective, "judge"):
        if getattr(objective, "stops", False):
            return objective
        if is_dataclass(objective) and hasattr(objective, "stops"):
            return replace(objective, stops=True)  # pyright: ignore[reportArgumentType]
    wanted = "an objective that says which examples are misclassified (`stops` and `judge`, as st.ce has them)"
    raise InputError("objective", wanted, type(objective).__name__, "Use PGD, or give the objective a judge.")


class _Counted:
    """An objective whose examples are finished once they are misclassified with nothing left of tau."""

    stops = True

    def __init__(self, objective: Any, tau: int, like: Tensor) -> None:
        self.objective = objective
        self.left = torch.full((len(like),), tau, device=like.device)

    def judge(self, point: Any, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        value, wrong = self.objective.judge(point, rows)
        index = slice(None) if rows is None else rows
        spent = self.left[index] == 0
        self.left[index] -= wrong.long()
        return value, wrong & spent
