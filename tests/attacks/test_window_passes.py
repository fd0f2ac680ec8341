"""Passes over windows give the logits of whole passes, for the candidates as for what is taken of them."""

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.attacks import window_passes
from shaketable.attacks.square import SquareAttack
from shaketable.attacks.square_moves import Windows
from shaketable.attacks.twin import quick_twin
from shaketable.attacks.window_maps import Plan
from shaketable.attacks.window_passes import WindowPasses
from shaketable.core import Ball, generator


class _Block(nn.Module):
    """A residual block, its sum in place or not, with a convolution in its shortcut where the shapes need one."""

    def __init__(self, inputs: int, outputs: int, stride: int, inplace: bool, first: bool) -> None:
        super().__init__()
        self.inplace, self.first = inplace, first
        self.norm = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.short = nn.Identity() if inputs == outputs and stride == 1 else nn.Conv2d(inputs, outputs, 1, stride)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.conv1(F.relu(self.norm(x)) if self.first else x)))
        if self.inplace:
            out += self.short(x)
            return self.relu(out)
        return out + self.short(x)


class _Head(nn.Module):
    """The end of a network: what makes logits of maps."""

    def __init__(self, kind: str, channels: int, pixels: int) -> None:
        super().__init__()
        self.kind = kind
        self.fc = nn.Linear(channels if kind == "pool" else channels * pixels, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "pool":
            return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        if self.kind == "view":
            return self.fc(x.view(x.size(0), -1))
        return self.fc(torch.flatten(x, 1))


class _Normalised(nn.Module):
    def __init__(self, channels: int, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside
        self.register_buffer("mean", torch.rand(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inside((x - self.mean) / 0.3)


def _layer(draw: random.Random, inputs: int) -> tuple[nn.Module, int]:
    """A layer as somebody might choose it, and its channels."""
    kind = draw.choice(["conv", "conv", "block", "block", "max", "average", "grouped", "tanh"])
    outputs, stride = draw.choice([4, 6]), draw.choice([1, 1, 2])
    if kind == "conv":
        kernel, padding = draw.choice([(1, 0), (3, 1), (3, 0), (5, 2), ((3, 2), (1, 0)), (2, 1)])
        return nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=draw.random() < 0.5), outputs
    if kind == "block":
        return _Block(inputs, outputs, stride, draw.random() < 0.5, draw.random() < 0.5), outputs
    if kind == "grouped":
        return nn.Conv2d(inputs, inputs, 3, 1, 2, dilation=2, groups=draw.choice([1, inputs])), inputs
    if kind == "max":
        return nn.MaxPool2d(3, draw.choice([1, 2]), 1), inputs
    if kind == "average":
        return nn.AvgPool2d(2, draw.choice([None, 1])), inputs
    return nn.Tanh(), inputs


def _network(seed: int) -> tuple[nn.Module, Tensor]:
    """A drawn network in eval mode, and images for it."""
    torch.manual_seed(seed)
    draw = random.Random(seed)
    channels = draw.choice([1, 3])
    x = torch.rand(5, channels, draw.choice([20, 23]), draw.choice([20, 26]))
    layers, width = [], channels
    for _ in range(draw.choice([2, 3, 4])):
        layer, width = _layer(draw, width)
        layers += [layer, nn.BatchNorm2d(width), nn.ReLU(draw.random() < 0.5)][: draw.choice([1, 3])]
    layers.append(nn.Conv2d(width, width, 1))  # without one there is no twin
    body = nn.Sequential(*layers)
    for norm in (module for module in body.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.running_var, norm.weight):
            nn.init.uniform_(tensor, 0.5, 2)  # pyright: ignore
        nn.init.uniform_(norm.running_mean, -1, 1)  # pyright: ignore
    maps = body.eval()(x)
    model = nn.Sequential(body, _Head(draw.choice(["pool", "view", "flatten"]), width, maps[0, 0].numel()))
    return (_Normalised(channels, model) if draw.random() < 0.5 else model).eval(), x


def _with_windows(point: Tensor, corners: Tensor, window: Tensor) -> Tensor:
    changed, (height, width) = point.clone(), window.shape[2:]
    for image, (top, left) in enumerate(corners.tolist()):
        changed[image, :, top : top + height, left : left + width] = window[image]
    return changed


@pytest.fixture
def _always(monkeypatch: Any) -> None:
    """Windows are followed even where that saves nothing."""
    monkeypatch.setattr(window_passes, "WORTH", float("inf"))


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("largest", [0.6, 1.0])
@pytest.mark.parametrize("product", [0, 2**18])
@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(6, 60))])
def test_the_logits_are_those_of_whole_passes(seed: int, product: int, largest: float, monkeypatch: Any) -> None:
    monkeypatch.setattr("shaketable.attacks.window_maps.PRODUCT", product)
    monkeypatch.setattr(window_passes, "LARGEST", largest)
    (model, x), source = _network(seed), torch.Generator().manual_seed(seed)
    passes = WindowPasses.of(quick_twin(model), x)
    assert passes is not None
    with torch.no_grad():
        for size in ((1, 1), (3, 2), (7, 7), (20, 20))[: 4 if largest == 1 else 3]:
            assert passes.begin(x, size)
            for _ in range(2):  # a second time after images have gone
                ends = torch.tensor([x.shape[2] - size[0] + 1, x.shape[3] - size[1] + 1])
                corners = (torch.rand(6, len(x), 2, generator=source) * ends).long()
                passes.aim(corners)
                for turn in range(6):
                    window = torch.rand(*x.shape[:2], *size, generator=source)
                    candidate = _with_windows(x, corners[turn], window)
                    assert torch.allclose(passes.logits(turn, window), model(candidate), rtol=1e-4, atol=2e-5)
                    better = torch.rand(len(x), generator=source) < (0.0, 0.4, 1.0)[turn % 3]
                    passes.settle(better)
                    x = torch.where(better[:, None, None, None], candidate, x)
                left = torch.arange(len(x))[1:] if len(x) > 2 else torch.arange(len(x))
                passes.keep(left)
                x = x[left]


def test_only_what_the_window_reaches_is_computed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(4 * 100, 3)).eval()
    passes = WindowPasses.of(quick_twin(model), torch.rand(2, 1, 20, 20))
    assert passes is not None
    for size, reached in (((2, 2), [2, 4, 4, 3, 3]), ((5, 5), [5, 7, 7, 5, 5])):
        areas = passes._areas(size)
        assert [area.size for area in areas.values()] == [(side, side) for side in reached]
    lines = list(passes._areas((1, 1)).values())[1].lines
    between = list(range(18))  # three lines are taken; at the edges, where two are reached, a third as well
    assert lines.first.tolist() == [0, *between, 17]


@pytest.mark.usefixtures("_always")
def test_maps_that_would_take_too_much_memory_are_not_kept(monkeypatch: Any) -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 324, 3)).eval(), torch.rand(2, 1, 20, 20)
    passes = WindowPasses.of(quick_twin(model), x)
    assert passes is not None
    entries = 400 + 2 * 324
    for limit, begins in ((2 * 4 * entries, True), (2 * 4 * entries - 1, False)):
        monkeypatch.setattr(window_passes, "MEMORY", limit)
        assert passes.begin(x, (2, 2)) is begins


def test_windows_that_save_nothing_are_not_followed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 324, 3)).eval()
    x = torch.rand(2, 1, 20, 20)
    passes = WindowPasses.of(quick_twin(model), x)
    assert passes is not None
    assert passes.begin(x, (1, 1))
    assert not passes.begin(x, (17, 17))


def test_large_logits_are_the_same_but_for_their_rounding() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 256, 5)]
    model, x = nn.Sequential(*layers).eval(), torch.rand(2, 1, 20, 20)
    model[-1].weight.data *= 1e5  # pyright: ignore
    passes = WindowPasses.of(quick_twin(model), x)
    assert passes is not None
    assert passes.begin(x, (2, 2))


class _Strange(nn.Module):
    """A model whose graph would not be all that it does."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.head = nn.Conv2d(1, 2, 3), nn.Linear(2 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "flow" and float(x.sum()) > 1e9:
            return x
        if self.how == "drawn":
            x = x + 0.1 * torch.randn(8, 8)
        if self.how == "numbers":
            x = x + 0.1 * random.random()
        if self.how == "made":
            x = x + torch.tensor([0.1])
        return self.head(self.conv(x).flatten(1))


@pytest.mark.parametrize("how", ["flow", "drawn", "numbers", "made", "hooked", "training", "not a twin", "double"])
def test_models_that_are_not_followed(how: str) -> None:
    model, x = _Strange(how).train(how == "training"), torch.rand(2, 1, 8, 8)
    if how == "hooked":
        model.conv.register_forward_hook(lambda module, inputs, output: output + 1)
    state, numbers = torch.get_rng_state(), random.getstate()
    twin = model if how == "not a twin" else quick_twin(model)
    assert WindowPasses.of(twin, x.double() if how == "double" else x) is None
    assert torch.equal(state, torch.get_rng_state())
    assert numbers == random.getstate()
    assert WindowPasses.of(quick_twin(_Strange("").eval()), x) is not None


class _Swish(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.mul_(torch.sigmoid(h))


class _Wild(nn.Module):
    """A network whose middle is any function of its modules and a map."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.middle = middle
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3, 1, 1), nn.Conv2d(6, 6, 1)
        self.relu, self.drop, self.plain, self.swish = nn.ReLU(inplace=True), nn.Dropout(), nn.ReLU(), _Swish()
        self.norm, self.batch, self.head = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.Linear(6 * 100, 3)
        self.batch.running_mean = self.batch.running_var = None
        self.register_buffer("mean", torch.rand(6))
        self.place: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self, self.conv1(x)).flatten(1))


def _discarded(s: Any, h: Tensor) -> Tensor:
    s.relu(h)
    return s.conv2(h)


def _sliced(s: Any, h: Tensor) -> Tensor:
    h[:, :2].mul_(3)
    return s.conv2(h)


def _cached(s: Any, h: Tensor) -> Tensor:
    if s.place is None:
        s.place = h.new_zeros(1, 6, 1, 1)
    return s.conv2(h + s.place)


def _branched(s: Any, h: Tensor) -> Tensor:
    if isinstance(h, Tensor) and h.shape[0] > 1:  # not so while it is traced
        h = h - h.mean(0)
    return s.conv2(h)


WRITING = [
    _discarded,
    _sliced,
    lambda s, h: s.conv2(s.relu(h)) + s.conv3(h),
    lambda s, h: s.conv2(s.relu(s.drop(h))) + s.conv3(h),
    lambda s, h: torch.add(h, 1, out=h) + s.conv3(h),
    _branched,
]
FOLLOWED = [
    lambda s, h: s.conv2(s.relu(s.norm(h))) + s.conv3(h),
    lambda s, h: s.conv2(s.swish(h)),
    lambda s, h: s.conv2((h - s.mean.view(1, -1, 1, 1)) / s.mean.sqrt()[:, None, None]),
    lambda s, h: torch.cat([s.conv2(h), s.conv3(h)], 1)[:, 3:9],
    lambda s, h: s.conv2(h) * s.plain(s.mean)[:, None, None] + h.mean((2, 3), keepdim=True),
    lambda s, h: s.conv2(input=s.conv3(h)),
    lambda s, h: s.conv3(s.batch(s.conv2(h))),
    _cached,
]


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("middle", [*WRITING, *FOLLOWED])
def test_wild_models_are_followed_rightly_or_not_at_all(middle: Any) -> None:
    torch.manual_seed(0)
    model, x = _Wild(middle).eval(), torch.rand(3, 2, 12, 12)
    before, expected = x.clone(), copy.deepcopy(model)
    twin = quick_twin(model)
    passes = WindowPasses.of(twin, x)
    assert (passes is None) == (middle in WRITING)
    assert torch.equal(x, before)
    corners = torch.randint(0, 11, (4, 3, 2))
    with torch.no_grad():
        if passes is not None:
            assert passes.begin(x, (2, 2))
            passes.aim(corners)
            for turn in range(4):
                window = torch.rand(3, 2, 2, 2)
                candidate = _with_windows(x, corners[turn], window)
                assert torch.allclose(passes.logits(turn, window), expected(candidate), rtol=1e-4, atol=2e-5)
                passes.settle(torch.tensor([False, True, False]))
                x[1] = candidate[1]
        assert torch.allclose(twin(x.clone()), expected(x.clone()), atol=1e-5)


def test_a_forward_put_in_the_place_of_a_modules_own_is_not_passed_over() -> None:
    model, x = _Wild(lambda s, h: s.conv2(h)).eval(), torch.rand(3, 2, 12, 12)
    assert WindowPasses.of(quick_twin(model), x) is not None
    forward = model.conv2.forward
    model.conv2.forward = lambda h: forward(h) * h.mean()  # pyright: ignore
    assert WindowPasses.of(quick_twin(model), x) is None


def test_a_plan_that_is_wrong_is_not_used(monkeypatch: Any) -> None:
    model, x = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 324, 3)).eval(), torch.rand(2, 1, 20, 20)
    passes = WindowPasses.of(quick_twin(model), x)
    assert passes is not None
    assert passes.begin(x, (2, 2))
    run = Plan.run
    with monkeypatch.context() as patch:
        patch.setattr(Plan, "settle", lambda self, better: None)
        assert not passes.begin(x, (2, 2))
    monkeypatch.setattr(Plan, "run", lambda self, turn, window: run(self, turn, window) + 0.01)
    assert not passes.begin(x, (2, 2))


@pytest.mark.parametrize("channels", [1, 3])
def test_square_finds_the_same_through_windows(channels: int, monkeypatch: Any) -> None:
    torch.manual_seed(channels)
    layers = [nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8 * 49, 4)).eval()
    x, ball = torch.rand(40, channels, 28, 28), Ball("linf", 0.03, box=(0, 1))
    y, twin = model(x).argmax(1), quick_twin(model)
    seen: list[Tensor] = []
    logits = Windows.logits

    def watched(self: Windows) -> Tensor | None:
        found = logits(self)
        if found is not None:
            whole = model(self.point.unflatten(1, self.shape))
            assert torch.allclose(found, whole, atol=1e-5)
            seen.append(found)
        return found

    monkeypatch.setattr(Windows, "logits", watched)
    run = SquareAttack(queries=300).until_fooled()
    quick = run(twin, x, y, ball, generator=generator(0))
    assert len(seen) > 100
    plain = run(model, x, y, ball, generator=generator(0))
    assert 5 < int(plain.flags.stopped.sum()) < 40
    assert torch.equal(plain.flags.stopped, quick.flags.stopped)
    assert torch.equal(model(quick.point).argmax(1) != y, quick.flags.stopped)
    assert torch.allclose(quick.value, plain.value, atol=0.02)  # pyright: ignore
