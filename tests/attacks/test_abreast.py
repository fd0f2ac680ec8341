"""Attacks on several classes at once find what they find on one after the other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable.attacks import targets
from shaketable.attacks.apgd import APGDAttack
from shaketable.attacks.fab import FABAttack
from shaketable.attacks.targets import ENTRIES, abreast
from shaketable.core import Ball, generator

Make = Callable[..., Any]
ATTACKS = {
    "apgd-t": APGDAttack("dlr-targeted", steps=12),
    "apgd-t, two restarts": APGDAttack("dlr-targeted", steps=8, restarts=2),
    "fab-t": FABAttack(targeted=True, steps=8),
}
balls = pytest.mark.parametrize(("norm", "eps"), [("linf", 0.015), ("l2", 0.12), ("l1", 1.0)])
attacks = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


class Seen:
    """A model that remembers how many images each pass had."""

    def __init__(self, model: Any) -> None:
        self.model, self.passes = model, list[int]()

    def __call__(self, z: Tensor) -> Tensor:
        self.passes.append(len(z))
        return self.model(z)


def both(attack: Any, p: Any, norm: Any, eps: float, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is found on all classes at once, and on one after the other; with the passes of each."""
    half, found = torch.zeros(12, 12), []
    half[:, 4:] = 1
    radius = eps * torch.linspace(0.5, 1.5, len(p.x), dtype=p.x.dtype)
    for entries in (ENTRIES, 1):
        monkeypatch.setattr(targets, "ENTRIES", entries)
        model = Seen(p.model)
        found.append(
            (attack(model, p.x, p.y, Ball(norm, radius, box=(0, 1), mask=half), generator=generator(1)), model)
        )
    return found


@balls
@attacks
def test_finds_the_same_points(
    problem: Make, attack: Any, norm: Any, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    (once, many), (each, single) = both(attack, problem(20, dtype=torch.float64), norm, eps, monkeypatch)
    assert torch.allclose(once.point, each.point, atol=1e-9)
    assert once.calls == each.calls
    for flag in ("vanishing", "nonfinite", "stopped"):
        assert torch.equal(getattr(once.flags, flag), getattr(each.flags, flag))
    if once.value is not None:
        assert torch.allclose(once.value, each.value, atol=1e-9)
    assert sum(many.passes) == once.calls.forward
    assert len(many.passes) < len(single.passes)


@balls
@attacks
def test_an_image_is_dropped_in_all_its_runs(
    problem: Make, attack: Any, norm: Any, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = problem(20, dtype=torch.float64)
    (once, many), (each, _) = both(attack.until_fooled(), p, norm, eps, monkeypatch)
    fooled = once.flags.stopped
    assert torch.equal(fooled, each.flags.stopped)
    assert torch.equal(fooled, p.model(once.point).argmax(1) != p.y)
    assert 0 < int(fooled.sum()) < 20
    assert sum(many.passes) == once.calls.forward
    right = int((p.model(p.x).argmax(1) == p.y).sum())
    assert once.calls.backward < _most(attack, right)
    assert once.calls.backward >= _most(attack, int((~fooled).sum()))


def _most(attack: Any, images: int) -> int:
    """Backward passes to so many images of four classes, if none is fooled."""
    return images * 3 * attack.restarts * attack.steps


def test_as_many_classes_as_have_room() -> None:
    image = torch.zeros(1, 28, 28)
    assert abreast(image, 24) == 6
    assert abreast(image, 24) * 24 * 784 <= ENTRIES
    assert abreast(image, 100) == abreast(torch.zeros(3, 224, 224), 1) == 1
