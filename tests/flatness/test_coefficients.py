"""Coefficients of weighted rows against SciPy's of repeated rows, and partial correlations against regressions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shaketable.core import InputError
from shaketable.flatness.coefficients import KINDS, left_out, matrices, multiple, partial, resampled, spread

SCIPY = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}


@settings(max_examples=40, deadline=None)
@given(
    columns=st.integers(4, 12).flatmap(
        lambda n: st.tuples(*[st.lists(st.integers(-4, 4), min_size=n, max_size=n) for _ in range(3)])
    ),
    seed=st.integers(0, 99),
)
def test_they_are_scipys_of_the_repeated_rows_ties_included(columns: tuple[list[int], ...], seed: int):
    values = np.array(columns, dtype=np.float64) / 7
    weights = np.random.default_rng(seed).integers(0, 4, (3, values.shape[1])).astype(np.float64)
    weights[0] = 1
    for kind in KINDS:
        for times, found in zip(weights, matrices(kind, values, weights), strict=True):
            repeated = np.repeat(values, times.astype(int), axis=1)
            for i, j in ((0, 1), (1, 2), (0, 2)):
                if repeated.shape[1] < 2 or min(len(set(repeated[i])), len(set(repeated[j]))) < 2:
                    assert np.isnan(found[i, j])
                else:
                    assert found[i, j] == pytest.approx(SCIPY[kind](repeated[i], repeated[j])[0], abs=1e-10)


def test_a_constant_column_has_no_correlation_however_its_mean_is_rounded():
    values = np.array([[0.1] * 7, [1e9 + 0.1] * 7, np.arange(7.0)])
    for kind in KINDS:
        found = matrices(kind, values, np.ones((1, 7)))[0]
        assert np.isnan(found[0, 2])
        assert np.isnan(found[1, 2])
        assert found[2, 2] == pytest.approx(1)


def test_a_partial_correlation_is_that_of_the_residuals_of_two_regressions():
    rng = np.random.default_rng(0)
    columns = rng.standard_normal((5, 30)) + rng.standard_normal(30)
    found = matrices("pearson", columns, np.ones((1, 30)))
    for others in ([2], [2, 3], [4, 3, 2]):
        basis = np.column_stack([np.ones(30), *columns[others]])
        left = [c - basis @ np.linalg.lstsq(basis, c, rcond=None)[0] for c in columns]
        assert partial(found, 0, 1, others)[0] == pytest.approx(stats.pearsonr(left[0], left[1])[0], abs=1e-12)
        explained = 1 - (left[0] ** 2).sum() / ((columns[0] - columns[0].mean()) ** 2).sum()
        assert multiple(found, 0, others)[0] ** 2 == pytest.approx(explained, abs=1e-12)
    ranks = np.array([stats.rankdata(c) for c in columns])
    of_ranks = partial(matrices("pearson", ranks, np.ones((1, 30))), 0, 1, [2])
    assert partial(matrices("spearman", columns, np.ones((1, 30))), 0, 1, [2]) == pytest.approx(of_ranks, abs=1e-12)
    xy, xz, yz = (stats.kendalltau(columns[i], columns[j])[0] for i, j in ((0, 1), (0, 2), (1, 2)))
    kendall = (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))  # Kendall (1942)
    tau = matrices("kendall", columns, np.ones((1, 30)))
    assert partial(tau, 0, 1, [2])[0] == pytest.approx(kendall, abs=1e-12)


def test_what_others_explain_wholly_has_no_partial_correlation_and_a_copied_confounder_changes_nothing():
    rng = np.random.default_rng(1)
    x, y, z = rng.standard_normal((3, 20))
    found = matrices("pearson", np.array([x, y, z, 2 * z + 1, x + z]), np.ones((1, 20)))
    assert np.isnan(partial(found, 0, 1, [2, 4]))[0]
    assert partial(found, 0, 1, [2, 3])[0] == pytest.approx(partial(found, 0, 1, [2])[0], abs=1e-9)


def test_families_are_drawn_whole_and_left_out_whole():
    families = ("a", "b", "a", "c", "c", "c")
    weights = resampled(families, seed=0, resamples=500)
    assert weights.shape == (500, 6)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    assert weights.mean(0) == pytest.approx(np.ones(6), abs=0.15)
    assert (resampled(families, seed=0, resamples=500) == weights).all()
    assert (resampled(families, seed=1, resamples=500) != weights).any()
    names, without = left_out(families)
    assert names == ["a", "b", "c"]
    assert without.tolist() == [[0, 1, 0, 1, 1, 1], [1, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
    with pytest.raises(InputError, match="between 1 and 2000"):
        resampled([str(k) for k in range(2001)], seed=0, resamples=1)


def test_many_weightings_are_done_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch):
    from shaketable.flatness import coefficients

    values, weights = np.random.default_rng(0).standard_normal((3, 9)), resampled("abcdefghi", seed=0, resamples=40)
    whole = {kind: matrices(kind, values, weights) for kind in KINDS}
    monkeypatch.setattr(coefficients, "_BLOCK", 27 * 7)
    for kind in KINDS:
        assert np.array_equal(matrices(kind, values, weights), whole[kind], equal_nan=True)


def test_the_spread_is_a_normal_laws_deviation_and_no_single_value_rules_it():
    values = np.random.default_rng(0).standard_normal(20000) * 3
    assert spread(values) == pytest.approx(3, rel=0.02)
    values[:200] = 1e9
    assert spread(values) == pytest.approx(3, rel=0.05)
    assert np.isnan(spread(np.array([1.0, np.nan, np.nan])))
