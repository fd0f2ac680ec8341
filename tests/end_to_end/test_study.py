"""`shaketable study` on real images: a small grid, run, interrupted, killed, gone on with, and read back."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shaketable import models
from shaketable.cli import main
from shaketable.jobs.study import record as study_record
from shaketable.report import Report, read_json

RECIPE = """\
title = "AWP at a very small size"
question = "Does the grid run?"
seeds = [0, 1]
[base]
train_count = 60
validation_count = 20
test_count = 40
eps = 0.02
epochs = 8
batch_size = 10
attack = "pgd(steps=1, step=1.0)"
evaluation = "pgd(steps=2, step=1.0)"
evaluate_every = 4
curve_count = 20
rate = 0.05
threads = 1
[cells.at]
[cells.at-awp]
weights = "awp(gamma=0.003)"
[cells.diverging]
rate = 1e30
epochs = 1
[[compare]]
name = "AWP on AT"
a = "at-awp"
b = "at"
"""
LONG = """\
title = "One long training"
seeds = [0]
[cells.at]
train_count = 60
validation_count = 20
test_count = 40
eps = 0.1
epochs = 40
batch_size = 20
attack = "pgd(steps=2, step=1.0)"
evaluation = "pgd(steps=1)"
evaluate_every = 20
curve_count = 20
save_every = 0.2
threads = 1
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "small.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def done(recipe: Path) -> Path:
    """The folder of a study that has been run by two workers."""
    out = recipe.parent / "two"
    assert main(["study", str(recipe), "--out", str(out), "--workers", "2", "--json"]) == 0
    return out


@pytest.fixture
def report(done: Path) -> Report:
    return read_json(done / "report.json")


def test_it_reports_means_paired_differences_curves_and_what_failed(done: Path, report: Report):
    assert report.title == "AWP at a very small size"
    assert report.verdict == "findings"
    assert report.summary[1].startswith("4 of 6 trainings have ended, 2 failed: 3 cells, seeds 0, 1")
    failed = {f.code: f.message for f in report.findings}["failed-run"]
    assert "diverging failed with seed 0, 1: loss: expected a finite number" in failed
    sections = {section.title: section for section in report.sections}
    gap = sections["Robust gap (loss, test minus training)"].tables[0].rows[0]
    assert gap[:2] == ("AWP on AT", "at-awp - at")
    assert (gap[2].n, gap[2].kind, gap[2].law) == (2, "mean", "student")  # type: ignore[union-attr]
    assert {chart.title for chart in sections["Learning curves"].charts} == {
        "Robust loss: AWP on AT", "Robust accuracy: AWP on AT",
    }  # fmt: skip
    assert (done / "report.html").stat().st_size > 1_000_000


def test_the_record_has_every_seed_and_agrees_with_the_runs_own_reports(done: Path):
    record = study_record.read(done / "study.json")
    assert record["recipe"]["seeds"] == [0, 1]
    assert record["environment"]["shaketable"]
    assert record["cells"]["diverging"]["failed"].keys() == {"0", "1"}
    for cell in ("at", "at-awp"):
        values = []
        for seed in (0, 1):
            own = read_json(done / cell / f"seed-{seed}" / "report.json")
            named = {m.name: m.value for section in own.sections for m in section.metrics}
            kept = record["cells"][cell]["seeds"][str(seed)]
            assert kept["values"]["gap"] == named["Robust gap, last epoch"]
            assert kept["values"]["robust_last"] == named["Robust accuracy, last epoch"]
            assert [epoch for epoch, _ in kept["curves"]["robust loss"]["test"]] == [4, 8]
            values.append(named["Robust gap, last epoch"])
        assert record["cells"][cell]["means"]["gap"]["value"] == pytest.approx(sum(values) / 2)
        assert record["cells"][cell]["config"]["epochs"] == 8
        assert "seed" not in record["cells"][cell]["config"]
    (comparison,) = record["comparisons"]
    pair = [record["cells"][c]["means"]["gap"]["value"] for c in (comparison["a"], comparison["b"])]
    assert comparison["differences"]["gap"]["value"] == pytest.approx(pair[0] - pair[1])
    assert set(record["volatile"]["run seconds"]) == {f"{c}/seed-{s}" for c in ("at", "at-awp") for s in (0, 1)}


def test_run_again_it_repeats_what_failed_and_nothing_else(done: Path, recipe: Path, report: Report):
    before = {path: path.stat().st_mtime_ns for path in done.glob("*/seed-*/*") if path.name != ".lock"}
    assert main(["study", str(recipe), "--out", str(done), "--only", "at", "at-awp", "diverging", "0", "--json"]) == 0
    changed = {str(path.relative_to(done).parent) for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert changed == {"diverging/seed-0"}
    again = read_json(done / "report.json")
    assert [s for s in again.sections if s.title != "What was run"] == [
        s for s in report.sections if s.title != "What was run"
    ]
    assert {f.code for f in again.findings} - {f.code for f in report.findings} == {"not-run"}


@pytest.mark.full
def test_one_worker_and_a_part_of_it_give_the_same_numbers(done: Path, recipe: Path, tmp_path: Path):
    out = tmp_path / "one"
    assert main(["study", str(recipe), "--out", str(out), "--only", "1", "at-awp", "at", "--json"]) == 0
    first, second = (study_record.read(folder / "study.json") for folder in (done, out))
    for cell in ("at", "at-awp"):
        assert second["cells"][cell]["seeds"] == {"1": first["cells"][cell]["seeds"]["1"]}
        assert second["cells"][cell]["not run"] == [0]
    (whole,), (part,) = (record["comparisons"] for record in (first, second))
    assert part["differences"]["gap"]["seeds"] == {"1": whole["differences"]["gap"]["seeds"]["1"]}
    report = read_json(out / "report.json")
    assert report.hashes.models.items() < read_json(done / "report.json").hashes.models.items()
    assert {f.code for f in report.findings} >= {"not-run"}


def test_a_cells_folder_is_a_run_that_goes_on_and_is_evaluated_by_hand(done: Path, tmp_path: Path):
    folder = done / "at-awp" / "seed-1"
    before = models.fingerprint(models.load(folder / "last.safetensors").model)
    assert main(["train", "--config", str(folder / "config.json"), "--out", str(tmp_path / "again"), "--json"]) == 0
    assert models.fingerprint(models.load(tmp_path / "again" / "last.safetensors").model) == before
    assert main(["evaluate", str(folder), "--count", "20", "--eps", "0.1", "--out", str(tmp_path / "e"), "--json"]) == 0


FINAL = """\
[final]
attack = "apgd(steps=3)"
count = 100
lints = false
"""


@pytest.mark.full
def test_a_table_final_that_is_added_evaluates_the_last_epochs_and_trains_nothing(
    done: Path, recipe: Path, tmp_path: Path
):
    out, path = tmp_path / "out", tmp_path / "final.toml"
    shutil.copytree(done, out)
    path.write_text(recipe.read_text() + FINAL)
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/seed-*/*") if file.name != ".lock"}
    arguments = ["study", str(path), "--out", str(out), "--workers", "2", "--only", "at", "at-awp", "0"]
    assert main([*arguments, "--json"]) == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before

    record, rates = study_record.read(out / "study.json"), dict[str, float]()
    for cell in ("at", "at-awp"):
        own = read_json(out / f"{cell}.final" / "seed-0" / "report.json")
        (robust,) = (m for m in own.headline if m.name == "Robust accuracy")
        assert (robust.n, own.config["eps"], own.config["seed"]) == (100, 0.02, 0)
        assert record["cells"][cell]["seeds"]["0"]["values"]["robust_final"] == robust.value
        assert record["cells"][cell]["seeds"]["0"]["counts"]["robust_final"] == 100
        assert "robust_final" not in record["cells"][cell]["seeds"]["1"]["values"]
        assert robust.value is not None
        rates[cell] = robust.value
    (comparison,) = record["comparisons"]
    assert comparison["differences"]["robust_final"]["value"] == pytest.approx(100 * (rates["at-awp"] - rates["at"]))
    assert record["cells"]["at.final"]["config"]["model"] == "{at}/last.safetensors"
    assert "final" not in study_record.read(done / "study.json")["recipe"]

    report = read_json(out / "report.json")
    sections = {section.title: section for section in report.sections}
    for title in ("Robust accuracy, last epoch, final attack", "What was run"):
        assert "apgd(steps=3) (lints False), on 100 test images" in sections[title].text
    tables = {table.title: table for table in sections["Cells"].tables}
    shares = tables["Accuracies in %, means over the seeds"]
    assert "Robust accuracy, last epoch, final attack" in shares.columns
    assert [row[0] for row in shares.rows] == ["at", "at-awp", "diverging"]
    assert set(report.hashes.models) == {f"{c}/seed-{s}" for c in ("at", "at-awp") for s in (0, 1)}


def test_another_recipe_in_the_same_folder_is_refused(
    done: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = tmp_path / "other.toml"
    other.write_text(RECIPE.replace("rate = 0.05", "rate = 0.06"))
    assert main(["study", str(other), "--out", str(done)]) == 2
    assert "rate: 0.05, now 0.06" in " ".join(capsys.readouterr().err.split())


def begin(recipe: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "shaketable", "study", str(recipe), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} within {seconds} s"
        time.sleep(0.05)


@pytest.fixture
def long(tmp_path: Path) -> Path:
    path = tmp_path / "long.toml"
    path.write_text(LONG)
    return path


@pytest.mark.full
def test_interrupted_it_stops_its_runs_which_save_and_go_on_to_the_same_weights(long: Path, tmp_path: Path):
    folder = tmp_path / "out" / "at" / "seed-0"
    process = begin(long, tmp_path / "out")
    try:
        wait_for(lambda: list(folder.glob("checkpoints/0*")), "a checkpoint")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"run the study again to go on" in said
    assert b"stopped: Stopped in epoch" in (folder / "log.txt").read_bytes()
    assert not (folder / "report.json").exists()
    assert main(["study", str(long), "--out", str(tmp_path / "out"), "--json"]) == 0
    alone = tmp_path / "alone"
    assert main(["train", "--config", str(folder / "config.json"), "--out", str(alone), "--no-resume", "--json"]) == 0
    hashes = [read_json(path / "report.json").hashes.models for path in (folder, alone)]
    assert hashes[0] == hashes[1]


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc to find the process that is left")
def test_killed_it_leaves_a_run_that_no_second_study_runs_over(long: Path, tmp_path: Path):
    long.write_text(LONG.replace("epochs = 40", "epochs = 100000"))
    out = tmp_path / "out"
    process = begin(long, out)
    wait_for(lambda: list(out.glob("at/seed-0/checkpoints/0*")), "a checkpoint")
    process.kill()
    process.communicate()
    left = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if _mentions(p, str(out / "at"))]
    try:
        assert len(left) == 1
        assert main(["study", str(long), "--out", str(out), "--json"]) == 0
        (finding,) = [f for f in read_json(out / "report.json").findings if f.code == "failed-run"]
        assert "Another process is running in its folder" in finding.message
    finally:
        for number in left:
            os.kill(number, signal.SIGKILL)


def _mentions(path: Path, text: str) -> bool:
    try:
        return text in path.read_text(errors="replace")
    except OSError:  # it has ended
        return False


def test_a_dry_run_says_how_long_each_cell_would_take(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["study", str(recipe), "--out", str(tmp_path / "none"), "--only", "at", "at-awp", "--dry-run"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["cells"]) == {"at", "at-awp"}
    assert found["seconds"] == pytest.approx(2 * sum(found["cells"].values()))
    assert main(arguments) == 0
    assert "would take about" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
