"""Attacks that search in bfloat16, and whose every success is confirmed in the model's own precision."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.ball import Ball
from ..core.errors import GradientError, InputError
from ..core.perturb import Perturbation
from ..core.places import at
from ..core.record import Calls, Flags
from ..stats import Rate
from .attack import Attack
from .evaluation import Member, summed
from .verdicts import wrong


@dataclass(frozen=True)
class HalfSearch:
    """An attack on a model under autocast to bfloat16; what it finds counts only if it fools the model itself.

    Args:
        attack: any; on images that bfloat16 alone calls fooled it is run once more in the model's own precision.
        stops: whether images that are fooled count as dropped; `until_fooled` switches it on.

    bfloat16 has 8 bits of mantissa. On small networks 2 to 4 % of the gradient's signs turn round under autocast, on
    ImageNet networks 16 to 20 %, so the search is a weaker one and the robust accuracy an upper bound, as with every
    attack; it is never the default. `compared` measures the difference on a sample.

    On a CPU without bfloat16 instructions it is slower, not faster.

    Cost: that of the attack; 1 forward pass more for each image, and the attack again for successes that are not confirmed.
    Raises:
        InputError: a model that is no `nn.Module` in float32, whose passes autocast can make.

    Checked by tests/attacks/test_half.py.
    """

    attack: Attack
    stops: bool = False

    @property
    def norms(self) -> Any:
        """Those of the attack."""
        return getattr(self.attack, "norms", None)

    @property
    def labels_are_targets(self) -> bool:
        """Whether the attack aims at the labels it is given."""
        return getattr(self.attack, "labels_are_targets", getattr(self.attack, "targeted", False))

    def until_fooled(self) -> "HalfSearch":
        """The same search, with an attack that drops an image once it is fooled, if it can."""
        quick = getattr(self.attack, "until_fooled", None)
        return self if quick is None else replace(self, attack=quick(), stops=True)

    def __call__(
        self,
        model: Any,
        x: Float[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        within: Ball,
        *,
        generator: torch.Generator,
    ) -> "HalfPerturbation":
        """Attack a batch; see `Attack` for the arguments."""
        if not isinstance(model, torch.nn.Module) or any(p.dtype != torch.float32 for p in model.parameters()):
            found = type(model).__name__ if not isinstance(model, torch.nn.Module) else "another precision"
            raise InputError("model", "an nn.Module in float32 for a search in bfloat16", found, "Search in float32.")
        none, seen = torch.zeros(len(x), dtype=torch.bool, device=x.device), Calls(len(x))
        try:
            found = self.attack(_Half(model), x, y, within, generator=generator)
        except GradientError:  # a small gradient may vanish in 8 bits; the model's own need not
            found = self.attack(model, x, y, within, generator=generator)
            return _told(found, (), none, Calls(len(x), len(x)))
        fooled = wrong(model, found.point, y)
        doubtful = found.flags.stopped & ~fooled
        found = replace(found, flags=replace(found.flags, stopped=fooled & (found.flags.stopped | self.stops)))
        rows = torch.nonzero(doubtful)[:, 0]
        if not len(rows):
            return _told(found, (), doubtful, seen)
        limits = within.on(x).rows(rows)
        again = self.attack(model, x[rows], y[rows], limits, generator=generator)
        return _told(_merged(found, again, rows), getattr(again, "members", ()), doubtful, seen + again.calls)


@dataclass(frozen=True, repr=False)
class HalfPerturbation(Perturbation):
    """What `HalfSearch` found.

    Args:
        unconfirmed: images that bfloat16 alone called fooled; they were attacked again.
        members: of an ensemble, what each of its attacks did.
    """

    unconfirmed: Bool[Tensor, " n"]
    members: tuple[Member, ...] = ()


@dataclass(frozen=True)
class _Half:
    """A model under autocast, whose logits are given in float32."""

    model: torch.nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = at(self.model)(x)
        return logits.float()


def _put(whole: Tensor, rows: Tensor, part: Tensor) -> Tensor:
    whole = whole.clone()
    whole[rows] = part.to(whole)
    return whole


def _merged(found: Perturbation, again: Perturbation, rows: Tensor) -> Perturbation:
    """The first, with what was found again in some rows."""
    values = None if found.value is None or again.value is None else _put(found.value, rows, again.value)
    return replace(
        found, delta=_put(found.delta, rows, again.delta), point=_put(found.point, rows, again.point), value=values,
        size=_put(found.size, rows, again.size),
        flags=Flags(*(_put(getattr(found.flags, f.name), rows, getattr(again.flags, f.name)) for f in fields(Flags))),
    )  # fmt: skip


def _told(found: Perturbation, more: tuple[Member, ...], unconfirmed: Tensor, calls: Calls) -> HalfPerturbation:
    known: dict[str, Any] = {f.name: getattr(found, f.name) for f in fields(Perturbation)}
    known["calls"] = found.calls + calls
    return HalfPerturbation(**known, unconfirmed=unconfirmed, members=summed([getattr(found, "members", ()), more]))


@dataclass(frozen=True)
class Compared:
    """The same images by a search in bfloat16 and by one in float32.

    Args:
        half, full: robust accuracy.
        differ: images on which the verdicts are not the same.
    """

    half: Rate
    full: Rate
    differ: int

    def __str__(self) -> str:
        return f"on {self.full.n} images {self.half} by bfloat16, {self.full} by float32; {self.differ} verdicts differ"


def compared(
    model: Any, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], *, within: Ball, attack: Attack, seed: int
) -> Compared:
    """How far a search in bfloat16 is from one in float32, on a sample.

    Args:
        attack: as it is without `HalfSearch`.

    Cost: `evaluate` with either. Checked by tests/attacks/test_half.py.
    """
    from .evaluate import evaluate

    half, full = (evaluate(model, x, y, within=within, attack=a, seed=seed) for a in (HalfSearch(attack), attack))
    return Compared(half.robust, full.robust, int((half.robust_correct != full.robust_correct).sum()))
