"""The Hessian's products and extreme eigenpairs, against the dense matrix in float64."""

import copy
import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from shaketable.core import Calls, GradientError, InputError
from shaketable.flatness.eigenpairs import eigenpairs
from shaketable.flatness.hessian import LossHessian, loss_hessian

Make = Callable[..., Any]


def data(n: int = 12, shape: tuple[int, ...] = (6,), classes: int = 3, seed: int = 3) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *shape, generator=source, dtype=torch.float64)
    return x, torch.randint(0, classes, (n,), generator=source)


class Pooled(nn.Module):
    """Convolution, BatchNorm, ReLU, max pooling, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(F.relu(self.bn(self.conv(x))), 2).flatten(1))


class Tied(nn.Module):
    """One matrix as two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tanh": (mlp, (6,)),
    "relu": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
    "pooled": (Pooled, (1, 6, 6)),
    "tied": (Tied, (6,)),
    "linear": (lambda: nn.Linear(6, 3), (6,)),
}


def dense(hessian: LossHessian) -> Tensor:
    """The matrix by torch.autograd.functional, of a loss that is written here once more."""
    names, shapes = list(hessian.origin), [w.shape for w in hessian.origin.values()]

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([math.prod(s) for s in shapes])
        tensors = {n: p.reshape(s) for n, p, s in zip(names, pieces, shapes, strict=True)}
        return F.cross_entropy(functional_call(hessian.model, tensors, (hessian.x,)), hessian.y)

    flat = torch.cat([w.reshape(-1) for w in hessian.origin.values()])
    return torch.autograd.functional.hessian(loss, flat)  # type: ignore[return-value]


def make(name: str, fill: Make, **options: Any) -> LossHessian:
    build, shape = MODELS[name]
    return loss_hessian(fill(build()), *data(shape=shape), batch_size=5, **options)


@pytest.mark.parametrize("select", ["matrices", "all"])
@pytest.mark.parametrize("name", list(MODELS))
def test_products_are_the_dense_matrix(name: str, select: Any, fill: Make) -> None:
    hessian = make(name, fill, select=select)
    matrix = dense(hessian)
    assert matrix.abs().max() > 1e-3
    assert hessian.size == len(matrix)
    assert torch.allclose(hessian.products(torch.eye(hessian.size, dtype=torch.float64)), matrix, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "top", "bottom"), [*((name, 3, 2) for name in MODELS), ("tied", 1, 1), ("relu", 2, 0), ("tanh", 0, 2)]
)
def test_eigenpairs_are_those_of_the_dense_matrix(name: str, top: int, bottom: int, fill: Make) -> None:
    hessian = make(name, fill)
    values, vectors = torch.linalg.eigh(dense(hessian))
    found = eigenpairs(hessian, seed=1, top=top, bottom=bottom, tolerance=1e-12)
    assert found.top == pytest.approx(values.flip(0)[:top].tolist(), abs=1e-9)
    assert found.bottom == pytest.approx(values[:bottom].tolist(), abs=1e-9)
    assert max(found.residuals) < 1e-6
    expected = [*vectors.T.flip(0)[:top], *vectors.T[:bottom]]
    alone = [float((values - value).abs().sort().values[1]) > 1e-4 for value in (*found.top, *found.bottom)]
    for vector, wanted, single in zip(found.vectors, expected, alone, strict=True):
        flat = torch.cat([part.reshape(-1) for part in vector.values()])
        assert float(flat.norm()) == pytest.approx(1, abs=1e-12)
        assert flat[flat.abs().argmax()] > 0
        if single:
            assert abs(float(flat @ wanted)) == pytest.approx(1, abs=1e-6)
    if top and bottom:
        assert found.convexity == pytest.approx(abs(float(values[0])) / abs(float(values[-1])), abs=1e-8)
    else:
        assert math.isnan(found.convexity)


def test_the_logistic_models_hessian_in_closed_form() -> None:
    """Zero weights of a linear model of two classes: H = mean of x x' / 4 for each pair of rows, with signs."""
    model = nn.Linear(6, 2, bias=False).double().eval()
    with torch.no_grad():
        model.weight.zero_()
    x, y = data(classes=2)
    top = eigenpairs(loss_hessian(model, x, y), seed=0, bottom=0, tolerance=1e-12).top[0]
    assert top == pytest.approx(float(torch.linalg.eigvalsh(x.T @ x / len(x))[-1]) / 2, abs=1e-10)


def test_in_float32_the_top_agrees_to_its_precision(fill: Make) -> None:
    model = fill(Pooled())
    x, y = data(shape=(1, 6, 6))
    exact = eigenpairs(loss_hessian(model, x, y), seed=0, tolerance=1e-10)
    single = eigenpairs(loss_hessian(model.float(), x.float(), y), seed=0)
    assert single.top[0] == pytest.approx(exact.top[0], rel=1e-4)
    assert single.vectors[0]["conv.weight"].dtype == torch.float32


@pytest.mark.parametrize("name", ["tied", "pooled"])
def test_the_same_seed_gives_the_same_pairs_in_any_batches(name: str, fill: Make) -> None:
    build, shape = MODELS[name]
    x, y = data(shape=shape)
    model = fill(build())
    one, two, other = (
        eigenpairs(loss_hessian(model, x, y, batch_size=size), seed=4, tolerance=1e-10) for size in (5, 5, 12)
    )
    assert one.top == two.top
    assert all(torch.equal(a, two.vectors[k][n]) for k, v in enumerate(one.vectors) for n, a in v.items())
    assert other.top == pytest.approx(one.top, abs=1e-9)


def test_passes_are_counted(fill: Make) -> None:
    passes = Calls()

    class Counted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            nonlocal passes
            passes += Calls(len(x))
            return super().forward(x)

    hessian = loss_hessian(fill(Counted(6, 3)), *data(), batch_size=5)
    found = eigenpairs(hessian, seed=0)
    vectors = len(found.vectors)
    alone = found.products - vectors  # one vector each: a true forward pass, and one that is counted as such
    assert passes.forward == (alone + 1) * 12
    assert found.calls == Calls(12 * (2 * alone + 1 + vectors), 12 * (2 * alone + 1 + vectors))


def test_a_loss_that_nothing_changes_has_no_curvature(fill: Make) -> None:
    model = fill(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)  # dead units: the output is the last bias
    hessian = loss_hessian(model, *data())
    found = eigenpairs(hessian, seed=0, top=2)
    assert (found.top, found.bottom, found.residuals) == ((0.0, 0.0), (0.0,), (0.0, 0.0, 0.0))
    assert math.isnan(found.convexity)
    assert not bool(hessian.curvatures(torch.ones(hessian.size, dtype=torch.float64)).any())


@pytest.mark.parametrize("name", ["pooled", "tied", "relu"])
def test_each_images_curvature_is_its_own_quadratic_form(name: str, fill: Make) -> None:
    hessian = make(name, fill)
    direction = torch.randn(hessian.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    each = hessian.curvatures(direction)
    for k in (0, 7):
        one = LossHessian(hessian.model, hessian.x[k : k + 1], hessian.y[k : k + 1], hessian.origin, 5)
        assert float(each[k]) == pytest.approx(float(direction @ dense(one) @ direction), abs=1e-9)
    assert float(each.mean()) == pytest.approx(float(direction @ hessian.products(direction[None])[0]), abs=1e-9)


def test_a_loss_that_is_linear_in_a_weight_has_a_zero_row(fill: Make) -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(6, 3), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + 0 * self.idle.weight.sum()

    hessian = loss_hessian(fill(Added()), *data())
    full = hessian.products(torch.eye(hessian.size, dtype=torch.float64))
    assert not bool(full[18:].any())
    assert not bool(full[:, 18:].any())
    with pytest.raises(GradientError, match="a loss that depends on the selected weights"):
        loss_hessian(hessian.model, *data(), select=lambda name, _: name == "idle.bias").products(torch.ones(1, 2))


def test_nothing_is_changed_and_every_graph_is_freed(fill: Make) -> None:
    model = fill(Pooled())
    model.head.weight.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    hessian = loss_hessian(model, *data(shape=(1, 6, 6)))
    seen: list[Any] = []
    hook = model.head.register_forward_hook(lambda _m, _i, out: seen.append(weakref.ref(out)))
    gc.disable()  # what lives on then is held by a cycle
    try:
        eigenpairs(hessian, seed=0)
        hessian.curvatures(torch.ones(hessian.size, dtype=torch.float64))
        assert len(seen) > 10
        assert not any(ref() is not None for ref in seen)
    finally:
        gc.enable()
        hook.remove()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in model.parameters()] == [True] * 4 + [False, True]
    assert all(p.grad is None for p in model.parameters())


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * ctx.saved_tensors[0] * gradient


def test_a_function_without_a_second_derivative_is_refused(fill: Make) -> None:
    class Squared(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return _Once.apply(super().forward(x))  # type: ignore[no-any-return]

    with pytest.raises(GradientError, match="functions that can be differentiated twice"):
        eigenpairs(loss_hessian(fill(Squared(6, 3)), *data()), seed=0)


def test_bad_input(fill: Make) -> None:
    x, y = data()
    model = fill(mlp())
    with pytest.raises(InputError, match="batch_size"):
        loss_hessian(model, x, y, batch_size=0)
    with pytest.raises(InputError, match="as many labels as images"):
        loss_hessian(model, x, y[:3])
    with pytest.raises(InputError, match="at least one parameter"):
        loss_hessian(model, x, y, select=lambda _n, _t: False)
    hessian = loss_hessian(model, x, y)
    for top, bottom in ((0, 0), (-1, 2), (45, 0), (30, 30)):
        with pytest.raises(InputError, match="top, bottom"):
            eigenpairs(hessian, seed=0, top=top, bottom=bottom)
    with pytest.raises(InputError, match="pairs that converge"):
        eigenpairs(hessian, seed=0, top=4, bottom=4, tolerance=1e-15, restarts=1)
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with pytest.raises(InputError, match="a finite loss"):
        eigenpairs(loss_hessian(model, x, y), seed=0)
    with pytest.raises(InputError, match="eval mode"):
        loss_hessian(mlp().double().train(), x, y)
