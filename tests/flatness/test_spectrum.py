"""Trace and spectral density, against the dense matrix in float64."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.linalg import hadamard
from torch import nn

from shaketable.core import Calls, InputError
from shaketable.flatness.hessian import LossHessian, loss_hessian
from shaketable.flatness.spectrum import density, quadratic_forms, signs, trace

Make = Callable[..., Any]


@pytest.fixture
def hessian(fill: Make) -> LossHessian:
    """Of a net with 32 + 8 weights in matrices, a power of two and a half."""
    source = torch.Generator().manual_seed(3)
    x = torch.rand(12, 8, generator=source, dtype=torch.float64)
    y = torch.randint(0, 3, (12,), generator=source)
    return loss_hessian(fill(nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 3))), x, y)


def dense(hessian: LossHessian) -> torch.Tensor:
    """By products, which tests/flatness/test_hessian.py compares with the dense matrix."""
    return hessian.products(torch.eye(hessian.size, dtype=torch.float64))


def test_the_trace_is_within_its_error(hessian: LossHessian) -> None:
    matrix = dense(hessian)
    found = trace(hessian, seed=0, probes=80, block=40)
    assert abs(found.value.value - float(matrix.trace())) < 4 * found.error
    off = matrix - matrix.diag().diag()
    assert found.error == pytest.approx(math.sqrt(2 * float((off**2).sum()) / 80), rel=0.3)
    assert found.error < abs(float(matrix.trace())) / 5
    assert found.value.n == len(set(found.forms)) == 80


def test_over_a_basis_the_trace_is_exact(hessian: LossHessian, fill: Make) -> None:
    exact = float(dense(hessian).trace())
    forms = quadratic_forms(hessian, torch.eye(hessian.size, dtype=torch.float64))
    assert sum(forms) == pytest.approx(exact, abs=1e-12)
    source = torch.Generator().manual_seed(1)
    x, y = torch.rand(5, 8, generator=source, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1])
    linear = loss_hessian(fill(nn.Linear(8, 2)), x, y)  # 16 weights: all signs of a Hadamard basis
    full = quadratic_forms(linear, torch.from_numpy(hadamard(16)).double())
    assert sum(full) / 16 == pytest.approx(float(dense(linear).trace()), abs=1e-12)
    assert max(full) - min(full) > 1e-3


def test_probes_are_signs_of_their_seed(hessian: LossHessian) -> None:
    drawn = torch.stack([signs(4000, 0, k) for k in range(3)])
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(drawn[0] @ drawn[1])) < 4 * math.sqrt(4000)
    one, two, three = (trace(hessian, seed=0, probes=n, block=b) for n, b in ((6, 1), (6, 4), (3, 2)))
    assert one.forms == pytest.approx(two.forms, abs=1e-12)
    assert three.forms == pytest.approx(one.forms[:3], abs=1e-12)
    assert trace(hessian, seed=1, probes=6).forms != one.forms
    assert (one.calls, two.calls) == (Calls(12 * 12, 12 * 12), Calls(12 * (5 + 3), 12 * (5 + 3)))
    assert math.isnan(trace(hessian, seed=0, probes=1).error)


@pytest.mark.parametrize("power", [1, 2, 3, 5])
def test_moments_are_the_means_of_the_dense_matrixs_powers(power: int, hessian: LossHessian) -> None:
    matrix = torch.linalg.matrix_power(dense(hessian), power)
    exact = float(matrix.trace()) / hessian.size
    found = density(hessian, seed=0, probes=16, steps=3).moment(power)
    assert abs(found.value - exact) < 4 * found.deviation / math.sqrt(16)
    full = [signs(hessian.size, 0, k) for k in range(16)]  # quadrature of 3 steps is exact up to the fifth power
    forms = [float(v @ matrix @ v) / hessian.size for v in full]
    assert found.value == pytest.approx(sum(forms) / 16, abs=1e-12)


def test_with_steps_for_all_the_nodes_are_the_eigenvalues(hessian: LossHessian) -> None:
    values = torch.linalg.eigvalsh(dense(hessian))
    found = density(hessian, seed=0, probes=2, steps=hessian.size + 5)
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        assert sum(weights) == pytest.approx(1, abs=1e-12)
        distance = (torch.tensor(nodes)[:, None] - values).abs()
        assert float(distance.min(1).values.max()) < 1e-7  # every node is an eigenvalue
        assert len(nodes) > 20
        apart = [value for value in values.tolist() if abs(value) > 1e-3]
        assert all(min(abs(node - value) for node in nodes) < 1e-7 for value in apart)  # and none is missed
        assert all(sum(abs(node - value) < 1e-6 for node in nodes) == 1 for value in apart)  # nor found twice
    assert found.span == pytest.approx((float(values[0]), float(values[-1])), abs=1e-9)


def test_the_smoothed_density_integrates_to_one(hessian: LossHessian) -> None:
    found = density(hessian, seed=0, probes=3, steps=10)
    low, high = found.span
    grid = torch.linspace(low - 0.1 * (high - low), high + 0.1 * (high - low), 2001, dtype=torch.float64).tolist()
    values = found.at(grid)
    assert min(values) >= 0
    assert sum(values) * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-6)
    mean = sum(v * g for v, g in zip(values, grid, strict=True)) * (grid[1] - grid[0])
    assert mean == pytest.approx(found.moment(1).value, abs=1e-6)
    assert found.products == 30
    assert found.calls == Calls(30 * 24, 30 * 24)
    assert found == density(hessian, seed=0, probes=3, steps=10)


def test_a_zero_matrix_has_its_whole_mass_at_zero(fill: Make) -> None:
    model = fill(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    hessian = loss_hessian(model, torch.rand(4, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    found = density(hessian, seed=0, probes=2)
    assert (found.nodes, found.span, found.products) == (((0.0,), (0.0,)), (0.0, 0.0), 2)
    assert found.at([0.0])[0] > found.at([0.1])[0]
    assert trace(hessian, seed=0, probes=3).forms == (0.0, 0.0, 0.0)


def test_bad_input(hessian: LossHessian) -> None:
    for call in (
        lambda: trace(hessian, seed=0, probes=0), lambda: trace(hessian, seed=0, block=0),
        lambda: density(hessian, seed=0, probes=0), lambda: density(hessian, seed=0, steps=0),
        lambda: density(hessian, seed=0, probes=1, steps=2).at([0.0], width=0.0),
    ):  # fmt: skip
        with pytest.raises(InputError):
            call()
