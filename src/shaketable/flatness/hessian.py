"""The Hessian of the loss by the weights, as products with vectors.

The loss is the mean cross-entropy at fixed inputs: clean images, or adversarial points found once at w
(`attacked_points`), which stay where they are while the weights move. By Danskin's theorem the gradient of the robust
loss is the one at these points; its second derivative has a further part, from how the points move, that is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Calls, GradientError, InputError, at, cross_entropy, weights
from ..core.places import Select
from ..core.tree import ordinary
from .loss_at import require


@dataclass(frozen=True)
class LossHessian:
    """d^2/dw^2 of the mean cross-entropy at fixed inputs, as an operator; made by `loss_hessian`.

    Args:
        model: in eval mode; never changed.
        x, y: the inputs, which stay, and their labels.
        origin: name -> weight by which it is differentiated, in the order of the vectors' entries.
        batch_size: images a pass; memory is that of one batch's graph, of about three times a training step's.

    Checked by tests/flatness/test_hessian.py.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    origin: dict[str, Tensor]
    batch_size: int

    @property
    def size(self) -> int:
        """How many weights: the number of rows."""
        return sum(w.numel() for w in self.origin.values())

    def cost(self, vectors: int = 1) -> Calls:
        """What `products` spends on so many vectors at once, in examples.

        A forward and a backward pass make the gradient; its product with each vector is differentiated again through
        both, which is counted as another forward and backward pass.
        """
        n = len(self.x)
        return Calls(n * (1 + vectors), n * (1 + vectors))

    def products(self, vectors: Float[Tensor, "k m"]) -> Float[Tensor, "k m"]:
        """H v for each row v; exact up to rounding, by differentiating twice (Pearlmutter 1994).

        `torch.autograd.grad` with `create_graph`, never `backward`, which would leave a cycle between weights and graph.
        """
        total = torch.zeros_like(vectors)
        for first in range(0, len(self.x), self.batch_size):
            parts, loss = self._loss(first)
            with torch.enable_grad():
                slopes = torch.autograd.grad(loss, parts, create_graph=True, allow_unused=True)
                _require_slope(slopes)
                kept = [k for k, slope in enumerate(slopes) if slope is not None and slope.requires_grad]
                if not kept:  # a loss that is linear in the weights
                    continue
                for row, vector in enumerate(vectors):
                    pieces = self._split(vector)
                    value = torch.stack([(slopes[k] * pieces[k].to(parts[k])).sum() for k in kept]).sum()
                    if first == row == 0:
                        _require_twice(value)
                    second = _second(value, parts, row + 1 < len(vectors))
                    total[row] += torch.cat([s.reshape(-1) for s in second]).to(total)
        return total

    def curvatures(self, direction: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
        """d^2/dt^2 of each image's own loss along w + t v; their mean is v H v. Costs about two products."""
        pieces = dict(zip(self.origin, self._split(direction), strict=True))
        found: list[Tensor] = []
        for first in range(0, len(self.x), self.batch_size):
            x, y = self.x[first : first + self.batch_size], self.y[first : first + self.batch_size]
            with torch.inference_mode(False), torch.enable_grad():
                t = torch.zeros((), dtype=torch.float64, device=x.device, requires_grad=True)
                moved = {name: w + t.to(w) * pieces[name].to(w) for name, w in self.origin.items()}
                value = cross_entropy(at(self.model, moved)(x), y)
                for _ in range(2):
                    value = _derivatives(value, t)
            found.append(value.detach())
        return torch.cat(found)

    def unflatten(self, vector: Float[Tensor, " m"]) -> dict[str, Tensor]:
        """A vector as a dict of tensors of the weights' names, shapes and dtypes."""
        pieces = zip(self.origin.items(), self._split(vector), strict=True)
        return {name: piece.to(w).clone() for (name, w), piece in pieces}

    def _split(self, vector: Tensor) -> list[Tensor]:
        parts = vector.split([w.numel() for w in self.origin.values()])
        return [part.reshape(w.shape) for part, w in zip(parts, self.origin.values(), strict=True)]

    def _loss(self, first: int) -> tuple[list[Tensor], Tensor]:
        """The weights, as leaves, and the share of the mean loss that a batch has."""
        x, y = self.x[first : first + self.batch_size], self.y[first : first + self.batch_size]
        with torch.inference_mode(False), torch.enable_grad():
            parts = [ordinary(w).requires_grad_() for w in self.origin.values()]
            logits = at(self.model, dict(zip(self.origin, parts, strict=True)))(x)
            loss = cross_entropy(logits, y).sum() / len(self.x)
        if not loss.requires_grad:
            _require_slope([None])
        if not bool(torch.isfinite(loss)):
            remedy = "Look for NaN or infinite weights or images."
            raise InputError("model", "a finite loss", f"{loss.item()}", remedy)
        return parts, loss


def loss_hessian(
    model: nn.Module,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    select: Select = "matrices",
    batch_size: int = 64,
) -> LossHessian:
    """The Hessian of the mean cross-entropy at these inputs by the model's weights.

    Args:
        model: in eval mode, so that BatchNorm and dropout are functions of one image; float32 or float64.
        x, y: the inputs at which the loss is taken: clean images, or `attacked_points(...).x`.
        select: "matrices", tensors of more than one dimension, as the paper (Stutz et al. 2021) takes them; "all"; or a
            function of (name, tensor). Tied weights count once.

    ReLU and max-pooling nets are piecewise smooth: the Hessian is the one of the piece that w lies in.

    Raises:
        InputError: a model in train mode, no images, no weights selected, a batch size below 1.

    Checked by tests/flatness/test_hessian.py, against the dense Hessian in float64.
    """
    require(model, x, y, "clean")
    if batch_size < 1:
        raise InputError("batch_size", "a whole number >= 1", str(batch_size), "Use 64.")
    origin = {name: ordinary(w) for name, w in weights(model, select).items() if w.numel()}
    return LossHessian(model, ordinary(x), ordinary(y), origin, batch_size)


def _require_slope(slopes: Sequence[Tensor | None]) -> None:
    if all(slope is None for slope in slopes):
        remedy = "Select weights that the output depends on, and look for detach() or no_grad() in the model."
        raise GradientError("model", "a loss that depends on the selected weights", "a detached one", remedy)


def _require_twice(value: Tensor) -> None:
    """Raise if a function on the way says that it has no second derivative: autograd would pass over it in silence."""
    seen: set[Any] = set()
    left = [value.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() in ("torch::autograd::Error", "torch::autograd::NotImplemented", "NotImplemented"):
            _refuse_once("once_differentiable")
        left += [following for following, _ in node.next_functions]


def _second(value: Tensor, parts: list[Tensor], again: bool) -> list[Tensor]:
    """The gradient of a gradient's product with a vector, zeros where it does not depend on a part."""
    try:
        found = torch.autograd.grad(value, parts, retain_graph=again, allow_unused=True)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        _refuse_once(str(error).splitlines()[0][:160], error)
    return [torch.zeros_like(p) if f is None else f for f, p in zip(found, parts, strict=True)]


def _refuse_once(found: str, cause: Exception | None = None) -> NoReturn:
    remedy = "Replace that function: a custom autograd.Function needs a backward that can be differentiated itself."
    raise GradientError("model", "functions that can be differentiated twice", found, remedy) from cause


def _derivatives(values: Tensor, t: Tensor) -> Tensor:
    """The derivative of each value by one number, itself differentiable: the derivative of u -> d(u . values)/dt."""
    if not values.requires_grad:
        return torch.zeros_like(values)
    u = torch.ones_like(values, requires_grad=True)
    (slope,) = torch.autograd.grad(values, t, u, create_graph=True, allow_unused=True)
    if slope is None or not slope.requires_grad:
        return torch.zeros_like(values)
    (each,) = torch.autograd.grad(slope, u, create_graph=True, allow_unused=True)
    return torch.zeros_like(values) if each is None else each
