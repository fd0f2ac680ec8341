"""A loss that is quadratic in the weights: the average case is a trace, the worst case a constrained optimum; float64."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from shaketable.core import PGD, Ball
from shaketable.flatness.average import average
from shaketable.flatness.sharpness import SAMSharpness
from shaketable.flatness.worst import worst

EPS = 0.05
LINF = Ball("linf", EPS, box=(0.0, 1.0))
SIZES = {"a": (3, 2), "b": (4,)}


class Quadratic(nn.Module):
    """Two logits whose cross-entropy with label 0 is q(w) + x . s exactly, q(w) = 4 + g (w - w0) + (w - w0) H (w - w0) / 2.

    For the logits (0, log(exp(q) - 1)) it is log(1 + exp(log(exp(q) - 1))) = q, where q > 0.
    """

    def __init__(self, curvature: Tensor, slope: Tensor, seed: int = 0) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        for name, shape in SIZES.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=source, dtype=torch.float64)))
        self.register_buffer("w0", self.weights().detach().clone())
        self.register_buffer("curvature", curvature)
        self.register_buffer("slope", slope)
        self.register_buffer("inputs", 0.3 * torch.randn(5, generator=source, dtype=torch.float64))
        self.eval()

    def weights(self) -> Tensor:
        return torch.cat([self.a.reshape(-1), self.b])

    def forward(self, x: Tensor) -> Tensor:
        v = self.weights() - self.w0
        value = 4 + self.slope @ v + v @ self.curvature @ v / 2 + (x - 0.5) @ self.inputs
        other = value + torch.log(-torch.expm1(-value))
        return torch.stack([torch.zeros_like(other), other], 1)


def images(n: int = 3) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(5)
    return 0.2 + 0.6 * torch.rand(n, 5, generator=source, dtype=torch.float64), torch.zeros(n, dtype=torch.long)


def some(seed: int = 1, scale: float = 0.3) -> tuple[Tensor, Tensor]:
    """A symmetric matrix and a slope."""
    source = torch.Generator().manual_seed(seed)
    square = torch.randn(10, 10, generator=source, dtype=torch.float64)
    return scale * (square + square.T) / 2, 0.2 * torch.randn(10, generator=source, dtype=torch.float64)


def radii(model: Quadratic, xi: float) -> tuple[float, float]:
    return xi * float(model.a.detach().norm()), xi * float(model.b.detach().norm())


def trace(model: Quadratic, xi: float, moments: dict[str, float]) -> float:
    """E[nu H nu] / 2 where E[nu_l nu_l'] is moments[l] * radius_l^2 times the identity, and layers are independent."""
    (r, s), h = radii(model, xi), model.curvature
    first, second = float(h[:6, :6].trace()), float(h[6:, 6:].trace())
    return (moments["a"] * r * r * first + moments["b"] * s * s * second) / 2


class Design:
    """Draws that have the sphere's second moments exactly: rotated axes of each layer, of both signs, in all combinations."""

    def __init__(self, model: Quadratic, xi: float, *, pairs: bool) -> None:
        source = torch.Generator().manual_seed(9)
        q, p = (torch.linalg.qr(torch.randn(m, m, generator=source, dtype=torch.float64))[0] for m in (6, 4))
        r, s = radii(model, xi)
        self.points = [(r * q[i], sign * s * p[j]) for i, j, sign in itertools.product(range(6), range(4), (1, -1))]
        self.calls, self.asked = 0, 1 + pairs  # a pair nu, -nu asks twice

    def sample(self, origin: dict[str, Tensor], generator: torch.Generator, law: str) -> dict[str, Tensor]:
        first, second = self.points[self.calls // self.asked]
        self.calls += 1
        return {"a": first.reshape(origin["a"].shape), "b": second}


@pytest.mark.parametrize(("loss", "pairs"), [("robust", False), ("clean", True)])
def test_the_average_is_the_trace_formula(loss: Any, pairs: bool) -> None:
    """The pairs nu, -nu take away what the slope does to this finite set of draws; without them there is no slope."""
    curvature, slope = some()
    model = Quadratic(curvature, slope if pairs else torch.zeros(10, dtype=torch.float64))
    x, y = images()
    design = Design(model, 0.3, pairs=pairs)
    samples = len(design.points) * (1 + pairs)
    found = average(
        model, x, y, seed=0, xi=design, loss=loss, within=LINF, by=PGD(4, 0.5), samples=samples, reference_restarts=1,
        antithetic=pairs,
    )  # fmt: skip
    assert design.calls == samples
    assert found.value.value == pytest.approx(trace(model, 0.3, {"a": 1 / 6, "b": 1 / 4}), abs=1e-6)
    assert found.value.n == 48
    base = (
        4
        + float(((x - 0.5) @ model.inputs).mean())
        + (EPS * float(model.inputs.abs().sum()) if loss == "robust" else 0)
    )
    assert found.reference == pytest.approx(base, abs=1e-9)
    assert found.per_image.tolist() == pytest.approx([found.value.value] * 3, abs=1e-6)


def test_on_the_sphere_of_a_round_bowl_every_draw_is_the_trace_formula() -> None:
    round_bowl = torch.diag(torch.tensor([0.7] * 6 + [0.2] * 4, dtype=torch.float64))
    model = Quadratic(round_bowl, torch.zeros(10, dtype=torch.float64))
    x, y = images()
    found = average(model, x, y, seed=0, xi=0.4, law="sphere", loss="clean", samples=4)
    expected = trace(model, 0.4, {"a": 1 / 6, "b": 1 / 4})
    assert found.draws == pytest.approx([expected] * 4, abs=1e-6)


MOMENTS: dict[str, Callable[[int], float]] = {
    "ball": lambda m: 1 / (m + 2),
    "sphere": lambda m: 1 / m,
    "radius": lambda m: 1 / (3 * m),
}


@pytest.mark.parametrize(("law", "antithetic"), [("ball", False), ("ball", True), ("sphere", True), ("radius", True)])
def test_each_law_has_the_trace_of_its_second_moments(law: Any, antithetic: bool) -> None:
    """Drawn, so to four standard errors; the moments of the three laws differ by more than that."""
    curvature, slope = some(2)
    model = Quadratic(0.2 * curvature + 0.4 * torch.eye(10, dtype=torch.float64), slope)
    x, y = images(1)
    found = average(model, x, y, seed=0, xi=0.3, law=law, loss="clean", samples=60, antithetic=antithetic)
    expected = {name: trace(model, 0.3, {"a": f(6), "b": f(4)}) for name, f in MOMENTS.items()}
    error = found.value.deviation / math.sqrt(found.value.n)
    assert abs(found.value.value - expected[law]) < 4 * error
    if antithetic:  # without the slope's part it is sharp enough to tell the laws apart
        assert all(abs(found.value.value - other) > 4 * error for name, other in expected.items() if name != law)


def optimum(model: Quadratic, within: list[tuple[slice, float]]) -> float:
    """The highest g v + v H v / 2 with ||v[part]|| <= radius for each part, by SciPy from several starts."""
    h, g = model.curvature.numpy(), model.slope.numpy()
    constraints = [
        {"type": "ineq", "fun": lambda v, s=s, r=r: r * r - v[s] @ v[s], "jac": lambda v, s=s: _inside(v, s)}
        for s, r in within
    ]
    rng, best = np.random.default_rng(0), -math.inf
    for _ in range(8):
        found = minimize(
            lambda v: -(g @ v + v @ h @ v / 2), 0.1 * rng.standard_normal(10), jac=lambda v: -(g + h @ v), method="SLSQP",
            constraints=constraints, options={"ftol": 1e-14, "maxiter": 1000},
        )  # fmt: skip
        if all(np.linalg.norm(found.x[s]) <= r * (1 + 1e-9) for s, r in within):
            best = max(best, -found.fun)
    return best


def _inside(v: Any, part: slice) -> Any:
    slope = np.zeros_like(v)
    slope[part] = -2 * v[part]
    return slope


@pytest.mark.parametrize("loss", ["robust", "clean"])
def test_the_worst_case_is_the_constrained_optimum(loss: Any) -> None:
    model = Quadratic(*some(3))
    x, y = images()
    found = worst(
        model, x, y, seed=0, xi=0.3, loss=loss, within=LINF, by=PGD(50), restarts=3, reference_restarts=1, step=1.0
    )
    r, s = radii(model, 0.3)
    best = optimum(model, [(slice(0, 6), r), (slice(6, 10), s)])
    assert best > 0.1
    assert found.value.value == pytest.approx(best, abs=1e-6)
    assert max(found.draws) == pytest.approx(best, abs=1e-6)
    assert found.per_image.tolist() == pytest.approx([best] * 3, abs=1e-6)


def test_sam_is_the_optimum_of_one_ball_and_one_step_its_first_order_estimate() -> None:
    model = Quadratic(*some(4))
    x, y = images()
    best = optimum(model, [(slice(0, 10), 0.5)])
    found = SAMSharpness(rho=0.5, steps=80)(model, x, y, seed=0)
    assert found.value.value == pytest.approx(best, abs=1e-6)
    one = SAMSharpness(rho=0.5, steps=1)(model, x, y, seed=0)
    step = 0.5 * model.slope / model.slope.norm()
    expected = float(model.slope @ step + step @ model.curvature @ step / 2)
    assert one.value.value == pytest.approx(expected, abs=1e-9)
    assert expected < best
