"""A search in bfloat16: what counts is what fools the model itself, and the difference is measured."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaketable.attacks import AutoAttack, FABAttack, PGDAttack, SquareAttack, evaluate
from shaketable.attacks.half import HalfSearch, compared
from shaketable.core import Ball, Calls, Flags, InputError, Perturbation, generator

BALL = Ball("linf", 0.1, box=(0.0, 1.0))
ATTACKS: tuple[Any, ...] = (
    PGDAttack(steps=5),
    FABAttack(steps=5, targeted=True, targets=3),
    SquareAttack(30),
    AutoAttack((PGDAttack(steps=3), SquareAttack(20))),
)


@pytest.fixture(scope="module")
def subject() -> tuple[nn.Module, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(72, 10),
        )  # fmt: skip
    x = torch.rand(40, 1, 8, 8, generator=draw)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    return model, x, y


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_every_success_fools_the_model_itself(subject: tuple[nn.Module, Tensor, Tensor], attack: Any) -> None:
    model, x, y = subject
    found = HalfSearch(attack).until_fooled()(model, x, y, BALL, generator=generator(0))
    with torch.no_grad():
        given = model(found.point).argmax(1)
    assert found.flags.stopped.any()
    assert bool((given != y)[found.flags.stopped].all())
    assert float(BALL.size(found.point - x, x).max()) <= 0.1 + 1e-6  # pyright: ignore
    done = evaluate(model, x, y, within=BALL, seed=0, attack=HalfSearch(attack))
    assert not done.findings
    assert abs(done.robust.value - evaluate(model, x, y, within=BALL, seed=0, attack=attack).robust.value) <= 0.1


@dataclass(frozen=True)
class Lying:
    """Calls all images of which it is asked fooled: rightly on the model itself, by a wrong class pixel; else not at all."""

    seen: list[int]

    def until_fooled(self) -> "Lying":
        return self

    def __call__(self, model: Any, x: Tensor, y: Tensor, within: Ball, *, generator: torch.Generator) -> Perturbation:
        self.seen.append(len(x))
        honest = isinstance(model, nn.Module)
        point = 1 - x if honest else x.clone()
        on, off = torch.ones(len(x), dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
        return Perturbation(
            x, point - x, point, None, (point - x).flatten(1).abs().amax(1), Calls(len(x)), Flags(off, off, on)
        )


def test_what_bfloat16_alone_calls_fooled_is_attacked_again() -> None:
    """The model sees the sign of the first pixel; the first search changes nothing and says that it has won."""

    class Sign(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = x[:, 0, 0, 0] - 0.5
            return torch.stack((first, -first), 1)

    model, x = Sign(), torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(1)
    y[2] = 1 - y[2]  # wrong as it is, so fooled without a change
    attack = Lying([])
    found = HalfSearch(attack)(model, x, y, Ball("linf", 1.0, box=(0, 1)), generator=generator(0))
    assert attack.seen == [6, 5]
    assert found.unconfirmed.tolist() == [True, True, False, True, True, True]
    assert found.flags.stopped.all()
    assert torch.equal(found.point[2], x[2])
    assert torch.equal(found.point[3], 1 - x[3])
    assert found.calls == Calls(6 + 6 + 5)


def test_the_difference_is_measured(subject: tuple[nn.Module, Tensor, Tensor]) -> None:
    model, x, y = subject
    found = compared(model, x, y, within=BALL, attack=PGDAttack(steps=5), seed=0)
    full = evaluate(model, x, y, within=BALL, attack=PGDAttack(steps=5), seed=0)
    half = evaluate(model, x, y, within=BALL, attack=HalfSearch(PGDAttack(steps=5)), seed=0)
    assert (found.full, found.half) == (full.robust, half.robust)
    assert found.differ == int((full.robust_correct != half.robust_correct).sum())
    assert f"on {len(x)} images" in str(found)


@pytest.mark.parametrize("model", [lambda x: x.flatten(1), nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()])
def test_a_model_without_float32_weights_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="float32"):
        HalfSearch(PGDAttack())(
            model, torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.long), BALL, generator=generator(0)
        )
