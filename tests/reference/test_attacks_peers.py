"""Robust accuracy against torchattacks and Foolbox: the same budget, never above theirs by more than half a point.

They are no dependency: `pip install --no-deps -r benchmarks/requirements.txt` brings them, without them this is skipped.
"""

import warnings
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.attacks import PGDAttack, evaluate, fgsm
from shaketable.core import Ball, generator
from shaketable.data import open_dataset
from shaketable.models.architectures import small_cnn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
EPS, STEPS = 0.04, 20


def _peer(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed: see benchmarks/requirements.txt")


@dataclass(frozen=True)
class Trained:
    model: nn.Module
    x: Tensor
    y: Tensor


@pytest.fixture(scope="module")
def trained() -> Trained:
    """A CNN after two short epochs on the embedded images, and 500 test images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = small_cnn(channels=1, classes=10, size=(28, 28))
        optimiser, train = torch.optim.Adam(model.parameters(), 2e-3), open_dataset("fashion-mnist", split="train")
        for epoch in range(2):
            order = torch.randperm(len(train), generator=generator(0, "order", epoch))[:3000]
            for batch in train.batches(64, order):
                optimiser.zero_grad()
                F.cross_entropy(model(batch.x), batch.y).backward()
                optimiser.step()
    images = open_dataset("fashion-mnist").batch(range(500))
    return Trained(model.eval(), images.x, images.y)


def _ours(trained: Trained, norm: str, eps: float, step: float) -> tuple[int, int]:
    ball, attack = Ball(norm, eps, box=(0, 1)), PGDAttack(steps=STEPS, step=step)  # pyright: ignore
    found = evaluate(trained.model, trained.x, trained.y, within=ball, seed=0, attack=attack)
    assert not found.findings
    return found.clean.hits, found.robust.hits


def _survivors(trained: Trained, points: Tensor) -> int:
    with torch.no_grad():
        clean = trained.model(trained.x).argmax(1) == trained.y
        return int((clean & (trained.model(points).argmax(1) == trained.y)).sum())


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), pytest.param("l2", 0.8, marks=pytest.mark.full)])
def test_not_above_torchattacks(trained: Trained, norm: str, eps: float) -> None:
    torchattacks = _peer("torchattacks")
    kind = torchattacks.PGD if norm == "linf" else torchattacks.PGDL2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        points = kind(trained.model, eps=eps, alpha=0.25 * eps, steps=STEPS)(trained.x, trained.y)
    clean, robust = _ours(trained, norm, eps, 0.25)
    theirs = _survivors(trained, points)
    assert robust <= theirs + 0.005 * len(trained.y)
    assert robust >= theirs - 0.03 * len(trained.y)  # and the same attack: not another one that is far stronger
    assert 0.1 * clean < robust < 0.9 * clean


@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), pytest.param("l2", 0.8, marks=pytest.mark.full)])
def test_not_above_foolbox(trained: Trained, norm: str, eps: float) -> None:
    foolbox = _peer("foolbox")
    kind = foolbox.attacks.LinfPGD if norm == "linf" else foolbox.attacks.L2PGD
    with torch.random.fork_rng():
        torch.manual_seed(0)
        wrapped = foolbox.PyTorchModel(trained.model, bounds=(0, 1))
        _, points, _ = kind(rel_stepsize=0.25, steps=STEPS)(wrapped, trained.x, trained.y, epsilons=eps)
    _, robust = _ours(trained, norm, eps, 0.25)
    theirs = _survivors(trained, points)
    assert robust <= theirs + 0.005 * len(trained.y)
    assert robust >= theirs - 0.03 * len(trained.y)


def test_fgsm_is_torchattacks_fgsm(trained: Trained) -> None:
    """Deterministic, hence the same points, but where a gradient's sign hangs on rounding."""
    points = _peer("torchattacks").FGSM(trained.model, eps=EPS)(trained.x, trained.y)
    ours = fgsm(trained.model, trained.x, trained.y, eps=EPS).point
    assert ((points - ours).abs() > 1e-6).float().mean() < 1e-3
