"""`shaketable landscape` on a small training: pictures, a run's path, and the same report after any interruption."""

import json
from pathlib import Path

import pytest
import torch

from shaketable import core as st
from shaketable import data, models
from shaketable.cli import main
from shaketable.core.measure import measure
from shaketable.report import Report, read_json, same

QUICK = [
    "--count", "32", "--eps", "0.1", "--attack", "pgd(steps=2, step=0.5)", "--threads", "1", "--workers", "0", "--json",
]  # fmt: skip


def landscape(*arguments: str) -> Report:
    out = Path(arguments[arguments.index("--out") + 1])
    assert main(["landscape", *arguments, *QUICK]) == 0
    return read_json(out / "report.json")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, run_folder: Path) -> Path:
    """The folder of a run that kept its epochs: on a bent way from an untrained net to the shared training's last one."""
    folder = tmp_path_factory.mktemp("runs") / "kept"
    last = models.load(run_folder / "last.safetensors")
    assert last.spec is not None
    (folder / "epochs").mkdir(parents=True)
    (folder / "config.json").write_bytes((run_folder / "config.json").read_bytes())
    begun, bend = models.build(last.spec, 1), models.build(last.spec, 2)
    for epoch, share, aside in ((2, 0.0, 0.0), (4, 0.6, 0.2), (6, 1.0, 0.0)):
        model = models.build(last.spec, 0)
        with torch.no_grad():
            trees = (m.parameters() for m in (model, begun, last.model, bend))
            for w, a, b, c in zip(*trees, strict=True):
                w.copy_(a + share * (b - a) + aside * (c - a))
        models.save(folder / "epochs" / f"{epoch:06d}.safetensors", model, last.spec, facts={"epoch": epoch})
    models.save(folder / "last.safetensors", last.model, last.spec, facts={"epoch": 6})
    return folder


def test_curves_of_two_models_with_the_measured_loss_in_the_middle(run: Path, run_folder: Path, tmp_path: Path):
    report = landscape(str(run), str(run_folder), "--points", "3", "--lines", "2", "--out", str(tmp_path))
    losses, accuracies = report.sections[0].charts
    assert [s.name for s in losses.series] == [
        f"{n}, {q}" for q in ("robust", "clean") for n in (run.name, run_folder.name)
    ]
    batch = data.open_dataset("fashion-mnist", split="test").batch(range(32))  # of all classes
    for k, folder in enumerate((run, run_folder)):
        found = measure(
            models.load(folder).model, batch.x, batch.y, st.Ball("linf", 0.1, box=(0.0, 1.0)), by=st.PGD(2, 0.5),
            generator=st.generator(0, "flatness starts", -1), batch_size=128,
        )  # fmt: skip
        middle = losses.series[k].y[1]
        assert middle == pytest.approx(float(found.robust_loss.double().mean()))
        assert accuracies.series[k].y[1] == float(found.robust_correct.double().mean())
        ends = losses.series[k].y[0], losses.series[k].y[2]
        assert all(end is not None and end != middle for end in ends)
    assert any(section.title == "Compared with the first model" for section in report.sections)
    assert {m.name for m in report.headline} == {
        f"{what}, {folder.name}"
        for what in ("Robust accuracy", "Rise of the robust loss")
        for folder in (run, run_folder)
    }
    assert losses.x_label == "random step; 1 is 0.5 of each layer's norm"
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    "direction", ["random", "adversarial", pytest.param("hessian(tolerance=0.01)", marks=pytest.mark.full)]
)
def test_half_of_the_ledger_lost_gives_the_same_report(run: Path, tmp_path: Path, direction: str):
    given = [str(run), "--direction", direction, "--dims", "2", "--points", "3", "--out", str(tmp_path)]
    first = landscape(*given)
    cells = sorted((tmp_path / "cells").glob("*.json"))
    stored = direction != "random"
    assert len(cells) == 9 + 1 + stored
    for path in cells[::2]:
        path.unlink()
    if stored:
        for path in (tmp_path / "directions").glob("*.safetensors"):
            path.unlink()
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").glob("*.json")}
    assert same(landscape(*given), first)
    assert all(path.stat().st_mtime_ns == before for path, before in left.items()), (
        "what was there is not measured again"
    )
    assert {path.name for path in (tmp_path / "cells").glob("*.json")} == {path.name for path in cells}
    charts = first.sections[0].charts
    assert [chart.kind for chart in charts] == ["contour", "surface", "contour", "contour"]


@pytest.mark.full
def test_in_workers_it_is_the_same_report(run: Path, tmp_path: Path):
    given = [str(run), "--direction", "adversarial", "--points", "3", "--lines", "2"]
    one = landscape(*given, "--out", str(tmp_path / "a"))
    assert main(["landscape", *given, *QUICK, "--workers", "2", "--out", str(tmp_path / "b")]) == 0
    assert same(read_json(tmp_path / "b" / "report.json"), one)


def test_a_trainings_path_goes_through_its_checkpoints(run: Path, tmp_path: Path):
    report = landscape("--trajectory", str(run), "--points", "3", "--out", str(tmp_path))
    contour = report.sections[0].charts[0]
    assert contour.path is not None
    assert contour.path.x[-1] == pytest.approx(0, abs=1e-6)
    assert contour.path.y[-1] == pytest.approx(0, abs=1e-6)
    (table,) = next(section for section in report.sections if section.title == "Along the path").tables
    assert [row[1] for row in table.rows][-1] == 6
    assert {2, 4, 6} <= {row[1] for row in table.rows}
    states = [models.load(run / "epochs" / f"{epoch:06d}.safetensors").model for epoch in (2, 6)]
    with torch.no_grad():
        apart = (
            sum(float((a - b).square().sum()) for a, b in zip(*(m.parameters() for m in states), strict=True)) ** 0.5
        )
    first = next(row for row in table.rows if row[1] == 2)
    place, off = [float(c) for c in first[2:4]], float(first[4])  # type: ignore[arg-type]
    assert sum(c * c for c in place) == pytest.approx(apart**2 * (1 - off**2), rel=1e-3)
    explained = [metric.value for metric in report.headline if metric.name.startswith("Explained")]
    assert len(explained) == 2
    files = [str(path) for path in sorted((run / "epochs").glob("*.safetensors"))]
    again = landscape("--trajectory", *files, "--dims", "1", "--points", "3", "--out", str(tmp_path / "files"))
    assert len(next(s for s in again.sections if s.title == "Along the path").tables[0].rows) == 3


def test_volumes_have_their_slices(run: Path, tmp_path: Path):
    report = landscape(str(run), "--dims", "3", "--points", "3", "--normalise", "filter", "--out", str(tmp_path))
    volume, *slices = report.sections[0].charts
    assert volume.kind == "volume"
    assert len(volume.series) * len(volume.series[0].x) == 27
    middle = volume.series[4].y[1]
    assert [chart.series[1].y[1] for chart in slices] == [middle] * 3
    assert volume.series[0].y[0] == pytest.approx(
        next(p["result"]["robust_loss"] for p in _points(tmp_path) if p["result"]["coordinates"] == [-1, -1, -1])
    )


def _points(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in (folder / "cells").glob("*.json")]


def test_a_dry_run_writes_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "none"
    assert main(["landscape", str(run), "--points", "5", "--lines", "3", "--out", str(out), *QUICK, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 16
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "models or a --trajectory"),
        (["MODEL", "--trajectory", "MODEL"], "models or a --trajectory"),
        (["MODEL", "--points", "4"], "an odd number"),
        (["MODEL", "--direction", "randm"], "random"),
        (["MODEL", "--direction", "random(xi=1)"], "an argument of random"),
        (["--trajectory", "MODEL/last.safetensors"], "more than 2 checkpoints"),
        (["MODEL", "--attack", "fgsm"], "attack"),
    ],
)
def test_bad_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str):
    given = [text.replace("MODEL", str(run)) for text in arguments]
    assert main(["landscape", *QUICK, *given, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "report.json").exists()
