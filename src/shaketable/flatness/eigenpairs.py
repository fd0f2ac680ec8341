"""The extreme eigenvalues and eigenvectors of a Hessian, by Lanczos over a SciPy linear operator."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Calls, InputError, generator
from .hessian import LossHessian


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues at both ends of the spectrum, with their eigenvectors.

    Args:
        top: the largest, descending.
        bottom: the smallest, ascending.
        vectors: unit eigenvectors as weights, of `top` and then of `bottom`; the largest entry of each is positive.
        residuals: ||H v - lambda v|| of each pair, recomputed from one more product.
        products: how many products were taken.
        calls: passes spent, in examples.
    """

    top: tuple[float, ...]
    bottom: tuple[float, ...]
    vectors: tuple[dict[str, Tensor], ...]
    residuals: tuple[float, ...]
    products: int
    calls: Calls

    @property
    def convexity(self) -> float:
        """|lambda_min| / |lambda_max|: 0 at a convex minimum (Stutz et al. 2021); NaN where the Hessian is 0."""
        if not self.top or not self.bottom or self.top[0] == 0:
            return math.nan
        return abs(self.bottom[0]) / abs(self.top[0])


def eigenpairs(
    hessian: LossHessian,
    *,
    seed: int,
    top: int = 1,
    bottom: int = 1,
    tolerance: float = 1e-4,
    restarts: int = 300,
    progress: Callable[[int, int], None] | None = None,
) -> Eigenpairs:
    """The largest and the smallest eigenvalues, by the implicitly restarted Lanczos method (ARPACK, SciPy's `eigsh`).

    Args:
        seed: of the first vector; the same seed gives the same pairs.
        top, bottom: how many from each end; both ends come out of one Krylov space.
        tolerance: of the eigenvalues' estimated residual, relative to them; products in float32 allow about 1e-4, in
            float64 1e-10. The eigenvalues are much more exact than that: their error is of second order.
        restarts: at most.
        progress: called with (products done, products begun with); the total is not known beforehand and may grow.

    Raises:
        InputError: as many pairs as weights or none, or no convergence.

    Cost: `LossHessian.cost(1)` for each product, some tens of them for one pair, and one product of all vectors.
    Memory: about max(20, 2 (top + bottom) + 1) vectors in float64. Checked by tests/flatness/test_hessian.py.
    """
    size, pairs = hessian.size, 2 * max(top, bottom) if top and bottom else top + bottom
    if min(top, bottom) < 0 or not 1 <= pairs < size:
        found = f"{top} and {bottom} of {size}"
        raise InputError("top, bottom", "one or more, fewer than there are weights", found, "Ask for fewer.")
    basis, done = min(size, max(2 * pairs + 1, 20)), 0

    def product(vector: Any) -> Any:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, max(done, basis))
        return hessian.products(torch.as_tensor(vector, dtype=torch.float64).reshape(1, -1))[0].numpy()

    start = torch.randn(size, generator=generator(seed, "lanczos"), dtype=torch.float64)
    if not bool(hessian.products(start[None]).any()):  # with probability one only of the zero matrix
        vectors = torch.linalg.qr(torch.randn(size, pairs, generator=generator(seed, "zero"), dtype=torch.float64))[0].T
        return _pairs(hessian, vectors, top, bottom, 1)
    return _pairs(
        hessian, _lanczos(product, start, pairs, top, bottom, basis, tolerance, restarts), top, bottom, done + 1
    )


def _lanczos(
    product: Callable[[Any], Any], start: Tensor, pairs: int, top: int, bottom: int, basis: int, tol: float, most: int
) -> Tensor:
    """Eigenvectors as rows, of rising eigenvalues."""
    import numpy as np
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    make: Any = LinearOperator
    operator = make((len(start), len(start)), matvec=product, dtype=np.float64)
    which = "BE" if top and bottom else "LA" if top else "SA"
    own: Any = {"rng": np.random.default_rng(0)} if "rng" in inspect.signature(eigsh).parameters else {}
    find: Any = eigsh
    try:
        values, vectors = find(
            operator, k=pairs, which=which, v0=start.numpy(), ncv=basis, tol=tol, maxiter=most, **own
        )
    except ArpackNoConvergence as error:
        found = f"{len(error.eigenvalues)} of {pairs} pairs after {most} restarts"
        remedy = "Raise tolerance (float32 products allow about 1e-4) or restarts."
        raise InputError("tolerance", "pairs that converge", found, remedy) from error
    return torch.from_numpy(vectors[:, np.argsort(values)].T.copy())


def _pairs(hessian: LossHessian, rows: Tensor, top: int, bottom: int, products: int) -> Eigenpairs:
    """The pairs of unit vectors, of rising eigenvalues, with values and residuals from one more product."""
    rows = torch.cat([rows.flip(0)[:top], rows[:bottom]])
    rows = rows * rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
    images = hessian.products(rows)
    values = (rows * images).sum(1)
    residuals = (images - values[:, None] * rows).norm(dim=1)
    calls = Calls(*(products * part for part in (hessian.cost().forward, hessian.cost().backward)))
    return Eigenpairs(
        tuple(values[:top].tolist()), tuple(values[top:].tolist()), tuple(hessian.unflatten(row) for row in rows),
        tuple(residuals.tolist()), products + len(rows), calls + hessian.cost(len(rows)),
    )  # fmt: skip
