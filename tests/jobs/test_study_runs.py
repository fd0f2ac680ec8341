"""The processes of a study: what their ends mean, that none runs where another does, and what follows from a failure."""

import json
import time
from pathlib import Path

import pytest

from shaketable.core import ConfigError
from shaketable.files import sha256_of
from shaketable.jobs.ground import config_of
from shaketable.jobs.study.plan import Run, runs_of
from shaketable.jobs.study.pool import LOG, Ended, Pool, _error, _locked
from shaketable.jobs.study.recipe import Recipe
from shaketable.jobs.study.runs import Outcome, _due, execute, outcome_of
from shaketable.jobs.study.verbs import require_same
from shaketable.jobs.train_config import TrainConfig
from shaketable.report import Hashes, Report, write_json

pytest.importorskip("fcntl")


@pytest.mark.parametrize(
    ("code", "log", "says"),
    [
        (0, "error: not read", None),
        (
            2,
            "train: began\nerror: loss: expected a finite number, found nan.\n",
            "loss: expected a finite number, found nan.",
        ),
        (2, "error: the first\nerror: the last\n", "the last"),
        (130, "stopped: Stopped in epoch 3.\n", "stopped: Stopped in epoch 3."),
        (2, "Traceback\n  deep inside\nMemoryError\n\n", "MemoryError"),
        (3, "", "It ended with exit code 3."),
        (2, "\udcff\n", "\ufffd"),
        (-9, "", "It was ended by SIGKILL. Was there too little memory?"),
        (-11, "", "It was ended by SIGSEGV."),
        (-250, "", "It was ended by 250."),
    ],
)
def test_what_the_end_of_a_process_means(code: int, log: str, says: str | None, tmp_path: Path):
    (tmp_path / LOG).write_bytes(log.encode("utf-8", "surrogateescape"))
    assert _error(code, tmp_path) == says


def test_a_folder_has_one_process_at_a_time(tmp_path: Path):
    with _locked(tmp_path) as first:
        assert first is not None
        with _locked(tmp_path) as second:
            assert second is None
    with _locked(tmp_path) as third:
        assert third is not None


def test_a_run_whose_folder_is_taken_has_failed_and_starts_nothing(tmp_path: Path):
    pool = Pool(2)
    with _locked(tmp_path / "a"):
        pool.start("a", "train", tmp_path / "a", None)
    assert not pool.active
    assert list(pool.ended()) == [Ended("a", "Another process is running in its folder: wait for it, or stop it.")]
    assert list(pool.ended()) == []


def test_a_process_that_lives_holds_its_folder_and_is_ended_with_the_pool(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"epochs": 100_000, "out": str(tmp_path), "threads": 1}))
    pool = Pool(1)
    pool.start("a", "train", tmp_path, 1)
    try:
        assert list(pool.active) == ["a"]
        with _locked(tmp_path) as other:
            assert other is None
    finally:
        pool.kill()
    (end,) = pool.ended()
    assert end.error == "It was ended by SIGKILL. Was there too little memory?"
    with _locked(tmp_path) as free:
        assert free is not None


@pytest.mark.full
def test_a_process_is_asked_once_to_stop(tmp_path: Path):
    config = {"epochs": 100_000, "out": str(tmp_path), "threads": 1, "test_count": 5, "save_every": 0.0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    pool = Pool(1)
    pool.start("a", "train", tmp_path, 1)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("checkpoints/0*")) and time.monotonic() < deadline:
            time.sleep(0.05)  # a process that has not begun to train ends at once
        pool.ask_to_stop()
        pool.ask_to_stop()  # a second request would end it at once, without saving
        while not (ends := list(pool.ended())) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        pool.kill()
    assert ends[0].error is not None
    assert ends[0].error.startswith("stopped: Stopped in epoch ")
    assert list(tmp_path.glob("checkpoints/0*"))


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Run]:
    content = {
        "title": "t", "seeds": [0],
        "base": {"data": str(tmp_path / "nowhere.npz")},
        "cells": {"first": {}, "second": {"unlabelled": "{first}/x.npz"}, "third": {"unlabelled": "{second}/x.npz"}},
    }  # fmt: skip
    return runs_of(Recipe.model_validate(content, strict=False), tmp_path / "out")


def test_what_needs_a_run_that_failed_is_not_begun_and_says_why(runs: dict[str, Run]):
    outcomes = execute(runs, list(runs), workers=2)
    assert "nowhere.npz" in (outcomes["first/seed-0"].error or "")
    assert outcomes["second/seed-0"].error == "It needs first/seed-0, which failed."
    assert outcomes["third/seed-0"].error == "It needs second/seed-0, which failed."
    assert not runs["second/seed-0"].folder.exists()


def test_nothing_wanted_runs_nothing(runs: dict[str, Run]):
    outcomes = execute(runs, [], workers=1)
    assert [(o.report, o.error) for o in outcomes.values()] == [(None, None)] * 3
    assert not runs["first/seed-0"].folder.exists()


def test_a_final_is_of_the_model_that_is_there_and_made_again_with_it(tmp_path: Path):
    content = {"title": "t", "seeds": [0], "cells": {"at": {}}, "final": {}}
    runs = runs_of(Recipe.model_validate(content, strict=False), tmp_path)
    run, file = runs["at.final/seed-0"], runs["at/seed-0"].folder / "last.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    report = Report(
        verb="evaluate", title="t", summary=(), verdict="pass", hashes=Hashes(models={"last": sha256_of(file)})
    )  # fmt: skip
    write_json(report, run.folder / "report.json")
    assert outcome_of(run).report is not None
    trained = Report(verb="train", title="t", summary=(), verdict="pass")
    assert not _due(run, {run.name: Outcome(run, report), "at/seed-0": Outcome(runs["at/seed-0"], trained)})
    assert _due(run, {run.name: Outcome(run, report), "at/seed-0": Outcome(runs["at/seed-0"])})
    file.write_bytes(b"others")
    assert outcome_of(run).report is None
    file.unlink()  # a study that keeps no weights
    assert outcome_of(run).report is not None


@pytest.mark.parametrize("content", [None, "", "{", "{}", '{"schema_version": "1.0"}'])
def test_a_report_that_is_not_whole_is_no_report(content: str | None, runs: dict[str, Run]):
    run = runs["first/seed-0"]
    run.folder.mkdir(parents=True)
    if content is not None:
        (run.folder / "report.json").write_text(content)
    assert outcome_of(run).report is None


def test_a_run_of_a_version_without_an_option_goes_on_where_the_option_is_left_alone(tmp_path: Path):
    """Runs are not to be made again for an option that came later, unless the study uses it."""
    run = TrainConfig(train_count=50, seed=3, out=tmp_path)
    lying = {key: value for key, value in config_of(run).items() if key not in ("label_noise", "rate")}
    (tmp_path / "config.json").write_text(json.dumps(lying))
    require_same(tmp_path, config_of(run), {}, run.model_fields_set)
    used = TrainConfig(train_count=50, seed=3, out=tmp_path, label_noise=0.1)
    with pytest.raises(ConfigError, match="label_noise"):
        require_same(tmp_path, config_of(used), {}, used.model_fields_set)
    with pytest.raises(ConfigError, match="rate"):
        require_same(tmp_path, config_of(run), {})
    (tmp_path / "config.json").write_text(json.dumps(lying | {"label_noise": 0.2}))
    with pytest.raises(ConfigError, match="label_noise"):
        require_same(tmp_path, config_of(run), {}, run.model_fields_set)
