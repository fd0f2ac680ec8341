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
from shaketable.report import read_json

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


@pytest.mark.parametrize("rounding", ["end", "loop"])
def test_the_files_are_what_is_reported_inside_ball_and_region(run_folder: str, tmp_path: Path, rounding: str) -> None:
    arguments = ["--count", "30", "--eps", "0.2", "--region", "centre:0.4", "--rounding", rounding, "--grid", "2x2"]
    assert main(["attack", run_folder, *arguments, "--out", str(tmp_path), "--json"]) == 0
    report, (x, y) = read_json(tmp_path / "report.json"), images(0, 30)
    files = sorted((tmp_path / "images").glob("*.png"))
    assert len(files) == 30
    assert [int(f.stem.rpartition("class")[2]) for f in files] == y.tolist()
    read = torch.stack([decoded(f.read_bytes(), f.name, channels=1) for f in files]) / 255
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
    assert abs(rates["png"].hits - int(fooled.sum())) <= (0 if rounding == "loop" else 1)
    assert rates["png"].hits > 0
    assert {"jpeg 95", "jpeg 75", "jpeg 50"} <= set(rates)
    weak = next(s for s in report.sections if s.title == "Where the model is weak")
    assert len(weak.charts[0].series) == 2
    assert all(p.png.startswith("iVBOR") for s in report.sections for p in s.pictures)
    assert "<img src=" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("wrong", "said"), [
    (["--grid", "4"], "ROWSxCOLUMNS"),
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
