"""BatchNorm's statistics on adversarial inputs, against means and variances computed by hand in float64."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaketable.core import Ball, InputError, ModelError, ce, generator, perturb
from shaketable.training.statistics import reestimate

Batch = tuple[Tensor, Tensor]


def _pgd(model: nn.Module, x: Tensor, y: Tensor, k: int) -> Tensor:
    """Real adversarial inputs, made with the batch's own statistics when the model is in train mode."""
    source = generator(0, "statistics", k)
    return perturb(ce(model, y), x, Ball("linf", 0.05, box=(0, 1)), start="sample", generator=source).point


def _moments(a: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel."""
    rows = a.transpose(0, 1).flatten(1)
    mean = rows.sum(1) / rows.shape[1]
    return mean, ((rows - mean[:, None]) ** 2).sum(1) / (rows.shape[1] - 1)


def _by_hand(model: nn.Sequential, points: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """The layers one after the other in float64, each normalising by the batch's own statistics; means over the batches."""
    model = copy.deepcopy(model).double().eval()
    sums: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with torch.no_grad():
        for x in points:
            a = x.double()
            for name, layer in model.named_children():
                if isinstance(layer, nn.BatchNorm2d):
                    mean, variance = _moments(a)
                    n = a.numel() / a.shape[1]
                    sums.setdefault(name, []).append((mean, variance))
                    shape = (1, -1, 1, 1)
                    biased = (variance * (n - 1) / n).reshape(shape)
                    a = (a - mean.reshape(shape)) / (biased + layer.eps).sqrt()
                    a = a * layer.weight.reshape(shape) + layer.bias.reshape(shape)
                else:
                    a = layer(a)
    return {
        name: (torch.stack([m for m, _ in found]).mean(0), torch.stack([v for _, v in found]).mean(0))
        for name, found in sums.items()
    }


@pytest.fixture
def batches(batch: Callable[..., Batch]) -> list[Batch]:
    return [batch(n, seed=n) for n in (6, 8, 5)]


@pytest.mark.parametrize("training", [True, False])
def test_against_float64_by_hand(network: Callable[..., nn.Sequential], batches: list[Batch], training: bool) -> None:
    """Two nested layers, dropout before the second that must be off, batches of several sizes, PGD in either mode."""
    layers = list(network("batch"))
    model = nn.Sequential(*layers[:3], nn.Dropout(0.5), *layers[3:]).train(training)
    points: list[Tensor] = []

    def attack(net: nn.Module, x: Tensor, y: Tensor, k: int) -> Tensor:
        assert net is model
        assert all(module.training is training for module in net.modules())
        points.append(_pgd(net, x, y, k))
        return points[-1]

    reestimate(model, iter(batches), attack=attack)
    assert len(points) == 3
    assert not any(torch.equal(p, x) for p, (x, _) in zip(points, batches, strict=True))
    expected = _by_hand(model, points)
    assert len(expected) == 2
    for name, (mean, variance) in expected.items():
        layer: Any = model.get_submodule(name)
        torch.testing.assert_close(layer.running_mean.double(), mean, rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(layer.running_var.double(), variance, rtol=2e-6, atol=2e-6)
        assert int(layer.num_batches_tracked) == 3
    clean = _by_hand(model, [x for x, _ in batches])
    assert any(not torch.allclose(clean[name][0], expected[name][0], rtol=1e-4) for name in clean)


def test_it_is_torchs_on_clean_inputs(network: Callable[..., nn.Module], batches: list[Batch]) -> None:
    """Reference: `update_bn`, which takes clean inputs, where there is no dropout."""
    ours, theirs = network("batch"), network("batch")
    reestimate(ours, batches, attack=lambda model, x, y, k: x)
    torch.optim.swa_utils.update_bn([x for x, _ in batches], theirs)
    for (name, a), (_, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, msg=name, rtol=1e-5, atol=1e-6)


def test_the_outputs_are_those_of_the_batch(network: Callable[..., nn.Module], batch: Callable[..., Batch]) -> None:
    """With one batch, eval mode then computes what train mode does on it, up to n / (n - 1) in the variance."""
    model, (x, y) = network("batch").eval(), batch(64)
    reestimate(model, [(x, y)], attack=lambda net, x, y, k: x)
    with torch.no_grad():
        found, expected = model(x), copy.deepcopy(model).train()(x)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def _settings(model: nn.Module) -> list[tuple[Any, ...]]:
    return [
        (module.training, getattr(module, "momentum", None), [p.requires_grad for p in module.parameters()])
        for module in model.modules()
    ]


def _mixed(network: Callable[..., nn.Module]) -> nn.Sequential:
    """A model in mixed modes, with momenta of all kinds."""
    model: Any = network("batch", dropout=0.5)
    model[1].momentum, model[4].momentum = 0.3, None
    model[4].eval()
    model[0].eval()
    model[0].weight.requires_grad_(False)
    return model


def test_nothing_else_changes(network: Callable[..., nn.Module], batches: list[Batch]) -> None:
    model = _mixed(network)
    before, how = _state(model), _settings(model)
    x = [x.clone() for x, _ in batches]
    random = torch.random.get_rng_state()
    reestimate(model, batches, attack=_pgd)
    after = _state(model)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"{i}.{name}" for i in (1, 4) for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert _settings(model) == how
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, (b, _) in zip(x, batches, strict=True))


class _Noise(nn.Module):
    """A randomised defence: it draws in eval mode, too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


def test_a_model_that_draws_leaves_the_global_random_state(
    network: Callable[..., nn.Sequential], batches: list[Batch]
) -> None:
    model = nn.Sequential(_Noise(), *network("batch"))
    before = torch.random.get_rng_state()
    reestimate(model, batches, attack=lambda net, x, y, k: x)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("where", ["attack", "forward", "batches"])
def test_after_an_exception_the_model_is_as_it_was(
    network: Callable[..., nn.Module], batches: list[Batch], where: str
) -> None:
    model = _mixed(network)
    before, how = _state(model), _settings(model)

    def attack(net: nn.Module, x: Tensor, y: Tensor, k: int) -> Tensor:
        net(x)  # moves the statistics of the layer in train mode
        if k == 1 and where == "attack":
            raise RuntimeError("lost")
        return x

    def given() -> Iterator[Batch]:
        yield batches[0]
        if where == "batches":
            raise RuntimeError("lost")
        yield batches[1]

    if where == "forward":
        calls: list[int] = []

        def fail(*_: Any) -> None:
            calls.append(1)
            if len(calls) == 4:  # two calls a batch: the attack's and the measuring one
                raise RuntimeError("lost")

        model[5].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="lost"):
        reestimate(model, given(), attack=attack)
    after = _state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert _settings(model) == how


def test_an_attack_that_moves_the_statistics_does_not_count(
    network: Callable[..., nn.Module], batches: list[Batch]
) -> None:
    """The same result whether the attack runs the model in train mode beside, and the old statistics at each call."""
    careful, careless = network("batch"), network("batch")
    seen: list[Tensor] = []

    def runs(net: Any, x: Tensor, y: Tensor, k: int) -> Tensor:
        seen.append(net[1].running_mean.clone())
        net(x * 10)
        return x

    reestimate(careful, batches, attack=lambda net, x, y, k: x)
    reestimate(careless, batches, attack=runs)
    assert all(torch.equal(a, b) for a, b in zip(_state(careful).values(), _state(careless).values(), strict=True))
    assert all(torch.equal(mean, torch.zeros(4)) for mean in seen)


class _Shared(nn.Module):
    """One BatchNorm called twice, one never, one that keeps no statistics, one over sequences, one synchronised."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.plain = nn.BatchNorm2d(3, track_running_stats=False)
        self.flat, self.deep, self.synchronised = nn.BatchNorm1d(108), nn.BatchNorm3d(3), nn.SyncBatchNorm(3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.twice(x) + self.twice(2 * x + 1)
        a = self.deep(self.synchronised(self.plain(a))[:, :, None])[:, :, 0]
        return self.flat(a.flatten(1))


def test_all_kinds_of_layers(batches: list[Batch]) -> None:
    model = _Shared()
    nn.init.constant_(model.never.running_mean, 5.0)  # pyright: ignore
    reestimate(model, batches, attack=lambda net, x, y, k: x)
    found = [_moments(a) for x, _ in batches for a in (x, 2 * x + 1)]
    assert int(model.twice.num_batches_tracked) == 6  # pyright: ignore
    torch.testing.assert_close(model.twice.running_mean, torch.stack([m for m, _ in found]).mean(0))
    torch.testing.assert_close(model.twice.running_var, torch.stack([v for _, v in found]).mean(0))
    assert model.never.running_mean.tolist() == [5.0] * 3  # pyright: ignore
    assert int(model.never.num_batches_tracked) == 0  # pyright: ignore
    for layer in (model.flat, model.deep, model.synchronised):
        assert int(layer.num_batches_tracked) == 3  # pyright: ignore
        assert float(layer.running_var.std()) > 0 or float(layer.running_mean.abs().max()) > 0  # pyright: ignore


def test_without_batchnorm_nothing_is_done(network: Callable[..., nn.Module]) -> None:
    def never(*_: Any) -> Tensor:
        raise AssertionError

    def none() -> Iterator[Batch]:
        raise AssertionError
        yield

    for norm in ("group", "none"):
        reestimate(network(norm), none(), attack=never)


@pytest.mark.parametrize(
    ("sizes", "attack", "error", "argument"),
    [
        ((), lambda net, x, y, k: x, InputError, "batches"),
        ((6, 1), lambda net, x, y, k: x, InputError, "batches"),
        ((6, 0), lambda net, x, y, k: x, InputError, "batches"),
        ((6,), lambda net, x, y, k: x[:3], InputError, "attack"),
        ((6,), lambda net, x, y, k: None, InputError, "attack"),
        ((6, 6), lambda net, x, y, k: x / (1 - k), ModelError, "model"),
    ],
)
def test_bad_inputs(
    network: Callable[..., nn.Module],
    batch: Callable[..., Batch],
    sizes: tuple[int, ...],
    attack: Any,
    error: type[InputError | ModelError],
    argument: str,
) -> None:
    model = network("batch")
    before = _state(model)
    with pytest.raises(error) as caught:
        reestimate(model, [batch(n) for n in sizes], attack=attack)
    assert caught.value.argument == argument
    assert caught.value.remedy
    assert all(torch.equal(a, b) for a, b in zip(before.values(), _state(model).values(), strict=True))
