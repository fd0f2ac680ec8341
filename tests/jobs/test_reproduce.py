"""Published numbers beside ours: which run belongs to which recipe, and that no more is said than the intervals allow."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shaketable.core.errors import ConfigError
from shaketable.jobs.ground import config_of
from shaketable.jobs.measured import QUANTITIES
from shaketable.jobs.reproduce import NOT_MEASURED, NOT_RUN, run, show
from shaketable.jobs.reproduce_config import ReproduceConfig
from shaketable.jobs.reproduce_recipes import read
from shaketable.jobs.train_config import TrainConfig
from shaketable.report import Metric, Report, Section, mean_metric, rate_metric, write_json
from shaketable.stats import Mean, Rate

ABOUT = """
[recipe]
paper = "A paper"
table = "its table"
metric = "PGD-20"
published = { robust_best = 52.79, loss_last = 2.091, autoattack_best = 48.0 }
hours = 12
gpu = "arithmetic, not measured"
"""
AT = 'data = "data/cifar-10"\nrate = 0.1\n' + ABOUT
AWP = AT.replace("52.79", "55.39").replace("rate = 0.1", 'rate = 0.1\nweights = "awp(gamma=0.01)"')


@pytest.fixture
def place(tmp_path: Path) -> ReproduceConfig:
    folder = tmp_path / "recipes" / "paper"
    folder.mkdir(parents=True)
    (folder / "at.toml").write_text(AT)
    (folder / "at-awp.toml").write_text(AWP)
    return ReproduceConfig(
        name="paper", runs=tmp_path / "runs", studies=tmp_path / "studies", recipes=tmp_path / "recipes",
        out=tmp_path / "out",
    )  # fmt: skip


def leave(folder: Path, *metrics: Metric, verb: str = "train", **options: Any) -> None:
    """What a training with these options and numbers leaves."""
    config = config_of(TrainConfig.model_validate({"data": "data/cifar-10", **options}))
    section = Section(title="s", metrics=metrics)
    write_json(
        Report(verb=verb, title="t", summary=(), verdict="pass", config=config, sections=(section,)),
        folder / "report.json",
    )


def robust(hits: int, n: int = 10_000) -> Metric:
    return rate_metric(QUANTITIES["robust_best"], Rate(hits, n))


def rows(report: Report) -> list[dict[str, Any]]:
    table = report.sections[0].tables[0]
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_without_runs_everything_is_not_run_and_the_hours_are_added(place: ReproduceConfig):
    report = run(place)
    assert [row["Ours"] for row in rows(report)] == [NOT_RUN] * 6
    assert {row["Hours"] for row in rows(report)} == {12.0}
    assert "0 of 2 recipes have been run" in report.summary[0]
    assert "24 h" in report.summary[0]
    assert report.headline == ()


def test_a_run_is_found_at_any_depth_and_its_rate_stands_beside_the_published_number(place: ReproduceConfig):
    loss = mean_metric(QUANTITIES["loss_last"], Mean(2.0, 1.9, 2.05, 10_000, 3.0))
    leave(place.runs / "deep" / "down" / "x", robust(5300), loss)
    found = {(row["Recipe"], row["Quantity"]): row for row in rows(run(place))}
    row = found["at", QUANTITIES["robust_best"]]
    assert row["Published"] == 52.79
    assert (row["Ours"].hits, row["Ours"].n) == (5300, 10_000)
    assert row["Difference"] == pytest.approx(0.21)
    assert row["Published number in our interval"] == "yes"
    loss_row = found["at", QUANTITIES["loss_last"]]
    assert loss_row["Ours"].value == 2.0
    assert loss_row["Published number in our interval"] == "no"
    assert found["at", "AutoAttack accuracy, best epoch"]["Ours"] == NOT_MEASURED
    assert found["at-awp", QUANTITIES["robust_best"]]["Ours"] == NOT_RUN


@pytest.mark.parametrize(("hits", "inside"), [(5279, "yes"), (5180, "no"), (5182, "yes"), (5376, "yes"), (5380, "no")])
def test_inside_is_the_wilson_intervals_own_answer(hits: int, inside: str, place: ReproduceConfig):
    leave(place.runs / "x", robust(hits))
    low, high = Rate(hits, 10_000).interval
    assert ("yes" if low <= 0.5279 <= high else "no") == inside
    (row,) = [r for r in rows(run(place)) if r["Recipe"] == "at" and r["Quantity"] == QUANTITIES["robust_best"]]
    assert row["Published number in our interval"] == inside


@pytest.mark.parametrize(
    ("options", "belongs"),
    [
        ({"seed": 7}, True),
        ({"threads": 3, "device": "cuda:1"}, True),
        ({"out": "elsewhere", "resume": True, "save_every": 5}, True),
        ({"rate": 0.2}, False),
        ({"data": "data/cifar-100"}, False),
        ({"train_count": 1000}, False),
    ],
)
def test_a_run_belongs_to_a_recipe_if_all_but_seed_and_machine_are_equal(
    options: dict[str, Any], belongs: bool, place: ReproduceConfig
):
    leave(place.runs / "x", robust(5300), **options)
    report = run(place)
    assert (rows(report)[-3]["Recipe"], rows(report)[0]["Recipe"]) == ("at", "at-awp")
    assert (rows(report)[-3]["Ours"] != NOT_RUN) == belongs
    nearest = {row[0]: row[-1] for row in report.sections[1].tables[0].rows}["at"]
    assert (nearest == "") == belongs
    assert belongs or next(iter(options)) in nearest


def test_each_seed_of_a_recipe_has_its_row(place: ReproduceConfig):
    for seed in (0, 1):
        leave(place.runs / f"s{seed}", robust(5300 + seed), seed=seed)
    found = [
        r["Ours"].hits for r in rows(run(place)) if r["Recipe"] == "at" and r["Quantity"] == QUANTITIES["robust_best"]
    ]
    assert found == [5300, 5301]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": "9.9"}', '{"schema_version": 1}'])
def test_files_that_are_no_reports_are_passed_over(content: str, place: ReproduceConfig):
    for name in ("report.json", "study.json"):
        (place.runs / name[:3]).mkdir(parents=True)
        (place.runs / name[:3] / name).write_text(content)
    leave(place.runs / "other", robust(5300), verb="evaluate")
    assert "0 of 2" in run(place).summary[0]


def test_a_studys_cell_counts_over_its_seeds_and_its_runs_not_once_more(place: ReproduceConfig):
    config = config_of(TrainConfig(data="data/cifar-10"))
    for name in ("seed", "device", "threads"):
        del config[name]
    seeds = {str(k): {"values": {"robust_best": value, "gap": None}} for k, value in enumerate((0.52, 0.53, 0.54))}
    record = {
        "format": 1,
        "cells": {"at": {"config": config, "seeds": seeds}, "failed": {"config": config, "seeds": {}}},
    }
    folder = place.studies / "awp"
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(record))
    leave(folder / "at" / "seed-0", robust(5200))
    found = [row for row in rows(run(place)) if row["Recipe"] == "at"]
    assert len(found) == 3
    ours = found[0]["Ours"]
    assert (ours.kind, ours.n, ours.law) == ("mean", 3, "student")
    assert ours.value == pytest.approx(53.0)
    assert found[0]["Difference"] == pytest.approx(0.21)
    assert found[0]["Published number in our interval"] == "yes"
    assert found[0]["Run"].endswith("awp: at")


def test_it_never_says_that_a_number_was_reproduced(place: ReproduceConfig):
    leave(place.runs / "x", robust(5279))
    report = run(place)
    text = report.model_dump_json().lower()
    assert "1 of 1 published numbers lie in our 95 % intervals" in text
    assert "another seed" in text
    for word in ("agree", "confirm", "reproduced", "success", "matches"):
        assert word not in text


def test_the_terminal_shows_the_table(place: ReproduceConfig, capsys: pytest.CaptureFixture[str]):
    leave(place.runs / "x", robust(5300))
    show(run(place), Console(highlight=False, width=200), place.runs / "report.html")
    printed = capsys.readouterr().out
    assert "53.0 % [52.0, 54.0]" in printed
    assert NOT_RUN in printed
    assert "52.79" in printed
    assert "report.html" in printed


def test_recipes_for_which_nothing_is_published_show_our_own_numbers(place: ReproduceConfig):
    path = place.recipes / "paper" / "at.toml"
    path.write_text(AT.replace(AT[AT.index("published") : AT.index("hours")], ""))
    leave(place.runs / "x", robust(5300))
    found = {row["Quantity"]: row for row in rows(run(place)) if row["Recipe"] == "at"}
    assert found[QUANTITIES["robust_best"]]["Ours"].hits == 5300
    assert found[QUANTITIES["robust_best"]]["Published"] is None
    assert found[QUANTITIES["robust_best"]]["Difference"] is None


def test_another_name_is_refused_with_the_nearest(place: ReproduceConfig):
    with pytest.raises(ConfigError, match="Did you mean 'paper'"):
        run(place.model_copy(update={"name": "papr"}))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rate = ", "a recipe that can be read"),
        ('data = "x"\n', r"expected a table \[recipe\]"),
        (AT.replace("rate", "rat"), "Did you mean 'rate'"),
        (AT.replace("rate = 0.1", "rate = -1"), "rate: "),
        (AT.replace("hours = 12\n", ""), r"recipe\.hours: expected a value"),
        (AT.replace("hours", "hour"), "Did you mean 'hours'"),
        (AT.replace("hours = 12", "hours = 0"), r"recipe\.hours"),
        (AT.replace("robust_best", "robust_besst"), "Did you mean 'robust_best'"),
        (AT.replace("52.79", '"52.79"'), r"recipe\.published\.robust_best"),
    ],
)
def test_mistakes_of_a_recipe_are_named(text: str, says: str, tmp_path: Path):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        read(path)


def test_a_folder_without_recipes_is_refused(place: ReproduceConfig):
    (place.recipes / "empty").mkdir()
    with pytest.raises(ConfigError, match="a folder of recipes"):
        run(place.model_copy(update={"name": "empty"}))


def test_the_reports_folder_is_named_after_the_recipes():
    assert ReproduceConfig(name="awp").out == Path("runs/reproduce-awp")
