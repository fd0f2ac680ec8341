"""What every measure of flatness returns."""

from dataclasses import dataclass, field
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core import Calls
from ..stats import Mean, mean


@dataclass(frozen=True)
class Split:
    """The mean increase of the loss over the images that the model gets right, and over those that it gets wrong.

    Args:
        correct, incorrect: each with its count and its 95 % Student interval over those images; None where there are none.
    """

    correct: Mean | None
    incorrect: Mean | None


@dataclass(frozen=True, eq=False)
class Flatness:
    """How much a loss rises when the weights move; larger is sharper.

    Args:
        name: of the measure.
        value: the mean rise with its 95 % interval; over what, each measure's card says.
        reference: the mean loss at the weights themselves, which was subtracted.
        per_image: the rise of each image's own loss, (n,) float64, on the CPU; its mean is the value.
        correct: which images are classified rightly by the unmoved weights, without an attack, (n,).
        draws: the rise for each draw of the weights, or for each restart of the search for the worst ones.
        examples: how many images.
        calls: passes spent, in examples.
        facts: what else was found or set, by name. All measures give `constant` (1 for a model that predicts the same
            whatever it sees: perfectly flat, and to be refused a rank), `classes` (how many different ones it predicts) and
            `silent` (the share of images whose attack at the weights themselves saw no gradient).

    Two results are equal if all of their fields are, the tensors bit for bit.
    Checked by tests/flatness/test_result.py.
    """

    name: str
    value: Mean
    reference: float
    per_image: Float[Tensor, " n"]
    correct: Bool[Tensor, " n"]
    draws: tuple[float, ...]
    examples: int
    calls: Calls
    facts: dict[str, float] = field(default_factory=dict)

    @property
    def constant(self) -> bool:
        """Whether the model predicts the same whatever it sees, so that its flatness says nothing."""
        return self.facts.get("constant", 0.0) != 0

    def split(self) -> Split:
        """The rise over the images that are classified rightly and over those that are not (Stutz et al. 2021, section 4).

        Their means, weighted by their counts, give the mean of `per_image`.
        """
        right = self.correct
        return Split(
            *(mean(part.tolist()) if len(part) else None for part in (self.per_image[right], self.per_image[~right]))
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Flatness):
            return NotImplemented
        same = all(getattr(self, name) == getattr(other, name) for name in _PLAIN)
        return same and torch.equal(self.per_image, other.per_image) and torch.equal(self.correct, other.correct)


_PLAIN = ("name", "value", "reference", "draws", "examples", "calls", "facts")


@dataclass(frozen=True)
class Profile:
    """One measure at several radii, which share their reference and the directions in which the weights move.

    Args:
        xi: the radii, in the order in which they were given.
        results: for each of them what it would be by itself, with the cost that it would have by itself.
        reference_calls: the passes spent on the reference, which was measured once.
    """

    xi: tuple[float, ...]
    results: tuple[Flatness, ...]
    reference_calls: Calls

    @property
    def calls(self) -> Calls:
        """The passes spent on all of them."""
        own = [one.calls for one in self.results]
        saved = (len(own) - 1) * self.reference_calls.forward, (len(own) - 1) * self.reference_calls.backward
        total = reduce(Calls.__add__, own)
        return Calls(total.forward - saved[0], total.backward - saved[1])
