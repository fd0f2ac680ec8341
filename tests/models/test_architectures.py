"""Architectures and their specs: counts known from the papers, seeds, gradients, and what is refused."""

import dataclasses
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from shaketable import models
from shaketable.core.errors import InputError, ModelError, ShaketableError
from shaketable.models.architectures.arguments import ACTIVATIONS
from shaketable.models.architectures.vit import Attention
from shaketable.models.spec import assemble

SMALL = {
    "small_cnn": {"width": 4, "hidden": 5},
    "mlp": {"width": 7, "depth": 2},
    "preact_resnet18": {"width": 2},
    "wide_resnet": {"depth": 10, "widen": 1},
    "resnet18": {"width": 2, "activation": "mish"},
    "vit": {"dim": 6, "depth": 2, "heads": 3},
}


def spec(name: str, **changes: object) -> models.ModelSpec:
    plain = models.ModelSpec(name, classes=5, channels=3, size=(8, 12), arguments=SMALL.get(name, {}))
    return dataclasses.replace(plain, **changes)


def count(name: str, arguments: dict, channels: int, size: tuple[int, int]) -> int:
    with torch.device("meta"):
        model = assemble(models.ModelSpec(name, classes=10, channels=channels, size=size, arguments=arguments))
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "channels", "side", "expected"),
    [
        ("resnet18", {}, 3, 32, 11_173_962),  # the usual count for CIFAR-10
        ("preact_resnet18", {}, 3, 32, 11_171_146 + 2 * 512),  # that of the versions without the last BatchNorm, and it
        ("wide_resnet", {"depth": 34, "widen": 10}, 3, 32, 46_160_474),
        ("wide_resnet", {"depth": 28, "widen": 10}, 3, 32, 36_479_194),
        ("wide_resnet", {"depth": 40, "widen": 2}, 3, 32, 2_243_546),
        ("small_cnn", {}, 1, 28, 207_646),
        ("mlp", {"width": 256, "depth": 2}, 1, 28, 785 * 256 + 257 * 256 + 257 * 10),
        ("mlp", {"depth": 0}, 1, 28, 7850),
        (
            "vit",
            {},
            1,
            28,
            17 * 96 + 50 * 96 + 96 + 6 * (4 * 96 + 97 * 288 + 97 * 96 + 97 * 384 + 385 * 96) + 192 + 970,
        ),
    ],
)
def test_the_number_of_parameters_is_the_papers(name, arguments, channels, side, expected):
    assert count(name, arguments, channels, (side, side)) == expected


def test_every_architecture_is_tried_here():
    assert set(SMALL) == set(models.ARCHITECTURES)


@pytest.mark.parametrize("name", SMALL)
def test_logits_gradients_and_seeds(name):
    state = torch.get_rng_state()
    a, b, c = (models.build(spec(name), seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert models.fingerprint(a) == models.fingerprint(b) != models.fingerprint(c)
    assert a.training
    x = torch.rand(4, 3, 8, 12, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = a.eval()(x)
    assert out.shape == (4, 5)
    assert out.dtype == torch.float32
    gradients = torch.autograd.grad(out.square().sum(), [x, *a.parameters()])
    assert all(torch.isfinite(g).all() for g in gradients)
    assert all(g.abs().max() > 0 for g in gradients)
    # one image at a time gives the same: nothing in eval mode depends on the batch
    assert torch.allclose(torch.cat([a(x[i : i + 1]) for i in range(4)]), out, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_a_few_steps_learn_a_rule(name):
    """Which third of the image is bright; loss must fall to a tenth of chance's."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(48) % 3
    x = 0.3 * torch.rand(48, 3, 12, 12, generator=g)
    for k in range(3):
        x[y == k, :, 4 * k : 4 * k + 4] += 0.7
    model = models.build(spec(name, size=(12, 12), classes=3, mean=(0.5,) * 3, std=(0.25,) * 3), 0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120 if name == "vit" else 60):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1 * math.log(3)


@pytest.mark.parametrize(("norm", "kind"), [("none", nn.Identity), ("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)])
def test_the_small_cnns_norms(norm, kind):
    network = models.build(spec("small_cnn", arguments={"norm": norm, "width": 12}), 0).network
    assert isinstance(network.norm1, kind)
    assert isinstance(network.norm2, kind)
    assert network(torch.rand(2, 3, 8, 12)).shape == (2, 5)


DEFAULTS = {name: "gelu" if name == "vit" else "relu" for name in SMALL} | {"resnet18": "mish"}


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models have the same names and the same bits."""
    first, second = a.state_dict(), b.state_dict()
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_another_activation_is_everywhere_and_changes_no_weight(name, activation):
    plain, other = (
        models.build(spec(name, arguments=SMALL[name] | added), 0) for added in ({}, {"activation": activation})
    )
    kinds = {type(make()): key for key, make in ACTIVATIONS.items()}
    found = [[kinds[type(module)] for module in model.modules() if type(module) in kinds] for model in (plain, other)]
    assert set(found[0]) == {DEFAULTS[name]}
    assert found[1] == [activation] * len(found[0])
    assert same_weights(plain, other)
    x = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    same = torch.equal(plain.eval()(x), other.eval()(x))
    assert same == (activation == DEFAULTS[name])


@pytest.mark.parametrize("name", SMALL)
def test_dropout_acts_in_training_alone(name):
    plain, dropped = (models.build(spec(name, arguments=SMALL[name] | {"dropout": p}), 0) for p in (0.0, 0.5))
    if name != "mlp":  # whose layers are numbered, the dropout's too
        assert same_weights(plain, dropped)
    x = torch.rand(8, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(dropped.eval()(x), plain.eval()(x))
    state = torch.get_rng_state()
    plain.train()(x)
    assert torch.equal(torch.get_rng_state(), state)  # a probability of 0 draws nothing
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = dropped.train()(x), dropped(x)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "place"), [("small_cnn", "dropout"), ("preact_resnet18", "layer3.1.dropout"), ("resnet18", "dropout")]
)
def test_dropout_zeroes_its_share_and_scales_the_rest(name, place):
    """What goes in is kept divided by 1 - p, or becomes 0, which happens to a share p of what is not 0 already."""
    network = models.build(spec(name, arguments=SMALL[name] | {"width": 32, "dropout": 0.25}), 0).network.train()
    pairs = []
    network.get_submodule(place).register_forward_hook(lambda _, given, out: pairs.append((given[0], out)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network(torch.rand(32, 3, 8, 12))
    ((before, after),) = pairs
    kept = after != 0
    assert torch.allclose(after[kept], before[kept] / 0.75)
    share = 1 - (kept.sum() / (before != 0).sum()).item()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / int((before != 0).sum()))


def test_attention_equals_pytorchs_own():
    ours, theirs = Attention(12, 3).double(), nn.MultiheadAttention(12, 3, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(ours(x), theirs(x, x, x, need_weights=False)[0], atol=1e-12)


@pytest.mark.parametrize("name", ["vit", "resnet18"])
def test_second_derivatives_exist(name):
    model = models.build(
        spec(name, arguments=SMALL[name] | ({"activation": "silu"} if name != "vit" else {})), 0
    ).eval()
    weights = [p for p in model.parameters() if p.ndim > 1]
    loss = nn.functional.cross_entropy(model(torch.rand(2, 3, 8, 12)), torch.tensor([0, 1]))
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    products = torch.autograd.grad(sum(g.square().sum() for g in gradients), weights, allow_unused=True)
    assert sum(p.abs().sum() for p in products if p is not None) > 0


def test_normalisation_comes_first():
    plain = models.build(spec("mlp"), 0).eval()
    model = models.build(spec("mlp", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)), 0).eval()
    x = torch.rand(2, 3, 8, 12)
    m, s = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    assert torch.equal(model(x), plain((x - m) / s))
    assert "normalise.mean" not in model.state_dict()
    assert models.fingerprint(model) != models.fingerprint(plain)


@pytest.mark.parametrize("name", SMALL)
def test_specs_survive_json(name):
    first = spec(name, mean=(0.1,) * 3, std=(0.2,) * 3, labels=tuple("abcde"))
    assert models.ModelSpec.from_json(json.loads(json.dumps(first.to_json()))) == first


BAD_SPECS = [
    ({"architecture": "preact_resnet"}, ModelError, "Did you mean 'preact_resnet18' or"),
    ({"architecture": ["mlp"]}, ModelError, "architecture"),
    ({"architecture": ":f"}, ModelError, "architecture"),
    ({"classes": 0}, InputError, "classes"),
    ({"classes": True}, InputError, "classes"),
    ({"classes": 1 << 40}, InputError, "classes"),
    ({"channels": 1.0}, InputError, "channels"),
    ({"size": 32}, InputError, "size"),
    ({"size": (0, 3)}, InputError, "size"),
    ({"mean": (0.5,), "std": (0.5,)}, InputError, "one number a channel"),
    ({"mean": (0.5,) * 3}, InputError, "mean, std"),
    ({"mean": (0.5,) * 3, "std": (0.5, 0.5, 0.0)}, InputError, "std > 0"),
    ({"mean": (0.5,) * 3, "std": (0.5, 0.5, math.nan)}, InputError, "finite"),
    ({"mean": "abc", "std": (1, 1, 1)}, InputError, "mean, std"),
    ({"labels": ("a",)}, InputError, "5 names"),
    ({"labels": (1, 2, 3, 4, 5)}, InputError, "5 names"),
    ({"arguments": {"width": [1]}}, InputError, "JSON scalars"),
]


@pytest.mark.parametrize(("changes", "error", "text"), BAD_SPECS)
def test_bad_specs_are_refused(changes, error, text):
    with pytest.raises(error, match=r"expected .* found") as caught:
        spec("mlp", **changes)
    assert text in str(caught.value)


BAD_ARGUMENTS = [
    ("mlp", {"widht": 3}, "Did you mean 'width'?"),
    ("mlp", {"classes": 3}, "arguments"),
    ("mlp", {"width": 0}, "width"),
    ("mlp", {"depth": 10**9}, "depth"),
    ("mlp", {"activation": "swish"}, "activation"),
    ("small_cnn", {"activation": "leaky-relu"}, "Did you mean 'leaky_relu'"),
    ("preact_resnet18", {"activation": "GELU"}, "activation"),
    ("resnet18", {"activation": None}, "activation"),
    ("vit", {"activation": "gelo"}, "Did you mean 'gelu'"),
    ("mlp", {"dropout": 1.0}, "dropout"),
    ("small_cnn", {"dropout": -0.1}, "dropout"),
    ("preact_resnet18", {"dropout": math.nan}, "dropout"),
    ("preact_resnet18", {"dropout": True}, "dropout"),
    ("small_cnn", {"norm": "layer"}, "norm"),
    ("small_cnn", {"norm": "groups"}, "Did you mean 'group'"),
    ("small_cnn", {"width": "4"}, "width"),
    ("wide_resnet", {"depth": 30}, "6 k + 4"),
    ("wide_resnet", {"widen": 10**9}, "widen"),
    ("resnet18", {"width": 2.5}, "width"),
    ("preact_resnet18", {"width": True}, "width"),
    ("vit", {"patch": 5}, "patch"),
    ("vit", {"dim": 7}, "dim"),
    ("vit", {"heads": 0}, "heads"),
    ("no.such.module:net", {}, "no.such.module"),
    ("math:no_such_name", {}, "no_such_name"),
    ("math:pi", {}, "a float"),
    ("math:sqrt", {"x": 3}, "math:sqrt"),
    ("collections:UserDict", {}, "torch.nn.Module"),
]


@pytest.mark.parametrize(("name", "arguments", "text"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused(name, arguments, text):
    with pytest.raises(ModelError) as caught:
        models.build(spec(name, arguments=arguments), 0)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"architecture": "mlp", "classes": 2, "channels": 1},
        {"architecture": "mlp", "classes": 2, "channels": 1, "size": [4, 4], "stdd": []},
        {"architecture": "mlp", "classes": 2, "channels": 1, "size": [4, 4], "mean": 3, "std": 3},
        {"architecture": "mlp", "classes": 2, "channels": 1, "size": [4, 4], "arguments": []},
        {"architecture": "mlp", "classes": 2, "channels": 1, "size": "44"},
        {"architecture": "mlp", "classes": 2, "channels": 1, "size": [4, 4], "labels": "ab"},
    ],
)
def test_bad_json_is_refused(value):
    with pytest.raises(ShaketableError):
        models.ModelSpec.from_json(value)


def test_an_architecture_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my_lines.py").write_text(
        "from torch import nn\n"
        "def line(classes, size, bias=True):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3 * size[0] * size[1], classes, bias=bias))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("my_lines:line", f"{tmp_path / 'my_lines.py'}:line"):
        model = models.build(spec(name, arguments={"bias": False}), 0)
        assert [p.shape for p in model.parameters()] == [(5, 3 * 8 * 12)]
    with pytest.raises(ModelError, match="no_such"):
        models.build(spec(f"{tmp_path / 'no_such.py'}:line"), 0)


def test_the_default_of_the_demo_is_fast():
    """A pass forwards and backwards of 128 images takes some 11 ms on one thread; far from it means another net."""
    model = models.build(models.ModelSpec("small_cnn", classes=10, channels=1, size=(28, 28)), 0)
    x, y = torch.rand(128, 1, 28, 28), torch.arange(128) % 10

    def seconds() -> float:
        start = time.process_time()
        torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))
        return time.process_time() - start

    assert min(seconds() for _ in range(5)) < 0.1


def test_importing_the_room_is_cheap():
    code = (
        "import torch, sys; before = set(sys.modules); import shaketable.models;"
        "new = set(sys.modules) - before; bad = {'safetensors', 'scipy', 'timm', 'onnx', 'transformers', 'PIL'} & new;"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
