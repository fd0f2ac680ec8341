"""`shaketable demo` at a small setting, and the tour."""

import runpy
from pathlib import Path

import pytest

from shaketable.cli import main
from shaketable.report import read_json, same

SMALL = [
    "--epochs", "3", "--warmup", "1", "--train-count", "60", "--test-count", "40", "--flatness-count", "12",
    "--flatness-samples", "2", "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo")
    assert main(["demo", *SMALL, "--out", str(out), "--json"]) == 0
    return out


def test_it_ends_with_the_path_of_a_report_that_has_everything(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["demo", *SMALL, "--out", str(folder)]) == 0
    last = capsys.readouterr().out.split()
    assert last[-1] == str(folder / "report.html")
    assert Path(last[-1]).stat().st_size > 100_000
    report = read_json(folder / "report.json")
    assert [section.title for section in report.sections] == [
        "Accuracy", "Learning curves", "The gap that AWP closes", "Flatness",
    ]  # fmt: skip
    assert all(metric.interval is not None for metric in report.headline)
    assert set(report.hashes.models) == {"AT last", "AT best", "AT-AWP last", "AT-AWP best"}


def test_repeating_it_gives_the_same_report_without_training_again(folder: Path):
    before = read_json(folder / "report.json")
    stamp = (folder / "at" / "checkpoints").stat().st_mtime_ns
    assert main(["demo", *SMALL, "--out", str(folder), "--json"]) == 0
    assert same(before, read_json(folder / "report.json"))
    assert (folder / "at" / "checkpoints").stat().st_mtime_ns == stamp


def test_the_tour_runs(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "tour.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "robust accuracy" in printed
    assert "average-case robust flatness" in printed
