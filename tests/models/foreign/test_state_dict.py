"""Other people's weights in our architectures: containers, prefixes, names, normalisation; and what does not fit."""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from shaketable.core.errors import ModelError, UnsafeFileError
from shaketable.models.foreign import load
from shaketable.models.spec import ModelSpec, build

MU, SIGMA = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
WIDE = ModelSpec("wide_resnet", classes=5, channels=3, size=(16, 16), arguments={"depth": 16, "widen": 2})
PREACT = ModelSpec("preact_resnet18", classes=5, channels=3, size=(16, 16), arguments={"width": 4})
RESNET = ModelSpec("resnet18", classes=5, channels=3, size=(16, 16), arguments={"width": 4})


def images(n: int = 2, channels: int = 3, size: int = 16) -> Tensor:
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(0))


def weights(spec: ModelSpec, seed: int = 1) -> dict[str, Tensor]:
    """Weights of a spec with BatchNorm statistics that matter."""
    values = build(spec, seed).network.state_dict()
    for name, value in values.items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return values


def expected(spec: ModelSpec, values: dict[str, Tensor], x: Tensor) -> Tensor:
    model = build(spec, 0).eval()
    model.network.load_state_dict(values)
    return model(x)


def wrap(name: str, values: dict[str, Any]) -> Any:
    """The same weights as people save them."""
    prefixed = {f"module.{key}": value for key, value in values.items()}
    return {
        "bare": values,
        "ordered": OrderedDict(values),
        "state_dict": {"epoch": 3, "state_dict": values, "best_acc": np.float64(0.5), "optimizer": {"state": {}}},
        "model": {"model": values, "args": {"lr": 0.1}, "lr": np.float32(0.1)},
        "nested": {"checkpoint": {"net": values}, "optimizer": {"state": {0: {"momentum": torch.zeros(3)}}}},
        "DataParallel": prefixed,
        "compiled": {f"_orig_mod.{key}": value for key, value in prefixed.items()},
        "all at once": {"state_dict": {f"module.model._orig_mod.{key}": value for key, value in values.items()}},
        "another prefix": {f"my_net.{key}": value for key, value in values.items()},
        "ours": {f"network.{key}": value for key, value in values.items()},
        "two models": {f"{part}.{key}": value for part in ("ema", "model") for key, value in values.items()},
        "best and last": {"best": {k: v + 1 for k, v in values.items()}, "last": values},
        "without counters": {k: v for k, v in values.items() if "num_batches" not in k},
        "profiled": values | {"total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)},
        "half": {k: v.half() for k, v in values.items()},
        "parameters": {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in values.items()},
    }[name]


WRAPPERS = [
    "bare",
    "ordered",
    "state_dict",
    "model",
    "nested",
    "DataParallel",
    "compiled",
    "all at once",
    "another prefix",
]
WRAPPERS += ["ours", "two models", "best and last", "without counters", "profiled", "half", "parameters"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappings(name: str, legacy: bool, tmp_path: Path) -> None:
    values = weights(PREACT)
    path = tmp_path / "model.pt"
    torch.save(wrap(name, values), path, _use_new_zipfile_serialization=not legacy)
    loaded = load(str(path), spec=PREACT)
    if name == "half":
        values = {k: v.half().to(v.dtype) for k, v in values.items()}
    assert torch.equal(loaded.model(images()), expected(PREACT, values, images()))
    assert loaded.spec == PREACT
    assert not loaded.model.training
    assert loaded.name == "model"
    assert loaded.size == (16, 16)
    told = " ".join(loaded.notes)
    for word, cases in {
        "prefix": ["DataParallel", "compiled", "all at once", "another prefix", "ours"],
        "entry": ["state_dict", "model", "nested", "all at once", "best and last"],
        "left out": ["two models"],
        "best was not used": ["best and last"],
        "cast to float32": ["half"],
    }.items():
        assert (word in told) == (name in cases), (word, loaded.notes)


def test_safetensors(tmp_path: Path) -> None:
    values = weights(RESNET)
    path = tmp_path / "model.safetensors"
    save_file({f"backbone.{name}": value for name, value in values.items()}, path)
    assert torch.equal(load(str(path), spec=RESNET).model(images()), expected(RESNET, values, images()))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="safetensors"):
        load(str(path), spec=RESNET)


class Wide(nn.Module):
    """A wide residual block under RobustBench's names."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(x).relu()
        skip = self.convShortcut(h) if hasattr(self, "convShortcut") else x
        return skip + self.conv2(self.bn2(self.conv1(h)).relu())


class Layered(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Sequential(*blocks)


class RobustBenchWide(nn.Module):
    """WRN-16-2 under RobustBench's names, with TRADES' unused sub_block1 and normalisation buffers."""

    def __init__(self, *, buffers: bool, unused: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        widths = (16, 32, 64, 128)
        for group in (1, 2, 3):
            inputs, outputs, stride = widths[group - 1], widths[group], 1 if group == 1 else 2
            setattr(self, f"block{group}", Layered(Wide(inputs, outputs, stride), Wide(outputs, outputs, 1)))
            if group == 1 and unused:
                self.sub_block1 = Layered(Wide(inputs, outputs, stride), Wide(outputs, outputs, 1))
        self.bn1 = nn.BatchNorm2d(128)
        self.fc = nn.Linear(128, 5)
        mu, sigma = torch.tensor(MU).view(1, 3, 1, 1), torch.tensor(SIGMA).view(1, 3, 1, 1)
        if buffers:
            self.register_buffer("mu", mu)
            self.register_buffer("sigma", sigma)
        self.constants = (mu, sigma)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1((x - self.constants[0]) / self.constants[1])
        for group in (1, 2, 3):
            h = getattr(self, f"block{group}").layer(h)
        return self.fc(self.bn1(h).relu().mean((2, 3)))


def statistics(net: nn.Module) -> nn.Module:
    for name, value in net.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(name)))
    return net.eval()


@pytest.mark.parametrize("buffers", [True, False])
def test_robustbench_wide_resnet(buffers: bool, tmp_path: Path) -> None:
    """Its layout, names, unused block and normalisation: the logits are those of its own network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = statistics(RobustBenchWide(buffers=buffers, unused=True))
    folder = tmp_path / "models" / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    path = folder / "Rice2020Overfitting.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in net.state_dict().items()}}, path)
    loaded = load(str(path), spec=WIDE)
    assert torch.allclose(loaded.model(images()), net(images()), atol=1e-5)
    assert loaded.spec is not None
    assert loaded.spec.mean == pytest.approx(MU)
    assert loaded.spec.std == pytest.approx(SIGMA)
    told = " ".join(loaded.notes)
    assert "sub_block1" in told
    assert "RobustBench's entry Rice2020Overfitting for cifar10, Linf" in told
    assert ("which the file holds" in told) == buffers
    plain = load(str(path), spec=WIDE, mean=(), std=())
    assert plain.spec == WIDE
    other = load(str(path), spec=WIDE, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert other.spec is not None
    assert other.spec.mean == (0.5,) * 3
    assert any("was not used" in note for note in other.notes) == buffers


def test_robustbench_networks_that_only_look_alike_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    path = folder / "Ding2020MMA.pt"
    torch.save(weights(WIDE), path)
    with pytest.raises(ModelError, match="standardised by its own mean"):
        load(str(path), spec=WIDE)
    other = tmp_path / "cifar100" / "L2" / "Ding2020MMA.pt"
    other.parent.mkdir(parents=True)
    path.rename(other)
    assert any("give --mean" in note for note in load(str(other), spec=WIDE).notes)


class PreActBlock(nn.Module):
    """A pre-activation block under RobustBench's names."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(x).relu()
        skip = self.shortcut(h) if hasattr(self, "shortcut") else x
        return skip + self.conv2(self.bn2(self.conv1(h)).relu())


class PostActBlock(nn.Module):
    """A basic block under RobustBench's names."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (h + self.shortcut(x)).relu()


class RobustBenchResNet(nn.Module):
    """A ResNet-18 of width 4 under RobustBench's names, pre- or post-activation."""

    def __init__(self, block: type[nn.Module], *, first: bool, last: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        if first:
            self.bn1 = nn.BatchNorm2d(4)
        inputs = 4
        for group, outputs in enumerate((4, 8, 16, 32)):
            layer = nn.Sequential(block(inputs, outputs, 1 if group == 0 else 2), block(outputs, outputs, 1))
            setattr(self, f"layer{group + 1}", layer)
            inputs = outputs
        if last:
            self.bn = nn.BatchNorm2d(32)
        self.linear = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x)
        h = self.bn1(h).relu() if hasattr(self, "bn1") else h
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        h = self.bn(h).relu() if hasattr(self, "bn") else h
        return self.linear(h.mean((2, 3)))


@pytest.mark.parametrize(
    ("block", "spec"), [(PreActBlock, PREACT), (PostActBlock, RESNET)], ids=["pre-activation", "post-activation"]
)
def test_robustbench_resnets(block: type[nn.Module], spec: ModelSpec, tmp_path: Path) -> None:
    pre = block is PreActBlock
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = statistics(RobustBenchResNet(block, first=not pre, last=pre))
    path = tmp_path / "model.pt"
    torch.save(net.state_dict(), path)
    assert torch.allclose(load(str(path), spec=spec).model(images()), net(images()), atol=1e-5)
    wrong = RESNET if pre else PREACT
    with pytest.raises(ModelError) as caught:
        load(str(path), spec=wrong)
    assert spec.architecture in caught.value.remedy


def test_a_preact_resnet_without_its_last_batchnorm_is_another_network(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(RobustBenchResNet(PreActBlock, first=False, last=False).state_dict(), path)
    with pytest.raises(ModelError, match="no last BatchNorm"):
        load(str(path), spec=PREACT)


@pytest.mark.parametrize(
    ("names", "shape"),
    [
        (("mu", "sigma"), (1, 3, 1, 1)),
        (("normalize.mean", "normalize.std"), (3,)),
        (("module.normalizer.mean", "module.normalizer.std"), (3, 1, 1)),
        (("image_mean", "image_std"), (3,)),
    ],
)
def test_normalisation_buffers(names: tuple[str, str], shape: tuple[int, ...], tmp_path: Path) -> None:
    values = weights(PREACT)
    path = tmp_path / "model.pt"
    stored = {name: torch.tensor(numbers).view(shape) for name, numbers in zip(names, (MU, SIGMA), strict=True)}
    torch.save(values | stored, path)
    loaded = load(str(path), spec=PREACT)
    assert loaded.spec is not None
    assert loaded.spec.mean == pytest.approx(MU)
    assert torch.equal(loaded.model(images()), expected(loaded.spec, values, images()))
    torch.save(values | {name: 255 * value for name, value in stored.items()}, path)
    assert load(str(path), spec=PREACT).spec.mean == pytest.approx(MU)  # type: ignore[union-attr]
    torch.save(values | {name: value.flatten()[:1] for name, value in stored.items()}, path)
    assert load(str(path), spec=PREACT).spec.mean == pytest.approx((MU[0],) * 3)  # type: ignore[union-attr]


def test_labels_and_size(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(weights(PREACT), path)
    loaded = load(str(path), spec=PREACT, labels=tuple("abcde"), size=(32, 32))
    assert loaded.labels == tuple("abcde")
    assert loaded.size == (32, 32)
    assert loaded.spec == dataclasses.replace(PREACT, labels=tuple("abcde"))
    assert loaded.model(images(2, 3, 32)).shape == (2, 5)
    assert any("resized to 16 x 16" in note for note in loaded.notes)


@pytest.mark.parametrize("spec", [WIDE, PREACT, RESNET], ids=lambda spec: spec.architecture)
def test_without_a_spec_the_error_says_how(spec: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights(spec).items()}}, path)
    with pytest.raises(ModelError) as caught:
        load(str(path))
    assert f"{spec.architecture}(" in caught.value.found
    assert "classes 5" in caught.value.found
    for word in ("--architecture", "wide_resnet", "module:function"):
        assert word in caught.value.remedy


def _edit(**changes: Tensor | None) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda values: {k: v for k, v in (values | changes).items() if v is not None}


MISFITS: dict[str, tuple[Any, str, str]] = {
    "other classes": (
        _edit(**{"fc.weight": torch.zeros(7, 32), "fc.bias": torch.zeros(7)}),
        "fc.weight has",
        "--classes",
    ),
    "a missing weight": (_edit(**{"layer2.0.conv1.weight": None}), "layer2.0.conv1.weight is missing", "looks like"),
    "a renamed weight of another shape": (
        _edit(**{"layer2.0.conv1.weight": None, "layer2.0.convone.weight": torch.zeros(8, 4, 5, 5)}),
        "layer2.0.conv1.weight is missing (nearest: layer2.0.convone.weight)",
        "looks like",
    ),
    "an unexpected weight": (_edit(extra=torch.zeros(2)), "extra is unexpected", "looks like"),
    "another shape": (_edit(**{"conv1.weight": torch.zeros(4, 1, 3, 3)}), "conv1.weight has shape (4, 1, 3, 3)", ""),
    "a list": (lambda v: list(v.values()), "a list", "state_dict"),
    "a tensor": (lambda v: torch.zeros(3), "a Tensor", "state_dict"),
    "nothing": (lambda v: {}, "an empty dictionary", "state dict"),
    "no tensors": (lambda v: {"epoch": 3, "loss": 0.5}, "epoch, loss", "state dict"),
    "two candidates": (lambda v: {"first": v, "second": v}, "first, second", "state dict"),
    "nested for ever": (
        lambda v: {"model": {"model": {"model": {"model": {"model": {"model": v}}}}}},
        "entries model",
        "",
    ),
    "SiLU networks of another layout": (
        lambda v: {"layer.0.block.0.batchnorm_0.weight": torch.zeros(4), "logits.weight": torch.zeros(5, 4)},
        "missing",
        "module:function",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit(name: str, tmp_path: Path) -> None:
    make, found, remedy = MISFITS[name]
    path = tmp_path / "model.pt"
    torch.save(make(weights(PREACT)), path)
    with pytest.raises(ModelError) as caught:
        load(str(path), spec=PREACT)
    assert found in caught.value.found
    assert remedy in caught.value.remedy


def test_a_whole_pickled_module_needs_trust(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), path)
    with pytest.raises(UnsafeFileError, match=r"torch\.nn\.modules\.container\.Sequential"):
        load(str(path))
    loaded = load(str(path), trust=True, mean=(0.5,), std=(0.5,))
    assert loaded.model(images(2, 1, 8)).shape == (2, 3)
    assert loaded.spec is None


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(weights(PREACT), path)
    before = torch.get_rng_state()
    load(str(path), spec=PREACT)
    assert torch.equal(torch.get_rng_state(), before)
