"""Which images of data without a test part are evaluated: of a model that was trained on it, none of its training images."""

import shutil
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from shaketable import data
from shaketable.cli import main
from shaketable.core import DataError
from shaketable.jobs.config import EvaluateConfig
from shaketable.jobs.evaluate import prepare_evaluation
from shaketable.jobs.run_images import own_images
from shaketable.jobs.transfer import Job, prepare_transfer
from shaketable.jobs.transfer_config import TransferConfig
from shaketable.report import read_json


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 images in a file without parts."""
    source = data.open_dataset("fashion-mnist", split="test").take(range(400))
    path = tmp_path_factory.mktemp("data") / "images.npz"
    np.savez(path, images=source.pixels.read(torch.arange(400)).numpy(), labels=source.labels.numpy())
    return path


@pytest.fixture(scope="module")
def run(images: Path, quick: list[str]) -> Path:
    """A run that was trained on some of them."""
    folder = images.parent / "run"
    fast = ["--epochs", "5", "--attack", "pgd(steps=1)", "--evaluation", "pgd(steps=1)", "--evaluate-every", "5"]
    options = [*quick, *fast, "--data", str(images), "--seed", "3"]
    assert main(["train", *options, "--out", str(folder), "--json"]) == 0
    return folder


def evaluated(model: Path, images: Path, **options: object) -> data.Dataset:
    """The images that would be evaluated."""
    return prepare_evaluation(EvaluateConfig(model=str(model), data=str(images), **options)).data  # type: ignore[arg-type]


def pixels(images: data.Dataset) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.batch(range(len(images))).x}


def test_no_training_image_is_evaluated_unless_it_is_asked_for(run: Path, images: Path):
    parts = data.open_parts(images)
    own = data.split(parts.train, None, train_count=150, validation_count=50, test_count=100, seed=3)
    trained, tested = pixels(own.train), pixels(own.test)
    for model in (run, run / "last.safetensors"):
        found = pixels(evaluated(model, images))
        assert found == tested
        assert not found & trained
    few = evaluated(run, images, count=30)
    assert len(few) == 30
    assert pixels(few) < tested
    assert pixels(evaluated(run, images, split="train")) == trained
    assert len(evaluated(run, images, split="all")) == 400
    small = own_images(str(run), str(images), "test", size=14)
    assert small is not None
    assert small.data.pixels.shape == (1, 14, 14)
    assert small.data.labels.tolist() == own.test.labels.tolist()


def test_the_report_says_which_images_they_are(run: Path, images: Path, tmp_path: Path):
    options = ["--data", str(images), "--eps", "0.1", "--no-lints", "--threads", "1", "--out", str(tmp_path), "--json"]
    assert main(["evaluate", str(run), *options]) == 0
    report = read_json(tmp_path / "report.json")
    assert report.headline[0].n == 100
    assert "100 images of images.npz, the run's own test images" in report.summary[0]
    assert report.summary[1].endswith("these are the test images of the run run, as its report states.")
    assert list(report.hashes.data.values()) == [read_json(run / "report.json").hashes.splits["test.content"]]


def test_a_model_whose_training_is_not_known_is_evaluated_on_all_images_and_the_report_says_so(
    run: Path, images: Path, tmp_path: Path
):
    shutil.copy(run / "last.safetensors", tmp_path / "alone.safetensors")
    shutil.copy(images, tmp_path / "moved.npz")
    for model, source in ((tmp_path / "alone.safetensors", images), (run, tmp_path / "moved.npz")):
        subject = prepare_evaluation(EvaluateConfig(model=str(model), data=str(source)))
        assert len(subject.data) == 400
        assert "these are all of its images" in subject.note
    assert prepare_evaluation(EvaluateConfig(model=str(run), data=str(images), split="all")).note == ""


def test_other_images_than_the_runs_report_states_are_refused(run: Path, images: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(DataError, match="another"):
        evaluated(folder, images)
    (folder / "report.json").unlink()
    subject = prepare_evaluation(EvaluateConfig(model=str(folder), data=str(images)))
    assert "which has no report to compare them with" in subject.note


def test_transfer_takes_the_test_images_that_all_runs_have(run: Path, images: Path, quick: list[str], tmp_path: Path):
    fast = ["--epochs", "5", "--attack", "pgd(steps=1)", "--evaluation", "pgd(steps=1)", "--evaluate-every", "5"]
    options = [*quick, *fast, "--data", str(images), "--seed", "4"]
    assert main(["train", *options, "--out", str(tmp_path / "other"), "--json"]) == 0
    parts, shared = data.open_parts(images), list[set[bytes]]()
    for seed in (3, 4):
        own = data.split(parts.train, None, train_count=150, validation_count=50, test_count=100, seed=seed)
        shared.append(pixels(own.test))
    common = shared[0] & shared[1]
    assert 10 < len(common) < 50

    def job(*models: Path, split: Literal["train", "test", "all"] = "test", count: int | None = None) -> Job:
        names = tuple(map(str, models))
        return prepare_transfer(TransferConfig(model=names, data=str(images), split=split, count=count, size=28))

    both = job(run, tmp_path / "other")
    assert pixels(both.data) == common
    assert "that run, other have in common" in both.note
    assert len(job(run, tmp_path / "other", count=5).data) == 5
    everything = job(run, tmp_path / "other", split="all")
    assert (len(everything.data), everything.note) == (400, "")
    alone = tmp_path / "alone.safetensors"
    shutil.copy(run / "last.safetensors", alone)  # a file that is in no run's folder
    assert pixels(job(run, alone).data) == shared[0]
