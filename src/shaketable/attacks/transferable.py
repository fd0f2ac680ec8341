"""Attacks whose examples fool other models too: momentum (MI), look-ahead (NI), random inputs (DI), smoothed gradients (TI)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.ascent import PGD
from ..core.ball import Ball
from ..core.errors import InputError
from ..core.losses import ce
from ..core.moves import finite, moved, per_entry
from ..core.perturb import Perturbation, perturb
from ..core.places import at
from ..core.record import Ascent, Record, look_at
from ..core.tree import Tree, add
from .diversity import Smoothed, gaussian_kernel, resized
from .ensemble import Ensemble, SummedLoss
from .minimal import require_count


@dataclass(frozen=True)
class TransferableAttack:
    """Iterated sign steps on the cross-entropy with what makes them transfer, in any combination.

    With momentum g <- momentum * g + gradient / mean |gradient|, and a step along the signs of g (MI-FGSM, Dong et al. 2018,
    eq. 6 and 7; PGD of the core, from the image itself). `nesterov`: the gradient is taken at the image that lies ahead, z +
    step * momentum * g (NI-FGSM, Lin et al. 2020, eq. 6). `diversity`: with this probability the model sees the images at a
    random smaller size, padded (DI, Xie et al. 2019). `smoothing`: the gradient is convolved with a Gaussian of so many pixels
    (TI, Dong et al. 2019). The presets `mi`, `ni`, `di` and `ti` are the papers' attacks, each with momentum, as is usual;
    `TransferableAttack(nesterov=True, diversity=.5, smoothing=15)` is all of them.

    Args:
        momentum: 1, the paper's; 0 is plain iterated FGSM.
        nesterov: look ahead.
        diversity: the probability, 0 to 1; .5 in the paper.
        shrink: the smallest size that `diversity` draws, as a share of the image's: 299/330. The paper enlarges images of
            299 pixels to at most 330 and lets the model see 330; here they are made smaller, so that every model serves.
        smoothing: the width of the Gaussian in pixels, odd; its edge is three standard deviations away, as in the authors'
            code (sqrt(3) by the paper's formula). 15 in the paper, for images of 299 pixels; 0 is none.
        steps: 10, MI's paper's.
        step: in units of the ball's radius; .1, that paper's 1 / steps for 10 steps. It does not change with `steps`.
        targeted: y are the classes to reach.
        stop: drop an image as soon as it is misclassified. With `nesterov` or `diversity` the model is asked at other points
            than the iterates, so that only the last one is judged and no image is dropped.

    In balls other than linf a step is the ball's steepest one (l2: the normalised gradient), and so is the look ahead.
    `model` may be an `ensemble`; with fuse="loss" its models' cross-entropies are summed.

    Cost: `steps` forward and backward passes an image; with `stop` one forward more, and nothing after it is fooled.

    Differences from the papers: the l1 norm by which MI divides is the mean absolute value, as in the codes of MI, NI and TI;
    only the look ahead depends on it. One random size for the batch and step, as in DI's code, which resizes by the nearest
    pixel, here bilinear.

    Raises:
        InputError: settings out of their range; images that are not (n, c, h, w) for `diversity` or `smoothing`; what
            `perturb` refuses.
        GradientError: no image has a usable gradient.

    Checked by tests/attacks/test_transferable.py: MI is core's PGD bit for bit, NI a hand-written loop, the kernel a direct
    convolution; and tests/attacks/test_contract.py.
    """

    momentum: float = 1.0
    nesterov: bool = False
    diversity: float = 0.0
    shrink: float = 299 / 330
    smoothing: int = 0
    steps: int = 10
    step: float = 0.1
    targeted: bool = False
    stop: bool = False

    def __post_init__(self) -> None:
        PGD(self.steps, self.step, self.momentum)
        require_count("smoothing", self.smoothing, 0)
        if self.smoothing:
            gaussian_kernel(self.smoothing)
        for name in ("diversity", "shrink"):
            if not 0 <= getattr(self, name) <= 1 or (name == "shrink" and self.shrink == 0):
                raise InputError(
                    name, "a share from 0 to 1", str(getattr(self, name)), "The papers use .5 and 299/330."
                )

    def until_fooled(self) -> "TransferableAttack":
        """The same attack, with `stop`."""
        return replace(self, stop=True)

    @torch.inference_mode(False)  # the kernel is a part of the gradient's graph
    def __call__(
        self,
        model: Any,
        x: Float[Tensor, "n ..."],
        y: Int[Tensor, " n"],
        within: Ball,
        *,
        generator: torch.Generator,
    ) -> Perturbation:
        """Attack a batch; see `Attack` for the arguments. Only `diversity` draws anything, seeded from the generator."""
        if (self.diversity or self.smoothing) and isinstance(x, Tensor) and x.dim() != 4:
            raise InputError("x", "images of shape (n, c, h, w)", f"shape {tuple(x.shape)}", "Use `mi` or `ni`.")
        blind = self.nesterov or self.diversity > 0
        objective = self._objective(model, y, self._inputs(), stop=self.stop and not blind)
        if not blind:
            return perturb(
                objective, x, within, by=PGD(self.steps, self.step, self.momentum), start="zero", generator=generator
            )
        last = self._objective(model, y, _same, stop=True) if self.stop else None
        ascent = _Ahead(self.steps, self.step, self.momentum, self.nesterov, last)
        return perturb(objective, x, within, by=ascent, start="zero", generator=generator)

    def _inputs(self) -> Callable[[Tensor], Tensor]:
        """What the model sees instead of a point."""
        kernel = gaussian_kernel(self.smoothing) if self.smoothing else None

        def seen(point: Tensor) -> Tensor:
            if kernel is not None:
                point = Smoothed.apply(point, kernel.to(point.device))  # pyright: ignore
            return resized(point, self.diversity, self.shrink) if self.diversity else point

        return seen

    def _objective(self, model: Any, y: Tensor, inputs: Callable[[Tensor], Tensor], *, stop: bool) -> Any:
        if isinstance(model, Ensemble) and model.fuse == "loss":
            labels = ce(model, y).target
            return SummedLoss(model, labels, inputs, targeted=self.targeted, stops=stop)
        function = at(model)
        return ce(lambda point: function(inputs(point)), y, targeted=self.targeted, stop=stop)


mi = partial(TransferableAttack)
ni = partial(TransferableAttack, nesterov=True)
di = partial(TransferableAttack, diversity=0.5)
ti = partial(TransferableAttack, smoothing=15)


def _same(point: Tensor) -> Tensor:
    return point


@dataclass(frozen=True)
class _Ahead:
    """Steps with momentum whose gradient is taken elsewhere than at the iterate, of which the last alone is judged."""

    steps: int
    step: float
    momentum: float
    nesterov: bool
    last: Any

    def __call__(self, objective: Any, origin: Tree, within: Any, start: Any) -> Ascent:
        record, delta, reach, g = Record(origin, within.rowwise), start(), within.reach(origin), None
        for k in range(self.steps):
            point = within.clip(add(origin, delta))
            if self.nesterov and g is not None:
                point = point + self.momentum * self.step * self._ahead(within, g, origin, delta, reach)
            look = look_at(objective, point, None, record.count, gradient=True)
            record.note(look, delta, None, first=k == 0, end=False, every=False)
            gradient = per_entry(finite(look.gradient), record.rowwise)  # pyright: ignore
            g = gradient if g is None else self.momentum * g + gradient  # pyright: ignore
            delta = moved(within, origin, delta, g, self.step, reach, first=False)  # pyright: ignore
        if self.last is None:
            record.keep_last(delta)
        else:
            look = look_at(self.last, within.clip(add(origin, delta)), None, record.count, gradient=False)
            record.note(look, delta, None, first=False, end=True, every=False)
        return record.result()

    def _ahead(self, within: Any, g: Any, origin: Any, delta: Any, reach: Any) -> Tensor:
        """The way to the point ahead, for a step of one."""
        if within.norm == "linf":
            return reach * (g if within.mask is None else torch.where(within.mask, g, 0.0))
        return reach * within.steepest(g, origin, delta)
