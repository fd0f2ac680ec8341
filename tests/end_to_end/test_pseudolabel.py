"""`shaketable pseudolabel` on real images: what is in the file, what is in the report, and what is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from shaketable import data, models
from shaketable.cli import main
from shaketable.core import ConfigError, DataError, InputError, ModelError, ShaketableError
from shaketable.jobs.pseudolabel import predict, run
from shaketable.jobs.pseudolabel_config import PseudolabelConfig
from shaketable.report import Report, read_json, same
from shaketable.stats import Rate


def label(model: Path | str, out: Path, **options: Any) -> Report:
    """The report; the file is in `out`."""
    return run(PseudolabelConfig(model=str(model), out=out, threads=1, **options))


def pixels(images: data.Dataset) -> set[bytes]:
    return {image.numpy().tobytes() for image in images.batch(range(len(images))).x}


def answers(model: Path, images: data.Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """A plain recount: the most probable class of each image, and its probability."""
    with torch.no_grad():
        top = models.load(model).model(images.batch(range(len(images))).x).double().softmax(1).max(1)
    return top.indices, top.values


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


@dataclass(frozen=True)
class Pictures:
    """Some test images and their true labels."""

    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...]

    def npz(self, path: Path, **arrays: Any) -> str:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"images": self.x, "labels": self.y, "classes": np.array(self.classes)} | arrays
        np.savez(path, **{name: array for name, array in kept.items() if array is not None})
        return str(path)


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    source = data.open_dataset("fashion-mnist", split="test")
    images = source.take(range(400))
    return Pictures(images.pixels.read(torch.arange(400)).numpy(), images.labels.numpy(), images.classes)


def test_the_rest_of_a_runs_images_is_labelled_as_the_model_labels_them(run_folder: Path, tmp_path: Path):
    arguments = ["--part", "rest", "--min-confidence", "0.6", "--threads", "1", "--out", str(tmp_path), "--json"]
    assert main(["pseudolabel", str(run_folder), *arguments]) == 0
    found, report = data.read_pseudolabelled(tmp_path / "pseudolabelled.npz"), read_json(tmp_path / "report.json")

    parts = data.open_parts("fashion-mnist")
    drawn = data.split(parts.train, parts.test, train_count=150, validation_count=50, test_count=100, seed=0)
    used = set(drawn.indices["train"].tolist()) | set(drawn.indices["validation"].tolist())
    rest = parts.train.take([row for row in range(len(parts.train)) if row not in used])
    assert len(rest) == len(parts.train) - 200
    labels, confidence = answers(run_folder, rest)
    kept = confidence >= 0.6
    assert 100 < int(kept.sum()) < len(rest) - 100
    assert torch.equal(found.data.labels, labels[kept])
    assert torch.allclose(found.confidence, confidence[kept].float(), atol=1e-6)
    chosen = rest.take(kept.nonzero()[:, 0])
    assert torch.equal(found.data.batch(range(len(chosen))).x, chosen.batch(range(len(chosen))).x)
    assert found.data.classes == parts.train.classes
    for name in ("train", "validation"):
        assert not pixels(drawn.sets[name]) & pixels(found.data)

    headline = {metric.name: metric for metric in report.headline}
    right = int((labels == rest.labels)[kept].sum())
    accuracy = headline["Accuracy of the pseudo-labels"]
    assert (accuracy.hits, accuracy.n) == (right, int(kept.sum()))
    assert accuracy.interval == Rate(right, int(kept.sum())).interval
    assert (headline["Images kept"].hits, headline["Images kept"].n) == (int(kept.sum()), len(rest))
    sha256 = hashlib.sha256((tmp_path / "pseudolabelled.npz").read_bytes()).hexdigest()
    assert report.hashes.data["pseudolabelled.npz"] == sha256
    assert not codes(report) & {"split-unverified", "trained-on", "test-images"}
    assert report.command == f"shaketable pseudolabel {run_folder} --threads 1 --part rest --min-confidence 0.6"


def test_the_tables_count_what_is_in_the_file(run_folder: Path, tmp_path: Path):
    report = label(run_folder, tmp_path, part="rest", min_confidence=0.5)
    found = data.read_pseudolabelled(tmp_path / "pseudolabelled.npz")
    by_class, by_confidence = report.sections[0].tables
    assert [row[1] for row in by_class.rows] == list(found.data.counts)
    assert sum(row[3].hits for row in by_class.rows if row[3] is not None) == report.headline[0].hits
    assert sum(row[2] for row in by_confidence.rows) == len(found.data)
    assert sum(row[1] for row in by_confidence.rows) == report.headline[1].n
    means = {row[0]: row[2] for row in by_class.rows if row[1]}
    for name, expected in means.items():
        mine = found.data.labels == found.data.classes.index(name)
        assert found.confidence[mine].double().mean().item() == pytest.approx(expected, abs=1e-6)
    assert all(row[1:] == (0, None, None) for row in by_class.rows if row[0] not in means)
    (chart,) = report.sections[0].charts
    assert list(chart.series[0].y) == [row[1] for row in by_confidence.rows]


def test_twice_the_same_is_the_same_report_and_the_same_bytes(run_folder: Path, tmp_path: Path):
    for name in "ab":
        label(run_folder, tmp_path / name, part="test", count=150)
    first, second = (tmp_path / name / "pseudolabelled.npz" for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    label(run_folder, tmp_path / "c", part="test", count=150, seed=1)
    assert (tmp_path / "c" / "pseudolabelled.npz").read_bytes() != first.read_bytes()
    arguments = ["pseudolabel", str(run_folder), "--part", "test", "--count", "50", "--json"]
    for name in "de":
        assert main([*arguments, "--out", str(tmp_path / name)]) == 0
    assert same(*(read_json(tmp_path / name / "report.json") for name in "de"))


def test_no_true_label_gets_into_the_file(run_folder: Path, tmp_path: Path, pictures: Pictures):
    """Other true labels give another accuracy, and the same bytes; none at all too."""
    wrong = pictures.y.copy()
    wrong[:60] = (wrong[:60] + 1) % 10
    given = {
        "right": pictures.npz(tmp_path / "right" / "x.npz"),
        "wrong": pictures.npz(tmp_path / "wrong" / "x.npz", labels=wrong),
        "none": pictures.npz(tmp_path / "none" / "x.npz", labels=None, classes=None),
    }
    reports = {name: label(run_folder, tmp_path / name, data=path) for name, path in given.items()}
    files = [(tmp_path / name / "pseudolabelled.npz").read_bytes() for name in given]
    assert files[0] == files[1] == files[2]
    rates = {name: {m.name: m.hits for m in report.headline} for name, report in reports.items()}
    assert rates["wrong"]["Accuracy of the pseudo-labels"] < rates["right"]["Accuracy of the pseudo-labels"]
    assert "Accuracy of the pseudo-labels" not in rates["none"]
    assert "not known" in " ".join(reports["none"].summary)


@pytest.mark.parametrize("kind", ["loose", "one class"])
def test_a_folder_of_images_without_labels_is_labelled(run_folder: Path, tmp_path: Path, pictures: Pictures, kind):
    folder = tmp_path / "images"
    inside = folder if kind == "loose" else folder / "some"
    inside.mkdir(parents=True)
    for k in range(40):
        Image.fromarray(pictures.x[k, 0]).save(inside / f"{k:03d}.png")
    report = label(run_folder, tmp_path / "out", data=str(folder))
    found = data.open_dataset(tmp_path / "out" / "pseudolabelled.npz")
    expected, _ = answers(run_folder, data.from_arrays(pictures.x[:40], pictures.y[:40]))
    assert torch.equal(found.labels, expected)
    assert found.classes == pictures.classes
    assert "not known" in " ".join(report.summary)


def test_classes_are_matched_by_name(run_folder: Path, tmp_path: Path, pictures: Pictures):
    """Data whose classes are in another order keeps its order; one that only numbers them is taken to be in the model's."""
    plain = label(run_folder, tmp_path / "plain", data=pictures.npz(tmp_path / "plain.npz"))
    turned = pictures.npz(tmp_path / "turned.npz", labels=9 - pictures.y, classes=np.array(pictures.classes[::-1]))
    other = label(run_folder, tmp_path / "turned", data=turned)
    first, second = (data.open_dataset(tmp_path / n / "pseudolabelled.npz") for n in ("plain", "turned"))
    assert second.classes == pictures.classes[::-1]
    assert torch.equal(second.labels, 9 - first.labels)
    assert other.headline[0].hits == plain.headline[0].hits
    numbered = label(run_folder, tmp_path / "numbered", data=pictures.npz(tmp_path / "numbered.npz", classes=None))
    assert numbered.headline[0].hits == plain.headline[0].hits
    classes = np.array([f"other {k}" for k in range(10)])
    unlike = label(run_folder, tmp_path / "unlike", data=pictures.npz(tmp_path / "unlike.npz", classes=classes))
    assert "not known" in " ".join(unlike.summary)
    assert data.open_dataset(tmp_path / "unlike" / "pseudolabelled.npz").classes == pictures.classes


def test_a_bare_state_dict_labels_as_its_checkpoint_does(run_folder: Path, tmp_path: Path, pictures: Pictures):
    spec = models.load(run_folder).spec
    assert spec is not None
    tensors = load_file(str(run_folder / "best.safetensors"))
    torch.save({name.removeprefix("network."): tensor for name, tensor in tensors.items()}, tmp_path / "w.pt")
    given: dict[str, Any] = {"architecture": "small_cnn", "mean": spec.mean, "std": spec.std}
    source = pictures.npz(tmp_path / "x.npz", labels=None, classes=None)
    with pytest.raises(ConfigError, match="--labels"):
        label(tmp_path / "w.pt", tmp_path / "a", data=source, **given)
    (tmp_path / "names.json").write_text(json.dumps(pictures.classes))
    label(tmp_path / "w.pt", tmp_path / "a", data=source, labels=tmp_path / "names.json", **given)
    label(run_folder, tmp_path / "b", data=source)
    a, b = (data.read_pseudolabelled(tmp_path / name / "pseudolabelled.npz") for name in "ab")
    assert a.data.fingerprint == b.data.fingerprint
    assert torch.equal(a.confidence, b.confidence)


def test_what_the_reader_must_know_is_found(run_folder: Path, tmp_path: Path, pictures: Pictures):
    assert codes(label(run_folder, tmp_path, count=60)) >= {"trained-on", "test-images"}
    assert "test-images" not in codes(label(run_folder, tmp_path, part="train", count=60))
    assert "trained-on" not in codes(label(run_folder, tmp_path, part="test", count=60))
    copies = pictures.npz(tmp_path / "x.npz", images=pictures.x[:1].repeat(9, 0), labels=None, classes=None)
    found = label(run_folder, tmp_path, data=copies)
    assert "one-class" in codes(found)
    assert found.verdict == "findings"
    labels, _ = answers(run_folder, data.from_arrays(pictures.x, pictures.y))
    given = (labels != labels[0]).nonzero()[:, 0]  # as the model sees it, one class is missing
    few = pictures.npz(tmp_path / "y.npz", images=pictures.x[given], labels=pictures.y[given])
    report = label(run_folder, tmp_path, data=few)
    counts = data.open_dataset(tmp_path / "pseudolabelled.npz").counts
    (finding,) = (f for f in report.findings if f.code == "missing-classes")
    assert counts[int(labels[0])] == 0
    assert f"given {counts.count(0)} of the 10 classes" in finding.message
    assert pictures.classes[int(labels[0])] in finding.message


def _copied(run_folder: Path, tmp_path: Path, **changes: Any) -> Path:
    """A run's folder with another config."""
    folder = tmp_path / "copy"
    shutil.copytree(run_folder, folder, ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_run_without_a_report_is_labelled_with_a_warning(run_folder: Path, tmp_path: Path):
    folder = _copied(run_folder, tmp_path, unlabelled="more.npz")
    (folder / "report.json").unlink()
    found = label(folder, tmp_path / "out", part="rest", count=50)
    assert codes(found) >= {"split-unverified", "trained-on"}
    assert found.verdict == "pass"


def test_large_images_are_brought_to_the_models_size_also_in_the_file(
    run_folder: Path, tmp_path: Path, pictures: Pictures
):
    large = pictures.npz(tmp_path / "x.npz", images=pictures.x.repeat(2, 2).repeat(2, 3))
    label(run_folder, tmp_path / "out", data=large, size=28)
    found, expected = data.open_dataset(tmp_path / "out" / "pseudolabelled.npz"), data.open_dataset(large, size=28)
    assert found.size == (28, 28)
    assert torch.equal(found.batch(range(400)).x, expected.batch(range(400)).x)


def test_the_rest_of_a_source_without_parts_leaves_its_test_images_out(
    run_folder: Path, tmp_path: Path, pictures: Pictures
):
    source = pictures.npz(tmp_path / "x.npz")
    changes = {"data": source, "train_count": 200, "validation_count": 50, "test_count": 100}
    folder = _copied(run_folder, tmp_path, **changes)
    (folder / "report.json").unlink()
    label(folder, tmp_path / "out", part="rest")
    found, everything = data.open_dataset(tmp_path / "out" / "pseudolabelled.npz"), data.open_dataset(source)
    drawn = data.split(everything, None, train_count=200, validation_count=50, test_count=100, seed=0)
    assert len(found) == 50
    for part in drawn.sets.values():
        assert not pixels(part) & pixels(found)


BAD: dict[str, tuple[Callable[[Path, Path, Pictures], dict[str, Any]], type[ShaketableError], str]] = {
    "the rest of no run": (
        lambda r, t, p: {"model": shutil.copy(r / "best.safetensors", t / "m.safetensors"), "part": "rest"},
        ConfigError,
        "a run's folder",
    ),
    "no data for no run": (
        lambda r, t, p: {"model": shutil.copy(r / "best.safetensors", t / "m.safetensors")},
        ConfigError,
        "--data",
    ),
    "a run that left nothing": (
        lambda r, t, p: {"model": _unreported(_copied(r, t, train_count=None)), "part": "rest"},
        ConfigError,
        "--train-count",
    ),
    "another split than the report states": (
        lambda r, t, p: {"model": _copied(r, t, seed=1), "part": "rest"},
        DataError,
        "another train.indices",
    ),
    "other data than the report states": (
        lambda r, t, p: {"model": _copied(r, t), "part": "rest", "data": p.npz(t / "x.npz")},
        DataError,
        "another",
    ),
    "a config that is none": (
        lambda r, t, p: {"model": _with_config(_copied(r, t), "{}"), "part": "rest"},
        ConfigError,
        "5 keys missing",
    ),
    "a config that is no JSON": (
        lambda r, t, p: {"model": _with_config(_copied(r, t), "nonsense"), "part": "rest"},
        ConfigError,
        "config.json",
    ),
    "a confidence that none has": (lambda r, t, p: {"min_confidence": 1.0, "part": "test"}, ConfigError, "highest"),
    "a part that is not there": (
        lambda r, t, p: {"data": p.npz(t / "x.npz"), "part": "test"},
        DataError,
        "not divided into parts",
    ),
    "images of another size": (
        lambda r, t, p: {"data": p.npz(t / "x.npz", images=p.x[..., :20, :20])},
        InputError,
        "size",
    ),
    "labels in another order than their names": (
        lambda r, t, p: {"data": p.npz(t / "x.npz", labels=(p.y + 1) % 10)},
        ModelError,
        "above chance",
    ),
    "a size beside the rest": (lambda r, t, p: {"part": "rest", "size": 20}, ConfigError, "Leave it out"),
    "no such data": (lambda r, t, p: {"data": str(t / "nowhere")}, DataError, "does not exist"),
    "no such model": (lambda r, t, p: {"model": str(t / "nowhere.pt"), "data": "fashion-mnist"}, InputError, "nowhere"),
}


def _unreported(folder: Path) -> Path:
    (folder / "report.json").unlink()
    return folder


def _with_config(folder: Path, text: str) -> Path:
    (folder / "config.json").write_text(text)
    return folder


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_is_written(run_folder: Path, tmp_path: Path, pictures: Pictures, case: str):
    make, error, word = BAD[case]
    options = {"model": run_folder} | make(run_folder, tmp_path, pictures)
    with pytest.raises(error, match=word):
        label(options.pop("model"), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


class Breaks(nn.Module):
    """NaN for images that are bright in the corner."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x.mean((1, 2, 3)), x[:, 0, 0, 0].log()], 1)


def test_logits_that_are_not_finite_are_refused_by_the_images_number(pictures: Pictures):
    x = torch.rand(10, 1, 4, 4) + 0.1
    x[7, 0, 0, 0] = 0
    images = data.from_arrays(x.clamp(max=1), [0, 1] * 5)
    with pytest.raises(ModelError, match="image 7 of"):
        predict(Breaks(), images, device=torch.device("cpu"), batch_size=4, seed=0, advance=lambda n: None)


def test_a_model_that_draws_is_asked_from_the_seed_and_leaves_the_global_state():
    images = data.from_arrays(torch.rand(20, 1, 4, 4), [0, 1] * 10)
    noisy = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)).train()
    state = torch.get_rng_state()

    def once(seed: int) -> torch.Tensor:
        done: list[int] = []
        found = predict(noisy, images, device=torch.device("cpu"), batch_size=8, seed=seed, advance=done.append)
        assert done == [8, 8, 4]
        return found.confidence

    assert torch.equal(once(0), once(0))
    assert not torch.equal(once(0), once(1))
    assert torch.equal(torch.get_rng_state(), state)
