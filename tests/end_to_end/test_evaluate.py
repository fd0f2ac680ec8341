"""`shaketable evaluate` on real images."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shaketable import attacks, data, models
from shaketable import core as st
from shaketable.cli import main
from shaketable.report import read_json, same


def evaluate(*arguments: str) -> int:
    """Without lints, which test_evaluate_lints.py is about."""
    return main(["evaluate", *arguments, "--threads", "1", "--no-lints", "--json"])


def test_the_report_equals_the_library_and_a_plain_recount(run_folder: Path, tmp_path: Path):
    assert evaluate(str(run_folder), "--eps", "0.1", "--attack", "pgd(steps=5)", "--out", str(tmp_path)) == 0
    reported = {m.name: m for m in read_json(tmp_path / "report.json").headline}
    model, images = models.load(run_folder).model, data.open_dataset("fashion-mnist", split="test")
    ball = st.Ball("linf", 0.1, box=(0.0, 1.0))
    found = attacks.evaluate(model, images, within=ball, attack=attacks.PGDAttack(steps=5), seed=0, points=True)
    batch = images.batch(range(len(images)))
    assert found.points is not None
    with torch.no_grad():
        right = (model(batch.x).argmax(1) == batch.y) & (model(found.points).argmax(1) == batch.y)
    assert reported["Robust accuracy"].hits == int(right.sum())
    assert float((found.points - batch.x).abs().max()) <= 0.1 + 1e-7


def test_twice_the_same_is_the_same_report(run_folder: Path, tmp_path: Path):
    for name in ("a", "b"):
        assert evaluate(str(run_folder), "--eps", "0.1", "--count", "200", "--out", str(tmp_path / name)) == 0
    assert same(read_json(tmp_path / "a" / "report.json"), read_json(tmp_path / "b" / "report.json"))


def test_more_eps_is_less_accuracy_and_none_is_the_clean_one(run_folder: Path, tmp_path: Path):
    robust = []
    for eps in ("0", "4/255", "0.1", "0.3"):
        assert evaluate(str(run_folder), "--eps", eps, "--count", "300", "--out", str(tmp_path)) == 0
        rates = {m.name: m.hits for m in read_json(tmp_path / "report.json").headline}
        robust.append(rates["Robust accuracy"])
    assert robust == sorted(robust, reverse=True)
    assert robust[0] == rates["Clean accuracy"]
    assert robust[-1] < robust[0] / 2


@pytest.mark.parametrize("norm", ["l2", "l1", "l0"])
def test_every_norm_attacks(run_folder: Path, tmp_path: Path, norm: str):
    eps = {"l2": "1.5", "l1": "12", "l0": "30"}[norm]
    assert evaluate(str(run_folder), "--norm", norm, "--eps", eps, "--count", "100", "--out", str(tmp_path)) == 0
    rates = {m.name: m.hits for m in read_json(tmp_path / "report.json").headline}
    assert rates["Robust accuracy"] < rates["Clean accuracy"]


def test_a_bare_state_dict_evaluates_as_its_checkpoint_does(run_folder: Path, tmp_path: Path):
    loaded = models.load(run_folder)
    assert loaded.spec is not None
    tensors = load_file(str(run_folder / "best.safetensors"))
    torch.save(
        {f"module.{name.removeprefix('network.')}": tensor for name, tensor in tensors.items()}, tmp_path / "w.pt"
    )
    given = [
        "--architecture", "small_cnn", "--mean", str(loaded.spec.mean[0]), "--std", str(loaded.spec.std[0]),
    ]  # fmt: skip
    common = ["--eps", "0.1", "--count", "200"]
    assert evaluate(str(tmp_path / "w.pt"), *given, *common, "--out", str(tmp_path / "a")) == 0
    assert evaluate(str(run_folder), *common, "--out", str(tmp_path / "b")) == 0
    a, b = (read_json(tmp_path / name / "report.json") for name in "ab")
    assert [(m.name, m.hits) for m in a.headline] == [(m.name, m.hits) for m in b.headline]


BLIND = """
import torch
from shaketable import models

class Rounded(torch.nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
    def forward(self, x):
        return self.inner((x * 4).round() / 4)

def blind():
    return Rounded(models.load({path!r}).model).eval()

def idle(model, x, y, within, *, generator):
    from shaketable import PGD, ce, perturb
    return perturb(ce(model, y), x, within, by=PGD(steps=0))
"""


def test_a_defence_without_gradients_is_a_finding_and_with_strict_exit_code_1(run_folder: Path, tmp_path: Path):
    (tmp_path / "blind.py").write_text(BLIND.format(path=str(run_folder)))
    model = f"{tmp_path}/blind.py:blind"
    arguments = [model, "--eps", "0.1", "--count", "100", "--out", str(tmp_path / "out")]
    assert evaluate(*arguments) == 0
    report = read_json(tmp_path / "out" / "report.json")
    assert report.verdict == "findings"
    assert any("gradient" in finding.code for finding in report.findings)
    assert evaluate(*arguments, "--strict") == 1


def test_a_users_own_attack_runs_and_one_that_does_nothing_leaves_the_clean_accuracy(run_folder: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text(BLIND.format(path=str(run_folder)))
    attack = f"{tmp_path}/mine.py:idle"
    # A function that is the attack itself, not one that makes it, is given as a call that returns it.
    (tmp_path / "made.py").write_text(
        f"from shaketable.plugins import load\ndef idle():\n    return load({attack!r}, 'a')\n"
    )
    made = f"{tmp_path}/made.py:idle"
    assert evaluate(str(run_folder), "--attack", made, "--count", "100", "--out", str(tmp_path / "out")) == 0
    rates = {m.name: m.hits for m in read_json(tmp_path / "out" / "report.json").headline}
    assert rates["Robust accuracy"] == rates["Clean accuracy"]


def test_json_on_standard_output_is_the_report(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate(str(run_folder), "--count", "50", "--out", str(tmp_path)) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "report.json").read_text())
