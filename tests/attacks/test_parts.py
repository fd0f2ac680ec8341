"""An evaluation that is kept batch by batch: what was found goes on, and is what an evaluation in one go finds."""

import json
from typing import Any

import pytest
import torch
from torch import nn

from shaketable.attacks import APGDAttack, AutoAttack, Evaluation, PGDAttack, SquareAttack, curve, evaluate
from shaketable.attacks.parts import Part
from shaketable.core import Ball, InputError

BALL = Ball("linf", 0.2, box=(0.0, 1.0))
ATTACKS: dict[str, Any] = {
    "pgd": PGDAttack(steps=3),
    "ensemble": AutoAttack((APGDAttack("ce", steps=5), SquareAttack(20))),
}


class Kept:
    """In memory, as JSON text; raises at a batch as if the process had died."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.texts: dict[int, str] = {}
        self.dies_at = dies_at
        self.asked: list[int] = []

    def get(self, index: int) -> Part | None:
        return Part.of_json(json.loads(self.texts[index])) if index in self.texts else None

    def put(self, index: int, part: Part) -> None:
        if index == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append(index)
        self.texts[index] = json.dumps(part.to_json())


def subject() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(5, 16, generator=draw))
        model[1].bias.zero_()
        x = torch.rand(23, 1, 4, 4, generator=draw)
        y = model(x).argmax(1)
    y[::7] = (y[::7] + 1) % 5
    return model.eval(), x, y


def same(a: Evaluation, b: Evaluation) -> None:
    for name in ("clean_correct", "robust_correct", "clean_losses", "adversarial_losses", "sizes"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert getattr(a, name).dtype == getattr(b, name).dtype, name
    assert (a.calls, a.members, a.findings, a.measure) == (b.calls, b.members, b.findings, b.measure)


@pytest.mark.parametrize("name", ATTACKS)
def test_one_that_was_stopped_goes_on_and_ends_the_same(name: str) -> None:
    model, x, y = subject()
    options: dict[str, Any] = {"within": BALL, "seed": 5, "attack": ATTACKS[name], "batch_size": 5}
    whole = evaluate(model, x, y, **options)
    first = Kept(dies_at=3)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, x, y, **options, kept=first)
    assert first.asked == [0, 1, 2]
    first.dies_at, first.asked = None, []
    same(evaluate(model, x, y, **options, kept=first), whole)
    assert first.asked == [3, 4]  # the batches before were not attacked again
    same(evaluate(model, x, y, **options, kept=first), whole)
    assert first.asked == [3, 4]


def test_what_is_kept_is_what_is_used() -> None:
    """So that the test above cannot pass with batches that are made again."""
    model, x, y = subject()
    options: dict[str, Any] = {"within": BALL, "seed": 5, "attack": ATTACKS["pgd"], "batch_size": 5}
    kept = Kept()
    evaluate(model, x, y, **options, kept=kept)
    told = json.loads(kept.texts[2])
    told["notes"][0] += 1000
    kept.texts[2] = json.dumps(told)
    assert (
        evaluate(model, x, y, **options, kept=kept).calls.forward
        == evaluate(model, x, y, **options).calls.forward + 1000
    )


def test_losses_that_are_not_finite_come_back() -> None:
    part = Part.of_json(
        {
            "table": [[1, 0, float("nan"), float("inf"), 0.25]],
            "notes": [1, 2, 3, 0, 0, 1, 0, 0],
            "members": [["fab-t", 3, 1, 10, 20]],
            "dtypes": ["float32", "float32", "float64"],
        }
    )
    again = Part.of_json(part.to_json())
    assert again.clean_loss.isnan().all()
    assert again.adversarial_loss.isinf().all()
    assert (again.clean.item(), again.robust.item(), again.size.item()) == (True, False, 0.25)
    assert (again.calls, again.counts, again.members) == (part.calls, part.counts, part.members)
    assert again.clean_loss.dtype == torch.float32


def test_a_curve_keeps_each_radius_apart() -> None:
    model, x, y = subject()
    stores: dict[tuple[float, ...], Kept] = {}

    def kept(radii: tuple[float, ...]) -> Kept:
        return stores.setdefault(radii, Kept())

    options: dict[str, Any] = {"within": BALL, "seed": 5, "attack": ATTACKS["pgd"], "batch_size": 5}
    first = curve(model, x, y, radii=(0.0, 0.05, 0.1), **options, kept=kept)
    assert list(stores) == [(0.0,), (0.0, 0.05), (0.0, 0.05, 0.1)]
    again = curve(model, x, y, radii=(0.0, 0.05, 0.1), **options, kept=kept)
    assert torch.equal(first.robust, again.robust)
    assert first.calls == again.calls
    assert torch.equal(first.robust, curve(model, x, y, radii=(0.0, 0.05, 0.1), **options).robust)


def test_points_are_not_kept() -> None:
    model, x, y = subject()
    with pytest.raises(InputError, match="points"):
        evaluate(model, x, y, within=BALL, seed=0, points=True, kept=Kept())
