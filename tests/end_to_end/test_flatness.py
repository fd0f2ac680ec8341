"""`shaketable flatness` on real images: what it reports is what the library measures, however it was come by."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from shaketable import core as st
from shaketable import data, models
from shaketable.cli import main
from shaketable.flatness.measures import Average, Worst
from shaketable.jobs.train import prepare_training
from shaketable.jobs.train_config import TrainConfig
from shaketable.report import Report, read_json, same

QUICK = ["--eps", "0.1", "--attack", "pgd(steps=2)", "--count", "40", "--threads", "1"]


def flatness(*arguments: str, out: Path, workers: int = 0, code: int = 0) -> Report:
    """The report of a run with these arguments."""
    assert main(["flatness", *arguments, *QUICK, "--workers", str(workers), "--out", str(out), "--json"]) == code
    return read_json(out / "report.json")


def rows(report: Report, title: str) -> list[tuple[Any, ...]]:
    """The rows of one of the report's tables."""
    return [tuple(row) for s in report.sections for t in s.tables if t.title == title for row in t.rows]


def codes(report: Report) -> list[str]:
    return [finding.code for finding in report.findings]


def test_the_report_equals_the_library(run_folder: Path, tmp_path: Path) -> None:
    measures = (Average(samples=2, preset="equal"), Worst(restarts=1, preset="equal"))
    texts = ["average(samples=2)", "worst(restarts=1)"]
    report = flatness(str(run_folder), "--measures", *texts, "--preset", "equal", out=tmp_path)
    model, images = models.load(run_folder).model, data.open_dataset("fashion-mnist", split="test")
    batch, ball = images.batch(range(40)), st.Ball("linf", 0.1, box=(0.0, 1.0))
    for row, measure in zip(rows(report, "How much the loss rises"), measures, strict=True):
        found = measure(model, batch.x, batch.y, seed=0, within=ball, by=st.PGD(2))
        assert row[0] == "test"
        assert row[2] == found.facts["xi"]
        assert (row[3], row[4].value, row[4].interval) == (
            found.reference,
            found.value.value,
            (found.value.low, found.value.high),
        )
        assert row[6:] == (found.calls.forward, found.calls.backward)
    assert [m.value for m in report.headline] == [row[4].value for row in rows(report, "How much the loss rises")]
    right = [row[3] for row in rows(report, "Split by correctness")]
    assert right == [int((models.load(run_folder).model(batch.x).argmax(1) == batch.y).sum())] * 2


@pytest.mark.full
def test_workers_and_what_is_there_already_make_no_difference(run_folder: Path, tmp_path: Path) -> None:
    arguments = [
        str(run_folder),
        "--measures",
        "average(samples=2, xi=(0.3, 0.6))",
        "sam(steps=2)",
        "--split",
        "both",
        "--preset",
        "equal",
    ]
    report = flatness(*arguments, out=tmp_path / "a")
    cells = sorted((tmp_path / "a" / "cells").glob("*.json"))
    assert len(cells) == 6
    kept = {path.name: path.read_bytes() for path in cells}
    for path in cells[::2]:
        path.unlink()
    assert same(flatness(*arguments, out=tmp_path / "a", workers=2), report)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a" / "cells").glob("*.json")} == kept
    damaged = cells[1]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    again = flatness(*arguments, out=tmp_path / "a")
    assert codes(again) == ["damaged-cell"]
    assert again.sections == report.sections
    assert damaged.read_bytes() == kept[damaged.name]
    shutil.rmtree(tmp_path / "a" / "cells")
    assert same(flatness(*arguments, out=tmp_path / "a"), report)


def test_training_images_are_the_runs_own(run_folder: Path, tmp_path: Path) -> None:
    report = flatness(
        str(run_folder), "--measures", "average(samples=1, loss='clean')", "--split", "train", out=tmp_path
    )
    config = TrainConfig(**json.loads((run_folder / "config.json").read_text()))
    own = prepare_training(config).splits.train.take(range(40))
    assert report.hashes.data == {"train": own.fingerprint}
    assert "training-images-unknown" not in codes(report)
    assert "the run's own train images" in report.sections[-1].text
    copy = shutil.copy(run_folder / "best.safetensors", tmp_path / "alone.safetensors")
    alone = flatness(
        str(copy), "--measures", "average(samples=1, loss='clean')", "--split", "train", out=tmp_path / "b"
    )
    assert "training-images-unknown" in codes(alone)
    assert alone.hashes.data != report.hashes.data


@pytest.fixture(scope="module")
def kept_run(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept two epochs, the last of which is the last."""
    folder = tmp_path_factory.mktemp("kept") / "run"
    shutil.copytree(run_folder, folder)
    loaded = models.load(folder / "last.safetensors")
    assert loaded.spec is not None
    models.save(folder / "epochs" / "000012.safetensors", loaded.model, loaded.spec, facts={"epoch": 12})
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(0.9)
    models.save(folder / "epochs" / "000001.safetensors", loaded.model, loaded.spec, facts={"epoch": 1})
    return folder


def test_along_a_run(kept_run: Path, tmp_path: Path) -> None:
    report = flatness(
        str(kept_run), "--checkpoints", "--measures", "average(samples=2)", "--preset", "equal", out=tmp_path
    )
    names = [row[0] for row in rows(report, "How much the loss rises")]
    assert names[0] == "epoch 1"
    assert names[-1].startswith("epoch 12, ")  # the same weights are measured once
    assert names[-1].endswith("last")
    assert len(names) == len(set(names)) == len(list((tmp_path / "cells").glob("*.json")))
    (chart,) = [chart for section in report.sections for chart in section.charts]
    assert chart.title == "Average case, radius 0.5 along the run"
    assert chart.series[0].x[0] == 1
    assert chart.series[0].x[-1] == 12
    assert report.summary[0].startswith("Average case, radius 0.5, test images: ")
    assert report.title == f"Flatness of {len(names)} checkpoints of run on fashion-mnist"


CONSTANT = """
import torch
def constant():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.arange(10.0))
    return model.eval()
"""


def test_a_constant_predictor_is_reported_and_gets_no_rank(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(CONSTANT)
    measures = ["--measures", "average(samples=2)", "worst(restarts=1, reference_restarts=1)", "--preset", "equal"]
    last = str(run_folder / "last.safetensors")
    report = flatness(f"{tmp_path}/mine.py:constant", str(run_folder), last, *measures, out=tmp_path / "out")
    assert codes(report).count("constant-predictor") == 1
    assert report.verdict == "findings"
    assert len(rows(report, "How much the loss rises")) == 6
    assert not any("constant" in sentence for sentence in report.summary)
    differences = rows(report, "Differences")
    assert len(differences) == 2  # of the two others
    assert all(row[0].startswith("last.safetensors minus ") for row in differences)
    alone = flatness(f"{tmp_path}/mine.py:constant", *measures, out=tmp_path / "alone")
    assert "constant-predictor" in codes(alone)


def test_to_a_standard_error(run_folder: Path, tmp_path: Path) -> None:
    report = flatness(
        str(run_folder), "--standard-error", "0.05", "--measures", "average", "--preset", "equal", out=tmp_path
    )
    (row,) = rows(report, "Passes for a standard error")
    assert row[2] == 0.05
    assert row[4] is True
    assert row[3] == pytest.approx(0.05, rel=0.5) or row[3] < 0.05
    assert row[7] > 0
    assert " to " in row[8]
    assert rows(report, "Split by correctness") == []
    assert "Equal budget" in report.sections[-1].text


MINE = """
from shaketable.flatness.measures import Average
from shaketable.core import InputError
def mine(model, x, y, *, seed, within, by, batch_size=None, progress=None):
    return Average(samples=1, loss="clean")(model, x, y, seed=seed)
def make():
    return mine
def broken():
    def measure(model, x, y, **_options):
        raise InputError("model", "another one", "this one", "Train another.")
    return measure
"""


def test_a_measure_of_the_users_own_and_one_that_fails(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    own, broken = f"{tmp_path}/mine.py:make", f"{tmp_path}/mine.py:broken"
    report = flatness(str(run_folder), "--measures", own, broken, out=tmp_path / "out")
    assert len(rows(report, "How much the loss rises")) == 1
    (finding,) = [f for f in report.findings if f.code == "not-measured"]
    assert "model: expected another one, found this one" in finding.message


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--measures", "avrage"], "Did you mean 'average'?"),
        (["--measures", "average(sample=3)"], "Did you mean 'samples'?"),
        (["--measures", "average(preset='mine')"], "'mine'"),
        (["--attack", "fgsm"], "Choose from pgd"),
        (["--checkpoints"], "which is none"),
        (["--measures", "average(samples=0)"], "found an error: samples, xi"),
        (["--standard-error", "0.1", "--measures", "average(samples=3)"], "--standard-error decides on the draws"),
        (["--data", "fashion-mnst"], "Did you mean 'fashion-mnist'?"),
    ],
)
def test_mistakes(
    arguments: list[str], says: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(run_folder / "best.safetensors")
    assert main(["flatness", model, *QUICK, "--workers", "0", *arguments, "--out", str(tmp_path / "out")]) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert says in text
    assert not (tmp_path / "out" / "report.json").exists()


def test_a_dry_run_measures_nothing(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "flatness",
        str(run_folder),
        *QUICK,
        "--measures",
        "average(samples=2)",
        "sam",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*arguments, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 2
    assert found["seconds"] > 0
    assert not (tmp_path / "out").exists()
