"""What a correlation study found, in plain sentences: what flatness explains, what else does, and what is left."""

import math
from collections.abc import Sequence

from ..flatness.associations import Association, Correlation, Correlations, Share
from .flatness_analysis import Analysis
from .flatness_table import GAP


def sentences(analysis: Analysis) -> tuple[str, ...]:
    """The summary of a report, the most important first.

    Checked by tests/jobs/test_flatness_text.py: what is said of data whose truth is known.
    """
    found = analysis.correlations
    best = strongest(found, found.flatness)
    lines = [_models(analysis), _flatness(found, best), *_elsewhere(found, best)]
    if found.given:
        lines += [_confounder(found, best), *_left(found, best)]
    else:
        lines.append("No confounder was given: what else might explain the same is not known.")
    return (*lines, *_without_one(best), _caution(found))


def strongest(found: Correlations, names: Sequence[str]) -> Association:
    """The one of these columns that goes closest with the first target, by Pearson's coefficient."""
    known = [a for a in found.plain if a.target == found.targets[0] and a.predictor in names]
    return max(known, key=lambda a: abs(a.pearson.value))


def words(one: Correlation) -> str:
    """A coefficient with its interval."""
    return f"{one.value:.3f} [{one.low:.2f}, {one.high:.2f}]"


def shown(one: Correlation) -> bool:
    """Whether the interval excludes 0."""
    return one.low > 0 or one.high < 0


def _models(analysis: Analysis) -> str:
    found, count = analysis.correlations, len(analysis.correlations.refused)
    refused = f", and {count} refused (see the findings)" if count else ""
    return (
        f"{len(found.models.names)} models of {found.families} families ({analysis.table.families}){refused}. "
        "Flatness is the rise of the loss when weights move: larger is sharper."
    )


def _flatness(found: Correlations, best: Association) -> str:
    target, others = found.targets[0], [a for a in found.plain if a.predictor in found.flatness and a is not best]
    rest = [f"{a.predictor} {words(a.pearson)}" for a in others if a.target == target]
    more = f" The other measures by Pearson's: {'; '.join(rest)}." if rest else ""
    name = f"Of the measures {best.predictor}" if rest else best.predictor
    if not shown(best.pearson):
        return (
            f"No measure of flatness is shown to go with {target}: the closest is {best.predictor}, Pearson "
            f"{words(best.pearson)}, an interval with 0 in it.{more}"
        )
    share = found.share([best.predictor], target)
    explained = "" if share is None else f", {_percent(share)} of its variance"
    return (
        f"{name} goes closest with {target}: Pearson {words(best.pearson)}, Spearman {words(best.spearman)}"
        f"{explained}.{more}"
    )


def _elsewhere(found: Correlations, best: Association) -> list[str]:
    """The same measure with the other targets."""
    others = [found.find(best.predictor, target) for target in found.targets[1:]]
    parts = [f"{a.target} {words(a.pearson)}" for a in others if a is not None]
    return [f"{best.predictor} with the other targets, by Pearson's: {'; '.join(parts)}."] if parts else []


def _confounder(found: Correlations, best: Association) -> str:
    """What the closest confounder explains, and whether that is more than flatness does."""
    target, other = found.targets[0], strongest(found, found.given)
    share = found.share([other.predictor], target)
    start = f"{other.predictor} alone goes with {target} by Pearson {words(other.pearson)}"
    start += "" if share is None else f" and explains {_percent(share)} of its variance"
    wanted = (best.predictor, other.predictor, target)
    lead = next((x for x in found.leads if (x.first, x.second, x.target) == wanted), None)
    if lead is None:
        return f"{start}."
    size = f"{abs(lead.value):.3f}"
    ends = f"the difference of the sizes is {lead.value:+.3f} [{lead.low:+.2f}, {lead.high:+.2f}]"
    if lead.low > 0:
        return f"{start}: less closely than {best.predictor}, by {size} ({ends})."
    if lead.high < 0:
        return f"{start}: more closely than {best.predictor}, by {size} ({ends})."
    closer = best.predictor if lead.value > 0 else other.predictor
    return f"{start}. {closer} has the larger coefficient, but these models do not tell the two apart: {ends}."


def _left(found: Correlations, best: Association) -> list[str]:
    """What is left of flatness when the confounders are given, and of the closest confounder when flatness is."""
    given, target = tuple(found.given), found.targets[0]
    named = given[0] if len(given) == 1 else f"{', '.join(given[:-1])} and {given[-1]}"
    partial = [a for t in found.targets if (a := found.find(best.predictor, t, given)) is not None]
    partial = [a for a in partial if math.isfinite(a.pearson.value)]
    if not partial:
        return [f"Whether anything of {best.predictor} is left given {named} cannot be said of these models."]
    kept, lost = (
        "; ".join(f"{a.target} {words(a.pearson)}" for a in partial if shown(a.pearson) == side)
        for side in (True, False)
    )
    lines: list[str] = []
    if kept:
        lines.append(f"Given {named}, {best.predictor} keeps a partial correlation (Pearson) with {kept}.")
    if lost:
        lines.append(
            f"Given {named}, nothing of {best.predictor} is shown to be left for {lost}: 0 is in the interval."
        )
    alone, both = found.share(given, target), found.share([best.predictor, *given], target)
    if alone is not None and both is not None:
        lines.append(
            f"In a linear fit of {target}, {named} alone: {_percent(alone)} of the variance; with {best.predictor} "
            f"{_percent(both)}: flatness adds {100 * (both.value - alone.value):.1f} points."
        )
    other = strongest(found, found.given)
    reverse = found.find(other.predictor, target, (best.predictor,))
    if reverse is not None:
        what = (
            f"keeps {words(reverse.pearson)}"
            if shown(reverse.pearson)
            else f"is not shown to keep any: {words(reverse.pearson)}"
        )
        lines.append(f"The other way round, given {best.predictor}, {other.predictor} {what} with {target}.")
    return lines


def _without_one(best: Association) -> list[str]:
    left = best.pearson.left_out
    if left is None:
        return []
    return [
        f"Without any one family, Pearson's coefficient of {best.predictor} with {best.target} lies between {left.low:.3f} "
        f"(without {left.without_low}) and {left.high:.3f} (without {left.without_high})."
    ]


def _caution(found: Correlations) -> str:
    line = (
        "All of this is association over models that somebody chose: it does not say that flatness makes nets robust. "
        "Intervals are over families."
    )
    gaps = [t for t in found.targets if t in GAP or " - " in t]
    if gaps and found.given:
        line += f" {gaps[0]} contains the training loss, so that a correlation of the two is partly arithmetic."
    return line


def _percent(share: Share) -> str:
    return f"{100 * share.value:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"
