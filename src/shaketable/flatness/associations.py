"""What a correlation study says: coefficients with their intervals, shares of variance, and who leads whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .coefficients import Kind
from .models_table import Models, Refused


@dataclass(frozen=True)
class LeftOut:
    """The lowest and the highest value of a coefficient when one family is left out, and which ones these are."""

    low: float
    without_low: str
    high: float
    without_high: str


@dataclass(frozen=True)
class Correlation:
    """One coefficient.

    Args:
        value: in [-1, 1]; NaN where it is not defined.
        low, high: its 95 % interval over families.
        p: two-sided, that it is 0, from the same spread; NaN where that is not known.
        holm: p adjusted by Holm's method for all associations of the same kind and the same `given`.
        left_out: its range when families are left out one at a time; None where it is never defined.
    """

    kind: Kind
    value: float
    low: float
    high: float
    p: float
    holm: float
    left_out: LeftOut | None


@dataclass(frozen=True)
class Association:
    """How a column goes with a target, given others (none: plain correlation), by each of the three coefficients."""

    predictor: str
    target: str
    given: tuple[str, ...]
    coefficients: Mapping[Kind, Correlation]

    @property
    def pearson(self) -> Correlation:
        """Pearson's coefficient."""
        return self.coefficients["pearson"]

    @property
    def spearman(self) -> Correlation:
        """Spearman's."""
        return self.coefficients["spearman"]

    @property
    def kendall(self) -> Correlation:
        """Kendall's tau-b."""
        return self.coefficients["kendall"]


@dataclass(frozen=True)
class Share:
    """The share of a target's variance that a linear function of these columns explains, with its 95 % interval."""

    predictors: tuple[str, ...]
    target: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Lead:
    """How much larger the size of one column's Pearson correlation with a target is than another's, on the same models."""

    first: str
    second: str
    target: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Correlations:
    """All that a table of models says.

    Args:
        models: the rows that were used, in the table's order.
        refused: the rows that were not, with the reasons.
        undefined: columns that have one value in all rows, hence no correlation; they are left out.
        flatness, targets, given: the columns that are left of those that were asked for.
        plain: of every measure and confounder with every target.
        partial: of every measure with every target, given each confounder, and all of them.
        reverse: of every confounder with every target, given each measure.
        shares: of variance explained, by each measure, each confounder, all confounders, and these with each measure.
        leads: of each measure over each confounder.
        seed, resamples: of the bootstrap.
    """

    models: Models
    refused: tuple[Refused, ...]
    undefined: tuple[str, ...]
    flatness: tuple[str, ...]
    targets: tuple[str, ...]
    given: tuple[str, ...]
    plain: tuple[Association, ...]
    partial: tuple[Association, ...]
    reverse: tuple[Association, ...]
    shares: tuple[Share, ...]
    leads: tuple[Lead, ...]
    seed: int
    resamples: int

    @property
    def families(self) -> int:
        """How many families the models are of."""
        return len(set(self.models.families))

    def find(self, predictor: str, target: str, given: tuple[str, ...] = ()) -> Association | None:
        """The association of a column with a target, given others; None if it was not computed."""
        known = (*self.plain, *self.partial, *self.reverse)
        return next((a for a in known if (a.predictor, a.target, a.given) == (predictor, target, given)), None)

    def share(self, predictors: Sequence[str], target: str) -> Share | None:
        """The share of a target's variance that columns explain; None if it was not computed."""
        wanted = (tuple(predictors), target)
        return next((s for s in self.shares if (s.predictors, s.target) == wanted), None)
