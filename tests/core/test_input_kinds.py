"""Inputs of any dtype and memory format: what comes out is of the same kind, and inside."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable import core as st

Make = Callable[..., Any]
NORMS = ("linf", "l2", "l1", "l0")
RADIUS: dict[str, Any] = {"linf": 0.1, "l2": 0.8, "l1": 5.0, "l0": 6}
ORDER = {"linf": math.inf, "l2": 2.0, "l1": 1.0, "l0": 0.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("start", ["zero", "sample", st.Gaussian(0.05)])
@pytest.mark.parametrize("stop", [False, True])
def test_dtype_and_shape_are_kept(
    network: Make, images: Make, labels: Make, dtype: torch.dtype, norm: str, start: Any, stop: bool
) -> None:
    model, x, y = network(dtype=dtype), images(dtype=dtype), labels()
    ball, by = st.Ball(norm, RADIUS[norm], box=(0, 1)), st.PGD(3, keep="best", momentum=0.5)
    found = st.perturb(st.ce(model, y, stop=stop), x, ball, by=by, start=start, generator=st.generator(0))
    for part in (found.point, found.delta):
        assert part.dtype == dtype
        assert part.shape == x.shape
    assert found.value is not None
    assert found.value.dtype == found.size.dtype == dtype
    assert found.value.shape == found.size.shape == (6,)
    unit = torch.finfo(dtype).eps
    size = torch.linalg.vector_norm((found.point.double() - x.double()).flatten(1), ORDER[norm], 1)
    entries = {"linf": 1.0, "l2": 192**0.5, "l1": 192.0, "l0": 0.0}[norm]
    assert bool((size <= RADIUS[norm] * (1 + 4 * unit) + entries * unit).all())
    assert float(found.point.min()) >= 0
    assert float(found.point.max()) <= 1
    assert bool(found.delta.any())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("start", ["zero", "sample"])
@pytest.mark.parametrize("stop", [False, True])
def test_channels_last_stays(network: Make, images: Make, labels: Make, norm: str, start: Any, stop: bool) -> None:
    model, x, y, seen = network(), images(), labels(), []

    def watch(_: Any, inputs: tuple[Tensor]) -> None:
        seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    ball = st.Ball(norm, RADIUS[norm], box=(0, 1))
    loss = st.ce(model, y, stop=stop)
    plain = st.perturb(loss, x, ball, start=start, generator=st.generator(0))
    hook = model[0].register_forward_pre_hook(watch)
    last = x.contiguous(memory_format=torch.channels_last)
    found = st.perturb(loss, last, ball, start=start, generator=st.generator(0))
    hook.remove()
    assert all(seen)
    assert len(seen) >= 3
    assert found.point.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found.point, plain.point, atol=1e-3)  # the same draws at the same pixels


def test_a_batch_that_is_not_contiguous(network: Make, images: Make, labels: Make) -> None:
    model, x, y = network(), images(12), labels(12)
    for part in (slice(0, 12, 2), slice(3, 9)):
        ball = st.Ball("l2", 0.5, box=(0, 1))
        found = st.perturb(st.ce(model, y[part]), x[part], ball, start="sample", generator=st.generator(0))
        copy = st.perturb(
            st.ce(model, y[part].clone()), x[part].clone(), ball, start="sample", generator=st.generator(0)
        )
        assert torch.equal(found.point, copy.point)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 7), (3, 2, 5), (3, 1, 2, 2, 2)])
@pytest.mark.parametrize("norm", NORMS)
def test_examples_of_any_shape(shape: tuple[int, ...], norm: str) -> None:
    x, radius = torch.zeros(shape), torch.tensor([0, 1, 1]) if norm == "l0" else torch.tensor([0.0, 0.5, 1.0])
    ball, by = st.Ball(norm, radius, box=(-2, 2)), st.PGD(10, keep="best")
    found = st.perturb(
        lambda p, rows: p.reshape(len(p), -1).sum(1), x, ball, by=by, start="sample", generator=st.generator(0)
    )
    assert found.point.shape == shape
    assert torch.allclose(found.size, radius.float(), atol=1e-5)
