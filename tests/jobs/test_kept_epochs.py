"""Checkpoints along a run: what they hold, and that the run does not notice them."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from shaketable.core import ConfigError
from shaketable.jobs.kept_epochs import kept
from shaketable.jobs.train import train
from shaketable.jobs.train_config import TrainConfig
from shaketable.models import load, read_manifest
from shaketable.runs import Interrupted, Quiet

RUN_FILES = ("best.safetensors", "last.safetensors")


def config(out: Path, **values: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "train_count": 40, "validation_count": 20, "test_count": 20, "architecture": "small_cnn(width=4)", "epochs": 4,
        "batch_size": 20, "attack": "pgd(steps=1)", "evaluation": "pgd(steps=1)", "threads": 1, "evaluate_every": 2,
        "weights": "awp(gamma=0.005)", "out": out,
    }  # fmt: skip
    return TrainConfig(**(given | values))


def contents(folder: Path) -> dict[str, bytes]:
    files = [*kept(folder), *(folder / name for name in RUN_FILES)]
    return {path.name: path.read_bytes() for path in files}


def test_a_run_with_kept_epochs_ends_as_one_without_and_keeps_what_it_would_have_ended_with(tmp_path: Path) -> None:
    plain, keeping = (config(tmp_path / name, keep_every=every) for name, every in (("a", None), ("b", 1)))
    assert train(plain).prepared.identity == train(keeping).prepared.identity
    assert not kept(plain.out)
    assert [path.name for path in kept(keeping.out)] == [f"{k:06d}.safetensors" for k in (1, 2, 3, 4)]
    for name in RUN_FILES:
        assert (plain.out / name).read_bytes() == (keeping.out / name).read_bytes()
    states = [load(path).model.state_dict() for path in (*kept(keeping.out), keeping.out / "last.safetensors")]
    assert all(torch.equal(t, states[3][name]) for name, t in states[4].items())
    assert not all(torch.equal(t, states[2][name]) for name, t in states[4].items())
    manifest = read_manifest(kept(keeping.out)[1])
    assert manifest.facts == {"epoch": 2, "which": "epoch"}


class Signals(Quiet):
    """Asks the run to stop at a moment."""

    def __init__(self, moment: float) -> None:
        self.moment = moment

    def update(self, done: float, note: str = "") -> None:
        if done == self.moment:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("average", ["ema(decay=0.5)"])
def test_a_run_that_goes_on_keeps_the_same_files(tmp_path: Path, average: str) -> None:
    whole, stopped = (config(tmp_path / name, keep_every=2, average=average) for name in "ab")
    train(whole)
    with pytest.raises(Interrupted):
        train(stopped, progress=Signals(5.0))
    assert [path.name for path in kept(stopped.out)] == ["000002.safetensors"]
    train(stopped.model_copy(update={"resume": True}))
    assert contents(whole.out) == contents(stopped.out)
    assert len(contents(whole.out)) == 4


def test_an_average_is_kept_only_where_it_is_evaluated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep_every: expected a multiple of --evaluate-every, 2"):
        train(config(tmp_path / "a", keep_every=3, average="ema(decay=0.5)"))
    assert not (tmp_path / "a").exists()
