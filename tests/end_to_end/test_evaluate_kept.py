"""`shaketable evaluate` goes on where it was stopped; searches in bfloat16; looks at an attack of one's own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from shaketable.cli import main
from shaketable.data import open_dataset
from shaketable.jobs.config import EvaluateConfig
from shaketable.jobs.evaluate_kept import keeper_of
from shaketable.jobs.ground import Ground
from shaketable.models import load
from shaketable.report import Report, read_json, same

OWN = """
from dataclasses import dataclass, replace
from pathlib import Path

from shaketable.attacks import PGDAttack

LOG, LAST = Path({log!r}), Path({last!r})


@dataclass(frozen=True)
class Own:
    norms = ("linf",)
    inner: PGDAttack = PGDAttack(steps=3)

    def until_fooled(self):
        return replace(self, inner=self.inner.until_fooled())

    def __call__(self, model, x, y, within, *, generator):
        if x.shape[-1] == 28:  # an image of the evaluation, not of the conformance suite
            LOG.write_text(LOG.read_text() + "batch\\n")
            if LAST.exists() and LOG.read_text().count("batch") > int(LAST.read_text()):
                raise KeyboardInterrupt
        return self.inner(model, x, y, within, generator=generator)


class Bad(Own):
    def __call__(self, model, x, y, within, *, generator):
        found = self.inner(model, x, y, within, generator=generator)
        return replace(found, calls=found.calls + found.calls)
"""


@pytest.fixture(scope="module")
def model(run_folder: Path) -> str:
    return str(run_folder)


def evaluate(model: str, out: Path, *more: str) -> int:
    given = ["--count", "100", "--eps", "0.02,0.05", "--batch-size", "25", "--no-lints", "--threads", "1"]
    return main(["evaluate", model, *given, "--out", str(out), "--json", *more])


def evaluated(model: str, out: Path, *more: str, code: int = 0) -> Report:
    assert evaluate(model, out, *more) == code
    return read_json(out / "report.json")


def test_one_that_was_stopped_goes_on_and_ends_the_same(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, log, last, out = (tmp_path / name for name in ("own.py", "log", "last", "out"))
    code.write_text(OWN.format(log=str(log), last=str(last)))

    def batches() -> int:
        """How many were attacked since it was asked last."""
        count = log.read_text().count("batch") if log.exists() else 0
        log.write_text("")
        return count

    batches()
    whole = evaluated(model, tmp_path / "whole", "--attack", f"{code}:Own")
    of_all = batches()
    assert of_all >= 6  # four at the first radius
    last.write_text("5")
    assert evaluate(model, out, "--attack", f"{code}:Own") == 130
    said = "".join(capsys.readouterr().err.split("\n"))
    assert f"stopped: Stopped; finished batches are kept in {out}: run it again to go on." in said
    assert batches() == 6
    assert not (out / "report.json").exists()
    last.unlink()
    found = evaluated(model, out, "--attack", f"{code}:Own")
    assert batches() == of_all - 5
    assert found.volatile.extra["batches kept from before"] == 5
    assert same(found.model_copy(update={"command": whole.command}), whole)
    evaluated(model, out, "--attack", f"{code}:Own")
    assert batches() == 0


def test_batches_of_another_evaluation_are_never_taken(model: str, tmp_path: Path) -> None:
    def key(text: str = "own.py:Own", code: str = "a = 1", **options: Any) -> str:
        (tmp_path / "own.py").write_text(code)
        config = EvaluateConfig(model=model, attack=str(tmp_path / text), out=tmp_path, **options)
        keeper = keeper_of(config, loaded, data, Ground(torch.device("cpu")))
        assert keeper is not None
        return keeper.cell(radii, index).key

    loaded, data, radii, index = load(model), open_dataset("fashion-mnist").take(range(20)), (0.1,), 0
    first = key()
    assert key() == first
    options: list[dict[str, Any]] = [
        {"seed": 1}, {"batch_size": 40}, {"region": "centre:0.5"}, {"search": "bfloat16"}, {"norm": "l2"}, {"code": "a = 2"},
        {"text": "own.py:Own(steps=2)"},
    ]  # fmt: skip
    others = [key(**given) for given in options]
    radii = (0.05, 0.1)
    others.append(key())
    radii, index = (0.1,), 1
    others.append(key())
    index, data = 0, data.take(range(19))
    others.append(key())
    assert len({first, *others}) == len(others) + 1
    nothing = EvaluateConfig.model_validate({"model": model, "attack": "some.module:Own", "out": tmp_path})
    assert keeper_of(nothing, loaded, data, Ground(torch.device("cpu"))) is None  # code without a hash


def test_a_search_in_bfloat16_says_how_far_it_is_from_float32(model: str, tmp_path: Path) -> None:
    report = evaluated(model, tmp_path, "--search", "bfloat16", "--attack", "pgd(steps=3)")
    (said,) = [line for line in report.summary if "bfloat16" in line]
    assert "on 100 images" in said
    assert "verdicts differ" in said
    assert not report.findings


def test_an_attack_that_does_not_keep_to_the_interface_is_a_finding(model: str, tmp_path: Path) -> None:
    code = tmp_path / "misfit.py"
    code.write_text(OWN.format(log=str(tmp_path / "log"), last=str(tmp_path / "last")))
    (tmp_path / "log").write_text("")
    report = evaluated(model, tmp_path / "out", "--attack", f"{code}:Bad", "--strict", code=1)
    (finding,) = [f for f in report.findings if f.code == "conformance"]
    assert "counts its passes" in finding.message
    fine = evaluated(model, tmp_path / "fine", "--attack", f"{code}:Own")
    assert not [f for f in fine.findings if f.code == "conformance"]


def test_an_error_in_an_own_attack_names_its_file_and_line(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "raises.py"
    code.write_text(
        "def make():\n    def attack(model, x, y, within, *, generator):\n        raise ValueError('boo')\n    return attack\n"
    )
    assert evaluate(model, tmp_path / "out", "--attack", f"{code}:make") == 2
    said = capsys.readouterr().err
    assert f"error: ValueError: boo. It came through {code}, line 3; --debug shows where." in said.replace("\n", "")
    assert "defect" not in said
