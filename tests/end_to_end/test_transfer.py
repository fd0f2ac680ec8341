"""`shaketable transfer` on real images and two small trained models: the same as the library, resumed, with other workers."""

import base64
import json
from pathlib import Path

import pytest
import torch

from shaketable.attacks.transfer import transfer
from shaketable.cli import main
from shaketable.data import open_dataset
from shaketable.data.decoding import image_at
from shaketable.models import load
from shaketable.report import Report, read_json, same

QUICK = [
    "--train-count", "100", "--validation-count", "20", "--test-count", "20", "--epochs", "8", "--batch-size", "10",
    "--attack", "pgd(steps=1)", "--eps", "0.01", "--evaluation", "pgd(steps=1)", "--evaluate-every", "8", "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("a", "0"), ("b", "1")):
        assert main(["train", *QUICK, "--seed", seed, "--out", str(folder / name), "--json"]) == 0
    return [str(folder / "a"), str(folder / "b")]


def arguments(runs: list[str], out: Path, *more: str) -> list[str]:
    return ["transfer", *runs, "--count", "30", "--steps", "20", "--step", "0.02", "--regions", "whole", "centre:0.3",
            "--out", str(out), "--json", *more]  # fmt: skip


def test_the_report_is_what_the_library_gives_and_is_resumed_with_other_workers(
    runs: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert main(arguments(runs, out)) == 0
    report = read_json(out / "report.json")
    cells = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*") if path.is_file()}
    next(iter(cells)).unlink()
    assert main(arguments(runs, out, "--workers", "0")) == 0
    assert same(report, read_json(out / "report.json"))
    assert sum(path.stat().st_mtime_ns != at for path, at in cells.items()) == 1

    data = open_dataset("fashion-mnist", split="test").take(_rows(report))
    batch = data.batch(range(len(data)))
    models = {Path(run).name: load(run).model for run in runs}
    found = transfer(
        models,
        batch.x,
        batch.y,
        regions={"whole": None, "centre:0.3": "centre:0.3"},
        seed=0,
        steps=20,
        step=0.02,
        batch_size=32,
    )
    tables = {table.title: table for table in report.sections[0].tables}
    for region in ("whole", "centre:0.3"):
        for oracle, title in ((False, "after the last step"), (True, "at some step")):
            shown = tables[f"{region}, {title}"].rows
            for cell, pair in ((shown[0][2], ("a", "b")), (shown[1][1], ("b", "a"))):
                rate = found.rate(*pair, region, oracle=oracle)
                assert (cell.hits, cell.n) == (rate.hits, rate.n)  # pyright: ignore
            assert shown[0][1] is None
    assert report.headline[0].value == pytest.approx(found.mean("whole").value)
    why = next(s for s in report.sections if s.title == "What it depends on").tables
    assert [t.title for t in why] == [
        "Transfer by the target's margin, %", "Transfer to each target, %", "Fooled at some step so far, %",
    ]  # fmt: skip
    assert why[1].rows[1][1].value == pytest.approx(100 * found.rate("a", "b", "whole").value)  # pyright: ignore
    assert why[2].columns[1:] == ("by step 1", "by step 2", "by step 4", "by step 10", "by step 20")
    assert why[2].rows[0][-1].value == pytest.approx(100 * found.mean("whole", oracle=True).value)  # pyright: ignore
    assert found.mean("whole").value > 0


@pytest.fixture(scope="module")
def claimed(runs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Report:
    out = tmp_path_factory.mktemp("claimed")
    assert main([*arguments(runs, out), "--seed", "3", "--claimed", "0.1"]) == 0
    return read_json(out / "report.json")


def test_examples_are_the_first_images_as_the_attack_left_them(claimed: Report, tmp_path: Path) -> None:
    section = next(s for s in claimed.sections if s.title == "Examples")
    sheet = image_at(_file(tmp_path, section.pictures[0].png), channels=1)[0]
    side, gap = 112, 4
    rows = [sheet[k * (side + gap) :][:side, :side] for k in range(5)]  # clean, then perturbed and difference, twice
    clean, whole, _, centre, _ = rows
    outside = torch.ones(side, side, dtype=torch.bool)
    outside[20:92, 20:92] = False  # the centre of 30 % and a pixel of the image more on each side
    assert torch.equal(clean[outside], centre[outside])
    assert not torch.equal(clean, centre)
    assert not torch.equal(clean[outside], whole[outside])
    verdicts = section.tables[0].rows
    assert [row[:2] for row in verdicts] == [(r, k) for r in ("whole", "centre:0.3") for k in (1, 2, 3, 4)]


def test_successes_inside_the_claimed_ball_are_reported(claimed: Report) -> None:
    section = next(s for s in claimed.sections if s.title == "Inside the claimed ball")
    for _, _, errs, inside, reached in section.tables[0].rows:
        assert inside.n == errs.hits  # pyright: ignore
        assert 0 <= inside.hits <= inside.n  # pyright: ignore
        assert reached.n <= inside.n  # pyright: ignore


def test_another_attack_in_the_same_regions(runs: list[str], tmp_path: Path) -> None:
    given = ["transfer", *runs, "--count", "30", "--regions", "whole", "centre:0.3", "--json"]
    more = ["--attack", "pgd(steps=5)", "--eps", "0.1"]
    assert main([*given, *more, "--out", str(tmp_path)]) == 0
    report = read_json(tmp_path / "report.json")
    assert "perturbed by pgd(steps=5) in a linf ball of 0.1" in report.summary[0]
    assert [t.title for t in report.sections[0].tables] == [
        "whole, after the last step",
        "centre:0.3, after the last step",
    ]
    white = next(s for s in report.sections if s.title == "In the white box").tables[0]
    assert white.columns == ("Model", "Region", "Area", "Errs", "Passes")
    assert len(next(s for s in report.sections if s.title == "What it depends on").tables) == 2
    for wrong in ([*more, "--steps", "20"], ["--eps", "0.1"]):
        with pytest.raises(SystemExit, match="2"):
            main([*given, *wrong, "--out", str(tmp_path)])


def _file(folder: Path, png: str) -> Path:
    (folder / "strip.png").write_bytes(base64.b64decode(png))
    return folder / "strip.png"


def _rows(report) -> list[int]:
    """The images that the report is about, drawn as the card says."""
    from shaketable.core import generator

    n = len(open_dataset("fashion-mnist", split="test"))
    return torch.randperm(n, generator=generator(report.config["seed"], "count"))[:30].sort().values.tolist()


@pytest.mark.parametrize(("wrong", "said"), [
    (["--regions", "middle:0.3"], "middle"),
    (["--regions", "whole", "whole"], "each once"),
    (["--steps", "0"], "steps"),
    (["--attack", "pdg"], "pgd"),
])  # fmt: skip
def test_mistakes_are_named_and_nothing_is_written(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], said: str
) -> None:
    out = tmp_path / "none"
    try:
        code = main(["transfer", *runs, "--count", "10", "--out", str(out), *wrong])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (out / "report.json").exists()


def test_one_model_is_refused(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["transfer", runs[0], "--out", str(tmp_path / "none")]) == 2
    assert "two models" in " ".join(capsys.readouterr().err.split())


def test_models_of_one_name_get_longer_ones(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copies = []
    for k, run in enumerate(runs):
        target = tmp_path / f"x{k}" / "net.safetensors"
        target.parent.mkdir()
        target.write_bytes((Path(run) / "last.safetensors").read_bytes())
        copies.append(str(target))
    capsys.readouterr()
    assert main([*arguments(copies, tmp_path / "out"), "--count", "12", "--regions", "whole"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report["hashes"]["models"]) == ["x0/net", "x1/net"]
