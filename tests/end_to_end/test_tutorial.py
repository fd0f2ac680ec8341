"""The tutorial's own loss: its file, its study and its page, which must say what is there."""

import hashlib
import importlib.util
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import shaketable as st
from shaketable.cli import _parse, main
from shaketable.jobs.study.recipe import cells_of, read
from shaketable.jobs.train_config import TrainConfig
from shaketable.jobs.train_plan import plan_of
from shaketable.plugins import load
from shaketable.report import read_json

ROOT = Path(__file__).parents[2]
FILE, RECIPE, PAGE = (
    ROOT / name for name in ("examples/own_loss.py", "examples/own_loss.toml", "docs/tutorial-own-loss.md")
)
SMALL = [
    "--train-count", "60", "--validation-count", "0", "--select", "last", "--test-count", "40", "--eps", "0.1", "--epochs",
    "1", "--batch-size", "20", "--attack", "pgd(steps=2, step=1.0)", "--evaluation", "pgd(steps=2)", "--threads", "1",
]  # fmt: skip
OWN = "examples/own_loss.py:ALP(beta=2.0)"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def alp() -> Any:
    return load("examples/own_loss.py:ALP", "loss")


@pytest.fixture
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def network() -> nn.Module:
    """Three classes, a BatchNorm, float64, from a fixed seed without the global random state."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source, dtype=torch.float64))
    return model.train()


def images(n: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    x = torch.rand(n, 3, 2, 2, generator=source, dtype=torch.float64)
    noise = torch.rand(x.shape, generator=source, dtype=torch.float64)
    return x, (x + 0.1 * noise).clamp(0, 1), torch.arange(n) % 3


def by_hand(model: nn.Module, x: Tensor, adversarial: Tensor, targets: list[list[float]], beta: float) -> float:
    """Numbers alone: mean over 2 n images of -sum_k t_k log p_k, and beta times the mean over n K logits of (a - b)^2."""
    logits = model(torch.cat([x, adversarial])).tolist()
    n, classes, ce = len(x), len(logits[0]), 0.0
    for row, target in zip(logits, targets + targets, strict=True):
        total = math.log(sum(math.exp(z) for z in row))
        ce -= sum(t * (z - total) for z, t in zip(row, target, strict=True)) / (2 * n)
    pairs = zip(logits[:n], logits[n:], strict=True)
    apart = sum((a - b) ** 2 for clean, attacked in pairs for a, b in zip(clean, attacked, strict=True))
    return ce + beta * apart / (n * classes)


def test_the_file_has_at_most_40_lines() -> None:
    assert len(FILE.read_text(encoding="utf-8").splitlines()) <= 40


def test_the_page_shows_the_file_as_it_is(page: str) -> None:
    assert blocks(page, "python")[0] == FILE.read_text(encoding="utf-8")


def test_the_pages_test_passes(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "test_own_loss.py"
    path.write_text(blocks(page, "python")[1])
    monkeypatch.syspath_prepend(str(FILE.parent))
    found = {name: value for name, value in vars(_module(path)).items() if name.startswith("test_")}
    assert found
    for test in found.values():
        test()


def test_every_command_of_the_page_can_be_given(page: str) -> None:
    lines = [line.strip() for line in page.splitlines() if line.startswith("    shaketable ")]
    verbs = [shlex.split(line)[1] for line in lines]
    assert {"train", "study", "evaluate"} <= set(verbs)
    for line, verb in zip(lines, verbs, strict=True):
        _, config = _parse(verb, shlex.split(line)[2:])
        if isinstance(config, TrainConfig):
            plan_of(config)


def test_the_study_is_the_own_loss_and_trades_with_and_without_awp() -> None:
    recipe = read(RECIPE)
    cells = cells_of(recipe)
    plans = {name: plan_of(TrainConfig.model_validate(dict(cell.options))) for name, cell in cells.items()}
    kinds = {name: (type(plan.loss).__name__, plan.weights) for name, plan in plans.items()}
    assert kinds == {
        "alp": ("ALP", None), "alp-awp": ("ALP", st.training.awp(0.01, warmup=5)),
        "trades": ("TRADES", None), "trades-awp": ("TRADES", st.training.awp(0.005, warmup=5)),
    }  # fmt: skip
    assert len(recipe.seeds) == 3


def test_the_pages_table_is_what_the_study_recorded(page: str) -> None:
    record = json.loads((ROOT / "studies/own-loss/study.json").read_text(encoding="utf-8"))
    means = [cell["means"] for cell in record["cells"].values()]
    means += [comparison["differences"] for comparison in record["comparisons"]]
    rows = [line.split("|")[2:6] for line in page.splitlines() if re.match(r"\| .* \[.*\[", line)]
    assert len(rows) == len(means) == 8
    for row, found in zip(rows, means, strict=True):
        for text, key in zip(row, ("robust_last", "clean_last", "loss_last", "gap"), strict=True):
            shown = re.findall(r"[-+]?\d*\.\d+", text)
            ends = [found[key][name] for name in ("value", "low", "high")]
            assert [f"{end:.{len(s.partition('.')[2])}f}" for end, s in zip(ends, shown, strict=True)] == [
                f"{float(s):.{len(s.partition('.')[2])}f}" for s in shown
            ]
    bold = [ends["low"] > 0 or ends["high"] < 0 for d in means[4:] for ends in d.values() if "seeds" in ends]
    assert sum(bold) == sum("**" in text for row in rows for text in row) == 2
    assert record["recipe"]["sha256"] == hashlib.sha256(RECIPE.read_bytes()).hexdigest()


def test_it_trains_on_the_command_line_with_and_without_awp(tmp_path: Path) -> None:
    weights = {}
    for name in ("none", "awp(gamma=0.01)"):
        out = tmp_path / name[:3]
        assert main(["train", *SMALL, "--loss", OWN, "--weights", name, "--out", str(out), "--json"]) == 0
        report = read_json(out / "report.json")
        assert (report.config["loss"], report.config["weights"]) == (OWN, name)
        weights[name] = report.hashes.models["last"]
    assert weights["none"] != weights["awp(gamma=0.01)"]


def test_a_loss_without_all_members_is_refused_as_the_page_says(
    page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    cut = next(k for k, line in enumerate(lines) if line.startswith("    def weights"))
    (tmp_path / "cut.py").write_text("\n".join(lines[:cut]))
    assert main(["train", *SMALL, "--loss", f"{tmp_path}/cut.py:ALP", "--out", str(tmp_path / "run")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("error: loss: expected what shaketable.training.RobustLoss describes, found ALP without")
    assert error in " ".join(page.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("beta", [0.0, 0.5, 3.0])
def test_outer_is_the_formula_in_float64(alp: Any, beta: float) -> None:
    (x, adversarial, y), loss = images(), alp(beta=beta)
    one_hot = torch.eye(3, dtype=torch.float64)[y]
    smooth = 0.9 * one_hot + 0.1 / 3
    for target, rows in ((y, one_hot), (smooth, smooth)):
        expected = by_hand(network(), x, adversarial, rows.tolist(), beta)
        assert float(loss.outer(network(), x, adversarial, target).detach()) == pytest.approx(expected, rel=1e-12)


def test_weights_is_outer_with_its_gradient_by_differences(alp: Any) -> None:
    (x, adversarial, y), model, h = images(), network(), 1e-5
    objective = alp().weights(model, x, adversarial, y)
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    value = objective(w)
    assert value.tolist() == pytest.approx([alp().outer(model, x, adversarial, y).tolist()], rel=1e-12)
    slopes = dict(zip(w, torch.autograd.grad(value.sum(), list(w.values())), strict=True))
    for name in ("1.weight", "4.weight", "4.bias"):
        direction = torch.randn(w[name].shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        up, down = (objective({**w, name: w[name] + s * h * direction}).tolist()[0] for s in (1, -1))
        assert (up - down) / (2 * h) == pytest.approx((slopes[name] * direction).sum().tolist(), rel=1e-6)


def test_the_attack_raises_the_cross_entropy_of_each_example(alp: Any) -> None:
    (_, adversarial, y), model = images(), network().eval()
    rows = torch.tensor([4, 1])
    logs = model(adversarial[rows]).log_softmax(1).tolist()
    expected = [-log[k] for log, k in zip(logs, y[rows].tolist(), strict=True)]
    assert alp().inner(model, adversarial, y)(adversarial[rows], rows).tolist() == pytest.approx(expected, rel=1e-12)


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
