"""`shaketable study flatness`: over a table of figures, and over a small grid that is trained, measured and correlated."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from shaketable import cli
from shaketable.cli import main
from shaketable.jobs.study.config import StudyConfig
from shaketable.jobs.study.run import prepare_study
from shaketable.report import Report, read_json, same

TABLE = """\
model,RTE_AA,avgRLoss,worstRLoss,RLoss,trRLoss
AT 1,62.8,1.22,6.49,3.91,0.19
AT 2,61.0,1.30,6.10,3.70,0.22
AT-AWP 1,54.3,0.35,2.68,1.31,0.99
AT-AWP 2,55.0,0.54,4.46,1.57,0.66
TRADES 9,55.0,0.45,3.08,1.52,0.58
TRADES 6,56.7,0.57,2.26,1.74,0.44
Adam,57.5,0.56,0.90,1.46,1.19
Dropout,61.6,1.52,7.01,3.44,0.30
Collapsed,90.0,0,0,2.30,2.30
Unknown,60.1,,5.0,3.0,0.3
"""
RECIPE = """\
title = "Flatness at a very small size"
question = "Does the whole of it run?"
seeds = [0, 1]
[base]
train_count = 40
validation_count = 20
test_count = 40
eps = 0.02
epochs = 6
batch_size = 5
attack = "pgd(steps=1, step=1.0)"
evaluation = "pgd(steps=2, step=1.0)"
evaluate_every = 3
curve_count = 20
rate = 0.05
threads = 1
[cells.at]
[cells.smooth]
label_smoothing = 0.3
[flatness]
measures = ["average(samples=2, reference_restarts=1)", "worst(xi=0.003, restarts=1, reference_restarts=1)"]
count = 20
evaluate_count = 40
[models.again]
path = "{again}"
family = "at"
"""
QUICK = ["--workers", "0", "--resamples", "100", "--json"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "figures.csv"
    path.write_text(
        TABLE.replace("RLoss\n", "RLoss,constant\n", 1).replace("\n", ",0\n").replace("constant,0", "constant")
    )
    path.write_text(path.read_text().replace("2.30,2.30,0", "2.30,2.30,1"))
    return path


def test_a_table_is_correlated_and_who_cannot_be_ranked_is_named(table: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert main(["study", "flatness", "--table", str(table), "--resamples", "200", "--out", str(out), "--json"]) == 0
    report = read_json(out / "report.json")
    assert report.verb == "study flatness"
    findings = {f.code: f.message for f in report.findings}
    assert "Collapsed" in findings["refused-constant"]
    assert "Unknown" in findings["refused-model"]
    record = json.loads((out / "flatness.json").read_text())
    assert len(record["models"]["names"]) == 8
    columns = record["models"]["columns"]
    assert (record["flatness"], record["targets"]) == (
        ["avgRLoss", "worstRLoss"],
        ["RLoss", "RTE_AA", "RLoss - trRLoss"],
    )
    for one in record["plain"]:
        x, y = columns[one["predictor"]], columns[one["target"]]
        assert one["pearson"]["value"] == pytest.approx(stats.pearsonr(x, y)[0])
        assert one["kendall"]["value"] == pytest.approx(stats.kendalltau(x, y)[0])
    assert record["groups"]["bounds"] == [57.0, 60.0]
    assert len(record["groups"]["found"]["good"]["models"]) == 4
    assert (out / "report.html").stat().st_size > 1_000_000
    assert report.command.endswith(f"--table {table} --resamples 200")


def test_a_tables_options_and_mistakes(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chosen = ["--flatness", "worstRLoss", "--target", "RTE_AA", "--given", "--family", "model", "--groups", "56", "61"]
    begin = ["study", "flatness", "--table", str(table), "--resamples", "100", "--out", str(tmp_path / "o")]
    assert main([*begin, *chosen]) == 0
    text = capsys.readouterr().out
    assert "9 models of 9 families (column model), and 1 refused" in text
    assert "No confounder was given" in text
    for arguments, says in (
        (["--flatness", "worstRLos"], "Did you mean 'worstRLoss'"),
        (["--groups", "60", "57"], "two rising numbers"),
        (["--dry-run"], "a table, which is only read"),
        (["recipe.toml"], "recipe, table: expected a recipe or --table FILE.csv, found both"),
    ):
        assert main([*begin, *arguments]) == 2
        assert says in " ".join(capsys.readouterr().err.split())
    assert main(["study", "flatness", "--out", str(tmp_path / "o")]) == 2
    assert "found neither" in " ".join(capsys.readouterr().err.split())
    few = tmp_path / "few.csv"
    few.write_text("\n".join(TABLE.splitlines()[:4]))
    assert main(["study", "flatness", "--table", str(few), "--out", str(tmp_path / "o")]) == 2
    assert "expected at least 4 that can be used, found 3" in " ".join(capsys.readouterr().err.split())


def test_verbs_of_two_words_and_those_of_one_beside_them(capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    assert cli._verb(["study", "flatness", "r.toml"]) == ("study flatness", ["r.toml"])
    assert cli._verb(["study", "flat.toml"]) == ("study", ["flat.toml"])
    assert cli._verb(["study"]) == ("study", [])
    assert cli._job("study flatness") == "flatness_study.run"
    assert cli._job("transfer") == "transfer"
    assert cli._job("evaluate") == "evaluate"
    monkeypatch.setitem(cli.VERBS, "plant seed", ("plant_seed_config.PlantSeedConfig", "for this test"))
    assert cli._verb(["plant", "sed"]) == ("plant sed", [])
    assert main(["plant", "sed"]) == 2
    assert "Did you mean 'plant seed'" in " ".join(capsys.readouterr().err.split())
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    starts = {line.index(text) for line in lines for _, text in cli.VERBS.values() if line.endswith(f"  {text}")}
    assert len(starts) == 1


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flatness")
    path = folder / "small.toml"
    path.write_text(RECIPE.replace("{again}", str(folder / "out" / "at" / "seed-0")))
    return path


@pytest.fixture(scope="module")
def trained(recipe: Path) -> Path:
    """The folder of the study's trainings, run one by one as the study would run them."""
    out = recipe.parent / "out"
    text = recipe.read_text()
    study = prepare_study(StudyConfig(recipe=recipe, out=out))
    for run in study.runs.values():
        run.folder.mkdir(parents=True)
        (run.folder / "config.json").write_text(json.dumps(run.config.model_dump(mode="json")))
        assert main(["train", "--config", str(run.folder / "config.json"), "--json"]) == 0
    assert recipe.read_text() == text
    return out


@pytest.fixture(scope="module")
def measured(trained: Path, recipe: Path) -> Report:
    before = {path: path.stat().st_mtime_ns for path in trained.glob("*/seed-*/*")}
    assert (
        main(
            ["study", "flatness", str(recipe), "--out", str(trained), "--workers", "0", "--resamples", "100", "--json"]
        )
        == 0
    )
    assert {path: path.stat().st_mtime_ns for path in trained.glob("*/seed-*/*")} == before  # nothing was trained again
    return read_json(trained / "_flatness" / "report.json")


def test_a_recipes_models_are_measured_compared_and_correlated(measured: Report, trained: Path):
    record = json.loads((trained / "_flatness" / "flatness.json").read_text())
    names = record["models"]["names"]
    assert {"at/seed-0/last", "smooth/seed-1/last", "again"} <= set(names)
    assert set(record["models"]["families"]) == {"at", "smooth"}
    assert record["flatness"] == [
        "average(reference_restarts=1, samples=2)", "worst(reference_restarts=1, restarts=1, xi=0.003)",
    ]  # fmt: skip
    columns = record["models"]["columns"]
    first = record["flatness"][0]
    first_run, again = names.index("at/seed-0/last"), names.index("again")
    loaded = read_json(trained / "at" / "seed-0" / "report.json")
    values = {m.name: m.value for section in loaded.sections for m in section.metrics}
    trained_on = values["Robust loss, training images, last epoch"]  # from other starts: the batches are others
    assert math.exp(columns["log train_robust_loss"][first_run]) == pytest.approx(trained_on, rel=0.02)
    best = "at/seed-0/best" if "at/seed-0/best" in names else "at/seed-0/last"
    assert columns[first][again] == columns[first][names.index(best)]  # a run's folder is its best epoch
    named = {c["name"]: c for c in record["contrasts"]["others"]}
    place = [names.index(f"{cell}/seed-1/last") for cell in ("smooth", "at")]
    difference = columns[first][place[0]] - columns[first][place[1]]
    assert named["smooth"]["differences"][first]["values"]["1"] == pytest.approx(difference)
    assert "early stopping of at" in named
    titles = [section.title for section in measured.sections]
    assert titles[:3] == ["In words", "Flatter than the baseline, at?", "Robustness beside it"]
    assert "What goes with robust_loss" in titles
    assert measured.hashes.models["at/seed-0/last"]


def test_run_again_it_measures_nothing_and_says_the_same_and_so_does_its_table(
    measured: Report, trained: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from shaketable.jobs.flatness import cells as flatness_cells
    from shaketable.jobs.flatness_study import standing as flatness_standing

    def fail(*_: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(flatness_cells, "measure", fail)
    monkeypatch.setattr(flatness_standing, "measure", fail)
    arguments = [
        "study",
        "flatness",
        str(recipe),
        "--out",
        str(trained),
        "--workers",
        "0",
        "--resamples",
        "100",
        "--json",
    ]
    assert main(arguments) == 0
    assert same(read_json(trained / "_flatness" / "report.json"), measured)
    table = trained / "_flatness" / "table.csv"
    assert (
        main(["study", "flatness", "--table", str(table), "--resamples", "100", "--out", str(tmp_path), "--json"]) == 0
    )
    records = [json.loads((folder / "flatness.json").read_text()) for folder in (trained / "_flatness", tmp_path)]
    for key in ("models", "plain", "partial", "reverse", "shares", "leads", "groups", "refused"):
        assert records[0][key] == records[1][key]


def test_a_plain_study_of_the_same_folder_leaves_it_alone(measured: Report, trained: Path, recipe: Path):
    assert main(["study", str(recipe), "--out", str(trained), "--json"]) == 0
    assert same(read_json(trained / "_flatness" / "report.json"), measured)
    assert read_json(trained / "report.json").verb == "study"


def test_a_dry_run_counts_trainings_and_passes(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["study", "flatness", str(recipe), "--out", str(tmp_path / "none"), "--only", "at", "0", "--dry-run"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models"] == 3  # last, best, and the one that exists already
    standing = 2 * 40 * (2 * 2 + 3)  # PGD-2 and a look at test and training images
    average, worst = 20 * (3 * 6 + 3 * 4), 20 * 4 * (4 + 6)  # a good estimate, not a count
    assert found["passes"] > 3 * (standing + average)
    assert found["passes"] < 3 * (standing + average + 5 * worst)
    assert found["seconds"] > found["trainings"] > 0
    assert not (tmp_path / "none").exists()


def test_a_table_that_names_no_known_measure_is_refused_before_anything_is_trained(recipe: Path, tmp_path: Path):
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text().replace('"average(', '"averag('))
    assert main(["study", "flatness", str(other), "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()
