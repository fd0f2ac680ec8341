"""Entropy-SGD against a hand-written one, closed forms, weights perturbed from outside, and resuming in mid-cycle."""

import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaketable.core import InputError, generator, perturbed
from shaketable.training.entropy_sgd import EntropySGD, LocalEntropy

Slope = Callable[[Tensor, int], Tensor]


def _slope(x: Tensor, call: int) -> Tensor:
    """The gradient of a smooth function that changes from call to call, as mini-batches do."""
    return torch.sin(x * (1 + call % 3)) + 0.3 * x - 0.1 * call


def _by_hand(
    x: Tensor,
    calls: int,
    *,
    length: int,
    rate: float,
    decay: float,
    gamma: float,
    scoping: float,
    noise: float,
    inner_rate: float,
    alpha: float,
    momentum: float,
    nesterov: bool,
    shifts: list[Tensor] | None = None,
) -> Tensor:
    """Algorithm 1 with x, x' and mu written out. Shifts are where gradients and decay are taken instead, as x' + shift."""
    outer_velocity = torch.zeros_like(x)
    for cycle in range(calls // length):
        moving, mean, velocity = x.clone(), x.clone(), torch.zeros_like(x)
        shift = torch.zeros_like(x)
        for step in range(length):
            call = cycle * length + step
            shift = torch.zeros_like(x) if shifts is None else shifts[call]
            slope = _slope(moving + shift, call) + decay * (moving + shift)
            if momentum > 0:
                velocity = momentum * velocity + slope
                slope = slope + momentum * velocity if nesterov else velocity
            drawn = torch.randn(x.shape, generator=generator(3, "langevin", call, 0, 0), dtype=torch.float64)
            pull = gamma * (1 + scoping) ** cycle * (x - moving)
            moving = moving - inner_rate * (slope - pull) + math.sqrt(inner_rate) * noise * drawn
            mean = (1 - alpha) * mean + alpha * moving
        outer = (x - mean) + decay * (x + shift)
        if momentum > 0:
            outer_velocity = momentum * outer_velocity + outer
            outer = outer + momentum * outer_velocity if nesterov else outer_velocity
        x = x - rate * outer
    return x


def _origin(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def _run(optimiser: LocalEntropy, p: nn.Parameter, calls: range, slope: Slope = _slope) -> None:
    for call in calls:
        p.grad = slope(p.detach(), call)
        optimiser.step()


CASES = [
    {"length": 5, "momentum": 0.9, "nesterov": True},
    {"length": 3, "momentum": 0.5, "nesterov": False},
    {"length": 2, "momentum": 0.0, "nesterov": False},
    {"length": 1, "momentum": 0.9, "nesterov": True},
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shifted", [False, True])
def test_against_the_algorithm_by_hand(case: dict[str, Any], shifted: bool) -> None:
    """Four cycles, all terms large enough to matter; with `shifted` another v is on the weights at every step."""
    length, momentum, nesterov = case["length"], case["momentum"], case["nesterov"]
    common: dict[str, Any] = {"gamma": 0.4, "scoping": 0.3, "noise": 0.2, "inner_rate": 0.1, "alpha": 0.6}
    source = torch.Generator().manual_seed(1)
    calls = 4 * length
    shifts = [torch.randn(5, 4, generator=source, dtype=torch.float64) for _ in range(calls)]
    expected = _by_hand(
        _origin(), calls, length=length, rate=0.7, decay=0.05, momentum=momentum, nesterov=nesterov,
        shifts=shifts if shifted else None, **common,
    )  # fmt: skip
    layer = nn.ParameterDict({"p": nn.Parameter(_origin())})
    value = EntropySGD(length, momentum=momentum, nesterov=nesterov, seed=3, **common)
    optimiser = value([layer["p"]], 0.7, 0.05)
    for call in range(calls):
        with perturbed(layer, {"p": shifts[call]} if shifted else {}):
            _run(optimiser, layer["p"], range(call, call + 1))
    torch.testing.assert_close(layer["p"].detach(), expected, rtol=1e-12, atol=1e-12)
    assert optimiser.inner_steps == 0


def test_one_plain_step_is_sgd() -> None:
    """L = 1 without noise and momentum: x - rate * alpha * inner_rate * g, since the proximal term is zero."""
    p = nn.Parameter(_origin())
    optimiser = EntropySGD(1, noise=0.0, momentum=0.0, nesterov=False, gamma=5.0)([p], 0.8, 0.0)
    expected = _origin()
    for call in range(6):
        expected = expected - 0.8 * 0.75 * 0.1 * _slope(expected, call)
    _run(optimiser, p, range(6))
    torch.testing.assert_close(p.detach(), expected, rtol=1e-13, atol=1e-13)


def test_a_constant_gradient_in_closed_form() -> None:
    """Without momentum x' - x is -inner_rate g sum (1 - inner_rate gamma)^k after each step; x moves by its weighted mean."""
    g, gamma, rate = torch.tensor([2.0, -3.0], dtype=torch.float64), 0.5, 0.25
    p = nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    value = EntropySGD(4, gamma=gamma, scoping=0.0, noise=0.0, alpha=0.3, inner_rate=rate, momentum=0.0, nesterov=False)
    optimiser = value([p], 1.0, 0.0)
    offsets = [-g / gamma * (1 - (1 - rate * gamma) ** k) for k in range(1, 5)]
    for k in range(3):
        _run(optimiser, p, range(1), lambda x, call: g)
        torch.testing.assert_close(p.detach(), 1 + offsets[k])  # the inner iterate
        torch.testing.assert_close(optimiser.outer_weights()[0], torch.ones(2, dtype=torch.float64))
        assert optimiser.inner_steps == k + 1
    _run(optimiser, p, range(1), lambda x, call: g)
    mean = sum(0.3 * 0.7 ** (3 - k) * offsets[k] for k in range(4))
    torch.testing.assert_close(p.detach(), 1 + mean)
    assert optimiser.inner_steps == 0
    assert torch.equal(optimiser.outer_weights()[0], p.detach())


def test_presets() -> None:
    group = EntropySGD()([nn.Parameter(torch.zeros(1))], 0.1, 0.0).param_groups[0]
    assert (group["alpha"], group["noise"], group["scoping"], group["steps"]) == (0.75, 1e-4, 1e-3, 20)
    group = EntropySGD(preset="authors")([nn.Parameter(torch.zeros(1))], 0.1, 0.0).param_groups[0]
    assert (group["alpha"], group["scoping"]) == (0.25, 0.0)
    assert group["noise"] == pytest.approx(math.sqrt(2) * 1e-4)
    group = EntropySGD(preset="authors", scoping=0.1)([nn.Parameter(torch.zeros(1))], 0.1, 0.0).param_groups[0]
    assert group["scoping"] == 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at", [3, 5, 7])
def test_resuming_gives_the_same_bits(dtype: torch.dtype, at: int) -> None:
    """Saved after `at` of 12 steps, in the middle of a cycle of 5 or at its end, and loaded as a checkpoint is."""

    def made(p: nn.Parameter) -> LocalEntropy:
        return EntropySGD(5, noise=0.1, gamma=0.1, seed=4)([p], 0.5, 0.01)

    whole = nn.Parameter(_origin(dtype))
    _run(made(whole), whole, range(12))
    first = nn.Parameter(_origin(dtype))
    optimiser = made(first)
    _run(optimiser, first, range(at))
    file = io.BytesIO()
    torch.save({"p": first.detach(), "optimiser": optimiser.state_dict()}, file)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    second = nn.Parameter(saved["p"])
    resumed = made(second)
    resumed.load_state_dict(saved["optimiser"])
    _run(resumed, second, range(at, 12))
    assert torch.equal(second, whole)
    assert all(t.dtype == torch.promote_types(dtype, torch.float32) for t in resumed.state[second].values())
    kept = saved["optimiser"]["state"][0]["offset"]
    assert kept.data_ptr() != resumed.state[second]["offset"].data_ptr()


@pytest.mark.parametrize(("size", "error"), [(0.1, 0.0), (1.0, 2e-6)])
def test_the_outer_weights_do_not_drift(size: float, error: float) -> None:
    """In float32, with an outer step that rounds away, a hundred cycles end where they began: bit for bit if x' stays nearer
    to x than x is to 0, else to the rounding of the moves.
    """
    origin = _origin(torch.float32)
    origin = torch.where(origin.abs() < 0.2, 0.7, origin)
    p = nn.Parameter(origin.clone())
    optimiser = EntropySGD(3, noise=1e-3 * size, momentum=0.0, nesterov=False)([p], 1e-12, 0.0)
    farthest = 0.0
    for call in range(300):
        _run(optimiser, p, range(call, call + 1), lambda x, call: size * torch.sin(3 * x + call) - 0.5 * size)
        farthest = max(farthest, float((p.detach() - origin).abs().max()))
    assert farthest > 0.2 * size
    assert float((p.detach() - origin).abs().max()) <= error


def test_the_noise_has_its_size_and_is_drawn_anew() -> None:
    p, q = (nn.Parameter(torch.zeros(20000, dtype=torch.float64)) for _ in range(2))
    optimiser = EntropySGD(4, noise=0.3, inner_rate=0.2, gamma=0.0, momentum=0.0, nesterov=False)([p, q], 0.1, 0.0)
    moves = []
    for _ in range(2):
        before = (p.detach().clone(), q.detach().clone())
        p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
        optimiser.step()
        moves += [p.detach() - before[0], q.detach() - before[1]]
    for move in moves:
        assert float(move.std()) == pytest.approx(math.sqrt(0.2) * 0.3, rel=0.03)
        assert abs(float(move.mean())) < 0.005
    stacked = torch.corrcoef(torch.stack(moves)) - torch.eye(4, dtype=torch.float64)
    assert float(stacked.abs().max()) < 0.04


def test_the_global_random_state_is_left_alone() -> None:
    p = nn.Parameter(_origin())
    before = torch.random.get_rng_state()
    _run(EntropySGD(2)([p], 0.1, 0.0), p, range(4))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 20])
def test_it_goes_down_a_quadratic(length: int) -> None:
    """In 120 steps to a tenth at most, also with noise, momentum and a badly scaled function."""
    scales = torch.tensor([0.2, 1.0, 4.0])
    p = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimiser = EntropySGD(length, momentum=0.5)([p], 0.9, 0.0)

    def value() -> Tensor:
        return (scales * p**2).sum() / 2

    start = value().item()
    for _ in range(120):
        optimiser.step(lambda: (optimiser.zero_grad(), value().backward()))
    assert optimiser.inner_steps == 0
    assert value().item() < 0.1 * start


def test_a_parameter_without_gradient() -> None:
    """Unused: it stays. Without a gradient for one step of a cycle: it stays for that step, and the cycle still ends."""
    used, unused = nn.Parameter(_origin()), nn.Parameter(_origin())
    value = EntropySGD(3, noise=0.0, momentum=0.0, nesterov=False, gamma=0.0, alpha=1.0)
    optimiser = value([used, unused], 1.0, 0.1)
    for call in range(3):
        used.grad = None if call == 2 else torch.ones_like(used)
        optimiser.step()
    assert torch.equal(unused.detach(), _origin())
    x = _origin()
    once = x - 0.1 * (1 + 0.1 * x)
    twice = once - 0.1 * (1 + 0.1 * once)
    torch.testing.assert_close(used.detach(), twice - 0.1 * x)


@pytest.mark.parametrize(
    ("values", "argument"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 2.0}, "steps"),
        ({"gamma": -1e-4}, "gamma"),
        ({"gamma": None}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"scoping": -1.0}, "scoping"),
        ({"scoping": "1e-3"}, "scoping"),
        ({"noise": float("inf")}, "noise"),
        ({"noise": -0.1}, "noise"),
        ({"inner_rate": 0.0}, "inner_rate"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.5}, "alpha"),
        ({"momentum": 1.0}, "momentum"),
        ({"nesterov": 1}, "nesterov"),
        ({"preset": "code"}, "preset"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_bad_values(values: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        EntropySGD(**values)
    assert caught.value.argument == argument
    assert caught.value.remedy
