"""Does flatness go with robustness over many models? The correlation study of Stutz et al. (2021, section 4)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from ..core import InputError
from ..stats import holm, student_p, student_quantile
from .associations import Association, Correlation, Correlations, Lead, LeftOut, Share
from .coefficients import KINDS, Kind, Matrices, fisher, left_out, matrices, multiple, partial, resampled, spread
from .models_table import Models, Refused, admitted, varying

LEAST = 4
"""Models, with fewer of which nothing is correlated."""
RESAMPLES = 2000


def correlate(
    models: Models,
    *,
    flatness: Sequence[str],
    targets: Sequence[str],
    given: Sequence[str] = (),
    seed: int,
    resamples: int = RESAMPLES,
) -> Correlations:
    """Correlate measures of flatness with how robust models are, with and without what else may explain it.

    Args:
        models: the table. Rows with a value that is missing or not finite in a column that is used, and constant predictors
            (which are perfectly flat, and not robust), are refused and listed.
        flatness: columns, one or more; larger is sharper in the paper's measures.
        targets: columns, such as robust loss, robust error and robust gap.
        given: confounders, such as the logarithm of the robust loss on training images, confidence and epoch. They are given
            one by one and all together, as far as at least 4 models remain beyond their number.
        seed, resamples: of the bootstrap.

    The intervals are over families, drawn with replacement (a cluster bootstrap): seeds and hyper-parameters of one method
    are not independent models. They are normal intervals of Fisher's transform, its deviation taken from the resamples'
    5 % and 95 % quantiles, with Student's quantile for the number of families. In simulations (normal and lognormal
    variables, 5 to 74 families) they covered 92 to 99 %, where percentile intervals covered 72 to 96 %. Targets and
    measures are taken as they are: errors of measurement, which weaken correlations, are not taken off.

    Raises:
        InputError: columns that are missing or named twice, fewer than 4 models left, no measure or target that varies.

    Cost: no pass through a model; (resamples + models) * columns^2 * models^2 operations. Checked by
    tests/flatness/test_correlation.py: SciPy's coefficients, closed forms, and the paper's 74 models.
    """
    wanted = [*flatness, *targets, *given]
    _require(models, flatness, targets, wanted, resamples)
    table, refused = admitted(models, wanted)
    if len(table.names) < LEAST:
        reasons = "; ".join(f"{r.name}: {r.reason}" for r in refused[:3])
        found = f"{len(table.names)}" + (f" ({len(refused)} refused: {reasons})" if refused else "")
        raise InputError("models", f"at least {LEAST} that can be used", found, "Measure more models.")
    kept = varying(table, wanted)
    names = [[name for name in part if name in kept] for part in (flatness, targets, given)]
    if not names[0] or not names[1]:
        what = "flatness" if not names[0] else "targets"
        raise InputError(what, "a column that varies from model to model", "none", "Take other columns or models.")
    undefined = tuple(name for name in wanted if name not in kept)
    found = _Resampled(table, [*names[0], *names[1], *names[2]], seed, resamples)
    return _all(found, table, refused, undefined, names)


def _all(
    found: "_Resampled", table: Models, refused: tuple[Refused, ...], undefined: tuple[str, ...], names: list[list[str]]
) -> Correlations:
    measures, targets, confounders = names
    sets = [(g,) for g in confounders] + ([tuple(confounders)] if len(confounders) > 1 else [])
    sets = [given for given in sets if len(table.names) - len(given) >= LEAST]
    plain = [found.association(a, t, ()) for t in targets for a in (*measures, *confounders)]
    given = [found.association(a, t, g) for g in sets for t in targets for a in measures]
    reverse = [found.association(g, t, (a,)) for a in measures for t in targets for (g, *more) in sets if not more]
    explained = [(a,) for a in measures] + sets + [(a, *g) for a in measures for g in sets]
    return Correlations(
        models=table, refused=refused, undefined=undefined, flatness=tuple(measures), targets=tuple(targets),
        given=tuple(confounders), plain=_adjusted(plain), partial=_adjusted(given), reverse=_adjusted(reverse),
        shares=tuple(found.share(columns, t) for t in targets for columns in explained),
        leads=tuple(found.lead(a, g, t) for t in targets for a in measures for g in confounders),
        seed=found.seed, resamples=found.resamples,
    )  # fmt: skip


class _Resampled:
    """The correlation matrices of a table: of all its rows, without each family, and of each resample."""

    def __init__(self, table: Models, columns: Sequence[str], seed: int, resamples: int) -> None:
        self.places = {name: k for k, name in enumerate(columns)}
        self.families, without = left_out(table.families)
        self.seed, self.resamples = seed, resamples
        values = np.array([table.columns[name] for name in columns], dtype=np.float64)
        weights = [np.ones((1, len(table.names))), without]
        weights.append(resampled(table.families, seed=seed, resamples=resamples))
        self.found: dict[Kind, Matrices] = {kind: matrices(kind, values, np.concatenate(weights)) for kind in KINDS}

    def association(self, predictor: str, target: str, given: tuple[str, ...]) -> Association:
        a, b, others = self.places[predictor], self.places[target], [self.places[name] for name in given]
        return Association(
            predictor, target, given, {kind: self._correlation(kind, partial(self.found[kind], a, b, others)) for kind in KINDS}
        )  # fmt: skip

    def _correlation(self, kind: Kind, values: Float[np.ndarray, " b"]) -> Correlation:
        without, value = values[1 : 1 + len(self.families)], float(values[0])
        low, high, p = self._interval(fisher(values))
        return Correlation(kind, value, float(np.tanh(low)), float(np.tanh(high)), p, p, self._left_out(without))

    def share(self, predictors: tuple[str, ...], target: str) -> Share:
        columns = [self.places[name] for name in predictors]
        values = multiple(self.found["pearson"], self.places[target], columns)
        low, high, _ = self._interval(fisher(values))
        ends = (float(np.tanh(max(low, 0.0))) ** 2, float(np.tanh(high)) ** 2)
        return Share(predictors, target, float(values[0]) ** 2, *ends)

    def lead(self, first: str, second: str, target: str) -> Lead:
        found = np.abs(self.found["pearson"][:, self.places[target]])
        values = found[:, self.places[first]] - found[:, self.places[second]]
        low, high, _ = self._interval(values)
        return Lead(first, second, target, float(values[0]), max(low, -1.0), min(high, 1.0))

    def _interval(self, values: Float[np.ndarray, " b"]) -> tuple[float, float, float]:
        """The normal interval of the first value, with its p; unbounded where the resamples do not tell its spread."""
        freedom = len(self.families) - 1
        value, deviation = float(values[0]), spread(values[1 + len(self.families) :])
        if freedom < 1 or not np.isfinite(deviation) or not np.isfinite(value):
            return -np.inf, np.inf, float("nan")
        if deviation == 0:
            return value, value, float(value == 0)
        half = student_quantile(freedom) * deviation
        return value - half, value + half, student_p(value / deviation, freedom)

    def _left_out(self, values: Float[np.ndarray, " f"]) -> LeftOut | None:
        if not np.isfinite(values).any():
            return None
        low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
        return LeftOut(float(values[low]), self.families[low], float(values[high]), self.families[high])


def _adjusted(found: list[Association]) -> tuple[Association, ...]:
    """The same, with p adjusted for all associations of the same kind, given the same."""
    made = [dict(a.coefficients) for a in found]
    for kind in KINDS:
        for given in {a.given for a in found}:
            known = [k for k, a in enumerate(found) if a.given == given and not np.isnan(a.coefficients[kind].p)]
            for k, p in zip(known, holm([found[k].coefficients[kind].p for k in known]), strict=True):
                made[k][kind] = replace(made[k][kind], holm=p)
    return tuple(replace(a, coefficients=coefficients) for a, coefficients in zip(found, made, strict=True))


def _require(
    models: Models, flatness: Sequence[str], targets: Sequence[str], wanted: Sequence[str], resamples: int
) -> None:
    if not flatness or not targets:
        raise InputError(
            "flatness, targets", "one column or more each", f"{list(flatness)}, {list(targets)}", "Name them."
        )
    if len(set(wanted)) < len(wanted):
        raise InputError("flatness, targets, given", "each column once", f"{list(wanted)}", "Leave out the copies.")
    if resamples < 100:
        raise InputError("resamples", "a whole number >= 100", f"{resamples}", f"{RESAMPLES} is usual.")
