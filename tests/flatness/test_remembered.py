"""A reference that is measured once: the same results, bit for bit, in fewer passes."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaketable.core import PGD, Ball
from shaketable.flatness import Average, Worst
from shaketable.flatness.loss_at import LossAt, reference
from shaketable.flatness.remembered import MOST, new_memory, recalled, remembering


class Counted(nn.Module):
    """A small net that counts the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.seen = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.body(x)


@pytest.fixture
def problem() -> tuple[Counted, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Counted().eval(), torch.rand(6, 1, 4, 4), torch.arange(6) % 3


def measured(model: Counted, x: Tensor, y: Tensor, **changes: Any) -> list[Any]:
    given: dict[str, Any] = {"seed": 0, "within": Ball("linf", 0.1, box=(0.0, 1.0)), "by": PGD(2)} | changes
    measures = (Average(xi=0.3, samples=2), Average(xi=0.6, samples=2), Worst(restarts=1, reference_restarts=10))
    return [measure(model, x, y, **given) for measure in measures]


def test_results_are_the_same_and_the_reference_is_measured_once(problem: tuple[Counted, Tensor, Tensor]) -> None:
    model, x, y = problem
    apart = measured(model, x, y)
    usual, model.seen = model.seen, 0
    with remembering(new_memory()):
        together = measured(model, x, y)
    seen = model.seen
    assert together == apart
    of = LossAt(model, x, y, "robust", Ball("linf", 0.1, box=(0.0, 1.0)), PGD(2), None, 128)
    assert usual - seen == 2 * reference(of, 0, 10)[0].calls.forward


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"within": Ball("linf", 0.2, box=(0.0, 1.0))}, {"by": PGD(3)}, {"batch_size": 2}]
)
def test_another_reference_is_not_taken_for_it(problem: tuple[Counted, Tensor, Tensor], change: dict[str, Any]) -> None:
    alone = measured(*problem, **change)
    with remembering(new_memory()):
        measured(*problem)
        assert measured(*problem, **change) == alone
        model, x, y = problem
        assert measured(model, x.clone(), y, **change) == alone  # equal, but not the same object


def test_only_the_last_few_are_kept_and_nothing_outside() -> None:
    calls: list[int] = []

    def ask(k: int) -> Any:
        return recalled((k, (0.5, None)), lambda: calls.append(k) or k)

    assert [ask(1), ask(1)] == [1, 1]
    assert calls == [1, 1]
    memory = new_memory()
    with remembering(memory):
        for k in (*range(MOST + 1), MOST, 0):
            ask(k)
    assert calls == [1, 1, *range(MOST + 1), 0]
    assert len(memory) == MOST
