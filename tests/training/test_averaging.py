"""Averages of weights: closed forms, precision, and that the dict is all that resuming needs."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from shaketable.core import InputError
from shaketable.training.averaging import EMA, SWA, Average, averaged


class _Numbers(nn.Module):
    """A parameter to be set at will, and one that is no floating point number."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, dtype=dtype))
        self.index = nn.Parameter(torch.zeros(2, dtype=torch.int64), requires_grad=False)
        self.register_buffer("running", torch.zeros(3))


def _follow(
    value: Average, weights: list[Tensor], *, dtype: torch.dtype = torch.float64, average: Any = None, first: int = 1
) -> dict[str, Tensor]:
    """The average after a training whose weights are these, the first of them after step `first`."""
    model, average = _Numbers(dtype), {} if average is None else average
    total = first - 1 + len(weights)
    for step, w in enumerate(weights, first):
        with torch.no_grad():
            model.w.copy_(w)
            model.index.fill_(step)
        value.update(average, model, step=step, done=step / total)
    return average


def _walk(steps: int, seed: int = 0) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return list(torch.randn(steps, 3, generator=source, dtype=torch.float64).cumsum(0))


@settings(deadline=None, max_examples=30)
@given(decay=st.floats(0.0, 0.999), steps=st.integers(1, 40))
def test_ema_is_the_geometric_sum(decay: float, steps: int) -> None:
    """a_n = d^(n-1) w_1 + sum_{k>1} (1 - d) d^(n-k) w_k."""
    weights = _walk(steps)
    factors = [decay ** (steps - 1), *((1 - decay) * decay ** (steps - k) for k in range(2, steps + 1))]
    expected = sum(f * w for f, w in zip(factors, weights, strict=True))
    found = _follow(EMA(decay, warmup=False), weights)
    torch.testing.assert_close(found["w"], expected, rtol=1e-11, atol=1e-11)


def test_emas_warmup() -> None:
    """d_t = min(decay, (1 + t) / (10 + t)), written out; it reaches .5 at step 8 and .995 at step 1790."""
    weights = _walk(12)
    expected = weights[0]
    for t, w in enumerate(weights[1:], 2):
        d = min(0.5, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * w
    torch.testing.assert_close(_follow(EMA(0.5), weights)["w"], expected, rtol=1e-12, atol=1e-12)
    constant = _follow(EMA(0.5, warmup=False), weights[8:], first=9)
    warm = _follow(EMA(0.5), weights[8:], first=9)
    assert torch.equal(constant["w"], warm["w"])
    one, start = _Numbers(), {"w": torch.zeros(3, dtype=torch.float64), "index": torch.zeros(2, dtype=torch.int64)}
    nn.init.ones_(one.w)
    for step, moved in ((1789, 1 - 1790 / 1799), (1790, 0.005), (1791, 0.005)):
        average = {name: t.clone() for name, t in start.items()}
        EMA().update(average, one, step=step, done=0.5)
        torch.testing.assert_close(average["w"], torch.full((3,), moved, dtype=torch.float64), rtol=1e-12, atol=0)


@settings(deadline=None, max_examples=30)
@given(steps=st.integers(1, 60), start=st.floats(0.0, 0.99), every=st.integers(1, 7))
def test_swa_is_the_arithmetic_mean(steps: int, start: float, every: int) -> None:
    weights = _walk(steps)
    late = [w for step, w in enumerate(weights, 1) if step / steps >= start][::every]
    found = _follow(SWA(start, every), weights)
    torch.testing.assert_close(found["w"], torch.stack(late).mean(0), rtol=1e-12, atol=1e-12)


def test_swas_start() -> None:
    """At .75 of 8 steps: weights 6, 7 and 8; nothing before; once an epoch of two steps: 6 and 8."""
    weights = _walk(8)
    assert _follow(SWA(0.9), []) == {}
    average: dict[str, Tensor] = {}
    model = _Numbers()
    SWA().update(average, model, step=5, done=5 / 8)
    assert average == {}
    torch.testing.assert_close(_follow(SWA(), weights)["w"], torch.stack(weights[5:]).mean(0))
    torch.testing.assert_close(_follow(SWA(every=2), weights)["w"], (weights[5] + weights[7]) / 2)


@pytest.mark.parametrize("value", [EMA(0.9), EMA(0.9, warmup=False), SWA(0.3, 2), SWA(0.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_resuming_gives_the_same_bits(value: Average, dtype: torch.dtype) -> None:
    """From the dict alone, as a checkpoint holds it: saved at any step of twelve."""
    weights, model = _walk(12), _Numbers(dtype)
    for stop in range(13):
        whole, part = dict[str, Tensor](), dict[str, Tensor]()
        for step, w in enumerate(weights, 1):
            if step == stop + 1:
                file = io.BytesIO()
                torch.save(part, file)
                part = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
            with torch.no_grad():
                model.w.copy_(w)
            for average in (whole, part):
                value.update(average, model, step=step, done=step / 12)
        assert whole.keys() == part.keys()
        assert all(torch.equal(whole[name], part[name]) for name in whole)


@pytest.mark.parametrize("value", [EMA(0.995, warmup=False), EMA(0.995), SWA(0.0)])
def test_precision(value: Average) -> None:
    """float32 follows float64 to 1e-5 over 2000 steps; bfloat16 weights are averaged in float32, as well as float32 ones."""
    weights = [w.bfloat16().double() for w in _walk(2000)]
    exact = _follow(value, weights)["w"]
    for dtype in (torch.float32, torch.bfloat16):
        found = _follow(value, weights, dtype=dtype)["w"]
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [EMA(0.9), SWA(0.0)])
def test_weights_that_stand_still(value: Average) -> None:
    w = torch.tensor([0.1, 1 / 3, -7e-5], dtype=torch.float32)
    found = _follow(value, [w.double()] * 100, dtype=torch.float32)["w"]
    assert torch.equal(found, w)


@pytest.mark.parametrize("value", [EMA(0.9), SWA(0.0)])
def test_what_is_averaged(value: Average) -> None:
    """Parameters, once where they are tied; integers are copied, buffers left out; copies, never the model's own memory."""
    model = _Numbers()
    model.add_module("tied", nn.Linear(3, 3, dtype=torch.float64))
    model.tied.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.float64))  # pyright: ignore
    model.register_parameter("again", model.tied.weight)  # pyright: ignore
    average: dict[str, Tensor] = {}
    before = {name: t.detach().clone() for name, t in model.state_dict().items()}
    for step in (1, 2):
        with torch.no_grad():
            model.index.fill_(step)
        value.update(average, model, step=step, done=step / 2)
    assert set(averaged(average)) == {name for name, _ in model.named_parameters()}
    assert len(averaged(average)) == 4
    assert average["index"].tolist() == [2, 2]
    assert not any(t.requires_grad for t in average.values())
    memory = {t.data_ptr() for t in model.state_dict().values()}
    assert not memory & {t.data_ptr() for t in average.values()}
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items() if name != "index")


@pytest.mark.parametrize("value", [EMA(), SWA(0.0)])
@pytest.mark.parametrize(
    "average",
    [{"other": torch.zeros(3)}, {"w": torch.zeros(3)}, {"w": torch.zeros(4), "index": torch.zeros(2)}],
)
def test_an_average_of_another_model(value: Average, average: dict[str, Tensor]) -> None:
    kept = {name: t.clone() for name, t in average.items()}
    with pytest.raises(InputError, match="of the model's parameters") as caught:
        value.update(average, _Numbers(), step=1, done=1.0)
    assert caught.value.argument == "average"
    assert average.keys() == kept.keys()
    assert all(torch.equal(average[name], t) for name, t in kept.items())


@pytest.mark.parametrize(
    ("make", "values", "argument"),
    [
        (EMA, {"decay": 1.0}, "decay"),
        (EMA, {"decay": -0.1}, "decay"),
        (EMA, {"decay": float("nan")}, "decay"),
        (EMA, {"decay": "0.9"}, "decay"),
        (EMA, {"warmup": 10}, "warmup"),
        (SWA, {"start": 1.0}, "start"),
        (SWA, {"start": -0.5}, "start"),
        (SWA, {"start": float("nan")}, "start"),
        (SWA, {"start": None}, "start"),
        (SWA, {"every": 0}, "every"),
        (SWA, {"every": 0.5}, "every"),
    ],
)
def test_bad_values(make: Callable[..., object], values: dict[str, Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        make(**values)
    assert caught.value.argument == argument
    assert caught.value.remedy
