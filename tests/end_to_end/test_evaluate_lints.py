"""`shaketable evaluate` with several radii, regions, lints, the self-test, AutoAttack and RobustBench's file."""

import json
from pathlib import Path

import pytest

from shaketable.cli import main
from shaketable.report import read_json

QUICK = ["--train-count", "150", "--validation-count", "20", "--test-count", "20", "--epochs", "6", "--batch-size", "20",
         "--attack", "pgd(steps=2, step=0.5)", "--eps", "0.03", "--evaluation", "pgd(steps=1)", "--evaluate-every", "6",
         "--threads", "1"]  # fmt: skip

BROKEN = """
from shaketable.models import load
from shaketable.testing import DEFENCES

def masked():
    return DEFENCES["masked gradients"](load({path!r}).model)
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "at"
    assert main(["train", *QUICK, "--out", str(folder), "--json"]) == 0
    return str(folder)


def evaluated(model: str, out: Path, *more: str, code: int = 0):
    assert main(["evaluate", model, "--count", "100", "--out", str(out), "--json", *more]) == code
    return read_json(out / "report.json")


def test_several_radii_make_a_curve_that_never_rises(run_folder: str, tmp_path: Path) -> None:
    report = evaluated(run_folder, tmp_path, "--eps", "0,2/255,0.1", "--attack", "pgd(steps=5)", "--no-lints")
    accuracy = report.sections[0]
    (chart,) = accuracy.charts
    (series,) = chart.series
    assert series.x == (0.0, 2 / 255, 0.1)
    assert series.y[0] == report.headline[0].value
    assert series.y[0] >= series.y[1] >= series.y[2]
    assert accuracy.tables[0].columns[2:] == ("Robust at 0", "Robust at 0.007843", "Robust at 0.1")
    assert "--eps 0.0,0.00784" in report.command
    assert report.config["eps"].startswith("0,0.00784")


def test_the_lints_are_in_the_report_and_an_honest_model_passes(run_folder: str, tmp_path: Path) -> None:
    report = evaluated(run_folder, tmp_path, "--eps", "0.03", "--selftest", "--strict")
    assert report.verdict == "pass"
    section = next(s for s in report.sections if s.title == "Can the evaluation be believed?")
    rows = {row[0]: row[1] for row in section.tables[0].rows}
    assert set(rows.values()) == {"ok"}
    assert {"random", "noise", "search", "monotone", "selftest"} <= set(rows)


def test_what_has_no_meaning_at_radius_0_is_said_to_be_left_out(run_folder: str, tmp_path: Path) -> None:
    report = evaluated(run_folder, tmp_path, "--eps", "0", "--selftest")
    assert "The self-test was not run: in a ball of radius 0 nothing can be planted." in report.summary
    whole = evaluated(run_folder, tmp_path, "--eps", "8", "--no-lints", "--attack", "pgd(steps=1)")
    assert [f.code for f in whole.findings if f.level == "info"] == ["whole-box"]


def test_a_broken_defence_is_found_and_strict_exits_1(run_folder: str, tmp_path: Path) -> None:
    code = tmp_path / "broken.py"
    code.write_text(BROKEN.format(path=run_folder))
    report = evaluated(f"{code}:masked", tmp_path / "out", "--eps", "0.1", "--selftest", "--strict", "--trust", code=1)
    assert {"search", "selftest"} & {f.code for f in report.findings}
    assert any("Do not believe it yet" in line for line in report.summary)


@pytest.mark.parametrize("region", ["centre:0.3", "gradient:0.2"])
def test_in_a_region_it_falls_less(run_folder: str, tmp_path: Path, region: str) -> None:
    whole = evaluated(run_folder, tmp_path / "whole", "--eps", "0.06", "--no-lints")
    part = evaluated(run_folder, tmp_path / "part", "--eps", "0.06", "--no-lints", "--region", region)
    assert whole.headline[1].value < part.headline[1].value <= part.headline[0].value
    assert any(region in line for line in part.summary)


@pytest.mark.full
def test_autoattack_writes_robustbenchs_file(run_folder: str, tmp_path: Path) -> None:
    report = evaluated(run_folder, tmp_path, "--count", "5", "--eps", "8/255", "--attack", "autoattack", "--no-lints")
    entry = json.loads((tmp_path / "robustbench.json").read_text())
    assert entry["eps"] == "8/255"
    assert float(entry["clean_acc"]) == pytest.approx(100 * report.headline[0].value, abs=0.01)
    assert float(entry["autoattack_acc"]) == pytest.approx(100 * report.headline[1].value, abs=0.01)
    assert entry["architecture"] == "small_cnn"
    rows = report.sections[0].tables[0].rows
    assert [row[0] for row in rows] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert rows[0][1] == report.headline[0].hits
    assert sum(row[2] for row in rows) == report.headline[0].hits - report.headline[1].hits


@pytest.mark.parametrize("eps", ["", "-1", "0,x", "1/0"])
def test_bad_radii_are_named(run_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], eps: str) -> None:
    try:
        code = main(["evaluate", run_folder, f"--eps={eps}", "--out", str(tmp_path / "none")])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert "eps" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
