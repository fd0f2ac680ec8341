"""`shaketable train` on real images: it learns, resumes, repeats itself, and refuses what it must."""

import json
from pathlib import Path

import pytest
import torch

from shaketable import models
from shaketable.cli import main
from shaketable.report import read_json, same


def test_it_trains_a_model_that_holds_better_than_chance_and_says_so_with_intervals(run_folder: Path):
    report = read_json(run_folder / "report.json")
    rates = {metric.name: metric for metric in report.headline}
    robust = rates["Robust accuracy, last epoch"]
    assert robust.kind == "rate"
    assert robust.n == 100
    assert robust.interval is not None
    assert robust.interval[0] > 0.1  # chance, even at the interval's lower end
    last = next(chart for section in report.sections for chart in section.charts if chart.title == "Robust loss")
    assert {series.name for series in last.series} == {"train", "validation", "test"}
    assert all(series.y[0] > series.y[-1] for series in last.series)


def test_what_it_reports_is_what_its_checkpoint_gives_when_evaluated_again(run_folder: Path, tmp_path: Path):
    # The test split of the run is a stratified draw of the embedded test images; evaluate all of them through the verb.
    assert main(["evaluate", str(run_folder / "last.safetensors"), "--eps", "0.1", "--out", str(tmp_path)]) == 0
    whole = {m.name: m for m in read_json(tmp_path / "report.json").headline}["Robust accuracy"]
    part = {m.name: m for m in read_json(run_folder / "report.json").headline}["Robust accuracy, last epoch"]
    assert whole.n == 2000
    assert part.interval is not None
    assert whole.value is not None
    assert part.interval[0] - 0.1 < whole.value < part.interval[1] + 0.1


def test_the_same_config_and_seed_give_the_same_report_and_the_same_bits(
    run_folder: Path, quick: list[str], tmp_path: Path
):
    again = tmp_path / "again"
    assert main(["train", *quick, "--weights", "awp(gamma=0.005, warmup=4)", "--out", str(again), "--json"]) == 0
    first, second = read_json(run_folder / "report.json"), read_json(again / "report.json")
    assert first.hashes == second.hashes
    assert same(first.model_copy(update={"command": ""}), second.model_copy(update={"command": ""}))


@pytest.mark.full
def test_another_seed_gives_other_weights(run_folder: Path, quick: list[str], tmp_path: Path):
    out = tmp_path / "other"
    weights = ["--weights", "awp(gamma=0.005, warmup=4)"]
    assert main(["train", *quick, *weights, "--seed", "1", "--out", str(out), "--json"]) == 0
    assert read_json(out / "report.json").hashes.models != read_json(run_folder / "report.json").hashes.models


def test_a_finished_run_is_not_overwritten_but_resumed_at_once(
    run_folder: Path, quick: list[str], capsys: pytest.CaptureFixture[str]
):
    weights = ["--weights", "awp(gamma=0.005, warmup=4)"]
    before = (run_folder / "last.safetensors").read_bytes()
    assert main(["train", *quick, *weights, "--out", str(run_folder)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["train", *quick, *weights, "--out", str(run_folder), "--resume", "--json"]) == 0
    assert (run_folder / "last.safetensors").read_bytes() == before


def test_resuming_with_other_settings_is_refused_and_names_them(
    run_folder: Path, quick: list[str], capsys: pytest.CaptureFixture[str]
):
    weights = ["--weights", "awp(gamma=0.01, warmup=4)"]
    assert main(["train", *quick, *weights, "--out", str(run_folder), "--resume"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "config.weights: 'awp(gamma=0.005, warmup=4)', now 'awp(gamma=0.01, warmup=4)'" in error


def test_another_number_of_threads_goes_on_and_is_a_warning(quick: list[str], tmp_path: Path):
    arguments = ["train", *quick, "--epochs", "1", "--out", str(tmp_path / "run"), "--json"]
    assert main(arguments) == 0
    assert main([*arguments, "--resume", "--threads", "2"]) == 0
    found = {finding.code: finding.message for finding in read_json(tmp_path / "run" / "report.json").findings}
    assert "threads: 1, now 2" in found["resumed-elsewhere"]


@pytest.mark.parametrize(
    ("flag", "code", "says"),
    [
        ("--loss", "def mine():\n    return object()\n", "object without start, attack_mode, inner, outer, weights"),
        ("--evaluation", "def mine():\n    return object()\n", "expected pgd(...), found object"),
    ],
)
def test_own_code_that_does_not_fit_is_refused_before_training(
    flag: str, code: str, says: str, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "mine.py").write_text(code)
    assert main(["train", *quick, flag, f"{tmp_path}/mine.py:mine", "--out", str(tmp_path / "run")]) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_the_config_file_it_leaves_makes_the_run_again(run_folder: Path, tmp_path: Path):
    again = tmp_path / "again"
    assert main(["train", "--config", str(run_folder / "config.json"), "--out", str(again), "--json"]) == 0
    assert models.fingerprint(models.load(again / "last.safetensors").model) == models.fingerprint(
        models.load(run_folder / "last.safetensors").model
    )


def test_a_dry_run_writes_nothing_and_prints_hours_and_memory(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", *quick, "--out", str(tmp_path / "none"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "hours" in printed
    assert "GiB" in printed
    assert not (tmp_path / "none").exists()
    assert main(["train", *quick, "--out", str(tmp_path / "none"), "--dry-run", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["steps"] == 12 * 6
    assert estimate["seconds"] > 0
    assert estimate["memory"] > 10 * 2**20


OWN = """
import torch.nn.functional as F
from shaketable import margin, scalar, at

class Mine:
    start, attack_mode = "sample", "train"
    def __init__(self, scale=1.0):
        self.scale = scale
    def inner(self, model, x, y):
        return margin(model, y)
    def outer(self, model, x, adversarial, y):
        return self.scale * F.cross_entropy(model(adversarial), y)
    def weights(self, model, x, adversarial, y):
        return scalar(lambda w: self.outer(at(model, w), x, adversarial, y))
"""


def test_a_users_own_loss_trains_from_a_file(quick: list[str], tmp_path: Path):
    (tmp_path / "mine.py").write_text(OWN)
    loss = f"{tmp_path}/mine.py:Mine(scale=0.5)"
    arguments = ["--loss", loss, "--weights", "awp", "--epochs", "2", "--out", str(tmp_path / "run"), "--json"]
    assert main(["train", *quick, *arguments]) == 0
    assert read_json(tmp_path / "run" / "report.json").config["loss"] == loss


def test_a_training_that_diverges_is_an_error_that_says_what_to_do(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["train", *quick, "--rate", "1e30", "--out", str(tmp_path / "run")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "loss: expected a finite number" in error
    assert "learning rate" in error


def test_a_model_that_learned_nothing_is_a_finding_and_with_strict_exit_code_1(quick: list[str], tmp_path: Path):
    arguments = ["train", *quick, "--epochs", "1", "--rate", "1e-6", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    assert [finding.code for finding in read_json(tmp_path / "a" / "report.json").findings] == ["constant-predictor"]
    assert main([*arguments, "--strict", "--out", str(tmp_path / "b")]) == 1


def test_the_global_random_state_is_left_alone(quick: list[str], tmp_path: Path):
    before = torch.random.get_rng_state()
    assert main(["train", *quick, "--epochs", "1", "--out", str(tmp_path / "run"), "--json"]) == 0
    assert torch.equal(before, torch.random.get_rng_state())
