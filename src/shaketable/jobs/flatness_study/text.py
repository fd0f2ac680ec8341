"""What a correlation study found, in plain sentences: what flatness explains, what else does, and what is left."""

import math
from collections.abc import Sequence

from ...flatness.associations import Association, Correlation, Correlations, Share
from .analysis import Analysis
from .table import GAP

_NO_CONFOUNDER = "No confounder was given: what else might explain the same is not known."


def leading(analysis: Analysis) -> tuple[str, ...]:
    """The summary of a report: those of `sentences` that a reader needs first."""
    found = analysis.correlations
    main = main_of(found)
    lines = [_models(analysis), _flatness(found, main)]
    if found.given:
        lines += [_confounder(found, main), *_partial(found, main)]
    else:
        lines.append(_NO_CONFOUNDER)
    return (*lines, _caution(found))


def sentences(analysis: Analysis) -> tuple[str, ...]:
    """All that is said of a study, the most important first.

    Checked by tests/jobs/test_flatness_text.py: what is said of data whose truth is known.
    """
    found = analysis.correlations
    main = main_of(found)
    lines = [_models(analysis), _flatness(found, main), *_others(found), *_elsewhere(found, main)]
    if found.given:
        lines += [_confounder(found, main), *_partial(found, main), *_left(found, main)]
    else:
        lines.append(_NO_CONFOUNDER)
    return (*lines, *_without_one(main), _caution(found))


def main_of(found: Correlations) -> Association:
    """The first measure with the first target. It was named first, not chosen for its coefficient."""
    main = found.find(found.flatness[0], found.targets[0])
    assert main is not None
    return main


def closest(found: Correlations, names: Sequence[str]) -> Association:
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


def _flatness(found: Correlations, main: Association) -> str:
    if not shown(main.pearson):
        return (
            f"{main.predictor} is not shown to go with {main.target}: Pearson {words(main.pearson)}, an interval with 0 in it; "
            f"Spearman {words(main.spearman)}."
        )
    share = found.share([main.predictor], main.target)
    explained = "" if share is None else f", {_percent(share)} of its variance"
    both = f"Pearson {words(main.pearson)}, Spearman {words(main.spearman)}"
    return f"{main.predictor} goes with {main.target}: {both}{explained}."


def _others(found: Correlations) -> list[str]:
    """The other measures with the first target; the closest of many is closer than it is."""
    names = found.flatness[1:]
    known = [a for name in names if (a := found.find(name, found.targets[0])) is not None]
    if not known:
        return []
    parts = "; ".join(f"{a.predictor} {words(a.pearson)}" for a in known)
    return [f"The other measures with {found.targets[0]}, by Pearson's: {parts}."]


def _elsewhere(found: Correlations, main: Association) -> list[str]:
    """The same measure with the other targets."""
    others = [found.find(main.predictor, target) for target in found.targets[1:]]
    parts = [f"{a.target} {words(a.pearson)}" for a in others if a is not None]
    return [f"{main.predictor} with the other targets, by Pearson's: {'; '.join(parts)}."] if parts else []


def _confounder(found: Correlations, main: Association) -> str:
    """What the closest confounder explains, and whether that is more than flatness does."""
    target, other = found.targets[0], closest(found, found.given)
    share = found.share([other.predictor], target)
    start = f"{other.predictor} alone goes with {target} by Pearson {words(other.pearson)}"
    start += "" if share is None else f" and explains {_percent(share)} of its variance"
    wanted = (main.predictor, other.predictor, target)
    lead = next((x for x in found.leads if (x.first, x.second, x.target) == wanted), None)
    if lead is None:
        return f"{start}."
    size = f"{abs(lead.value):.3f}"
    ends = f"the difference of the sizes is {lead.value:+.3f} [{lead.low:+.2f}, {lead.high:+.2f}]"
    if lead.low > 0:
        return f"{start}: less closely than {main.predictor}, by {size} ({ends})."
    if lead.high < 0:
        return f"{start}: more closely than {main.predictor}, by {size} ({ends})."
    closer = main.predictor if lead.value > 0 else other.predictor
    return f"{start}. {closer} has the larger coefficient, but these models do not tell the two apart: {ends}."


def _partial(found: Correlations, main: Association) -> list[str]:
    """What is left of flatness when the confounders are given, for each target."""
    given, named = tuple(found.given), _named(found)
    partial = [a for t in found.targets if (a := found.find(main.predictor, t, given)) is not None]
    partial = [a for a in partial if math.isfinite(a.pearson.value)]
    if not partial:
        return [f"Whether anything of {main.predictor} is left given {named} cannot be said of these models."]
    kept, lost = (
        "; ".join(f"{a.target} {words(a.pearson)}" for a in partial if shown(a.pearson) == side)
        for side in (True, False)
    )
    lines: list[str] = []
    if kept:
        lines.append(f"Given {named}, {main.predictor} keeps a partial correlation (Pearson) with {kept}.")
    if lost:
        lines.append(
            f"Given {named}, nothing of {main.predictor} is shown to be left for {lost}: 0 is in the interval."
        )
    return lines


def _left(found: Correlations, main: Association) -> list[str]:
    """More on what is left: given the first confounder alone, in a linear fit, and the other way round."""
    given, target, named = tuple(found.given), found.targets[0], _named(found)
    lines: list[str] = []
    if len(given) > 1 and (alone := found.find(main.predictor, target, (given[0],))) is not None:
        lines.append(f"Given {given[0]} alone, {main.predictor} has {words(alone.pearson)} with {target}.")
    alone, both = found.share(given, target), found.share([main.predictor, *given], target)
    if alone is not None and both is not None:
        lines.append(
            f"In a linear fit of {target}, {named} alone: {_percent(alone)} of the variance; with {main.predictor} "
            f"{_percent(both)}: flatness adds {100 * (both.value - alone.value):.1f} points."
        )
    other = closest(found, found.given)
    reverse = found.find(other.predictor, target, (main.predictor,))
    if reverse is not None:
        what = (
            f"keeps {words(reverse.pearson)}"
            if shown(reverse.pearson)
            else f"is not shown to keep any: {words(reverse.pearson)}"
        )
        lines.append(f"The other way round, given {main.predictor}, {other.predictor} {what} with {target}.")
    return lines


def _named(found: Correlations) -> str:
    """The confounders, as words."""
    given = tuple(found.given)
    return given[0] if len(given) == 1 else f"{', '.join(given[:-1])} and {given[-1]}"


def _without_one(main: Association) -> list[str]:
    left = main.pearson.left_out
    if left is None:
        return []
    return [
        f"Without any one family, Pearson's coefficient of {main.predictor} with {main.target} lies between {left.low:.3f} "
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
