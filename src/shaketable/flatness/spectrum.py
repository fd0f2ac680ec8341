"""The whole spectrum of a Hessian, estimated: its trace (Hutchinson) and its density (stochastic Lanczos quadrature)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Calls, InputError, generator
from ..stats import Mean, mean
from .hessian import LossHessian


@dataclass(frozen=True)
class Trace:
    """The sum of all eigenvalues, estimated.

    Args:
        value: the mean over the probes with its 95 % Student interval; the images are fixed.
        forms: v H v of each probe v.
        calls: passes spent, in examples.
    """

    value: Mean
    forms: tuple[float, ...]
    calls: Calls

    @property
    def error(self) -> float:
        """The standard error of the value; NaN for one probe."""
        return self.value.deviation / math.sqrt(self.value.n)


def trace(
    hessian: LossHessian,
    *,
    seed: int,
    probes: int = 32,
    block: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> Trace:
    """tr H as the mean of v H v over vectors v of independent signs (Hutchinson 1990); unbiased.

    Args:
        probes: how many vectors; two or more for an interval.
        block: how many share one gradient, for speed; nothing depends on it but memory.
        progress: called with (probes done, probes).

    The variance of one probe is twice the sum of the squared entries off the diagonal.

    Raises:
        InputError: fewer than one probe or block.

    Cost: `LossHessian.cost(block)` for each block. Checked by tests/flatness/test_spectrum.py: within its error of the
    dense Hessian's trace, and equal to it over unit vectors and over a Hadamard basis.
    """
    if probes < 1 or block < 1:
        raise InputError("probes, block", "whole numbers >= 1", f"{probes} and {block}", "Use 32 and 4.")
    forms: list[float] = []
    calls = Calls()
    for first in range(0, probes, block):
        drawn = [signs(hessian.size, seed, k) for k in range(first, min(first + block, probes))]
        forms += quadratic_forms(hessian, torch.stack(drawn))
        calls += hessian.cost(len(drawn))
        if progress is not None:
            progress(len(forms), probes)
    return Trace(mean(forms), tuple(forms), calls)


def quadratic_forms(hessian: LossHessian, vectors: Float[Tensor, "k m"]) -> list[float]:
    """v H v for each row v."""
    return (vectors * hessian.products(vectors)).sum(1).tolist()


def signs(size: int, seed: int, k: int) -> Tensor:
    """The k-th probe of a seed: independent signs, (size,) in float64."""
    drawn = torch.randint(0, 2, (size,), generator=generator(seed, "hutchinson", k))
    return 2.0 * drawn.double() - 1.0


@dataclass(frozen=True)
class Density:
    """The distribution of the eigenvalues, as a mixture of points: each probe's Ritz values with their weights.

    Args:
        nodes: Ritz values, ascending, of each probe.
        weights: of each node; they sum to 1 for each probe.
        size: how many eigenvalues there are.
        products: how many products were taken.
        calls: passes spent, in examples.
    """

    nodes: tuple[tuple[float, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    size: int
    products: int
    calls: Calls

    @property
    def span(self) -> tuple[float, float]:
        """The least and the largest Ritz value: from within, near the extreme eigenvalues."""
        return min(row[0] for row in self.nodes), max(row[-1] for row in self.nodes)

    def moment(self, power: int) -> Mean:
        """tr(H^power) / size, over the probes, with its 95 % Student interval.

        A quadrature of s steps is exact for powers up to 2 s - 1: the interval is about the probes alone.
        """
        pairs = zip(self.nodes, self.weights, strict=True)
        return mean([math.fsum(w * node**power for node, w in zip(*pair, strict=True)) for pair in pairs])

    def at(self, grid: Sequence[float], *, width: float | None = None) -> list[float]:
        """The density on a grid, smoothed by a Gaussian.

        Args:
            width: the Gaussian's standard deviation; a hundredth of the span (of 1, if that is 0).
        """
        low, high = self.span
        sigma = ((high - low) or 1.0) / 100 if width is None else width
        if not sigma > 0:
            raise InputError("width", "a number > 0", str(width), "Leave it out for a hundredth of the span.")
        points = torch.tensor(list(grid), dtype=torch.float64)[:, None]
        total = torch.zeros(len(points), dtype=torch.float64)
        for nodes, shares in zip(self.nodes, self.weights, strict=True):
            distance = (points - torch.tensor(nodes, dtype=torch.float64)) / sigma
            total += ((-0.5 * distance**2).exp() * torch.tensor(shares, dtype=torch.float64)).sum(1)
        return (total / (len(self.nodes) * sigma * math.sqrt(2 * math.pi))).tolist()


def density(
    hessian: LossHessian,
    *,
    seed: int,
    probes: int = 4,
    steps: int = 40,
    progress: Callable[[int, int], None] | None = None,
) -> Density:
    """The spectral density by stochastic Lanczos quadrature (Lin, Saad & Yang 2016; Ghorbani et al. 2019).

    Args:
        probes: random vectors, each of its own Lanczos run.
        steps: of each run; it ends early where the vectors' span is invariant.
        progress: called with (products done, products at most).

    Lanczos with full reorthogonalisation, twice, so that no eigenvalue is found again and again.

    Raises:
        InputError: fewer than one probe or step.

    Cost: probes * steps products. Memory: steps vectors in float64. Checked by tests/flatness/test_spectrum.py: the
    moments of the dense Hessian, and its eigenvalues where steps suffice for all.
    """
    if probes < 1 or steps < 1:
        raise InputError("probes, steps", "whole numbers >= 1", f"{probes} and {steps}", "Use 4 and 40.")
    steps = min(steps, hessian.size)
    nodes: list[tuple[float, ...]] = []
    shares: list[tuple[float, ...]] = []
    products = 0
    for k in range(probes):
        diagonal, beside = _lanczos(hessian, signs(hessian.size, seed, k), steps)
        products += len(diagonal)
        values, vectors = torch.linalg.eigh(torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1))
        nodes.append(tuple(values.tolist()))
        shares.append(tuple((vectors[0] ** 2).tolist()))
        if progress is not None:
            progress(products, probes * steps)
    one = hessian.cost()
    return Density(
        tuple(nodes), tuple(shares), hessian.size, products, Calls(products * one.forward, products * one.backward)
    )


def _lanczos(hessian: LossHessian, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The tridiagonal matrix of the Krylov space of a vector: its diagonal (s,) and what is beside it (s - 1,)."""
    basis = torch.zeros(steps, len(start), dtype=torch.float64)
    basis[0] = start.double() / start.double().norm()
    diagonal: list[float] = []
    beside: list[float] = []
    for k in range(steps):
        image = hessian.products(basis[k][None])[0]
        diagonal.append(float(image @ basis[k]))
        before = float(image.norm())
        for _ in range(2):
            image = image - basis[: k + 1].T @ (basis[: k + 1] @ image)
        length = float(image.norm())
        if k + 1 == steps or length <= 1e-10 * max(before, *map(abs, diagonal)):
            break
        beside.append(length)
        basis[k + 1] = image / length
    return torch.tensor(diagonal, dtype=torch.float64), torch.tensor(beside, dtype=torch.float64)
