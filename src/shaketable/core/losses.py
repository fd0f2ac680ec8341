"""Per-example losses of logits, and the objectives made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from .errors import InputError
from .perturb import Gaussian
from .places import at
from .seeds import own_random_state
from .tree import ordinary


def cross_entropy(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """-log softmax(logits)_y, of each example."""
    return F.cross_entropy(logits, y, reduction="none")


def logit_margin(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The largest other logit minus that of y: positive where the example is misclassified (Carlini & Wagner 2017)."""
    own = logits.gather(1, y[:, None])[:, 0]
    other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return other - own


def difference_of_logits_ratio(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The margin over the gap of the first to the third logit: invariant to shift and scale (Croce & Hein 2020, DLR).

    Needs three classes or more.
    """
    if logits.shape[1] < 3:
        raise InputError("logits", "three classes or more for DLR", f"{logits.shape[1]}", "Use the margin.")
    top = logits.topk(3, dim=1).values
    return logit_margin(logits, y) / (top[:, 0] - top[:, 2] + max(1e-12, torch.finfo(top.dtype).tiny))


def divergence(logits: Float[Tensor, "n k"], reference: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
    """KL(softmax(reference) || softmax(logits)), of each example (TRADES, Zhang et al. 2019)."""
    p = reference.log_softmax(1)
    return (p.exp() * (p - logits.log_softmax(1))).sum(1)


@dataclass(frozen=True)
class LogitObjective:
    """A loss of a model's logits, for each example: what `ce`, `margin`, `dlr` and `kl` make.

    Args:
        model: from inputs to logits; never changed.
        target: labels (n,) or reference logits (n, k), which `rows` index.
        loss: (logits, target) -> (n,).
        sign: 1, or -1 to lower the loss (targeted attacks).
        stops: whether examples whose prediction is as wanted are finished: misclassified, or classified as the target (for
            a target of logits, as their largest).
        start: what an ascent starts from if its caller does not say.
        classes: how many columns the logits need for these labels.
    """

    model: Any
    target: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    sign: float = 1.0
    stops: bool = False
    start: Any = None
    classes: int = 0

    def __call__(self, point: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.judge(point, rows)[0]

    @cached_property
    def _function(self) -> Any:
        return at(self.model)

    def judge(self, point: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The values, and which examples are finished; from one forward pass."""
        return self.judged(self._function(point), rows)

    def judged(self, logits: Any, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The same of logits that are known."""
        target = self.target if rows is None else self.target[rows]
        if not isinstance(logits, Tensor) or logits.dim() != 2:
            found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError("model", f"logits of shape ({len(target)}, classes)", found, "Return the logits alone.")
        if len(logits) != len(target):
            wanted, found = f"one for each of the {len(logits)} examples of the logits", f"{len(target)}"
            raise InputError("y" if target.dim() == 1 else "x", wanted, found, "Give those of the same batch.")
        if self.classes > logits.shape[1]:
            found = f"label {self.classes - 1} for {logits.shape[1]} classes"
            raise InputError("y", f"labels below {logits.shape[1]}", found, "Check the model's classes and the labels.")
        value = self.loss(logits, target)
        if value.shape != (len(target),):
            wanted, found = f"one value for each of the {len(target)} examples", f"shape {tuple(value.shape)}"
            raise InputError("loss", wanted, found, "Return the losses unreduced.")
        value = value if self.sign == 1 else self.sign * value
        if not self.stops:
            return value, None
        hit = logits.detach().argmax(1) == (target if target.dim() == 1 else target.argmax(1))
        return value, hit if self.sign < 0 else ~hit


def ce(model: Any, y: Int[Tensor, " n"], *, targeted: bool = False, stop: bool = False) -> LogitObjective:
    """Cross-entropy of the true class, to be raised; or of a target class, to be lowered.

    Args:
        y: labels, or the targets if `targeted`; integers.
        stop: drop examples as soon as they are misclassified (or classified as the target).
    """
    return _of_labels(model, y, cross_entropy, targeted, stop)


def margin(model: Any, y: Int[Tensor, " n"], *, targeted: bool = False, stop: bool = False) -> LogitObjective:
    """The logit margin: see `logit_margin`, and `ce` for the arguments."""
    return _of_labels(model, y, logit_margin, targeted, stop)


def dlr(model: Any, y: Int[Tensor, " n"], *, targeted: bool = False, stop: bool = False) -> LogitObjective:
    """The difference-of-logits ratio: see `difference_of_logits_ratio`, and `ce` for the arguments."""
    return _of_labels(model, y, difference_of_logits_ratio, targeted, stop)


def kl(model: Any, x: Float[Tensor, "n ..."], *, generator: torch.Generator | None = None) -> LogitObjective:
    """How far the prediction moves from that at x: KL(p(x) || p(point)), TRADES' inner objective.

    Args:
        generator: seeds the randomness of a model that has some (dropout) for the prediction at x; it is not consumed.

    Its gradient at x itself is zero, so it asks for a start of .001 Gaussian noise (the authors' choice). Costs one forward
    pass when it is made.
    """
    with torch.inference_mode(False), torch.no_grad(), own_random_state([x], generator):
        reference = at(model)(x)
    return LogitObjective(model, reference, divergence, start=Gaussian(1e-3))


@dataclass(frozen=True)
class scalar:  # noqa: N801 - used as a function
    """The objective of a place without examples, from a function of the point that returns one number.

    Args:
        function: for instance ``lambda w: loss(st.at(model, w)(x), y).mean()``.
        start: what an ascent starts from if its caller does not say.
    """

    function: Callable[[Any], Tensor]
    start: Any = None

    def __call__(self, point: Any, rows: Tensor | None = None) -> Tensor:
        value = self.function(point)
        if value.numel() != 1:
            found = f"shape {tuple(value.shape)}"
            raise InputError("function", "one number", found, "Take the mean, or give an objective of (point, rows).")
        return value.reshape(1)


def _of_labels(model: Any, y: Any, loss: Callable[[Tensor, Tensor], Tensor], lower: bool, stop: bool) -> LogitObjective:
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if not isinstance(y, Tensor) or y.dtype not in whole or y.dim() != 1:
        found = f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise InputError("y", "integer labels of shape (n,)", found, "Give class indices, not one-hot rows.")
    low, high = (int(end) for end in torch.aminmax(y)) if len(y) else (0, -1)
    if low < 0:
        raise InputError("y", "labels >= 0", f"{low}", "Leave out the examples without a label.")
    return LogitObjective(model, ordinary(y.long()), loss, -1.0 if lower else 1.0, stop, classes=high + 1)
