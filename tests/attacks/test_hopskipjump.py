"""HopSkipJump: near the known minimum norm, from decisions alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable.attacks.hopskipjump import hopskipjump
from shaketable.core import InputError

Make = Callable[..., Any]


class Linear:
    """A linear model of two classes whose logits cannot be differentiated, which counts what it is asked."""

    def __init__(self) -> None:
        source = torch.Generator().manual_seed(0)
        self.weight = torch.randn(2, 12, generator=source, dtype=torch.float64)
        self.x = 0.3 + 0.4 * torch.rand(6, 12, generator=source, dtype=torch.float64)
        self.asked = 0
        self.y = self(self.x).argmax(1)
        self.asked = 0

    def __call__(self, z: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        self.asked += len(z)
        return (z @ self.weight.T).detach()

    def shortest(self, dual: float) -> Tensor:
        difference = self.weight[1] - self.weight[0]
        return (self.x @ difference).abs() / torch.linalg.vector_norm(difference, dual)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.mark.parametrize(("norm", "dual"), [("l2", 2.0), ("linf", 1.0)])
def test_comes_near_the_minimum_norm_of_a_linear_model(norm: Any, dual: float, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Linear()
    monkeypatch.setattr(torch.autograd, "grad", _forbidden)
    monkeypatch.setattr(Tensor, "backward", _forbidden)
    found = hopskipjump(problem, problem.x, problem.y, norm=norm, steps=12, first_queries=60, seed=1)
    shortest = problem.shortest(dual)
    assert bool(found.found.all())
    assert bool((found.norms >= shortest * (1 - 1e-9)).all())
    assert bool((found.norms <= shortest * 1.1).all())
    assert bool(((problem.x - found.points) @ (problem.weight[1] - problem.weight[0])).abs().all())
    assert torch.equal(problem(found.points).argmax(1), 1 - problem.y)


def _forbidden(*_: Any, **__: Any) -> Any:
    raise AssertionError("a gradient was asked for")


def test_every_query_is_counted_and_a_seed_is_a_result() -> None:
    problem = Linear()
    found = hopskipjump(problem, problem.x, problem.y, steps=3, first_queries=20)
    assert found.queries is not None
    assert found.calls.forward == problem.asked == int(found.queries.sum())
    assert found.calls.backward == 0
    assert found.queries.min() > 20 + 28 + 34
    again = hopskipjump(problem, problem.x, problem.y, steps=3, first_queries=20)
    assert torch.equal(found.points, again.points)
    other = hopskipjump(problem, problem.x, problem.y, steps=3, first_queries=20, seed=1)
    assert not torch.equal(found.points, other.points)


def test_more_steps_come_nearer_and_misclassified_images_cost_one_query(problem: Make) -> None:
    p = problem(10)
    wrong = p.model(p.x).argmax(1) != p.y
    random = torch.get_rng_state()
    begun = hopskipjump(p.model, p.x, p.y, steps=1, first_queries=20)
    found = hopskipjump(p.model, p.x, p.y, steps=8, first_queries=20)
    assert bool((found.norms <= begun.norms).all())
    assert found.norms[~wrong].sum() < 0.8 * begun.norms[~wrong].sum()
    assert found.queries is not None
    assert bool((found.queries[wrong] == 1).all())
    assert not found.norms[wrong].any()
    assert bool((p.model(found.points).argmax(1) != p.y).all())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_region_and_a_start_from_another_image(problem: Make, norm: Any) -> None:
    p = problem(12)
    y = p.model(p.x).argmax(1)
    mask = torch.zeros(12, 12)
    mask[1:11, 1:11] = 1
    found = hopskipjump(p.model, p.x, y, norm=norm, steps=2, first_queries=20, mask=mask)
    assert torch.equal(found.points[..., mask == 0], p.x[..., mask == 0])
    assert found.found.any()
    assert found.points.min() >= 0
    assert found.points.max() <= 1
    target = y.roll(1)
    aimed = hopskipjump(p.model, p.x, target, norm=norm, targeted=True, start=p.x.roll(1, 0), steps=3, first_queries=20)
    assert bool(aimed.found.all())
    assert torch.equal(p.model(aimed.points).argmax(1), target)
    order = 2.0 if norm == "l2" else float("inf")
    far = torch.linalg.vector_norm((p.x.roll(1, 0) - p.x).flatten(1), order, 1)
    moved = y != target
    assert bool((aimed.norms < far)[moved].all())


def test_what_noise_never_fools_is_not_found() -> None:
    x = torch.full((3, 4), 0.5)
    found = hopskipjump(
        lambda z: torch.stack([z.sum(1) * 0 + 1, z.sum(1) * 0], 1), x, torch.zeros(3).long(), noise_tries=4
    )
    assert not found.found.any()
    assert torch.isinf(found.norms).all()
    assert torch.equal(found.points, x)
    assert found.calls.forward == 3 * 5


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"norm": "l1"}, "norm"),
        ({"steps": 0}, "steps"),
        ({"most_queries": 10}, "most_queries"),
        ({"box": None}, "box"),
        ({"start": torch.zeros(1)}, "start"),
        ({"start": torch.full((6, 12), 2.0)}, "start"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], argument: str) -> None:
    problem = Linear()
    with pytest.raises(InputError) as caught:
        hopskipjump(problem, problem.x, problem.y, **change)
    assert caught.value.argument == argument
