"""AutoAttack: an ensemble of attacks, of which each is run on the images that the ones before it have left."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.ball import Ball, Norm
from ..core.errors import GradientError, InputError
from ..core.perturb import Perturbation
from ..core.places import at
from ..core.record import Calls
from ..core.seeds import generator as make_generator
from ..core.seeds import own_random_state
from .apgd import APGDAttack
from .attack import Attack
from .eot import eot
from .evaluation import Member
from .fab import FABAttack
from .pgd import PGDAttack
from .square import SquareAttack
from .targets import looked
from .worst import Worst

Version = Literal["standard", "plus", "rand"]
VERSIONS = ("standard", "plus", "rand")
LEAST = {"dlr": 3, "dlr-targeted": 4}  # the classes that a loss needs


@dataclass(frozen=True, repr=False)
class EnsemblePerturbation(Perturbation):
    """What an ensemble found: a `Perturbation` without values, since those of its attacks cannot be compared.

    Args:
        members: what each attack did, in their order; an attack for which nothing was left is there with 0 images.
        by: which of them fooled an image, (n,); -1 where none did, or none had to.
    """

    members: tuple[Member, ...]
    by: Int[Tensor, " n"]


@dataclass(frozen=True)
class Averaged:
    """An attack on a random model's average over `samples` passes (see `eot`); 20 is AutoAttack's. Passes are counted anew."""

    attack: Attack
    samples: int = 20

    def until_fooled(self) -> "Averaged":
        """The same, with the attack that drops images once the average is fooled, if it has a way to."""
        quick = getattr(self.attack, "until_fooled", None)
        return self if quick is None else replace(self, attack=quick())

    def __call__(
        self, model: Any, x: Tensor, y: Tensor, within: Ball, *, generator: torch.Generator
    ) -> Perturbation:  # fmt: skip
        """Attack a batch; see `Attack` for the arguments."""
        found = self.attack(eot(model, self.samples), x, y, within, generator=generator)
        calls = Calls(self.samples * found.calls.forward, self.samples * found.calls.backward)
        return replace(found, calls=calls)


@dataclass(frozen=True)
class AutoAttack:
    """The ensemble of Croce & Hein 2020 ("Reliable evaluation ...", section 6), per image the worst case of its attacks.

    Each attack is run on the images that no attack before it has fooled, and drops them once they are.

    Args:
        version: "standard": APGD-CE, APGD-T (9 classes), FAB-T (9 classes), Square (5000 queries), what published robust
            accuracies mean; in l1 balls APGD-CE has 5 restarts and APGD-T 5 classes, both in stages (Croce & Hein 2021).
            "plus": APGD-CE, APGD-DLR and FAB with 5 restarts each, Square, APGD-T, FAB-T; dearer.
            "rand", for random models: APGD-CE and APGD-DLR on the model averaged over 20 passes (see `eot`).
            Or a tuple of attacks, which are run in that order.

    An image that stays robust has the point of the first attack that was run on it. An attack that finds no gradient at all
    is passed over; the images are flagged, unless another attack sees one.

    Cost: in passes of an image that stays robust, "standard" takes 100 (APGD-CE), 900 (APGD-T) and 900 (FAB-T) backward
    passes, 1000 forward passes for the first two, 1800 for FAB-T and 5000 for Square; with fewer than ten classes fewer.

    Differences from the authors' code: images are dropped as soon as they are fooled, within attacks as well, so the verdict
    is the same for less work; see also the attacks. Square's schedule is that of 10000 queries, as theirs is.

    Raises:
        InputError: an unknown version; another norm than linf, l2, l1 for a named version; a model of too few classes for the
            loss of a member ("standard" and "plus" need four, "rand" three), before anything is attacked, whatever the images.
        GradientError: no attack has found a gradient on any image that was left for it.

    Checked by tests/attacks/test_autoattack.py: the worst case of its members, each on survivors alone, counted passes;
    benchmarks/autoattack.py compares it with the authors' own.
    """

    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2", "l1")

    version: Version | tuple[Attack, ...] = "standard"

    def __post_init__(self) -> None:
        if isinstance(self.version, str):
            if self.version not in VERSIONS:
                found = repr(self.version)
                raise InputError("version", f"one of {', '.join(VERSIONS)}, or a tuple of attacks", found, "Name one.")
        elif not isinstance(self.version, tuple) or not self.version or not all(map(callable, self.version)):
            remedy = "For example (APGDAttack(), SquareAttack(queries=1000))."
            raise InputError("version", "a name, or a tuple of one attack or more", repr(self.version), remedy)

    def until_fooled(self) -> "AutoAttack":
        """Itself: images are always dropped once they are fooled."""
        return self

    @torch.inference_mode(False)  # a gradient needs tensors that were made outside of it
    def __call__(
        self,
        model: Any,
        x: Float[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        within: Ball,
        *,
        generator: torch.Generator,
    ) -> EnsemblePerturbation:
        """Attack a batch; see `Attack` for the arguments."""
        attacks = self.version if isinstance(self.version, tuple) else None
        plan = members(self.version, within.norm) if attacks is None else _named(attacks)  # pyright: ignore
        first, logits = looked(model, x, y, within, True, generator)
        if logits is not None:
            _require_classes(self.version, plan, logits.shape[1])
        worst = Worst(first.origin, within.on(first.origin), compares=False)
        worst.stopped, worst.calls = first.flags.stopped, first.calls
        by = torch.full((len(worst.x),), -1, device=worst.x.device)
        done, climbed, refused = [], logits is None, None
        for number, (name, attack) in enumerate(plan.items()):
            rows = worst.left()
            if not len(rows):
                done.append(Member(name, 0, 0, Calls()))
                continue
            before = worst.calls
            try:
                stopped = _run(attack, model, y, worst, rows, generator)
                climbed = True
                by[rows[stopped]] = number
            except GradientError as error:
                stopped, refused = torch.zeros_like(rows, dtype=torch.bool), error
                worst.refuse(rows, Calls(len(rows), len(rows)))
            spent = Calls(worst.calls.forward - before.forward, worst.calls.backward - before.backward)
            done.append(Member(name, len(rows), int(stopped.sum()), spent))
        if refused is not None and not climbed:
            raise refused
        point, size = worst.placed()
        return EnsemblePerturbation(
            worst.x, worst.delta, point, None, size, worst.calls, worst.flags(), tuple(done), by
        )


def members(version: Version, norm: Norm) -> dict[str, Attack]:
    """The attacks of a named version, in the order in which they are run, by the names that the paper has for them."""
    if norm not in AutoAttack.norms:
        raise InputError(
            "within", "an linf, l2 or l1 ball for AutoAttack", f"norm={norm!r}", "Give a tuple of attacks."
        )
    square, fab_t = SquareAttack(rescale=False), FABAttack(targeted=True, search=0)
    if version == "standard":
        few = norm == "l1"
        return {
            "apgd-ce": APGDAttack("ce", restarts=5 if few else 1),
            "apgd-t": APGDAttack("dlr-targeted", targets=5 if few else 9),
            "fab-t": fab_t,
            "square": square,
        }
    if version == "plus":
        return {
            "apgd-ce": APGDAttack("ce", restarts=5),
            "apgd-dlr": APGDAttack("dlr", restarts=5),
            "fab": FABAttack(restarts=5, search=0),
            "square": square,
            "apgd-t": APGDAttack("dlr-targeted"),
            "fab-t": fab_t,
        }
    return {"apgd-ce": Averaged(APGDAttack("ce")), "apgd-dlr": Averaged(APGDAttack("dlr"))}


def _require_classes(version: Version | tuple[Attack, ...], plan: dict[str, Attack], classes: int) -> None:
    """Raise an `InputError` if a member's loss needs more classes than the model has, also if nothing would be left for it."""
    members = {name: attack.attack if isinstance(attack, Averaged) else attack for name, attack in plan.items()}
    losses = {name: a.loss for name, a in members.items() if isinstance(a, APGDAttack | PGDAttack)}
    needed = {name: LEAST[loss] for name, loss in losses.items() if isinstance(loss, str) and loss in LEAST}
    name = max(needed, key=needed.__getitem__, default=None)
    if name is None or classes >= needed[name]:
        return
    who = f"version {version!r}" if isinstance(version, str) else "these attacks"
    remedy = (
        "Use apgd, apgd(loss='ce-targeted'), fab and square, each by itself; in Python, a tuple of them as the version."
        if version in ("standard", "plus")
        else "Give a tuple with 'margin' for 'dlr', 'ce-targeted' for 'dlr-targeted' (--attack file.py:name)."
    )
    wanted = f"a model of {needed[name]} classes or more for {who} ({name}, of the loss {losses[name]!r})"
    raise InputError("version", wanted, f"{classes}", remedy)


def _named(attacks: tuple[Attack, ...]) -> dict[str, Attack]:
    return {f"{number} {type(attack).__name__}": attack for number, attack in enumerate(attacks)}


def _run(
    attack: Attack, model: Any, y: Tensor, worst: Worst, rows: Tensor, generator: torch.Generator
) -> Tensor:  # fmt: skip
    """Run an attack on some of the images; returns which of them it fooled. One that does not say so costs one pass more."""
    quick = getattr(attack, "until_fooled", None)
    labels, part = y[rows], worst.x[rows]
    run = attack if quick is None else quick()
    found = run(model, part, labels, worst.within.rows(rows), generator=generator)
    stopped = found.flags.stopped
    if quick is None:
        with torch.no_grad(), own_random_state([part], generator):
            logits = at(model)(found.point)
        stopped = (logits.argmax(1) != labels) | ~torch.isfinite(logits).all(1)
        found = replace(found, calls=found.calls + Calls(len(rows)))
    worst.take(rows, found, stopped)
    return stopped


def autoattack(
    model: Any,
    x: Float[Tensor, "n c h w"],
    y: Int[Tensor, " n"],
    *,
    eps: float | Float[Tensor, " n"],
    norm: Norm = "linf",
    version: Version | tuple[Attack, ...] = "standard",
    box: tuple[float, float] | None = (0.0, 1.0),
    mask: Tensor | None = None,
    seed: int = 0,
) -> EnsemblePerturbation:
    """AutoAttack on a batch, in one line: ``autoattack(model, x, y, eps=8 / 255).flags.stopped`` are the images it fools.

    Args:
        model: from images in the box to logits; left as it is.
        x, y: images and labels.
        eps: the radius, in the unit of the images; one for all or one for each.
        norm: "linf", "l2" or "l1".
        version: see `AutoAttack`, also for cost and errors.
        box: the range of valid images.
        mask: nonzero where an image may change.
        seed: of all that is drawn.

    For a robust accuracy use ``evaluate(..., attack=AutoAttack())``, which works in batches, through a faster copy of the
    model on a CPU, and recomputes the verdicts.
    """
    ball = Ball(norm, eps, box=box, mask=mask)
    return AutoAttack(version)(model, x, y, ball, generator=make_generator(seed, "autoattack"))
