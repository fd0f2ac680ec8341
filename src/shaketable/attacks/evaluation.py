"""What an evaluation returns: a verdict for each image, the rates made of them, and what was suspicious."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

from ..core.record import Calls
from ..stats import Mean, Rate, mean

SHARE = 0.01  # images without a gradient, of those attacked, above which a robust accuracy is not believed


@dataclass(frozen=True)
class Finding:
    """Something that the reader of a robust accuracy must know.

    Args:
        level: "finding" casts doubt on the number; "info" does not.
        code: "no-gradient", "vanishing-gradient", "nonfinite", "verdict-changed" or "outside-ball".
        message: what was seen.
        remedy: what to do about it.
        count: how many images it is about.
    """

    level: Literal["info", "finding"]
    code: str
    message: str
    remedy: str
    count: int


@dataclass(frozen=True)
class Member:
    """What one attack of an ensemble did.

    Args:
        name: of the attack, as the AutoAttack paper has it; of a custom ensemble its place and class.
        attacked: how many images it was run on: those that no attack before it had fooled.
        broken: how many of these it fooled.
        calls: the passes that it took.
    """

    name: str
    attacked: int
    broken: int
    calls: Calls

    def __add__(self, other: "Member") -> "Member":
        return Member(self.name, self.attacked + other.attacked, self.broken + other.broken, self.calls + other.calls)


def summed(batches: Iterable[Sequence[Member]]) -> tuple[Member, ...]:
    """What each attack of an ensemble did over several batches, by its name."""
    found: dict[str, Member] = {}
    for member in itertools.chain(*batches):
        found[member.name] = found[member.name] + member if member.name in found else member
    return tuple(found.values())


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """What `evaluate` found, an entry for each image in the order they came.

    Args:
        clean_correct: classified correctly as they are.
        robust_correct: classified correctly before and after the attack; recomputed from the stored points.
        clean_losses: cross-entropy of the images.
        adversarial_losses: cross-entropy at the stored points. With measure="loss" their mean is the robust loss; with
            measure="accuracy" it is only a lower bound, since an attack stops at the first point that fools the model.
        sizes: the norm of each perturbation, in the ball's unit, recomputed in float64; 0 where nothing was attacked.
        calls: all passes that were made, in images.
        measure: what was measured, see `evaluate`.
        findings: what was suspicious; empty if nothing was.
        points: the adversarial images if they were asked for (the image itself where nothing was attacked), else None.
        members: of an ensemble, what each of its attacks did; () of others, and where processes share the images.
    """

    clean_correct: Bool[Tensor, " n"]
    robust_correct: Bool[Tensor, " n"]
    clean_losses: Float[Tensor, " n"]
    adversarial_losses: Float[Tensor, " n"]
    sizes: Float[Tensor, " n"]
    calls: Calls
    measure: Literal["accuracy", "loss"]
    findings: tuple[Finding, ...]
    points: Float[Tensor, "n ..."] | None
    members: tuple[Member, ...] = ()

    @property
    def clean(self) -> Rate:
        """Clean accuracy with its 95 % interval."""
        return Rate(int(self.clean_correct.sum()), len(self.clean_correct))

    @property
    def robust(self) -> Rate:
        """Robust accuracy (correct before and after the attack) with its 95 % interval."""
        return Rate(int(self.robust_correct.sum()), len(self.robust_correct))

    @property
    def clean_loss(self) -> Mean:
        """Mean cross-entropy of the images with its 95 % interval."""
        return mean(self.clean_losses.tolist())

    @property
    def adversarial_loss(self) -> Mean:
        """Mean cross-entropy at the stored points with its 95 % interval."""
        return mean(self.adversarial_losses.tolist())

    @property
    def size(self) -> float:
        """The largest perturbation, in the ball's unit."""
        return float(self.sizes.max())

    def __repr__(self) -> str:
        return f"Evaluation(clean={self.clean}, robust={self.robust}, {len(self.findings)} findings)"

    def __str__(self) -> str:
        lines = [f"clean accuracy  {self.clean}", f"robust accuracy {self.robust}"]
        return "\n".join(lines + [f"{f.level}: {f.code}: {f.message} {f.remedy}" for f in self.findings])


@dataclass(frozen=True)
class Counts:
    """How many images were attacked, and how many of them were suspicious in which way.

    Args:
        attacked: given to the attack.
        refused: in batches for which the attack raised a `GradientError`.
        vanishing: survivors whose first gradient was (nearly) zero.
        nonfinite: with NaN or infinite logits or gradients.
        changed: whose recomputed verdict is not the attack's own.
        outside: whose points left the ball or the box, and were discarded.
    """

    attacked: int = 0
    refused: int = 0
    vanishing: int = 0
    nonfinite: int = 0
    changed: int = 0
    outside: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(mine + its for mine, its in zip(vars(self).values(), vars(other).values(), strict=True)))


def findings_of(counts: Counts) -> tuple[Finding, ...]:
    """The findings that counts amount to."""
    found: list[Finding] = []
    of = f"of {counts.attacked} attacked images"
    if counts.refused or counts.vanishing:
        missing = counts.refused + counts.vanishing
        level = "finding" if missing > SHARE * counts.attacked else "info"
        if counts.refused:
            seen = f"{counts.refused} {of} came in batches without any usable gradient; they were not attacked at all."
            code = "no-gradient"
        else:
            seen = f"{missing} {of} counted as robust had a first gradient that is (nearly) zero."
            code = "vanishing-gradient"
        remedy = "The robust accuracy is no evidence for them: use loss='margin', or an attack without gradients."
        found.append(Finding(level, code, seen, remedy, missing))
    if counts.nonfinite:
        seen = f"{counts.nonfinite} images gave NaN or infinite logits or gradients; such logits count as wrong."
        found.append(
            Finding("finding", "nonfinite", seen, "Look for overflow or division in the model.", counts.nonfinite)
        )
    if counts.changed:
        seen = f"The recomputed verdict on {counts.changed} {of} is not the attack's own; the recomputed one counts."
        remedy = "Is the model random, or does it keep state? Then average over its randomness inside the attack (EOT)."
        found.append(Finding("finding", "verdict-changed", seen, remedy, counts.changed))
    if counts.outside:
        seen = f"The attack left the ball, its mask or its box on {counts.outside} {of}; these points were discarded."
        found.append(Finding("finding", "outside-ball", seen, "Mend the attack: project its points.", counts.outside))
    return tuple(found)
