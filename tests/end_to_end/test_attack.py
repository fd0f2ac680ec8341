"""`shaketable attack` on real images: files that fool when read again, regions kept to the bit, a map of weak cells."""

from pathlib import Path

import pytest
import torch

from shaketable.attacks.eight_bit import rounded
from shaketable.cli import main
from shaketable.core import generator
from shaketable.data import open_dataset
from shaketable.data.decoding import decoded
from shaketable.models import load
from shaketable.report import Metric, Report, Section, read_json

QUICK = [
    "--train-count", "100", "--validation-count", "20", "--test-count", "20", "--epochs", "8", "--batch-size", "10",
    "--attack", "pgd(steps=1)", "--eps", "0.01", "--evaluation", "pgd(steps=1)", "--evaluate-every", "8", "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "at"
    assert main(["train", *QUICK, "--out", str(folder), "--json"]) == 0
    return str(folder)


def images(seed: int, count: int):
    data = open_dataset("fashion-mnist", split="test")
    rows = torch.randperm(len(data), generator=generator(seed, "count"))[:count].sort().values
    batch = data.take(rows).batch(range(count))
    return rounded(batch.x), batch.y


def files_of(folder: Path, form: str, y: torch.Tensor) -> torch.Tensor:
    """All files there are, read again."""
    files = sorted((folder / "images").iterdir())
    assert [f.name for f in files] == [f"{k:05d}_class{label}.{form}" for k, label in enumerate(y.tolist())]
    return torch.stack([decoded(f.read_bytes(), f.name, channels=1) for f in files]) / 255


def metric(report: Report, name: str) -> Metric:
    return next(m for section in (report, *report.sections) for m in metrics_of(section) if m.name == name)


def metrics_of(part: Report | Section) -> tuple[Metric, ...]:
    return part.headline if isinstance(part, Report) else part.metrics


@pytest.mark.parametrize("rounding", ["end", "loop"])
def test_the_files_are_what_is_reported_inside_ball_and_region(run_folder: str, tmp_path: Path, rounding: str) -> None:
    arguments = ["--count", "30", "--eps", "0.2", "--region", "centre:0.4", "--rounding", rounding, "--grid", "2x2"]
    assert main(["attack", run_folder, *arguments, "--out", str(tmp_path), "--json"]) == 0
    report, (x, y) = read_json(tmp_path / "report.json"), images(0, 30)
    read = files_of(tmp_path, "png", y)
    assert float((read - x).abs().max()) <= 0.2 + 1e-6
    mask = torch.zeros(28, 28, dtype=torch.bool)
    side = round((0.4 * 784) ** 0.5)
    low = (28 - side) // 2
    mask[low : low + side, low : low + side] = True
    assert torch.equal(read[..., ~mask], x[..., ~mask])
    model = load(run_folder).model
    with torch.no_grad():
        right = model(x).argmax(1) == y
        fooled = right & (model(read).argmax(1) != y)
    table = next(s for s in report.sections if s.title == "What survives saving").tables[0]
    rates = {row[0]: row[1] for row in table.rows}
    assert rates["png"].n == int(right.sum())
    assert rates["png"].hits == int(fooled.sum()) > 0
    assert metric(report, "Success after saving").value == rates["png"].value
    largest = (read - x)[fooled].double().abs().amax((1, 2, 3)).mean()
    assert metric(report, "Linf").value == pytest.approx(float(largest), abs=1e-6)
    assert {"jpeg 95", "jpeg 75", "jpeg 50"} <= set(rates)
    weak = next(s for s in report.sections if s.title == "Where the model is weak")
    assert len(weak.charts[0].series) == 2
    assert all(p.png.startswith("iVBOR") for s in report.sections for p in s.pictures)
    assert "<img src=" in (tmp_path / "report.html").read_text()


def test_of_jpeg_files_all_that_is_said_is_of_the_files(run_folder: str, tmp_path: Path) -> None:
    """They leave ball and region; and an earlier attack's files do not stay among them."""
    arguments = ["attack", run_folder, "--eps", "0.2", "--region", "centre:0.4", "--out", str(tmp_path), "--json"]
    assert main([*arguments, "--count", "14"]) == 0
    assert main([*arguments, "--count", "12", "--save", "jpeg", "--quality", "60"]) == 0
    report, (x, y) = read_json(tmp_path / "report.json"), images(0, 12)
    read, model = files_of(tmp_path, "jpeg", y), load(run_folder).model
    with torch.no_grad():
        right = model(x).argmax(1) == y
        fooled = right & (model(read).argmax(1) != y)
    kept = metric(report, "Success after saving")
    assert (kept.value, kept.n) == (int(fooled.sum()) / int(right.sum()), int(right.sum()))
    assert metric(report, "Linf").value == pytest.approx(
        float((read - x)[fooled].abs().amax((1, 2, 3)).double().mean()), abs=1e-6
    )
    text = next(s for s in report.sections if s.title == "Success and size").text
    outside = int(((read - x).abs().amax((1, 2, 3)) > 0.2 + 1e-6).sum())
    assert f"{outside} of 12 files lie outside the ball" in text
    assert "12 differ outside the region" in text
    assert "to the bit" not in text


@pytest.mark.parametrize(("wrong", "said"), [
    (["--grid", "4"], "ROWSxCOLUMNS"),
    (["--grid", "40x2"], "at most 28x28 cells"),
    (["--lints"], "--lints"),
    (["--eps", "0.1,0.2"], "one radius"),
    (["--region", "middel:0.2"], "middel"),
    (["--quality", "99"], "quality"),
])  # fmt: skip
def test_mistakes_are_named_and_nothing_is_written(
    run_folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], said: str
) -> None:
    out = tmp_path / "none"
    try:
        code = main(["attack", run_folder, "--count", "4", "--out", str(out), *wrong])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (out / "report.json").exists()
