"""Fine-tuning: which weights are taken over, what is refused, and what a run says of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shaketable.cli import main
from shaketable.core import CheckpointError, ModelError, ShaketableError
from shaketable.jobs.fine_tune import begin_from, statistics_of
from shaketable.jobs.train import prepare_training, train
from shaketable.jobs.train_config import TrainConfig
from shaketable.models import ModelSpec, build, load, save

SMALL = {"width": 4}


def spec(classes: int = 10, **values: Any) -> ModelSpec:
    given: dict[str, Any] = {"mean": (0.3,), "std": (0.4,), "arguments": dict(SMALL)} | values
    return ModelSpec("small_cnn", classes, 1, (28, 28), **given)


def saved(path: Path, s: ModelSpec, seed: int = 7) -> nn.Module:
    model = build(s, seed)
    save(path, model, s)
    return model


def config(**values: Any) -> TrainConfig:
    given: dict[str, Any] = {
        "train_count": 40, "validation_count": 20, "test_count": 20, "architecture": "small_cnn(width=4)", "epochs": 1,
        "batch_size": 20, "attack": "pgd(steps=1)", "evaluation": "pgd(steps=1)", "threads": 1,
    }  # fmt: skip
    return TrainConfig(**(given | values))


def test_all_weights_are_taken_over_and_the_source_is_not_changed(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "m.safetensors", spec())
    model = build(spec(), 1)
    begun = begin_from(str(tmp_path / "m.safetensors"), model, spec(), trust=False)
    assert begun.new == ()
    assert begun.copied == len(model.state_dict())
    assert len(begun.sha256) == 64
    for name, t in model.state_dict().items():
        assert torch.equal(t, theirs.state_dict()[name]), name


def test_another_head_stays_as_it_was_drawn(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "m.safetensors", spec(100))
    model, before = build(spec(), 1), build(spec(), 1).state_dict()
    begun = begin_from(str(tmp_path / "m.safetensors"), model, spec(), trust=False)
    assert {name.rpartition(".")[0] for name in begun.new} == {"network.fc2"}
    for name, t in model.state_dict().items():
        source = before if name in begun.new else theirs.state_dict()
        assert torch.equal(t, source[name]), name


@pytest.mark.parametrize("classes", [10, 100])
def test_a_bare_state_dict_serves_also_with_another_head(classes: int, tmp_path: Path) -> None:
    theirs = build(spec(classes), 7)
    torch.save({n.removeprefix("network."): t for n, t in theirs.state_dict().items()}, tmp_path / "w.pt")
    model = build(spec(), 1)
    begun = begin_from(str(tmp_path / "w.pt"), model, spec(), trust=False)
    assert bool(begun.new) == (classes == 100)
    assert all(torch.equal(t, theirs.state_dict()[n]) for n, t in model.state_dict().items() if n not in begun.new)


def test_models_that_do_not_fit_are_refused_and_nothing_is_copied(tmp_path: Path) -> None:
    saved(tmp_path / "wide.safetensors", spec(arguments={"width": 8}))
    model, before = build(spec(), 1), build(spec(), 1).state_dict()
    with pytest.raises(ModelError, match="init: expected the weights of all layers but the last"):
        begin_from(str(tmp_path / "wide.safetensors"), model, spec(), trust=False)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(ShaketableError):
        begin_from(str(tmp_path / "bad.safetensors"), model, spec(), trust=False)


def test_the_normalisation_is_the_pretrained_models_unless_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    saved(path, spec())
    assert statistics_of(str(path)) == ((0.3,), (0.4,))
    assert prepare_training(config(init=str(path))).spec.mean == (0.3,)
    assert prepare_training(config(init=str(path), mean=(0.5,), std=(0.5,))).spec.mean == (0.5,)
    assert prepare_training(config()).spec.mean != (0.3,)


def test_a_run_begins_there_and_its_identity_has_the_files_hash(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    theirs = saved(path, spec())
    prepared = prepare_training(config(init=str(path)))
    assert all(torch.equal(t, theirs.state_dict()[n]) for n, t in prepared.state.model.state_dict().items())
    assert prepared.begun is not None
    assert prepared.identity["init"] == prepared.begun.sha256


def test_fine_tuning_from_a_runs_folder_on_the_command_line(tmp_path: Path) -> None:
    options = [
        "--train-count", "40", "--validation-count", "20", "--test-count", "20", "--architecture", "small_cnn(width=4)",
        "--epochs", "1", "--batch-size", "20", "--attack", "pgd(steps=1)", "--evaluation", "pgd(steps=1)", "--threads", "1",
    ]  # fmt: skip
    assert main(["train", *options, "--out", str(tmp_path / "a")]) == 0
    tuned = [*options, "--init", str(tmp_path / "a"), "--rate", "1e-9", "--out", str(tmp_path / "b")]
    assert main(["train", *tuned]) == 0
    first, second = (load(tmp_path / name / "last.safetensors").model.state_dict() for name in "ab")
    best = load(tmp_path / "a").model.state_dict()
    assert all(torch.allclose(second[name], best[name], atol=1e-6) for name in first)
    found = json.loads((tmp_path / "b" / "report.json").read_text())
    assert any(f["code"] == "fine-tuned" for f in found["findings"])
    (tmp_path / "b" / "checkpoints").mkdir(exist_ok=True)
    saved(tmp_path / "a" / "best.safetensors", spec(mean=(), std=()), seed=9)
    again = TrainConfig(**(json.loads((tmp_path / "b" / "config.json").read_text()) | {"resume": True}))
    with pytest.raises(CheckpointError, match="init"):
        train(again)
