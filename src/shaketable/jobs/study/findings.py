"""What the reader of a study must know beside its numbers: what failed, what is missing, what is not alike."""

from collections.abc import Iterator, Mapping, Sequence

from ...report import Finding
from .finals import VERB as FINAL_VERB
from .run import Found
from .runs import Outcome

FEW_SEEDS = 3
_MACHINE = ("shaketable", "torch", "machine", "cpu capability", "threads", "device", "device name")


def findings(found: Found) -> tuple[Finding, ...]:
    """All of them; failures first."""
    seeds = len(found.study.recipe.seeds)
    few = Finding(
        level="info", code="few-seeds", message=f"So few seeds ({seeds}) have wide intervals, or none.",
        remedy="Use five.",
    )  # fmt: skip
    made = [*_failures(found.outcomes), *_missing(found.outcomes), *_of_runs(found), *_mixed(found.outcomes)]
    return (*made, few) if seeds < FEW_SEEDS else tuple(made)


def _failures(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """One for each cell and error."""
    failed: dict[tuple[str, str], list[int]] = {}
    for outcome in outcomes.values():
        if outcome.error is not None:
            failed.setdefault((outcome.run.cell.name, outcome.error), []).append(outcome.run.seed)
    for (cell, error), seeds in failed.items():
        yield Finding(
            level="finding", code="failed-run", message=f"{cell} failed with seed {', '.join(map(str, seeds))}: {error}",
            remedy="See log.txt in its folder; run the study again to try again. Comparisons are of the seeds that ended.",
        )  # fmt: skip


def _missing(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    missing = [name for name, o in outcomes.items() if o.report is None and o.error is None]
    if missing:
        message = f"{len(missing)} of {len(outcomes)} runs have not been made: {_listed(missing)}."
        yield Finding(level="warning", code="not-run", message=message, remedy="Run the study without --only.")


def _of_runs(found: Found) -> Iterator[Finding]:
    """What the runs' own reports have as findings, by code."""
    by_code: dict[str, list[str]] = {}
    for name, cell in found.summary.cells.items():
        for seed, measured in cell.measured.items():
            for code in dict.fromkeys(measured.codes):
                by_code.setdefault(code, []).append(f"{name}/seed-{seed}")
    for code, names in by_code.items():
        message = f"{code} is reported by {_listed(names)}. Their numbers are in the means."
        yield Finding(level="finding", code=f"runs.{code}", message=message, remedy="Read their own reports.")


def _mixed(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Runs that were not all made in one place."""
    ended = [(o.run.cell.verb, o.report.environment) for o in outcomes.values() if o.report is not None]
    finals = [place for verb, place in ended if verb == FINAL_VERB]  # which may be made long after the trainings
    rest = [place for verb, place in ended if verb != FINAL_VERB]
    differing = [
        key for key in _MACHINE if any(len({str(place.get(key)) for place in places}) > 1 for places in (rest, finals))
    ]
    if differing:
        message = f"The runs were not all made in one place: {', '.join(differing)} differ."
        remedy = "Differences between cells may be differences between machines: run the study in one place."
        yield Finding(level="warning", code="mixed-machines", message=message, remedy=remedy)


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
