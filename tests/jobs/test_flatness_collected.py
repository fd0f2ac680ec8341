"""From measurements to a table and to differences, paired by seed, against SciPy; nothing that is missing is guessed."""

import math
from pathlib import Path

import pytest
from scipy import stats

from shaketable.jobs.flatness_study.collected import Contrasts, columns_of, contrasts_of, sheet_of
from shaketable.jobs.flatness_study.contrasts_report import contrast_metrics, contrast_sections, contrast_sentences
from shaketable.jobs.flatness_study.models import Found, Measured, Row, _useless, row_name
from shaketable.jobs.flatness_study.recipe import FlatnessPlan, plan_of
from shaketable.jobs.flatness_study.standing import Standing
from shaketable.jobs.flatness_study.table import Choices, table_of
from shaketable.jobs.study.recipe import read

SEEDS = (5, 6, 7)
FLATNESS = {"at": [1.2, 1.0, 1.3], "awp": [0.3, 0.4, 0.2], "sam": [1.1, 1.3, 1.2]}
STOPPED = {"at": [0.7, 0.8, 1.3], "awp": [0.3, 0.35, 0.2], "sam": [0.9, 1.0, 0.8]}
RECIPE = 'title = "t"\nseeds = [5, 6, 7]\n[cells.at]\n[cells.awp]\n[cells.sam]\n[flatness]\nmeasures = ["average"]\n'


@pytest.fixture
def plan(tmp_path: Path) -> FlatnessPlan:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE)
    return plan_of(read(path), "r.toml")


def found(plan: FlatnessPlan, cell: str, seed: int, which: str, flat: float, *, constant: bool = False) -> Found:
    row = Row(row_name(cell, seed, which), cell, seed, which, plan.config)
    test, train = (Standing(flat + k, 0.25, 0.5, 0.125, 0.75, constant, 40) for k in (1.0, 0.5))
    return Found(row, 9, test, train, {"average": (flat, flat - 0.1, flat + 0.1)}, constant, {}, "0" * 64, 100)


@pytest.fixture
def measured(plan: FlatnessPlan) -> Measured:
    rows = [
        found(plan, cell, seed, which, values[cell][k])
        for cell in FLATNESS
        for k, seed in enumerate(SEEDS)
        for which, values in (("last", FLATNESS), ("best", STOPPED))
    ]
    twin, last = row_name("at", 7, "best"), row_name("at", 7, "last")  # the best epoch was the last
    return Measured(tuple(f for f in rows if f.row.name != twin), {twin: last}, ("average",), (), {})


@pytest.fixture
def contrasts(plan: FlatnessPlan, measured: Measured) -> Contrasts:
    made = contrasts_of(plan, measured, SEEDS)
    assert made is not None
    return made


def test_differences_are_scipys_paired_ones_and_early_stopping_is_one_of_them(contrasts: Contrasts):
    assert [c.name for c in contrasts.others] == ["early stopping of at", "awp", "sam"]
    assert [c.name for c in contrasts.stopped] == ["awp", "sam"]
    for contrast, values in zip(contrasts.others, (STOPPED["at"], FLATNESS["awp"], FLATNESS["sam"]), strict=True):
        difference, exact = contrast.differences["average"], stats.ttest_rel(values, FLATNESS["at"])
        interval = exact.confidence_interval()
        assert difference.p == pytest.approx(exact.pvalue)
        assert (difference.mean.low, difference.mean.high) == pytest.approx((interval.low, interval.high))
    assert contrasts.others[0].differences["average"].values[7] == 0  # the same weights
    raw = sorted(c.differences["average"].p or 1 for c in contrasts.others)
    assert min(c.differences["average"].holm or 1 for c in contrasts.others) == pytest.approx(3 * raw[0])
    assert contrasts.columns == ("average", "robust_loss", "robust_error", "robust_gap")


def test_what_is_said_is_what_the_intervals_say(contrasts: Contrasts):
    first, second = contrast_sentences(contrasts)
    assert (
        first
        == "average of the last epoch, against at, by seed: flatter: awp; not told apart: early stopping of at, sam; "
        "after Holm's adjustment for all of them: none."
    )
    assert second == (
        "Of the 1 comparisons that are flatter by average, 1 have a lower robust loss on test images; of the 2 comparisons "
        "that are not flatter by average, 0 have a lower robust loss on test images (intervals below 0)."
    )
    titles = [section.title for section in contrast_sections(contrasts)]
    assert titles == ["Flatter than the baseline, at?", "Robustness beside it", "Early stopping of every cell"]
    assert [m.name for m in contrast_metrics(contrasts, 2)] == ["average: early stopping of at", "average: awp"]


def test_constant_predictors_and_missing_runs_are_in_no_pair(plan: FlatnessPlan, measured: Measured):
    rows = [f for f in measured.found if f.row.name != row_name("sam", 5, "last")]
    rows = [
        found(plan, "awp", 6, "last", 0.0, constant=True) if f.row.name == row_name("awp", 6, "last") else f
        for f in rows
    ]
    made = contrasts_of(plan, Measured(tuple(rows), measured.same, ("average",), (), {}), SEEDS)
    assert made is not None
    assert list(made.others[1].differences["average"].values) == [5, 7]
    assert list(made.others[2].differences["average"].values) == [6, 7]
    rows = [f for f in rows if f.row.cell != "sam"]
    fewer = contrasts_of(plan, Measured(tuple(rows), measured.same, ("average",), (), {}), SEEDS)
    assert fewer is not None
    assert "No pair for sam: not trained, or no better than constant predictors." in contrast_sentences(fewer)
    nothing = contrasts_of(plan, Measured((), {}, ("average",), (), {}), SEEDS)
    assert nothing is not None
    assert contrast_sentences(nothing) == ()
    assert nothing.others[0].differences == {}


def test_the_table_has_every_model_and_reads_as_the_command_reads_it(plan: FlatnessPlan, measured: Measured):
    broken = Found(Row("x", "awp", 9, "last", plan.config), None, None, None, {}, True, {"average": "why"}, "0" * 64, 0)
    everything = Measured((*measured.found, broken), measured.same, ("average",), (), {})
    columns = columns_of(plan, everything)
    assert len(columns["model"]) == 18
    table = table_of(sheet_of(columns, "t"), Choices())
    assert table.flatness == ("average",)
    assert table.targets == ("robust_loss", "robust_error", "robust_gap")
    assert table.given == ("log train_robust_loss", "confidence", "epoch")
    assert table.models.columns["robust_gap"][0] == pytest.approx(0.5)
    assert table.models.columns["robust_error"][0] == 25
    assert table.models.columns["average"][:2] == (1.2, 0.7)
    assert table.bounds["average"][1][0] == pytest.approx(1.3)
    assert set(table.models.families) == {"at", "awp", "sam"}
    assert table.models.constant == (False,) * 17 + (True,)
    assert math.isnan(table.models.columns["robust_loss"][-1])


@pytest.mark.parametrize(
    ("clean_error", "constant", "useless"),
    [(0.5, False, False), (0.904, False, True), (0.87, False, True), (0.86, False, False), (0.0, True, True)],
)
def test_a_model_that_is_no_better_than_the_most_frequent_class_is_of_no_use(
    clean_error: float, constant: bool, useless: bool
):
    standing = Standing(2.3, 0.9, 2.3, clean_error, 0.1, constant, 500)
    assert _useless(standing, 0.1) is useless
    if not constant:
        exact = stats.binomtest(round(500 * (1 - clean_error)), 500, 0.1, alternative="greater").pvalue
        assert bool(exact >= 0.01) is useless
