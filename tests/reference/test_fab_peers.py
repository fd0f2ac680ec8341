"""FAB against that of torchattacks (derived from the authors' code): the same minimum norms, image by image.

It is no dependency: `pip install --no-deps -r benchmarks/requirements.txt` brings it, without it this is skipped.
"""

import warnings

import pytest
import torch
from torch import nn

from shaketable.attacks import fab


@pytest.mark.parametrize(("norm", "theirs", "order"), [("linf", "Linf", float("inf")), ("l2", "L2", 2.0)])
def test_finds_the_norms_of_torchattacks(norm: str, theirs: str, order: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = pytest.importorskip(
            "torchattacks", reason="torchattacks is not installed: see benchmarks/requirements.txt"
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(600, 5)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)
        x = torch.rand(16, 1, 12, 12)
        y = model(x).argmax(1)
        points = peer.FAB(model, norm=theirs, eps=1e6, steps=8, n_restarts=1, n_classes=5)(x, y)
    expected = torch.linalg.vector_norm((points - x).flatten(1), order, 1)
    plain = fab(model, x, y, norm=norm, steps=8, search=0)  # pyright: ignore
    assert bool(plain.found.all())
    assert torch.allclose(plain.norms, expected, rtol=2e-3)
    searched = fab(model, x, y, norm=norm, steps=8)  # pyright: ignore
    assert bool((searched.norms <= expected * 1.0005).all())
    assert float((searched.norms / expected).mean()) < 1.0
