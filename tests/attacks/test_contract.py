"""What every attack of `ATTACKS` must hold."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from shaketable.attacks import (
    ATTACKS,
    APGDAttack,
    Attack,
    AutoAttack,
    FABAttack,
    RegionalAttack,
    SquareAttack,
    evaluate,
)
from shaketable.core import Ball, InputError, Perturbation, generator

Make = Callable[..., Any]
NORMS = {"linf": 0.015, "l2": 0.12, "l1": 1.0, "l0": 3.0}
CHEAP: dict[str, Attack] = {  # the same attacks with less to do; any other is run as it is
    "apgd": APGDAttack(steps=6),
    "regional": RegionalAttack(steps=15, step=0.1),
    "fab": FABAttack(steps=6),
    "square": SquareAttack(queries=40),
    "autoattack": AutoAttack(
        (
            APGDAttack(steps=4),
            APGDAttack("dlr-targeted", steps=3, targets=2),
            FABAttack(targeted=True, steps=3, targets=2),
            SquareAttack(queries=15),
        )
    ),
}
attacks = pytest.mark.parametrize("name", sorted(ATTACKS))


def made(name: str) -> Any:
    return CHEAP[name] if name in CHEAP else ATTACKS[name]()


def ball(norm: Any = "linf") -> Ball:
    return Ball(norm, NORMS[norm], box=(0, 1))


@attacks
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("norm", sorted(NORMS))
def test_stays_in_ball_and_box(problem: Make, name: str, norm: Any, stop: bool) -> None:
    p = problem()
    attack = made(name).until_fooled() if stop else made(name)
    if norm not in getattr(attack, "norms", NORMS):
        with pytest.raises(InputError):
            attack(p.model, p.x, p.y, ball(norm), generator=generator(0))
        return
    found = attack(p.model, p.x, p.y, ball(norm), generator=generator(0))
    assert isinstance(found, Perturbation)
    assert found.point.min() >= 0
    assert found.point.max() <= 1
    size = ball(norm).size(found.point.double() - p.x.double(), p.x.double())
    assert bool((size <= NORMS[norm] * (1 + 1e-5)).all())
    assert not torch.equal(found.point, p.x)


@attacks
def test_same_seed_same_result_and_nothing_is_touched(problem: Make, name: str) -> None:
    p = problem()
    x, y, state = p.x.clone(), p.y.clone(), {k: v.clone() for k, v in p.model.state_dict().items()}
    random = torch.get_rng_state()
    first = made(name)(p.model, p.x, p.y, ball(), generator=generator(4))
    again = made(name)(p.model, p.x, p.y, ball(), generator=generator(4))
    assert torch.equal(first.point, again.point)
    assert torch.equal(x, p.x)
    assert torch.equal(y, p.y)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[k], v) for k, v in p.model.state_dict().items())
    assert all(w.requires_grad and w.grad is None for w in p.model.parameters())
    assert not p.model.training


@attacks
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_keeps_shape_and_dtype(problem: Make, name: str, dtype: torch.dtype) -> None:
    p = problem(1, dtype=dtype)
    found = made(name)(p.model, p.x, p.y, ball(), generator=generator(0))
    assert found.point.shape == (1, 1, 12, 12)
    assert found.point.dtype == dtype
    assert not found.point.requires_grad


@attacks
def test_an_empty_batch_gives_an_empty_result(problem: Make, name: str) -> None:
    p = problem()
    found = made(name)(p.model, p.x[:0], p.y[:0], ball(), generator=generator(0))
    assert found.point.shape == (0, 1, 12, 12)
    assert found.calls.forward == 0


@attacks
def test_nan_is_refused(problem: Make, name: str) -> None:
    p = problem()
    x = p.x.clone()
    x[3, 0, 2, 2] = float("nan")
    with pytest.raises(InputError, match="finite"):
        made(name)(p.model, x, p.y, ball(), generator=generator(0))


@attacks
def test_lowers_the_accuracy(problem: Make, name: str) -> None:
    p = problem()
    found = evaluate(p.model, p.x, p.y, within=ball(), attack=made(name), seed=0)
    assert found.robust.hits < found.clean.hits
    assert not found.findings
