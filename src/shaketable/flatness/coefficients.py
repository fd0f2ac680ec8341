"""Pearson's, Spearman's and Kendall's coefficients of all pairs of columns, for many weightings of the rows at once.

A bootstrap resample of rows is a weighting of them: a row that was drawn twice has the weight 2. Every coefficient is
that of the rows repeated so often, ties included, and all resamples are computed together.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from ..core import InputError, generator

Kind = Literal["pearson", "spearman", "kendall"]
KINDS: tuple[Kind, ...] = ("pearson", "spearman", "kendall")
MOST = 2000
"""Models at most: Kendall's coefficient looks at all pairs of them."""
_NEXT_TO_ONE = 1 - 1e-12  # the largest coefficient whose Fisher transform is taken as it is
_BLOCK = 4_000_000  # numbers in one array
_SINGULAR = 1e-10  # a share of variance below which a column is said to be made of others

Matrices = Float[np.ndarray, "b k k"]
Weights = Float[np.ndarray, "b n"]


def matrices(kind: Kind, columns: Float[np.ndarray, "k n"], weights: Weights) -> Matrices:
    """The correlation matrix of the columns for each weighting of the rows; NaN where a column does not vary.

    Args:
        kind: "pearson"; "spearman", with the mean rank for ties; or "kendall", tau-b.
        columns: finite numbers.
        weights: not negative; whole numbers count repetitions.

    Checked by tests/flatness/test_coefficients.py against SciPy on repeated rows.
    """
    block = max(1, _BLOCK // columns.size)
    parts = [weights[k : k + block] for k in range(0, len(weights), block)]
    made = [_kendall(columns, part) if kind == "kendall" else _linear(kind, columns, part) for part in parts]
    return np.concatenate(made)


def _linear(kind: Kind, columns: Float[np.ndarray, "k n"], weights: Weights) -> Matrices:
    """Pearson's, of the columns or of their ranks."""
    total = np.maximum(weights.sum(1, keepdims=True), 1e-300)  # all weights are 0 where the only family is left out
    values = [np.broadcast_to(c, weights.shape) if kind == "pearson" else _ranks(c, weights) for c in columns]
    centred = [v - (weights * v).sum(1, keepdims=True) / total for v in values]
    weighted = np.stack([weights * v for v in centred], 1)
    covariance = weighted @ np.stack(centred, 1).transpose(0, 2, 1)
    size = np.sqrt(np.einsum("bkk->bk", covariance))
    scale = np.stack([np.abs(v).max(1) for v in values], 1) * np.sqrt(total)
    size = np.where(size > 1e-13 * scale, size, np.nan)  # below that the column does not vary but for rounding
    return np.clip(covariance / size[:, :, None] / size[:, None, :], -1.0, 1.0)


def _ranks(column: Float[np.ndarray, " n"], weights: Weights) -> Weights:
    """The mean rank of each row among the repeated rows, but for a constant."""
    return weights @ ((column[:, None] < column) + 0.5 * (column[:, None] == column))


def _kendall(columns: Float[np.ndarray, "k n"], weights: Weights) -> Matrices:
    """Tau-b: concordant minus discordant pairs, over the geometric mean of the pairs that are not tied in each."""
    signs = [np.sign(c[:, None] - c) for c in columns]
    found = np.full((len(weights), len(signs), len(signs)), np.nan)

    def pairs(table: Float[np.ndarray, "n n"]) -> Float[np.ndarray, " b"]:
        return ((weights @ table) * weights).sum(1)

    for i, first in enumerate(signs):
        found[:, i, i] = pairs(np.abs(first))
    untied = np.sqrt(np.where(np.einsum("bkk->bk", found) > 0, np.einsum("bkk->bk", found), np.nan))
    for i, first in enumerate(signs):
        found[:, i, i] = np.where(np.isnan(untied[:, i]), np.nan, 1.0)
        for j in range(i):
            found[:, i, j] = found[:, j, i] = pairs(first * signs[j]) / untied[:, i] / untied[:, j]
    return np.clip(found, -1.0, 1.0)


def partial(found: Matrices, a: int, b: int, given: Sequence[int]) -> Float[np.ndarray, " b"]:
    """The partial correlation of columns a and b, given others; NaN where these explain one of the two wholly.

    For Pearson's it is the correlation of the residuals of two regressions; for Spearman's the same of ranks; for
    Kendall's it is Kendall's (1942) formula, which is not 0 for columns that are independent given the others (.11 for two
    normal ones that correlate by .71 with a third): it ranks, but does not test.

    Checked by tests/flatness/test_coefficients.py against regressions and closed forms.
    """
    if not given:
        return found[:, a, b]
    rest = _unexplained(found, [a, b], given)
    left = np.einsum("bkk->bk", rest)
    left = np.sqrt(np.where(left > _SINGULAR, left, np.nan))
    return np.clip(rest[:, 0, 1] / left[:, 0] / left[:, 1], -1.0, 1.0)


def multiple(found: Matrices, target: int, predictors: Sequence[int]) -> Float[np.ndarray, " b"]:
    """The multiple correlation of a column with others; with Pearson's matrices its square is the variance explained."""
    left = _unexplained(found, [target], predictors)[:, 0, 0]
    return np.sqrt(np.clip(1 - left, 0.0, 1.0))


def _unexplained(found: Matrices, wanted: Sequence[int], given: Sequence[int]) -> Matrices:
    """What is left of the wanted columns' correlations when the given columns' part is taken off (a Schur complement)."""
    used = [*wanted, *given]
    known = found[:, used][:, :, used]
    usable = np.asarray(np.isfinite(known).all(axis=(1, 2)))[:, None, None]
    known, first = np.where(usable, known, np.eye(len(used))), len(wanted)
    across = known[:, :first, first:]
    inverse = np.linalg.pinv(known[:, first:, first:], rcond=_SINGULAR, hermitian=True)
    rest = known[:, :first, :first] - across @ inverse @ across.transpose(0, 2, 1)
    return np.where(usable, rest, np.nan)


def resampled(families: Sequence[str], *, seed: int, resamples: int) -> Weights:
    """Weights of the rows when whole families are drawn with replacement, as many as there are (a cluster bootstrap)."""
    places, count = _places(families)
    uses = generator(seed, "bootstrap of models")
    drawn = torch.randint(count, (resamples, count), generator=uses).numpy()
    times = np.zeros((resamples, count))
    np.add.at(times, (np.arange(resamples)[:, None], drawn), 1.0)
    return times[:, places]


def left_out(families: Sequence[str]) -> tuple[list[str], Weights]:
    """The families' names, and the weights of the rows without each of them."""
    places, count = _places(families)
    return list(dict.fromkeys(families)), (1.0 - np.eye(count))[:, places]


def spread(values: Float[np.ndarray, " b"]) -> float:
    """The standard deviation of a normal law with the same 5 % and 95 % quantiles; NaN where less than half is finite.

    Resamples with few distinct rows have rank coefficients of exactly 1 or -1, which would rule a standard deviation.
    """
    finite = values[np.isfinite(values)]
    if 2 * finite.size < values.size or finite.size == 0:
        return float("nan")
    low, high = np.quantile(finite, [0.05, 0.95])
    return float(high - low) / 3.2897072539


def fisher(values: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Fisher's transform of coefficients, artanh; of those next to 1 a large number instead of infinity."""
    return np.arctanh(np.clip(values, -_NEXT_TO_ONE, _NEXT_TO_ONE))


def _places(families: Sequence[str]) -> tuple[np.ndarray, int]:
    order = {name: k for k, name in enumerate(dict.fromkeys(families))}
    if not 1 <= len(families) <= MOST:
        raise InputError("models", f"between 1 and {MOST}", f"{len(families)}", "Leave the others out.")
    return np.array([order[name] for name in families]), len(order)
