"""Transfer of any attack's points: counted by hand, in regions, beside the rows of the regional attack."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable.attacks import APGDAttack, PGDAttack, SquareAttack, evaluate
from shaketable.attacks.transfer import transfer_row
from shaketable.attacks.transfer_attack import attack_row
from shaketable.attacks.transfer_matrix import Transfer, collected
from shaketable.core import Ball, InputError, generator
from shaketable.stats import Rate

REGIONS = {"whole": None, "centre": "centre:0.3"}
BALL = Ball("linf", 0.1, box=(0.0, 1.0))
ATTACKS: tuple[Any, ...] = (PGDAttack(steps=5), APGDAttack(steps=5), SquareAttack(30))


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Three linear models that mostly agree."""
    source = torch.Generator().manual_seed(0)
    base = torch.randn(48, 4, generator=source)
    weights = {name: base + 0.4 * torch.randn(48, 4, generator=source) for name in ("a", "b", "c")}
    return {name: (lambda z, w=w: 4 * (z - 0.5).flatten(1) @ w) for name, w in weights.items()}


@pytest.fixture(scope="module")
def images(models: dict[str, Any]) -> tuple[Tensor, Tensor]:
    x = torch.rand(40, 3, 4, 4, generator=generator(0))
    return x, models["a"](x).argmax(1)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_what_it_finds_on_one_model_is_shown_to_the_others(
    models: dict[str, Any], images: tuple[Tensor, Tensor], attack: Any
) -> None:
    x, y = images
    options: dict[str, Any] = {"regions": REGIONS, "attack": attack, "name": "it", "within": BALL, "seed": 3}
    found = collected([json.loads(json.dumps(attack_row(name, models, x, y, **options))) for name in models])
    right = {name: model(x).argmax(1) == y for name, model in models.items()}
    hits = 0
    for place in REGIONS:
        mask = None if place == "whole" else torch.tensor(False).expand(1, 1, 4, 4).clone()
        if mask is not None:
            mask[..., 1:3, 1:3] = True
        ball = Ball("linf", 0.1, box=(0.0, 1.0), mask=mask)
        for source, target in found.pairs:
            ok = right[source]
            done = evaluate(
                models[source], x[ok], y[ok], within=ball, attack=attack, seed=3, measure="loss", points=True
            )
            assert done.points is not None
            points = x.clone()
            points[ok] = done.points
            valid = ok & right[target]
            fooled = models[target](points).argmax(1) != y
            rate = found.rate(source, target, place)
            assert rate == Rate(int((fooled & valid).sum()), int(valid.sum()))
            assert found.rate(source, target, place, oracle=True) == rate
            white = models[source](points).argmax(1) != y
            assert found.white_box(source, place).hits == int((white & right[source]).sum())
            hits += rate.hits
            part = next(row for row in found.rows if row["source"] == source)["regions"][place]
            assert max(part["end"]["linf"]) == pytest.approx(0.1, abs=1e-6)
            assert {size for size, fine in zip(part["end"]["linf"], ok.tolist(), strict=True) if not fine} <= {0.0}
            assert part["calls"] == [done.calls.forward, done.calls.backward]
            assert part["checks"] == 2 * (40 + int(ok.sum()))
    assert hits > 0
    assert found.attack == "it"
    with pytest.raises(InputError, match="class to lead to"):
        found.rate("a", "b", "whole", aimed=True)
    assert "oracle" not in str(found)


def test_a_source_that_gets_nothing_right(models: dict[str, Any], images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    wrong = models | {"a": lambda z: -models["a"](z)}
    row = attack_row("a", wrong, x, y, regions=REGIONS, attack=PGDAttack(steps=2), name="pgd", within=BALL, seed=3)
    assert row["regions"]["centre"]["calls"] == [0, 0]
    assert set(row["regions"]["centre"]["end"]["linf"]) == {0.0}
    assert collected([row]).rate("a", "b", "whole").n == 0


def test_rows_of_two_attacks_are_not_one_matrix(models: dict[str, Any], images: tuple[Tensor, Tensor]) -> None:
    options: dict[str, Any] = {"regions": {"whole": None}, "seed": 3}
    one = attack_row("a", models, *images, attack=PGDAttack(steps=1), name="pgd", within=BALL, **options)
    other = transfer_row("b", models, *images, steps=2, **options)
    assert isinstance(collected([one]), Transfer)
    with pytest.raises(InputError, match="one attack"):
        collected([one, other])


def test_models_and_regions_are_asked_for(models: dict[str, Any], images: tuple[Tensor, Tensor]) -> None:
    options: dict[str, Any] = {"attack": PGDAttack(steps=1), "name": "pgd", "within": BALL, "seed": 3}
    for source, regions in (("z", REGIONS), ("a", {})):
        with pytest.raises(InputError, match="models"):
            attack_row(source, models, *images, regions=regions, **options)
