"""`PGD`: known optima, a hand-written loop bit for bit, counted passes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from shaketable import core as st

Make = Callable[..., Any]
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}


def linear(seed: int, entries: int) -> nn.Linear:
    model = nn.Linear(entries, 2).double()
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return model


def slope_of(model: nn.Linear, y: Tensor) -> Tensor:
    """The gradient of the margin at each example: the other class's weights minus its own."""
    return model.weight.detach()[1 - y] - model.weight.detach()[y]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("start", ["zero", "sample"])
def test_linear_models_reach_eps_times_the_dual_norm(norm: str, own: bool, start: str) -> None:
    model, y = linear(0, 30), torch.tensor([0, 1, 1, 0, 1])
    x = torch.rand(5, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eps = torch.tensor([0.0, 0.1, 0.5, 1.0, 3.0], dtype=torch.float64) if own else torch.tensor(0.4).double().expand(5)
    ball = st.Ball(norm, eps if own else 0.4)
    found = st.perturb(
        st.margin(model, y), x, ball, by=st.PGD(200, 0.25, keep="best"), start=start, generator=st.generator(0)
    )
    radius = eps if own else torch.full((5,), 0.4, dtype=torch.float64)
    gain = radius * torch.linalg.vector_norm(slope_of(model, y), DUAL[norm], 1)
    before = st.logit_margin(model(x), y).detach()
    assert found.value is not None
    assert torch.allclose(found.value - before, gain, rtol=1e-6, atol=1e-12)


def test_linear_models_reach_the_linf_optimum_inside_the_box() -> None:
    model, y = linear(2, 30), torch.tensor([0, 1, 1, 0])
    x = torch.rand(4, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = st.perturb(st.margin(model, y), x, st.Ball("linf", 0.3, box=(0, 1)), by=st.PGD(10, 0.25))
    slope = slope_of(model, y)
    optimum = torch.where(slope > 0, (x + 0.3).clamp(max=1), (x - 0.3).clamp(min=0))
    assert torch.allclose(found.point, optimum, rtol=1e-12)


def test_linear_models_reach_the_l0_optimum() -> None:
    model, y = linear(3, 30), torch.tensor([0, 1, 1, 0])
    x = torch.full((4, 30), 0.5, dtype=torch.float64)
    counts = torch.tensor([0, 1, 4, 30])
    found = st.perturb(st.margin(model, y), x, st.Ball("l0", counts, box=(0, 1)), by=st.PGD(10, 0.25))
    slope = slope_of(model, y)
    for row, k in enumerate(counts.tolist()):
        assert float((found.delta[row] * slope[row]).sum()) == pytest.approx(
            float(slope[row].abs().topk(k).values.sum()) / 2, rel=1e-6
        )
        assert int((found.delta[row] != 0).sum()) == k


@pytest.mark.parametrize("per", ["all", "tensor"])
def test_a_quadratic_in_weight_space(per: str) -> None:
    """max -(v - b)' A (v - b) / 2 over ||v|| <= r: v = (A + m)^-1 A b, with m >= 0 such that ||v|| = r."""
    source = torch.Generator().manual_seed(4)
    b = {n: torch.randn(s, generator=source, dtype=torch.float64) for n, s in (("p", (3, 2)), ("q", (4,)))}
    a = {n: 0.5 + torch.rand(v.shape, generator=source, dtype=torch.float64) for n, v in b.items()}
    w = {n: torch.randn(v.shape, generator=source, dtype=torch.float64) for n, v in b.items()}

    def fall(point: dict[str, Tensor]) -> Tensor:
        return -sum(((point[n] - w[n] - b[n]) ** 2 * a[n]).sum() for n in b) / 2  # pyright: ignore

    found = st.perturb(st.scalar(fall), w, st.Ball("l2", 0.8, per=per), by=st.PGD(400, 0.1, keep="best"))
    assert found.value is not None
    for names in [["p", "q"]] if per == "all" else [["p"], ["q"]]:
        flat_a, flat_b = (torch.cat([t[n].flatten() for n in names]) for t in (a, b))
        low, high = 0.0, 1e3
        for _ in range(200):
            m = (low + high) / 2
            low, high = (m, high) if float((flat_a * flat_b / (flat_a + m)).norm()) > 0.8 else (low, m)
        optimum = flat_a * flat_b / (flat_a + low)
        assert float(optimum.norm()) == pytest.approx(0.8, rel=1e-9)
        reached = torch.cat([found.delta[n].flatten() for n in names])
        loss, best = (float(((v - flat_b) ** 2 * flat_a).sum()) for v in (reached, optimum))
        assert loss == pytest.approx(best, rel=1e-6)


def test_a_joint_place_on_a_bilinear_function() -> None:
    """max ((a + d)'u) ((b + e)'v) over ||d||_inf <= .3, ||e||_2 <= .5 from positive factors: both at their own optimum."""
    source = torch.Generator().manual_seed(5)
    u, v = (torch.randn(n, generator=source, dtype=torch.float64) for n in (6, 4))
    origin = {"a": u[None], "b": v[None]}
    found = st.perturb(
        lambda p, rows: (p["a"] @ u) * (p["b"] @ v),
        origin,
        {"a": st.Ball("linf", 0.3), "b": st.Ball("l2", 0.5)},
        by=st.PGD(20, keep="best"),
    )
    optimum = (u @ u + 0.3 * u.abs().sum()) * (v @ v + 0.5 * v.norm())
    assert found.value is not None
    assert float(found.value) == pytest.approx(float(optimum), rel=1e-6)
    assert float(found.size["a"]) == pytest.approx(0.3)
    assert float(found.size["b"]) == pytest.approx(0.5)


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
        v = radius * (g / torch.linalg.vector_norm(g))
        size = torch.linalg.vector_norm(v)
        assert torch.equal(found.delta[name], v * torch.where(size > radius, radius / size, 1.0))
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
