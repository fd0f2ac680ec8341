"""`PGD` reaches the optima that are known: linear models, a quadratic in weight space, a bilinear joint place."""

import pytest
import torch
from torch import Tensor, nn

from shaketable import core as st

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
