"""What a study says of its runs' numbers: means and paired differences, against SciPy; nothing that is missing is guessed."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shaketable.jobs.measured import FINAL, QUANTITIES, Curve, measured_of
from shaketable.jobs.study.plan import runs_of
from shaketable.jobs.study.recipe import Recipe
from shaketable.jobs.study.runs import Outcome
from shaketable.jobs.study.summary import MEASURES, Summary, holm, mean_curve, measures_of, p_value, summarise
from shaketable.report import Chart, Finding, Report, Section, Series, number_metric, rate_metric
from shaketable.stats import Mean, Rate, mean

GAPS = {"at": [1.1, 0.9, 1.3, 1.0], "awp": [0.6, 0.7, 0.7, 0.4], "sam": [1.0, 1.1, 1.2, 0.9]}
SEEDS = (5, 6, 7, 8)


def report(**values: float) -> Report:
    """The report of a training with these numbers."""
    metrics = tuple(number_metric(QUANTITIES[key], value) for key, value in values.items())
    return Report(verb="train", title="t", summary=(), verdict="pass", sections=(Section(title="s", metrics=metrics),))


@pytest.fixture
def recipe() -> Recipe:
    compare = [{"name": "AWP", "a": "awp", "b": "at"}, {"name": "SAM", "a": "sam", "b": "at"}]
    content = {"title": "t", "seeds": SEEDS, "cells": {name: {} for name in GAPS}, "compare": compare}
    return Recipe.model_validate(content, strict=False)


@pytest.fixture
def outcomes(recipe: Recipe) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for name, run in runs_of(recipe, Path("out")).items():
        gap = GAPS[run.cell.name][SEEDS.index(run.seed)]
        found[name] = Outcome(run, report(gap=gap, robust_last=gap / 10, loss_last=1.0))
    return found


def test_differences_are_scipys_paired_ones(recipe: Recipe, outcomes: dict[str, Outcome]):
    summary = summarise(recipe, outcomes)
    for comparison, name in zip(summary.comparisons, ("awp", "sam"), strict=True):
        found, exact = comparison.differences["gap"], stats.ttest_rel(GAPS[name], GAPS["at"])
        interval = exact.confidence_interval()
        assert found.p == pytest.approx(exact.pvalue)
        assert (found.mean.low, found.mean.high) == pytest.approx((interval.low, interval.high))
        assert list(found.values) == list(SEEDS)
        assert found.mean.value == pytest.approx(sum(found.values.values()) / 4)
    assert (summary.comparisons[0].differences["gap"].below, summary.comparisons[0].differences["gap"].above) == (4, 0)
    assert (summary.comparisons[1].differences["gap"].below, summary.comparisons[1].differences["gap"].above) == (3, 1)


def test_shares_are_shown_in_points_and_losses_as_they_are(recipe: Recipe, outcomes: dict[str, Outcome]):
    summary = summarise(recipe, outcomes)
    gap, robust = (summary.comparisons[0].differences[key].mean for key in ("gap", "robust_last"))
    assert robust.value == pytest.approx(10 * gap.value)  # a tenth, in hundredths
    assert summary.cells["at"].means["gap"].value == pytest.approx(1.075)
    assert summary.cells["at"].means["robust_last"].value == pytest.approx(10.75)


def test_a_failed_run_takes_its_pair_out_and_no_more(recipe: Recipe, outcomes: dict[str, Outcome]):
    lost = outcomes["awp/seed-6"].run
    outcomes["awp/seed-6"] = Outcome(lost, error="It diverged.")
    summary = summarise(recipe, outcomes)
    kept = [k for k, seed in enumerate(SEEDS) if seed != 6]
    exact = stats.ttest_rel([GAPS["awp"][k] for k in kept], [GAPS["at"][k] for k in kept])
    assert summary.comparisons[0].differences["gap"].p == pytest.approx(exact.pvalue)
    assert summary.comparisons[1].differences["gap"].mean.n == 4
    assert summary.cells["awp"].errors == {6: "It diverged."}
    assert summary.cells["awp"].means["gap"].n == 3


def test_what_was_not_run_or_not_measured_has_no_number(recipe: Recipe, outcomes: dict[str, Outcome]):
    for seed in SEEDS:
        outcomes[f"sam/seed-{seed}"] = Outcome(outcomes[f"sam/seed-{seed}"].run)
    summary = summarise(recipe, outcomes)
    assert summary.cells["sam"].missing == SEEDS
    assert summary.cells["sam"].means == {}
    assert summary.comparisons[1].differences == {}
    assert "clean_last" not in summary.comparisons[0].differences  # no report has it
    assert set(summary.comparisons[0].differences) < {m.key for m in MEASURES}


def test_one_seed_has_a_difference_but_no_interval_and_no_p(recipe: Recipe, outcomes: dict[str, Outcome]):
    for name, outcome in list(outcomes.items()):
        if outcome.run.seed != 5:
            outcomes[name] = Outcome(outcome.run)
    found = summarise(recipe, outcomes).comparisons[0].differences["gap"]
    assert found.mean.value == pytest.approx(-0.5)
    assert math.isinf(found.mean.high)
    assert (found.p, found.holm) == (None, None)


def test_holms_adjustment_is_that_of_his_example():
    # Three hypotheses: 3 x .01, then 2 x .02 but not below the one before, then 1 x .04, again not below.
    assert holm([0.01, 0.04, 0.02]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([0.04, 0.01, 0.5, 0.015]) == pytest.approx([0.08, 0.04, 0.5, 0.045])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_p_and_bonferroni_and_keeps_the_order(p: list[float]):
    adjusted = holm(p)
    assert all(a <= b <= 1 for a, b in zip(p, adjusted, strict=True))
    assert min(adjusted) == pytest.approx(min(1.0, len(p) * min(p)))
    ranked = sorted(range(len(p)), key=lambda k: p[k])
    assert [adjusted[k] for k in ranked] == sorted(adjusted)


def test_holm_is_over_the_comparisons_of_one_measure(recipe: Recipe, outcomes: dict[str, Outcome]):
    summary: Summary = summarise(recipe, outcomes)
    for key in ("gap", "robust_last"):
        found = [comparison.differences[key] for comparison in summary.comparisons]
        raw = [difference.p for difference in found if difference.p is not None]
        assert [difference.holm for difference in found] == pytest.approx(holm(raw))


def test_p_of_no_spread():
    assert p_value(mean([0.0, 0.0, 0.0])) == 1.0
    assert p_value(mean([0.5, 0.5, 0.5])) == 0.0
    assert p_value(Mean(1.0, -math.inf, math.inf, 1, math.nan)) is None


def evaluated(hits: int) -> Report:
    """The report of an evaluation, with a finding."""
    finding = Finding(level="finding", code="gradients", message="m", remedy="r")
    metrics = (rate_metric("Clean accuracy", Rate(90, 100)), rate_metric("Robust accuracy", Rate(hits, 100)))
    section = Section(title="Accuracy", metrics=metrics)
    return Report(verb="evaluate", title="t", summary=(), verdict="findings", findings=(finding,), sections=(section,))


def test_a_finals_robust_accuracy_is_its_trainings_number(recipe: Recipe, outcomes: dict[str, Outcome]):
    assert FINAL not in {m.key for m in measures_of(recipe)}
    with_final = recipe.model_copy(update={"final": {"attack": "autoattack"}})
    hits = {"at": [40, 42, 41, 43], "awp": [45, 44, 46, 47], "sam": [40, 41, 42, 43]}
    runs = runs_of(with_final, Path("out"))
    for cell, counts in hits.items():
        for seed, count in zip(SEEDS, counts, strict=True):
            name = f"{cell}.final/seed-{seed}"
            outcomes[name] = Outcome(runs[name], evaluated(count))
    del outcomes["sam.final/seed-8"]  # a training without its final keeps its other numbers
    summary = summarise(with_final, outcomes)
    exact = stats.ttest_rel(hits["awp"], hits["at"])
    found = summary.comparisons[0].differences[FINAL]
    assert (found.mean.value, found.p) == pytest.approx((3 + 1 * 1, exact.pvalue))
    assert summary.comparisons[1].differences[FINAL].mean.n == 3
    assert summary.comparisons[1].differences["gap"].mean.n == 4
    assert found.holm == pytest.approx(holm([c.differences[FINAL].p or 0.0 for c in summary.comparisons])[0])
    assert summary.cells["at"].means[FINAL].value == pytest.approx(41.5)
    assert summary.cells["at"].measured[5].codes == ()
    assert summary.cells["at.final"].measured[5].codes == ("gradients",)
    assert summary.cells["at.final"].hidden


def test_curves_are_averaged_where_all_of_them_are_there():
    long = Curve((1.0, 2.0, 3.0), (1.0, 2.0, None))
    short = Curve((1.0, 3.0), (3.0, 5.0))
    points = mean_curve([long, short])
    assert [(epoch, found.value, found.n) for epoch, found in points] == [(1.0, 2.0, 2)]
    assert mean_curve([]) == []


def test_curves_are_read_from_a_report_by_their_titles():
    series = Series(name="test", x=(1.0, 2.0), y=(0.5, None))
    chart = Chart(kind="line", title="Robust loss", series=(series,), x_label="", y_label="", description="d")
    other = chart.model_copy(update={"title": "Something else"})
    made = Report(
        verb="train", title="t", summary=(), verdict="pass", sections=(Section(title="s", charts=(chart, other)),)
    )
    assert measured_of(made).curves == {"robust loss": {"test": Curve((1.0, 2.0), (0.5, None))}}
