"""The conformance suite of losses of logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .outcome import require, run

Loss = Callable[[Tensor, Tensor], Tensor]


def check_loss(loss: Loss, *, classes: int = 5, rises: bool = True) -> tuple[str, ...]:
    """What attacks rely on: a loss (logits (n, k), labels (n,)) -> (n,), the larger the more wrong.

    Args:
        loss: a function, for instance `core.cross_entropy`.
        classes: k, of the logits that it is tried on.
        rises: whether it must be larger where the true class's logit is smaller.

    Checks: shape and dtype; each example for itself (rows, order, a batch of one, none); finite values and gradients, also at
    large logits; inputs left as they are; the same value twice; the gradient against finite differences in float64.

    Returns: the names of the checks. Raises: ConformanceError.
    """
    checks: dict[str, Callable[[], None]] = {
        "returns one value for each example": lambda: _shape(loss, classes),
        "keeps the dtype": lambda: _dtype(loss, classes),
        "treats each example by itself": lambda: _rows(loss, classes),
        "takes no example": lambda: _none(loss, classes),
        "is finite": lambda: _finite(loss, classes),
        "touches nothing and repeats itself": lambda: _pure(loss, classes),
        "has the gradient of its values": lambda: _gradient(loss, classes),
    }
    if rises:
        checks["rises as the true logit falls"] = lambda: _rises(loss, classes)
    return run(f"loss {getattr(loss, '__name__', loss)!r}"[:120], checks)


def _data(classes: int, n: int = 12, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(n, classes, generator=source, dtype=torch.float64)
    return logits.to(dtype), torch.randint(classes, (n,), generator=source)


def _shape(loss: Loss, classes: int) -> None:
    z, y = _data(classes)
    found: Any = loss(z, y)
    require(isinstance(found, Tensor), f"a {type(found).__name__}")
    require(found.shape == (len(z),), f"shape {tuple(found.shape)} for {len(z)} examples: do not reduce it")


def _dtype(loss: Loss, classes: int) -> None:
    for dtype in (torch.float32, torch.float64):
        found = loss(*_data(classes, dtype=dtype)).dtype
        require(found == dtype, f"{found} for logits of {dtype}")


def _rows(loss: Loss, classes: int) -> None:
    z, y = _data(classes)
    whole, order = loss(z, y), torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    require(torch.allclose(whole[order], loss(z[order], y[order]), rtol=1e-10), "another order gives other values")
    alone = torch.cat([loss(z[k : k + 1], y[k : k + 1]) for k in range(len(z))])
    require(torch.allclose(whole, alone, rtol=1e-10), "an example alone has another value than in a batch")


def _none(loss: Loss, classes: int) -> None:
    z, y = _data(classes, 0)
    require(loss(z, y).shape == (0,), f"shape {tuple(loss(z, y).shape)}")


def _finite(loss: Loss, classes: int) -> None:
    for scale in (1.0, 1e3):
        z, y = _data(classes, dtype=torch.float32)
        z = (scale * z).requires_grad_()
        value = loss(z, y)
        (gradient,) = torch.autograd.grad(value.sum(), z)
        require(bool(torch.isfinite(value).all()), f"values that are not finite at logits of size {scale:g}")
        require(bool(torch.isfinite(gradient).all()), f"a gradient that is not finite at logits of size {scale:g}")


def _pure(loss: Loss, classes: int) -> None:
    z, y = _data(classes)
    before, random = (z.clone(), y.clone()), torch.get_rng_state()
    one, two = loss(z, y), loss(z, y)
    require(torch.equal(before[0], z) and torch.equal(before[1], y), "it changes its arguments")
    require(torch.equal(one, two), "the same arguments give another value")
    require(torch.equal(random, torch.get_rng_state()), "it draws from the global random state")


def _gradient(loss: Loss, classes: int) -> None:
    z, y = _data(classes, 6)
    require(
        torch.autograd.gradcheck(lambda t: loss(t, y), z.requires_grad_(), raise_exception=False), "finite differences"
    )


def _rises(loss: Loss, classes: int) -> None:
    z, y = _data(classes)
    lower = z.clone()
    lower[torch.arange(len(z)), y] -= 1.0
    count = int((loss(lower, y) <= loss(z, y)).sum())
    require(count == 0, f"not for {count} of {len(z)} examples")
