"""Robust accuracy over radii: the worst case over all smaller ones, with no work on what has fallen."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from shaketable.attacks import PGDAttack, curve, evaluate
from shaketable.core import Ball, InputError

Make = Callable[..., Any]
WITHIN, RADII = Ball("linf", 0.0, box=(0, 1)), (0.0, 0.005, 0.01, 0.02)


def test_it_is_the_worst_case_of_evaluations_at_all_smaller_radii(problem: Make) -> None:
    p = problem(60)
    found = curve(p.model, p.x, p.y, within=WITHIN, radii=RADII[::-1], attack=PGDAttack(steps=5, start="zero"), seed=0)
    assert found.radii == RADII
    worst = torch.ones(60, dtype=torch.bool)
    for k, radius in enumerate(RADII):
        ball = Ball("linf", radius, box=(0, 1))
        alone = evaluate(p.model, p.x, p.y, within=ball, attack=PGDAttack(steps=5, start="zero"), seed=0)
        worst &= alone.robust_correct
        assert torch.equal(found.robust[k], worst)
    assert found.rates[0] == found.clean
    assert found.rates[0].hits > found.rates[-1].hits


def test_what_has_fallen_costs_nothing_more(problem: Make) -> None:
    p, told = problem(40), []
    found = curve(p.model, p.x, p.y, within=WITHIN, radii=RADII, seed=0, batch_size=8, progress=told.append)
    left = [40, *(int(row.sum()) for row in found.robust[:-1])]
    assert [len(rows) for rows in found.rows] == left
    assert [len(e.clean_correct) for e in found.evaluations] == left
    assert found.calls.forward == sum(e.calls.forward for e in found.evaluations)
    assert sum(told) == 40 * len(RADII)


def test_when_nothing_stands_the_rest_is_zero(problem: Make) -> None:
    p = problem(20)
    found = curve(p.model, p.x, p.y, within=WITHIN, radii=(0.5, 0.9, 1.0), seed=0)
    assert [rate.hits for rate in found.rates] == [0, 0, 0]
    assert len(found.evaluations) == 1


def test_no_radius_is_refused(problem: Make) -> None:
    p = problem(4)
    with pytest.raises(InputError, match="radii"):
        curve(p.model, p.x, p.y, within=WITHIN, radii=(), seed=0)


def test_it_is_shown_in_a_line(problem: Make) -> None:
    p = problem(20)
    found = curve(p.model, p.x, p.y, within=WITHIN, radii=(0.0, 0.02), attack=PGDAttack(steps=2), seed=0)
    last = f"robust={found.rates[-1]} at 0.02"
    assert repr(found) == f"Curve(2 radii, clean={found.clean}, {last}, {len(found.findings)} findings)"
