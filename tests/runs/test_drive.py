"""`drive`: resumed at any event it ends in the same bits; it refuses what is not its run, and says what differs."""

import copy
import json
import math
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shaketable.core.errors import CheckpointError, InputError, StorageError
from shaketable.models import ModelSpec, fingerprint
from shaketable.runs import Driven, differences
from shaketable.training import Epoch, Step, trades

Check = Callable[[Path], list[Any]]


class CrashError(Exception):
    pass


def crash_at(event: int) -> Callable[[Any], None]:
    """A `show` that dies at the k-th event, before its checkpoint is written."""
    left = [event]

    def show(_event: Any) -> None:
        if left[0] == 0:
            raise CrashError
        left[0] -= 1

    return show


def test_a_run_resumed_after_any_event_ends_in_the_same_bits(
    tiny: Any, whole: str, tmp_path: Path, checkpoints: Check
) -> None:
    for event in range(tiny.EVENTS + 1):
        folder, first, again = tmp_path / str(event), tiny.Training(), tiny.Training()
        if event < tiny.EVENTS:
            with pytest.raises(CrashError):
                first.drive(folder, show=crash_at(event))
        else:
            first.drive(folder)
        assert len(checkpoints(folder)) == (1 if event else 0)
        seen: list[Any] = []
        driven = again.drive(folder, show=seen.append)
        assert again.digest == whole
        assert len(seen) == tiny.EVENTS - event  # it went on, it did not begin again
        assert driven == Driven(None if event == 0 else 1 + event // 3, (), False)


def test_dropout_trades_and_a_network_without_batchnorm(tiny: Any, tmp_path: Path) -> None:
    spec = ModelSpec("mlp", 2, 1, (8, 8), {"width": 8, "depth": 1, "dropout": 0.5})
    plan = replace(tiny.PLAN, loss=trades(3.0))
    digests = set()
    for event in (None, 1, 4):
        folder = tmp_path / str(event)
        if event is not None:
            with pytest.raises(CrashError):
                tiny.Training(plan, spec).drive(folder, show=crash_at(event))
        training = tiny.Training(plan, spec)
        training.drive(folder)
        digests.add(training.digest)
    assert len(digests) == 1


def test_no_result_depends_on_how_often_it_is_saved(tiny: Any, whole: str, tmp_path: Path, checkpoints: Check) -> None:
    for every in (0.0, 0.05, 1e9):
        training = tiny.Training()
        training.drive(tmp_path / str(every), save_every=every)
        assert training.digest == whole
        (last,) = checkpoints(tmp_path / str(every))
        assert last.folder.name == "000003-000000"


def test_checkpoints_come_as_often_as_they_are_asked_for(tiny: Any, tmp_path: Path, checkpoints: Check) -> None:
    seen: list[list[str]] = []
    for every in (0.0, 1e9):
        folder = tmp_path / str(every)
        seen.append([])
        tiny.Training().drive(
            folder, save_every=every, show=lambda _e, f=folder: seen[-1].extend(g.folder.name for g in checkpoints(f))
        )
    assert seen[0] == [f"{epoch:06d}-{step:06d}" for epoch in range(3) for step in range(3)][1:]
    assert seen[1] == []


def test_a_run_that_has_ended_is_not_trained_on(tiny: Any, whole: str, tmp_path: Path) -> None:
    tiny.Training().drive(tmp_path)
    again, seen = tiny.Training(), list[Any]()
    again.drive(tmp_path, show=seen.append)
    assert seen == []
    assert again.digest == whole
    assert again.state.best_epoch is not None


def test_what_is_shown(tiny: Any, tmp_path: Path) -> None:
    seen: list[Any] = []
    training = tiny.Training()
    training.drive(tmp_path, show=seen.append)
    assert [type(event) for event in seen] == [Step, Step, Epoch] * 3
    assert [event for event in seen if isinstance(event, Epoch)] == training.state.history


def test_other_settings_are_refused_with_every_key_that_differs(tiny: Any, tmp_path: Path, checkpoints: Check) -> None:
    tiny.Training().drive(tmp_path)
    before = checkpoints(tmp_path)
    other = tiny.Training(
        identity={"config": {"rate": 0.1, "loss": "at", "new": None}, "data": "abd", "more": {"x": 1}}
    )
    fresh = other.digest
    with pytest.raises(CheckpointError) as caught:
        other.drive(tmp_path)
    found = caught.value.found
    assert found == ("other settings: config.rate: 0.05, now 0.1; data: 'abc', now 'abd'; more: None, now {'x': 1}")
    assert "another --out folder" in caught.value.remedy
    assert other.digest == fresh
    assert checkpoints(tmp_path) == before


def test_another_machine_is_told_and_goes_on(tiny: Any, whole: str, tmp_path: Path) -> None:
    with pytest.raises(CrashError):
        tiny.Training().drive(tmp_path, show=crash_at(4))
    other = tiny.Training(machine={"threads": 2, "torch": "2", "device": "cpu"})
    driven = other.drive(tmp_path)
    assert driven.elsewhere == ("device: None, now 'cpu'", "threads: 1, now 2")
    assert driven.resumed == 2
    assert other.digest == whole  # here the machine is the same after all


def test_tuples_in_settings_are_the_lists_that_they_become(tiny: Any, tmp_path: Path) -> None:
    given = {"identity": {"mean": (0.5,), "sizes": {1: (2, 3)}}, "machine": {"cpus": (1, 2)}}
    with pytest.raises(CrashError):
        tiny.Training(**given).drive(tmp_path, show=crash_at(2))
    assert tiny.Training(**given).drive(tmp_path).elsewhere == ()


@pytest.mark.parametrize("name", ["identity", "machine"])
def test_settings_that_are_no_json_are_refused_at_once(name: str, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{name}: expected JSON values"):
        tiny.Training(**{name: {"path": tmp_path}}).drive(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_model_is_refused(tiny: Any, tmp_path: Path) -> None:
    tiny.Training().drive(tmp_path)
    other = tiny.Training(spec=replace(tiny.SPEC, arguments={"width": 2, "hidden": 4, "norm": "batch"}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a checkpoint of this model") as caught:
        other.drive(tmp_path)
    assert "arguments.hidden: 3, now 4" in caught.value.found


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_named_and_nothing_of_it_is_used(
    how: str, name: str, tiny: Any, tmp_path: Path
) -> None:
    tiny.Training().drive(tmp_path)
    path = tmp_path / "checkpoints" / "000003-000000" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.unlink()
    if how != "missing":
        path.write_bytes(content if how == "flipped" else content[: len(content) // 2])
    training = tiny.Training()
    fresh = training.digest
    with pytest.raises(CheckpointError) as caught:
        training.drive(tmp_path)
    assert caught.value.argument == str(path)
    assert f"Remove {path.parent}" in caught.value.remedy
    assert training.digest == fresh


def test_a_state_of_another_version_is_a_clear_error(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shaketable.training import State

    full = State.state_dict
    with monkeypatch.context() as patch:
        patch.setattr(State, "state_dict", lambda self: {k: v for k, v in full(self).items() if k != "calls"})
        tiny.Training().drive(tmp_path)
    with pytest.raises(CheckpointError, match="expected a state of this training, found KeyError: 'calls'"):
        tiny.Training().drive(tmp_path)


def test_a_run_of_the_users_own_architecture_is_resumed(tiny: Any, tmp_path: Path) -> None:
    code = tmp_path / "own.py"
    code.write_text(
        "from torch import nn\n"
        "def net(*, classes, channels, size):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size[0] * size[1], classes))\n"
    )
    spec, digests = ModelSpec(f"{code}:net", 2, 1, (8, 8)), []
    for event in (3, None):
        folder = tmp_path / f"run {event}"
        if event is not None:
            with pytest.raises(CrashError):
                tiny.Training(spec=spec).drive(folder, show=crash_at(event))
        training = tiny.Training(spec=spec)
        training.drive(folder)
        digests.append(training.digest)
    assert digests[0] == digests[1]


def test_a_folder_that_cannot_be_written(tiny: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(StorageError, match="--out"):
        tiny.Training().drive(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "precious"


def test_what_crashes_left_is_cleared(tiny: Any, tmp_path: Path) -> None:
    for name in (".writing-abc", ".removing-000000-000001"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    tiny.Training().drive(tmp_path, save_every=1e9)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["000003-000000"]


def test_a_collapsed_training_is_said_to_be_one_also_when_resumed(tiny: Any, tmp_path: Path) -> None:
    def constant(training: Any) -> Any:
        network: nn.Module = training.state.model.network
        with torch.no_grad():
            network.fc2.weight.zero_()  # pyright: ignore
            network.fc2.bias.copy_(torch.tensor([9.0, 0.0]))  # pyright: ignore
        return training

    plan = replace(tiny.PLAN, rate=1e-6, patience=2, epochs=40)
    first, again, seen = constant(tiny.Training(plan)), constant(tiny.Training(plan)), list[Any]()
    assert first.drive(tmp_path) == Driven(None, (), True)
    assert len(first.state.history) == 2
    assert again.drive(tmp_path, show=seen.append).collapsed
    assert seen == []
    assert again.digest == first.digest


def test_a_divergence_leaves_the_checkpoint_from_before_it(tiny: Any, tmp_path: Path, checkpoints: Check) -> None:
    from shaketable.training import DivergenceError

    training = tiny.Training(replace(tiny.PLAN, rate=1e30))
    with pytest.raises(DivergenceError):
        training.drive(tmp_path)
    (left,) = checkpoints(tmp_path)
    again = tiny.Training(replace(tiny.PLAN, rate=1e30))
    with pytest.raises(DivergenceError):
        again.drive(tmp_path)
    assert fingerprint(again.state.model) != fingerprint(tiny.Training().state.model)
    assert checkpoints(tmp_path) == [left]


def test_a_stop_in_the_last_moment_is_not_lost(tiny: Any, whole: str, tmp_path: Path) -> None:
    from shaketable.runs import Interrupted

    def show(event: Any) -> None:
        if isinstance(event, Epoch) and event.epoch == 3:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="Stopped after the last epoch"):
        tiny.Training().drive(tmp_path, show=show)
    again = tiny.Training()
    again.drive(tmp_path)
    assert again.digest == whole


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({}, {}, []),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a: [1, 2], now [1, 3]"]),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, ["a.b.c: 1, now 2"]),
        ({"a": {"b": 1}}, {"a": 1}, ["a: {'b': 1}, now 1"]),
        ({"a": 1}, {"b": 1}, ["a: 1, now None", "b: None, now 1"]),
        (1, 2, [": 1, now 2"]),
    ],
)
def test_differences(old: Any, new: Any, found: list[str]) -> None:
    assert differences(old, new) == found


def test_settings_with_nan_are_the_same_run(tiny: Any, tmp_path: Path) -> None:
    given = {"identity": {"value": math.nan}}
    with pytest.raises(CrashError):
        tiny.Training(**given).drive(tmp_path, show=crash_at(2))
    assert tiny.Training(**copy.deepcopy(given)).drive(tmp_path).resumed == 1
    assert json.loads(json.dumps(given))  # JSON of Python's kind
