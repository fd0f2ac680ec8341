"""Losses that lead to a class, and what the attacks share that try the likeliest ones, as the AutoAttack ensemble does."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.ascent import PGD
from ..core.ball import Ball
from ..core.errors import InputError
from ..core.losses import ce, cross_entropy
from ..core.perturb import Perturbation, perturb
from ..core.places import at
from ..core.record import Flags

TargetLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
TargetLossName = Literal["dlr-targeted", "ce-targeted"]


def targeted_difference_of_logits_ratio(
    logits: Float[Tensor, "n k"], y: Int[Tensor, " n"], target: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """-(z_y - z_t) / (z_1 - (z_3 + z_4) / 2), of the sorted logits z_1 >= z_2 >= ... (Croce & Hein 2020, eq. 7).

    Positive once the target's logit is above that of the true class, so it leads away from y as well as to t. `core.dlr`
    with targeted=True is another loss: it knows no true class, and lowers the untargeted ratio of the target.

    Needs four classes or more.
    """
    if logits.shape[1] < 4:
        remedy = "Use 'ce-targeted', or an untargeted loss: 'margin' suits any number of classes."
        raise InputError("loss", "four classes or more for the targeted DLR", f"{logits.shape[1]}", remedy)
    top = logits.topk(4, dim=1).values
    gap = logits.gather(1, target[:, None])[:, 0] - logits.gather(1, y[:, None])[:, 0]
    return gap / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + max(1e-12, torch.finfo(top.dtype).tiny))


def targeted_cross_entropy(
    logits: Float[Tensor, "n k"], y: Int[Tensor, " n"], target: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """log softmax(logits)_t: the target's cross-entropy, to be lowered."""
    return -cross_entropy(logits, target)


TARGET_LOSSES: dict[str, TargetLoss] = {
    "dlr-targeted": targeted_difference_of_logits_ratio,
    "ce-targeted": targeted_cross_entropy,
}


ENTRIES = 2**17
"""So many entries of points may be worked on at once, however few images there are: 167 of Fashion-MNIST, 42 of CIFAR-10."""


def abreast(image: Tensor, count: int) -> int:
    """How many classes `count` images are led to at once: as many as keep their points within `ENTRIES`; at least one.

    On small batches most of a pass is not arithmetic: on one CPU thread 216 images of Fashion-MNIST take half the time an
    image that 24 take. Large images and large batches gain nothing and would take more memory.
    """
    return max(1, ENTRIES // max(image.numel() * count, 1))


class Towards:
    """The objective of an attack that leads each example to classes of its own, and is content with any wrong one.

    Args:
        model: from inputs to logits; never changed.
        y: the true classes (n,).
        targets: those to lead to, (runs, n). A point holds an example for each: those of the first run, of the second, and so
            on, which `rows` index.
        loss: (logits, y, target) -> (n,), to be raised.
        stops: whether an image is finished, in all its runs, once it is misclassified in one of them.
    """

    def __init__(self, model: Any, y: Tensor, targets: Tensor, loss: TargetLoss, *, stops: bool) -> None:
        self.y, self.targets, self.loss, self.stops = y, targets, loss, stops
        self._function: Any = at(model)
        with torch.inference_mode(False):  # it is written to outside
            self._hit = torch.zeros_like(targets, dtype=torch.bool)  # the runs in which an image was misclassified

    def __call__(self, point: Tensor, rows: Tensor | None = None) -> Tensor:
        return self._seen(point, rows)[0]

    def judge(self, point: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The values, and which examples are finished; from one forward pass."""
        value, wrong, place = self._seen(point, rows)
        self._hit.view(-1)[place] = wrong
        return value, self._hit.any(0)[place % len(self.y)]

    def _seen(self, point: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        place = torch.arange(self.targets.numel(), device=self.y.device) if rows is None else rows
        logits, y = self._function(point), self.y[place % len(self.y)]
        return self.loss(logits, y, self.targets.flatten()[place]), logits.detach().argmax(1) != y, place

    def best(self, found: Perturbation) -> Perturbation:
        """Of each image's runs one in which it is misclassified, where images stop at that; else that of the highest value."""
        shape, flags = self.targets.shape, found.flags
        assert found.value is not None
        value = found.value.unflatten(0, shape)
        run = torch.where(self._hit, torch.inf, value).argmax(0)[None]

        def chosen(runs: Any) -> Tensor:
            runs = runs.unflatten(0, shape)
            return runs.gather(0, run.reshape(1, -1, *[1] * (runs.dim() - 2)).expand(1, *runs.shape[1:]))[0]

        vanishing, nonfinite = flags.vanishing.unflatten(0, shape).all(0), flags.nonfinite.unflatten(0, shape).any(0)
        return Perturbation(
            found.origin[: shape[1]], chosen(found.delta), chosen(found.point), chosen(found.value), chosen(found.size),
            found.calls, Flags(vanishing, nonfinite, self._hit.any(0)),
        )  # fmt: skip


def likeliest(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"], count: int) -> Int[Tensor, "n c"]:
    """The classes other than y of the largest logits, first the largest; `count` of them, or all there are."""
    others = logits.scatter(1, y[:, None], -torch.inf).nan_to_num(nan=-torch.inf)
    return others.topk(min(count, logits.shape[1] - 1), dim=1).indices


def looked(
    model: Any, x: Tensor, y: Tensor, within: Ball, stop: bool, generator: torch.Generator
) -> tuple[Perturbation, Tensor | None]:
    """x as a perturbation by nothing, with all that `perturb` checks, and its logits: one forward pass."""
    seen: list[Tensor] = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(logits.detach())
        return cross_entropy(logits, labels)

    objective = replace(ce(model, y, stop=stop), loss=loss)
    found = perturb(objective, x, within, by=PGD(steps=0, keep="best"), generator=generator)
    return found, seen[0] if seen else None
