"""Which models and images are measured, what a model's hash depends on, and what the reader is told."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from shaketable.core import Calls, ConfigError, DataError, ModelError
from shaketable.flatness import Flatness
from shaketable.jobs.flatness import cells as flatness_cells
from shaketable.jobs.flatness.cells import ImagePlace, ModelPlace, flatness_of, model_hash, task_of, to_json
from shaketable.jobs.flatness.config import FlatnessConfig
from shaketable.jobs.flatness.findings import findings
from shaketable.jobs.flatness.measures import chosen_of
from shaketable.jobs.flatness.run import Job, Measured, Measurement, left_of, measured_of
from shaketable.jobs.flatness.subjects import Images, Source, Subject, images_of, sources_of
from shaketable.jobs.flatness.text import over, sentences, title_of
from shaketable.jobs.ground import prepare
from shaketable.jobs.run_images import training_of
from shaketable.models import Contract, ModelSpec, build, load, save
from shaketable.runs import Outcome
from shaketable.stats import mean

SPEC = ModelSpec("mlp", 2, 1, (4, 4), {"width": 3}, (0.5,), (0.2,))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder as `train --keep-every` leaves it, of models with fresh weights."""
    folder = tmp_path / "run"
    for name, epoch in (("epochs/000002", 2), ("epochs/000010", 10), ("best", 2), ("last", 10)):
        save(folder / f"{name}.safetensors", build(SPEC, epoch), SPEC, facts={"epoch": epoch})
    (folder / "config.json").write_text(
        json.dumps({"data": str(tmp_path / "sorted.npz"), "validation_count": 4, "test_count": 4})
    )
    return folder


@pytest.fixture
def sorted_data(tmp_path: Path) -> str:
    """Images sorted by class, in a file without parts."""
    images = np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4)
    np.savez(tmp_path / "sorted.npz", images=images, labels=np.arange(20) // 10)
    return str(tmp_path / "sorted.npz")


def config(*models: Any, **values: Any) -> FlatnessConfig:
    return FlatnessConfig(model=tuple(map(str, models)), **values)


def test_checkpoints_are_those_of_the_run_in_the_order_of_their_epochs(run: Path) -> None:
    names = [source.name for source in sources_of(config(run, checkpoints=True))]
    assert names == ["epoch 2", "best (epoch 2)", "epoch 10", "last (epoch 10)"]
    assert [source.epoch for source in sources_of(config(run))] == [2]  # the best
    two = sources_of(config(run, run / "last.safetensors"))
    assert [(source.name, source.epoch) for source in two] == [("run", 2), ("last.safetensors", 10)]
    same = sources_of(config(run / "epochs" / "000002.safetensors", run / "best.safetensors", run / "best.safetensors"))
    assert [source.name for source in same][1:] == [str(run / "best.safetensors")] * 2
    with pytest.raises(ConfigError, match="which is none"):
        sources_of(config(run / "best.safetensors", checkpoints=True))


def test_a_models_training_is_found_beside_it_and_another_config_is_none(run: Path, tmp_path: Path) -> None:
    for path in (run, run / "best.safetensors", run / "epochs" / "000002.safetensors"):
        found = training_of(path)
        assert found is not None
        assert found.validation_count == 4
    (run / "config.json").write_text('{"model_type": "resnet"}')
    assert training_of(run) is None
    assert training_of(tmp_path / "nothing") is None


def test_the_first_images_are_taken_unless_they_lack_a_class(sorted_data: str, run: Path) -> None:
    alone = Source("m", "m", None, None)
    first = images_of(config("m", data=sorted_data, count=15), alone, "test")
    assert first.place.rows == tuple(range(15))
    assert first.note == ""
    drawn = images_of(config("m", data=sorted_data, count=6), alone, "test")
    assert sorted(drawn.data.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert "drawn by class" in drawn.note
    assert drawn.place.open().fingerprint == drawn.data.fingerprint
    with pytest.raises(ConfigError, match="split: expected a training that is known"):
        images_of(config("m", data=sorted_data), alone, "train")


def test_a_run_on_data_without_parts_has_its_own_disjoint_splits(sorted_data: str, run: Path) -> None:
    source = sources_of(config(run, data=sorted_data))[0]
    parts = [images_of(config(run, data=sorted_data), source, part).place.rows for part in ("test", "train")]
    assert [len(rows) for rows in parts] == [4, 12]
    assert not set(parts[0]) & set(parts[1])


def test_a_models_hash_is_of_its_weights_and_spec_and_not_of_the_file(run: Path, tmp_path: Path) -> None:
    hashes = [model_hash(load(run / f"{name}.safetensors")) for name in ("best", "epochs/000002", "last")]
    assert hashes[0] == hashes[1] != hashes[2]
    other = replace(SPEC, arguments={"width": 3, "activation": "gelu"})
    save(tmp_path / "other.safetensors", build(other, 2), other)
    assert model_hash(load(tmp_path / "other.safetensors")) != hashes[0]
    mean = replace(SPEC, mean=(0.4,))
    save(tmp_path / "mean.safetensors", build(mean, 2), mean)
    assert model_hash(load(tmp_path / "mean.safetensors")) != hashes[0]


def test_a_worker_measures_only_what_its_task_names(sorted_data: str, run: Path) -> None:
    (chosen,) = chosen_of(config("m", measures=("average(samples=1, loss='clean')",)))
    model, images = ModelPlace(str(run / "best.safetensors")), ImagePlace(sorted_data, "all", (1, 12, 3))
    sha, data = model_hash(model.load(images.open())), images.open().fingerprint
    task = task_of(model, sha, images, data, chosen, seed=0, device="cpu", threads=1)
    result = flatness_cells.measure(dict(task.arguments))
    assert to_json(flatness_of(result)) == result
    assert result["examples"] == 3
    with pytest.raises(ModelError, match="start it again"):
        flatness_cells.measure(task.arguments | {"model_sha": "0" * 64})
    with pytest.raises(DataError, match="start it again"):
        flatness_cells.measure(task.arguments | {"data_sha": "0" * 64})


def measured(
    *facts: dict[str, float], names: tuple[str, ...] = (), errors: tuple[str | None, ...] = ()
) -> tuple[Job, list[Measured]]:
    """Measurements that were never made: one for each of the facts, of models of their own."""
    (chosen,) = chosen_of(config("m", measures=("average",)))
    images = Images("test", ImagePlace("d", "all", (0, 1)), None)  # pyright: ignore[reportArgumentType]
    made: list[Measured] = []
    for k, own in enumerate(facts):
        source = Source(names[k] if names else f"m{k}", f"m{k}", None, None)
        subject = Subject(source, ModelPlace("m"), f"{k}" * 64, None, Contract((), None, 2), ())
        task = task_of(subject.place, subject.sha256, images.place, "d" * 64, chosen, seed=0, device="cpu", threads=1)
        value = mean([own.get("value", 1.0), own.get("value", 1.0) + 0.1])
        rise = torch.tensor([0.1, 0.3], dtype=torch.float64)
        right = torch.tensor([True, False])
        name = "robust worst" if own.get("worst") else "robust average"
        found = Flatness(name, value, 1.0, rise, right, (0.1, 0.3), 2, Calls(2, 2), own)
        error = errors[k] if errors else None
        measurement = Measurement(subject, images, chosen, task)
        made.append(Measured(measurement, Outcome(task, None if error else {}, error), None if error else found))
    given = config("m")
    return Job(
        given, prepare(given), tuple(one.measurement.subject for one in made), tuple(m.measurement for m in made)
    ), made


def test_findings_say_what_makes_a_number_worthless() -> None:
    ordinary = {"constant": 0.0, "silent": 0.0, "xi": 0.5}
    job, made = measured(ordinary)
    assert findings(job, made) == ()
    job, made = measured({"constant": 1.0, "silent": 1.0}, {"silent": 0.2}, {"worst": 1.0, "value": -1.0})
    found = findings(job, made)
    assert [(f.code, f.level) for f in found] == [
        ("constant-predictor", "finding"), ("silent-attack", "finding"), ("weak-search", "warning"),
    ]  # fmt: skip
    assert "m1: the attack saw no gradient for 20 %" in found[1].message
    job, made = measured(ordinary, ordinary, errors=(None, "it is broken"))
    assert [f.code for f in findings(job, made)] == ["not-measured"]
    assert "it is broken" in findings(job, made)[0].message


def test_models_are_ranked_without_constant_predictors() -> None:
    job, made = measured({"value": 2.0}, {"value": 0.0, "constant": 1.0}, {"value": 1.0}, names=("a", "flat", "b"))
    text = sentences(job, made)
    assert text[0] == "Average case, test images, from the flattest: b 1.050, a 2.050."
    assert not any("flat " in line for line in text[:1])


def test_what_values_are_over() -> None:
    _, made = measured({})
    found = made[0].found
    assert found is not None
    assert over(found) == "2 images"
    three = replace(found, examples=3)
    assert over(three) == "2 draws"
    assert over(replace(three, draws=(0.1,) * 4)) == "2 pairs of draws"
    assert over(replace(three, facts={"asked": 0.1})) == "2 draws"
    assert title_of(replace(found, name="clean adaptive worst")) == "Adaptive, worst case, clean loss"
    assert title_of(replace(found, name="hessian")) == "Largest eigenvalue"


def test_if_nothing_could_be_measured_the_first_error_is_told(tmp_path: Path) -> None:
    job, made = measured({}, {}, errors=("no memory", "no disk"))
    outcomes = {one.measurement.task.cell.key: one.outcome for one in made}
    with pytest.raises(ConfigError, match=r"found an error \(1 more\): no memory"):
        measured_of(job, outcomes)
    assert len(left_of(replace(job, config=config("m", out=tmp_path)))) == 2
