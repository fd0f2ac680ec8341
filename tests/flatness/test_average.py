"""Average-case flatness: a linear model in closed form, invariances, and what must not be perturbed."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.core import PGD, Ball, GradientError, InputError, ce, generator, perturb
from shaketable.flatness import XI_AVERAGE, average

Make = Callable[..., Any]
EPS = 0.05
LINF = Ball("linf", EPS, box=(0.0, 1.0))


def data(n: int = 12, shape: tuple[int, ...] = (10,), classes: int = 2, seed: int = 3) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = 0.2 + 0.6 * torch.rand(n, *shape, generator=source, dtype=torch.float64)  # the box does not bind
    return x, torch.randint(0, classes, (n,), generator=source)


def robust_loss(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> float:
    """Of a linear model of two classes: mean softplus(-(margin - eps ||w_y - w_other||_1))."""
    slope = weight[y] - weight[1 - y]
    margin = (x * slope).sum(1) + bias[y] - bias[1 - y]
    return float(F.softplus(EPS * slope.abs().sum(1) - margin).mean())


def in_the_ball(w: Tensor, seed: int, k: int, xi: float, law: str, skip: int) -> Tensor:
    """The k-th nu of a tensor, drawn as the definition says: a Gaussian direction, radius xi ||w|| U^(1/m).

    `skip`: numbers of entries of the tensors that are drawn before it from the same stream.
    """
    source = generator(seed, "flatness", k)
    for entries in [*([] if skip == 0 else [skip])]:
        torch.randn(1, entries, generator=source, dtype=torch.float64)
        if law == "ball":
            torch.rand(1, 1, generator=source, dtype=torch.float64)
    direction = torch.randn(1, w.numel(), generator=source, dtype=torch.float64)
    direction = direction / direction.norm()
    if law == "ball":
        direction = direction * torch.rand(1, 1, generator=source, dtype=torch.float64) ** (1 / w.numel())
    return (xi * w.norm() * direction).reshape(w.shape)


@pytest.mark.parametrize("law", ["ball", "sphere"])
@pytest.mark.parametrize("xi", [0.5, 0.05, 0.0])
def test_a_linear_model_in_closed_form(xi: float, law: Any, fill: Make) -> None:
    model = fill(nn.Linear(10, 2))
    x, y = data()
    found = average(model, x, y, seed=7, xi=xi, within=LINF, samples=6, reference_restarts=2, law=law, batch_size=5)
    w, b = model.weight.detach(), model.bias.detach()
    base = robust_loss(w, b, x, y)
    assert found.reference == pytest.approx(base, rel=1e-10)
    for k, draw in enumerate(found.draws):
        nu_w = in_the_ball(w, 7, k, xi, law, skip=0)
        nu_b = in_the_ball(b, 7, k, xi, law, skip=w.numel())
        assert draw == pytest.approx(robust_loss(w + nu_w, b + nu_b, x, y) - base, abs=1e-6)
    assert found.value.value == pytest.approx(sum(found.draws) / 6, abs=1e-12)
    assert (found.value.n, found.examples) == (6, 12)
    if xi:
        assert len(set(found.draws)) == 6
        assert found.value.low < found.value.value < found.value.high
    else:
        assert found.draws == pytest.approx([0.0] * 6, abs=1e-9)


def test_the_mean_of_many_draws_is_the_expectation(fill: Make) -> None:
    """Against the mean of 4000 draws, from a stream of their own, in which the package has no part."""
    model = fill(nn.Linear(10, 2), seed=1)
    x, _ = data(8)
    y = model(x).argmax(1)  # at a model that is right, moving its weights hurts
    found = average(model, x, y, seed=0, within=LINF, by=PGD(8, 0.5), samples=150, reference_restarts=1)
    w, b = model.weight.detach(), model.bias.detach()
    source = torch.Generator().manual_seed(11)
    values = []
    for _ in range(4000):
        parts = []
        for t in (w, b):
            g = torch.randn(t.shape, generator=source, dtype=torch.float64)
            radius = float(torch.rand((), generator=source, dtype=torch.float64)) ** (1 / t.numel())
            parts.append(t + XI_AVERAGE * t.norm() * radius * g / g.norm())
        values.append(robust_loss(parts[0], parts[1], x, y))
    expected = sum(values) / 4000 - robust_loss(w, b, x, y)
    error = found.value.deviation / math.sqrt(150)
    assert abs(found.value.value - expected) < 4 * error
    assert error < abs(expected) / 3  # so that the comparison means something


class Net(nn.Module):
    """Two convolutions with BatchNorm, and a linear layer."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=eps)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, eps=eps)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.head(F.relu(self.bn2(self.conv2(x))).flatten(1))


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_scaling_the_layers_before_a_batchnorm_changes_nothing(factor: float, fill: Make) -> None:
    """Convolutions, their biases and the running statistics scaled: the same function, and the same flatness."""
    model = fill(Net(1e-12))
    x, y = data(8, (3, 6, 6), 3)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for conv, bn in ((scaled.conv1, scaled.bn1), (scaled.conv2, scaled.bn2)):
            for t in (conv.weight, conv.bias, bn.running_mean):
                t.mul_(factor)
            bn.running_var.mul_(factor**2)
    assert torch.allclose(scaled(x), model(x), rtol=1e-8)
    options = {"seed": 1, "within": LINF, "by": PGD(6), "samples": 5, "reference_restarts": 2}
    one, two = average(model, x, y, **options), average(scaled, x, y, **options)
    assert two.reference == pytest.approx(one.reference, rel=1e-6)
    assert two.draws == pytest.approx(one.draws, rel=1e-5)
    assert max(map(abs, one.draws)) > 0.1
    other = copy.deepcopy(model)  # and the comparison can fail: scaling the head changes the function
    with torch.no_grad():
        other.head.weight.mul_(factor)
    assert average(other, x, y, **options).draws != pytest.approx(one.draws, rel=1e-2)


class Watched(nn.Module):
    """Writes down the weights that it is run with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.gn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.ln, self.head = nn.LayerNorm([4, 4, 4]), nn.Linear(64, 3)
        self.seen: list[dict[str, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append({name: p.detach().clone() for name, p in self.named_parameters()})
        return self.head(F.relu(self.ln(self.gn(self.bn(self.conv(x))))).flatten(1))


def test_weights_and_biases_are_layers_of_their_own_and_normalisations_stay(fill: Make) -> None:
    model = fill(Watched())
    before = copy.deepcopy(model.state_dict())
    x, y = data(4, (3, 6, 6), 3)
    average(model, x, y, seed=1, xi=0.3, within=LINF, by=PGD(2), samples=3, law="sphere")
    apart: dict[str, set[float]] = {name: set() for name in before}
    for weights in model.seen:
        for name, w in weights.items():
            apart[name].add(round(float((w - before[name]).norm() / before[name].norm()), 9))
    for name, sizes in apart.items():
        if name.startswith(("conv", "head")):
            assert sizes == {0.0, 0.3}, name
        elif not name.startswith("bn.running") and "num_batches" not in name:
            assert sizes == {0.0}, name
    drawn = {tuple(weights["conv.weight"].flatten()[:2].tolist()) for weights in model.seen}
    assert len(drawn) == 1 + 3  # w and three draws


def test_the_model_and_the_random_state_are_left_alone(fill: Make) -> None:
    model = fill(Net(1e-5))
    model.conv1.weight.requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x, y = data(6, (3, 6, 6), 3)
    kept = x.clone()
    average(model, x, y, seed=1, within=LINF, by=PGD(2), samples=2)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)
    assert not any(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True]
    assert all(p.grad is None for p in model.parameters())


def test_the_seed_decides_and_samples_only_add(fill: Make) -> None:
    model = fill(Net(1e-5))
    x, y = data(6, (3, 6, 6), 3)
    options = {"within": LINF, "by": PGD(2), "reference_restarts": 2}
    one = average(model, x, y, seed=1, samples=3, **options)
    assert average(model, x, y, seed=1, samples=3, **options) == one
    assert average(model, x, y, seed=2, samples=3, **options).draws != one.draws
    more = average(model, x, y, seed=1, samples=5, **options)
    assert more.draws[:3] == one.draws
    assert more.reference == one.reference
    seen: list[tuple[int, int]] = []
    average(model, x, y, seed=1, samples=3, progress=lambda done, of: seen.append((done, of)), **options)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_inputs_are_attacked_anew_for_every_draw(fill: Make) -> None:
    """With the points of w kept, the loss at w + nu would be lower than what the attack finds there."""
    model = fill(Net(1e-5))
    x, y = data(10, (3, 6, 6), 3)
    found = average(model, x, y, seed=1, within=LINF, by=PGD(10), samples=4, reference_restarts=1)
    kept = perturb(
        ce(model, y), x, LINF, by=PGD(10), start="sample", generator=generator(1, "flatness starts", -1)
    ).point
    lower = []
    for k, draw in enumerate(found.draws):
        moved = copy.deepcopy(model)
        shift: Any = Ball("l2", XI_AVERAGE, per="tensor", relative=True).sample(
            {n: p.detach() for n, p in model.named_parameters() if not n.startswith("bn")}, generator(1, "flatness", k)
        )
        with torch.no_grad():
            for name, nu in shift.items():
                moved.get_parameter(name).add_(nu)
            lower.append(float(F.cross_entropy(moved(kept), y)) - found.reference < draw)
    assert all(lower)


def test_every_draw_has_its_own_starts(fill: Make) -> None:
    """With no steps and no radius for the weights, what is left of a draw is its random start."""
    x, y = data()
    found = average(
        fill(nn.Linear(10, 2)), x, y, seed=0, xi=0.0, within=LINF, by=PGD(0), samples=4, reference_restarts=1
    )
    assert len({0.0, *found.draws}) == 5


def test_restarts_of_the_reference_find_more_and_bias_flatness_down(fill: Make) -> None:
    model = fill(Net(1e-5), scale=1.0)
    x, y = data(20, (3, 6, 6), 3)
    options = {"seed": 4, "within": Ball("linf", 0.2, box=(0.0, 1.0)), "by": PGD(2, 0.5), "samples": 2}
    few, many = (average(model, x, y, reference_restarts=n, **options) for n in (1, 10))
    assert many.reference > few.reference
    shift = many.reference - few.reference
    assert many.draws == pytest.approx([draw - shift for draw in few.draws], rel=1e-9)
    n, steps = 20, 2
    per_draw = n * (steps + 2)
    assert few.calls.forward == 3 * per_draw
    assert few.calls.backward == 3 * n * steps
    assert many.calls.backward == n * steps * (10 + 2)


def test_a_layer_of_norm_zero_does_not_move(fill: Make) -> None:
    model = fill(nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2)))
    with torch.no_grad():
        model[0].bias.zero_()
        model[2].bias.zero_()
    x, y = data()
    found = average(model, x, y, seed=0, within=LINF, by=PGD(3), samples=3)
    assert all(map(math.isfinite, found.draws))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.zero_()
    still = average(model, x, y, seed=0, within=LINF, by=PGD(3), samples=3)
    assert still.draws == (0.0, 0.0, 0.0)
    assert still.reference == pytest.approx(math.log(2))


def test_a_constant_predictor_is_perfectly_flat(fill: Make) -> None:
    model = fill(nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2)))
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    x, y = data()
    found = average(model, x, y, seed=0, within=LINF, by=PGD(3), samples=4)
    assert found.draws == (0.0,) * 4
    assert (found.value.value, found.value.low, found.value.high) == (0.0, 0.0, 0.0)


def test_masked_gradients_are_an_error_not_a_flat_model(fill: Make) -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((8 * x).round() / 8)

    x, y = data()
    with pytest.raises(GradientError, match="model: expected a gradient of the loss by the images"):
        average(fill(Rounded()), x, y, seed=0, within=LINF, by=PGD(3), samples=2)


class Twice(nn.Module):
    """One matrix, used twice: as two layers that share it, or as one layer that is called twice."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.a = nn.Linear(10, 10)
        if tied:
            self.b = nn.Linear(10, 10)
            self.b.weight, self.b.bias = self.a.weight, self.a.bias
        self.head, self.tied = nn.Linear(10, 2), tied

    def forward(self, x: Tensor) -> Tensor:
        again = self.b if self.tied else self.a
        return self.head(torch.tanh(again(torch.tanh(self.a(x)))))


def test_tied_weights_are_one_layer(fill: Make) -> None:
    x, y = data()
    options = {"seed": 0, "within": LINF, "by": PGD(3), "samples": 4}
    one, two = (average(fill(Twice(tied=tied)), x, y, **options) for tied in (True, False))
    assert one.draws == two.draws


def test_the_defaults_are_the_papers(fill: Make) -> None:
    model = fill(nn.Linear(10, 2))
    x, y = data()
    found = average(model, x, y, seed=0)
    options = {"xi": 0.5, "within": Ball("linf", 8 / 255, box=(0.0, 1.0)), "samples": 10, "reference_restarts": 10}
    assert found == average(model, x, y, seed=0, by=PGD(20, 0.007 / (8 / 255)), law="ball", **options)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"samples": 0}, "samples, xi"),
        ({"xi": -0.1}, "samples, xi"),
        ({"xi": float("nan")}, "samples, xi"),
        ({"xi": float("inf")}, "radius"),
        ({"reference_restarts": 0}, "restarts"),
        ({"x": torch.zeros(0, 10).double()}, "x, y"),
        ({"y": torch.zeros(5, dtype=torch.long)}, "x, y"),
        ({"y": torch.full((12,), 7)}, "y"),
        ({"x": torch.full((12, 10), float("nan")).double()}, "origin"),
        ({"x": torch.full((12, 10), 200.0).double()}, "origin"),
    ],
)
def test_bad_input(change: dict[str, Any], argument: str, fill: Make) -> None:
    x, y = data()
    given = {"x": x, "y": y, "samples": 2, "by": PGD(1), "within": LINF} | change
    with pytest.raises(InputError) as caught:
        average(fill(nn.Linear(10, 2)), given.pop("x"), given.pop("y"), seed=0, **given)
    assert caught.value.argument == argument
    assert caught.value.remedy


@pytest.mark.parametrize("where", ["model", "part"])
def test_a_model_in_train_mode_is_refused(where: str, fill: Make) -> None:
    model = fill(nn.Sequential(nn.Linear(10, 2), nn.Dropout(0.5)))
    (model if where == "model" else model[1]).train()
    x, y = data()
    with pytest.raises(
        InputError, match=r"model: expected a model in eval mode, found train mode. Call model.eval\(\)"
    ):
        average(model, x, y, seed=0)
