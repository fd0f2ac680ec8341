"""What the report of a training says in numbers, read back by name: for the verbs that compare trainings."""

from collections.abc import Mapping
from dataclasses import dataclass

from ..report import Metric, Report

QUANTITIES: dict[str, str] = {
    "robust_last": "Robust accuracy, last epoch",
    "clean_last": "Clean accuracy, last epoch",
    "loss_last": "Robust loss, last epoch",
    "robust_train": "Robust accuracy, training images, last epoch",
    "loss_train": "Robust loss, training images, last epoch",
    "robust_best": "Robust accuracy, best epoch",
    "clean_best": "Clean accuracy, best epoch",
    "loss_best": "Robust loss, best epoch",
    "gap": "Robust gap, last epoch",
    "overfitting": "Robust overfitting",
}
"""Key -> the name of its metric in the report of a training; on whole splits, the test split unless it says otherwise."""

FINAL = "robust_final"
"""Key of a last epoch's robust accuracy in the report of its evaluation by a study (see `study_finals`)."""

FINAL_NAME = "Robust accuracy, last epoch, final attack"

CURVES = ("robust loss", "robust accuracy", "clean loss", "clean accuracy")
"""The learning curves that the report of a training has, by the titles of their charts."""


@dataclass(frozen=True)
class Curve:
    """A quantity at the epochs at which it was measured."""

    epochs: tuple[float, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Measured:
    """The numbers of one training.

    Args:
        metrics: key of `QUANTITIES`, or `FINAL`, -> the metric, with its count and interval; "best" ones only where there
            was a rule for the best epoch.
        curves: name of `CURVES` -> split -> the curve, on the slices of the learning curves.
        codes: of the report's findings that are no mere notes.
    """

    metrics: Mapping[str, Metric]
    curves: Mapping[str, Mapping[str, Curve]]
    codes: tuple[str, ...]

    def value(self, key: str) -> float | None:
        """A quantity's value; None where it was not measured."""
        metric = self.metrics.get(key)
        return None if metric is None else metric.value


def measured_of(report: Report) -> Measured:
    """The numbers in the report of a training, or of its model's evaluation by a study; whatever it does not have is left out.

    Checked by tests/jobs/test_study.py, on the report of a real training.
    """
    named = {metric.name: metric for section in report.sections for metric in section.metrics}
    names = {FINAL: "Robust accuracy"} if report.verb == "evaluate" else QUANTITIES
    metrics = {key: named[name] for key, name in names.items() if name in named}
    curves: dict[str, dict[str, Curve]] = {}
    for chart in (chart for section in report.sections for chart in section.charts):
        if chart.title.lower() in CURVES and not chart.categorical:
            curves[chart.title.lower()] = {
                s.name: Curve(tuple(float(x) for x in s.x), tuple(s.y)) for s in chart.series
            }  # fmt: skip
    codes = tuple(f.code for f in report.findings if f.level in ("finding", "failed"))
    return Measured(metrics, curves, codes)
