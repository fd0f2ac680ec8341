"""`PGD`: a hand-written loop bit for bit, counted passes, what restarts and `keep` keep."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from shaketable import core as st

Make = Callable[..., Any]


def by_hand(
    norm: str, model: Any, x: Tensor, y: Tensor, eps: float, steps: int, momentum: float, start: Tensor
) -> Tensor:
    """A PGD as everybody writes it."""
    delta, alpha, velocity = start, 0.25 * eps, torch.zeros_like(x)
    for _ in range(steps):
        point = (x + delta).clamp(0, 1).requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
        with torch.no_grad():
            if momentum:
                velocity = grad = momentum * velocity + grad / grad.abs().mean((1, 2, 3), keepdim=True)
            if norm == "linf":
                delta = (delta + alpha * grad.sign()).clamp(-eps, eps)
            else:
                delta = delta + alpha * (grad / torch.linalg.vector_norm(grad, 2, (1, 2, 3), keepdim=True))
                size = torch.linalg.vector_norm(delta, 2, (1, 2, 3), keepdim=True)
                delta = delta * torch.where(size > eps, eps / size, 1.0)
            delta = (x + delta).clamp(0, 1) - x
    return (x + delta).clamp(0, 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("start", ["zero", "sample"])
def test_equals_a_hand_written_loop_bit_for_bit(
    network: Make, images: Make, labels: Make, norm: str, momentum: float, start: str
) -> None:
    model, x, y, eps = network(), images(), labels(), 0.1 if norm == "linf" else 0.9
    source = st.generator(11)
    first = torch.zeros_like(x)
    if start == "sample" and norm == "linf":
        first = ((2 * torch.rand(6, 192, generator=source) - 1) * eps).reshape(x.shape)
    elif start == "sample":
        entries = torch.randn(6, 192, generator=source)
        length = torch.rand(6, 1, generator=source) ** (1 / torch.tensor(192.0))
        first = (entries / torch.linalg.vector_norm(entries, 2, 1)[:, None] * length * eps).reshape(x.shape)
        size = torch.linalg.vector_norm(first, 2, (1, 2, 3), keepdim=True)
        first = first * torch.where(size > eps, eps / size, 1.0)
    first = (x + first).clamp(0, 1) - x
    wanted = by_hand(norm, model, x, y, eps, 7, momentum, first)
    by, ball = st.PGD(7, momentum=momentum), st.Ball(norm, eps, box=(0, 1))
    found = st.perturb(st.ce(model, y), x, ball, by=by, start=start, generator=st.generator(11))
    assert torch.equal(found.point, wanted)
    assert not torch.equal(wanted, x)


def test_one_step_on_weights_is_the_step_of_awp(network: Make, images: Make, labels: Make) -> None:
    model, x, y, gamma = network(), images(), labels(), 0.01
    names = ["0.weight", "4.weight", "7.weight"]
    own = {name: p for name, p in model.named_parameters() if name in names}
    slopes = torch.autograd.grad(F.cross_entropy(model(x), y), list(own.values()))
    ball = st.Ball("l2", gamma, per="tensor", relative=True)
    loss = st.scalar(lambda w: F.cross_entropy(st.at(model, w)(x), y))
    found = st.perturb(loss, st.weights(model), ball, by=st.PGD(1, 1.0))
    assert list(found.delta) == names
    for (name, w), g in zip(own.items(), slopes, strict=True):
        radius = torch.linalg.vector_norm(w.detach()) * gamma
        assert torch.equal(found.delta[name], g * (radius / torch.linalg.vector_norm(g)))
        size = torch.linalg.vector_norm(found.delta[name].double()) / torch.linalg.vector_norm(w.detach().double())
        assert abs(float(size) / gamma - 1) < 1e-6
        assert float(found.size[name]) == pytest.approx(gamma, rel=1e-5)


class _Passes(TorchDispatchMode):
    """Counts the operations that run: forward and backward passes of each layer, and gradients of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = {"convolution": 0, "convolution_backward": 0, "addmm": 0, "mm": 0, "weight": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in self.counts:
            self.counts[name] += 1
        if name == "convolution_backward":
            self.counts["weight"] += int(any(args[-1][1:]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("by", "forward", "backward"),
    [
        (st.PGD(5), 5, 5),
        (st.PGD(5, momentum=0.9), 5, 5),
        (st.PGD(5, keep="best"), 6, 5),
        (st.PGD(4, restarts=3), 15, 12),
        (st.PGD(0), 0, 0),
        (st.PGD(0, keep="best"), 1, 0),
    ],
)
def test_passes_are_counted_and_no_more(
    network: Make, images: Make, labels: Make, by: st.PGD, forward: int, backward: int
) -> None:
    model, x, y = network(), images(), labels()
    ran: list[int] = []
    hook = model.register_forward_hook(lambda _module, inputs, _output: ran.append(len(inputs[0])))
    with _Passes() as passes:
        found = st.perturb(st.ce(model, y), x, st.Ball("linf", 0.1), by=by, start="sample", generator=st.generator(0))
    hook.remove()
    assert ran == [6] * forward
    # two convolutions and one linear layer: one operation each forward, one backward to the input, none to a weight
    assert passes.counts == {
        "convolution": 2 * forward, "convolution_backward": 2 * backward, "addmm": forward, "mm": backward, "weight": 0
    }  # fmt: skip
    assert found.calls == st.Calls(6 * forward, 6 * backward)
    assert (found.value is None) == (by.keep == "last" and by.restarts == 1)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_counter_sees_gradients_of_weights(network: Make, images: Make, labels: Make) -> None:
    model, x, y = network(), images(), labels()
    with _Passes() as passes:
        torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    assert passes.counts["weight"] == 2


@pytest.mark.parametrize("restarts", [1, 3])
def test_best_is_the_highest_of_all_that_was_seen(network: Make, images: Make, labels: Make, restarts: int) -> None:
    model, x, y = network(), images(), labels()
    loss, seen = st.ce(model, y), []

    def watched(point: Tensor, rows: Tensor | None) -> Tensor:
        seen.append(loss(point, rows))
        return seen[-1]

    by = st.PGD(6, 1.5, restarts=restarts, keep="best")  # steps that are too long, so that the last is not the best
    found = st.perturb(watched, x, st.Ball("l2", 1.0), by=by, start="sample", generator=st.generator(0))
    values = torch.stack(seen).detach()
    assert found.value is not None
    assert torch.equal(found.value, values.amax(0))
    assert len(values) == 7 * restarts
    assert not torch.equal(values.amax(0), values[-1])


def test_restarts_keep_the_highest_last_value(network: Make, images: Make, labels: Make) -> None:
    model, x, y = network(), images(), labels()
    ball, source = st.Ball("l2", 1.0), st.generator(4)
    ends = [
        st.perturb(st.ce(model, y), x, ball, by=st.PGD(4), start="sample", generator=source).point for _ in range(3)
    ]
    values = torch.stack([st.ce(model, y)(end) for end in ends]).detach()
    found = st.perturb(st.ce(model, y), x, ball, by=st.PGD(4, restarts=3), start="sample", generator=st.generator(4))
    chosen = values.argmax(0)
    assert len(set(chosen.tolist())) > 1
    assert torch.equal(found.point, torch.stack([ends[k][row] for row, k in enumerate(chosen.tolist())]))
    assert found.value is not None
    assert torch.equal(found.value, values.amax(0))


def test_momentum_does_not_turn_the_first_step() -> None:
    """The steepest direction of one ball over all tensors is that of the whole gradient, however unequal its parts are."""
    w = {"a": torch.zeros(3), "b": torch.zeros(2, 2)}
    loss = st.scalar(lambda p: 100 * p["a"].sum() + 0.01 * p["b"].sum())
    for per in ("all", "tensor"):
        for norm in ("l2", "l1", "linf"):
            plain, turned = (
                st.perturb(loss, w, st.Ball(norm, 1.0, per=per), by=st.PGD(1, momentum=m)).delta for m in (0.0, 0.9)
            )
            for name in w:
                assert torch.allclose(plain[name], turned[name], rtol=1e-6, atol=1e-7)


def test_momentum_remembers() -> None:
    """On a slope that turns from 1 to -.1 after the first step, momentum goes on; each gradient counts as 1 in it."""
    x = torch.zeros(1, 1)
    for momentum, expected in ((0.0, 0.0), (0.5, 0.0), (2.0, 0.5)):
        looks: list[int] = []

        def bend(p: Tensor, rows: Tensor | None, looks: list[int] = looks) -> Tensor:
            looks.append(1)
            return p[:, 0] * (1.0 if len(looks) == 1 else -0.1)

        found = st.perturb(bend, x, st.Ball("linf", 1.0), by=st.PGD(2, momentum=momentum))
        assert float(found.delta) == pytest.approx(expected)


class _Waits(TorchDispatchMode):
    """Counts the operations for which the host waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.count += name in ("_local_scalar_dense", "nonzero", "masked_select", "equal")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_no_step_waits_for_the_device(network: Make, images: Make, labels: Make, norm: Any, keep: Any) -> None:
    """What is checked is checked once; only an objective that stops has to ask, once a step."""
    model, x, y, counts = network(), images(), labels(), []
    radius = torch.ones(6)
    for steps, stop in ((2, False), (7, False), (7, True)):
        with _Waits() as waits:
            loss = st.ce(model, torch.where(torch.tensor(stop), model(x).argmax(1), y), stop=stop)
            ball = st.Ball(norm, radius * (1 if norm == "l0" else 1e-6), box=(0, 1))
            st.perturb(loss, x, ball, by=st.PGD(steps, momentum=0.5, keep=keep))
        counts.append(waits.count)
    assert counts[0] == counts[1]
    assert counts[1] < counts[2] <= counts[1] + 8 + 1


def test_best_of_a_place_without_examples() -> None:
    w = {"w": torch.tensor([1.0, 0.0])}
    values: list[float] = []

    def ring(point: dict[str, Tensor]) -> Tensor:
        value = -((point["w"].norm() - 1.3) ** 2)
        values.append(float(value.detach()))
        return value

    found = st.perturb(st.scalar(ring), w, st.Ball("l2", 1.0, per="all"), by=st.PGD(4, 0.25, keep="best"))
    assert found.value is not None
    assert float(found.value) == max(values) != values[-1]
    assert float(ring(found.point)) == max(values)
