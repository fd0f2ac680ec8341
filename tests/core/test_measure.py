"""`measure`: a linear model's losses in closed form, counted passes, and nothing that is silently wrong."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable import core as st
from shaketable.core.measure import measure

Make = Callable[..., Any]
LINF = st.Ball("linf", 0.1, box=(0.0, 1.0))


def linear(entries: int, seed: int = 0) -> nn.Linear:
    model = nn.Linear(entries, 2).double()
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return model


@pytest.mark.parametrize("batch_size", [1, 7, 20, 1000])
@pytest.mark.parametrize("restarts", [1, 3])
def test_a_linear_model_in_closed_form(restarts: int, batch_size: int) -> None:
    """The worst point loses eps ||w_y - w_other||_1 of the margin; the loss is softplus of the negative margin."""
    model = linear(15)
    source = torch.Generator().manual_seed(1)
    x = 0.3 + 0.4 * torch.rand(20, 15, generator=source, dtype=torch.float64)  # the box does not bind
    y = torch.randint(0, 2, (20,), generator=source)
    near = st.Ball("linf", 0.02, box=(0.0, 1.0))
    found = measure(
        model, x, y, near, by=st.PGD(10, 0.25, restarts=restarts), generator=st.generator(0), batch_size=batch_size
    )
    slope = model.weight.detach()[y] - model.weight.detach()[1 - y]
    margin = (x * slope).sum(1) + model.bias.detach()[y] - model.bias.detach()[1 - y]
    worst = margin - 0.02 * slope.abs().sum(1)
    assert torch.allclose(found.loss, F.softplus(-margin), rtol=1e-10)
    assert torch.allclose(found.robust_loss, F.softplus(-worst), rtol=1e-10)
    assert torch.equal(found.correct, margin > 0)
    assert torch.equal(found.robust_correct, worst > 0)
    assert torch.equal(found.predicted, torch.where(margin > 0, y, 1 - y))
    assert 0 < int(found.robust_correct.sum()) < int(found.correct.sum()) < 20
    assert not bool(found.silent.any())


def test_it_is_perturb_batch_after_batch_from_one_stream(network: Make, images: Make, labels: Make) -> None:
    model, x, y = network(), images(10), labels(10)
    found = measure(model, x, y, LINF, by=st.PGD(3), generator=st.generator(5), batch_size=4)
    source, parts = st.generator(5), []
    for rows in torch.arange(10).split(4):
        attacked = st.perturb(st.ce(model, y[rows]), x[rows], LINF, by=st.PGD(3), start="sample", generator=source)
        parts.append(F.cross_entropy(model(attacked.point), y[rows], reduction="none").detach())
    assert torch.equal(found.robust_loss, torch.cat(parts))


@pytest.mark.parametrize(("restarts", "forward", "backward"), [(1, 3 + 2, 3), (2, 2 * (3 + 1) + 2, 6)])
def test_passes_are_counted(
    restarts: int, forward: int, backward: int, network: Make, images: Make, labels: Make
) -> None:
    model, seen = network(), list[int]()
    model.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    found = measure(
        model, images(10), labels(10), LINF, by=st.PGD(3, restarts=restarts), generator=st.generator(0), batch_size=4
    )
    assert found.calls == st.Calls(10 * forward, 10 * backward)
    assert sum(seen) == 10 * forward


def test_to_be_robust_is_to_be_right_before_and_after() -> None:
    """An attack that repairs a mistake does not make the image robust: here every point of the ball is class 0 but x."""

    def model(x: Tensor) -> Tensor:
        moved = (x - 0.5).abs().sum(1)
        return torch.stack([moved - 1e-3, torch.zeros_like(moved)], 1)

    x, y = torch.full((3, 4), 0.5), torch.zeros(3, dtype=torch.long)
    found = measure(model, x, y, LINF, by=st.PGD(0), generator=st.generator(0))
    assert not bool(found.correct.any())
    assert bool((found.robust_loss < found.loss).all())
    assert not bool(found.robust_correct.any())


def test_neither_the_model_nor_the_random_state_is_touched(network: Make, images: Make, labels: Make) -> None:
    for training in (False, True):
        model = network(dropout=0.5).train(training)
        before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        results = [
            measure(model, images(), labels(), LINF, by=st.PGD(2), generator=st.generator(1)).robust_loss
            for _ in range(2)
        ]
        assert torch.equal(*results)
        assert torch.equal(torch.get_rng_state(), state)
        assert model.training is training
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_constant_model_is_measured_and_marked(images: Make, labels: Make) -> None:
    layer = nn.Linear(192, 4)
    nn.init.zeros_(layer.weight)
    model = nn.Sequential(nn.Flatten(), layer)
    found = measure(model.eval(), images(), labels(), LINF, by=st.PGD(3), generator=st.generator(0), batch_size=4)
    assert bool(found.silent.all())
    assert torch.equal(found.robust_loss, found.loss)
    assert torch.equal(found.robust_correct, found.correct)
    assert found.calls.forward >= 2 * 6


def test_only_the_examples_without_a_gradient_are_marked(images: Make, labels: Make) -> None:
    class Partly(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits = x.flatten(1)[:, :4]
            return torch.where((torch.arange(len(x)) < 2)[:, None], 0 * logits, logits)

    found = measure(Partly(), images(), labels(), LINF, by=st.PGD(3), generator=st.generator(0))
    assert found.silent.tolist() == [True, True, False, False, False, False]


def test_a_model_that_cannot_be_differentiated_is_an_error(images: Make, labels: Make) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))

    def detached(x: Tensor) -> Tensor:
        return model(x.detach()).detach()

    with pytest.raises(st.GradientError):
        measure(detached, images(), labels(), LINF, by=st.PGD(3), generator=st.generator(0))


def test_no_images(network: Make, images: Make, labels: Make) -> None:
    found = measure(network(), images(0), labels(0), LINF, by=st.PGD(3), generator=st.generator(0))
    columns = (found.predicted, found.loss, found.correct, found.robust_loss, found.robust_correct, found.silent)
    assert [len(column) for column in columns] == [0] * 6
    assert [column.dtype for column in columns] == [
        torch.int64, torch.float32, torch.bool, torch.float32, torch.bool, torch.bool,
    ]  # fmt: skip
    assert found.calls == st.Calls()


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -5}, "batch_size"),
        ({"y": torch.zeros(5, dtype=torch.long)}, "y"),
        ({"y": torch.zeros(300, dtype=torch.long)}, "y"),
        ({"y": torch.full((6,), 9)}, "y"),
        ({"y": torch.full((6,), -1)}, "y"),
        ({"x": torch.full((6, 3, 8, 8), float("nan"))}, "origin"),
        ({"x": torch.full((6, 3, 8, 8), 255.0)}, "origin"),
    ],
)
def test_bad_input(change: dict[str, Any], argument: str, network: Make, images: Make, labels: Make) -> None:
    given = {"x": images(), "y": labels(), "batch_size": 4} | change
    x, y = given.pop("x"), given.pop("y")
    with pytest.raises(st.InputError) as caught:
        measure(network(), x, y, LINF, by=st.PGD(2), generator=st.generator(0), **given)
    assert caught.value.argument == argument
    assert caught.value.remedy
