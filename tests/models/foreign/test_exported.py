"""Exported programs as models: equal to what was exported, well-behaved, and clear where they cannot be used."""

import copy
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from shaketable.core.errors import InputError, ModelError, UnsafeFileError
from shaketable.models.foreign import Exported, load
from shaketable.models.foreign.exported import logits_of

SHARED = os.environ.get("SHAKETABLE_SHARED")
PROGRAMS = sorted(Path(SHARED, "models").glob("*.pt2")) if SHARED else []


def images(n: int = 3, size: int = 8, channels: int = 1) -> Tensor:
    return torch.linspace(0, 1, n * channels * size * size).reshape(n, channels, size, size)


def test_it_equals_the_model_bit_for_bit(exported_net: tuple[nn.Module, Path]) -> None:
    net, path = exported_net
    loaded = load(str(path))
    x, twin = images().requires_grad_(), images().requires_grad_()
    y, expected = loaded.model(x), net(twin)
    assert torch.equal(y, expected)
    (g,), (wanted,) = (torch.autograd.grad(out.square().sum(), at) for out, at in ((y, x), (expected, twin)))
    assert torch.equal(g, wanted)
    assert loaded.gradients
    assert loaded.name == "net"
    assert loaded.size == (8, 8)
    assert loaded.spec is None
    assert len(loaded.sha256 or "") == 64


def test_its_weights_can_be_perturbed(exported_net: tuple[nn.Module, Path]) -> None:
    net, path = exported_net
    model = load(str(path)).model
    weights = {name: w.detach() + 0.1 for name, w in model.named_parameters()}
    moved = copy.deepcopy(net)
    with torch.no_grad():
        for w in moved.parameters():
            w += 0.1
    assert torch.equal(torch.func.functional_call(model, weights, (images(),)), moved(images()))
    assert torch.equal(model(images()), net(images()))


def test_train_and_eval_change_nothing(exported_net: tuple[nn.Module, Path]) -> None:
    model = load(str(exported_net[1])).model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(images())
    assert model.train() is model
    assert not any(module.training for module in model.modules())
    model(images())
    assert torch.equal(nn.Sequential(model).train()[0](images()), expected)
    model.eval()
    assert not any(module.training for module in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("x", "expected", "found"),
    [
        (images().mul(255).byte(), "float32", "torch.uint8"),
        (images().double(), "float32", "torch.float64"),
        (images().half(), "float32", "torch.float16"),
        (images(size=9), "(n, 1, 8, 8)", "9"),
        (images(channels=3), "(n, 1, 8, 8)", "3"),
        (images()[0], "(n, 1, 8, 8)", "(1, 8, 8)"),
        (torch.zeros(0, 1, 8, 8), "a batch of 1 to 512", "0"),
        (torch.zeros(513, 1, 8, 8), "a batch of 1 to 512", "513"),
    ],
)
def test_what_it_cannot_take(x: Tensor, expected: str, found: str, exported_net: tuple[nn.Module, Path]) -> None:
    model = load(str(exported_net[1])).model
    with pytest.raises(InputError) as caught:
        model(x)
    assert expected in caught.value.expected
    assert found in caught.value.found


def test_the_largest_batch_runs(exported_net: tuple[nn.Module, Path]) -> None:
    assert load(str(exported_net[1])).model(torch.zeros(512, 1, 8, 8)).shape == (512, 3)


def test_a_fixed_batch(export: Callable[..., Path], tmp_path: Path) -> None:
    loaded = load(str(export(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), tmp_path / "m.pt2", most=None)))
    assert loaded.model(images(2)).shape == (2, 3)
    assert any("exactly 2" in note for note in loaded.notes)
    with pytest.raises(InputError, match="a batch of 2, found 3"):
        loaded.model(images(3))


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu_(x.sub_(0.5)).flatten(1)[:, :3]


def test_the_callers_image_is_left_alone(export: Callable[..., Path], tmp_path: Path) -> None:
    model = load(str(export(InPlace(), tmp_path / "m.pt2"))).model
    x = images()
    model(x)
    assert torch.equal(x, images())
    (g,) = torch.autograd.grad(model(x.requires_grad_()).sum(), x)
    assert g.any()


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.ones(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            shift = x.mean()
        return (x.flatten(1) - shift) @ self.w


def test_notes_tell_what_should_be_known(export: Callable[..., Path], tmp_path: Path) -> None:
    notes = load(str(export(Cut(), tmp_path / "m.pt2"))).notes
    assert any("weight perturbations and flatness see none" in note for note in notes)
    assert any("gradients may be masked" in note for note in notes)


class Dictionary(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: x.flatten(1)[:, :3] for name in self.names}


def test_outputs(export: Callable[..., Path], tmp_path: Path) -> None:
    model = load(str(export(Dictionary("logits", "features"), tmp_path / "m.pt2"))).model
    assert torch.equal(model(images()), images().flatten(1)[:, :3])
    with pytest.raises(ModelError, match="a dict of a, b"):
        load(str(export(Dictionary("a", "b"), tmp_path / "other.pt2")))
    with pytest.raises(ModelError, match=r"logits of shape \(n, classes\), found \(1, 1, 64\)"):
        load(str(export(nn.Flatten(2), tmp_path / "flat.pt2")))
    assert torch.equal(logits_of((images(),)), images())


def test_weights_with_a_dash_in_their_name(export: Callable[..., Path], tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten())
    net.add_module("last-layer", nn.Linear(64, 3))
    loaded = load(str(export(net, tmp_path / "m.pt2")))
    assert torch.equal(loaded.model(images()), net(images()))
    assert "program.last-layer.weight" in dict(loaded.model.named_parameters())


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x.flatten(1)[:, :3] + self.count


def test_programs_that_change_themselves_are_refused(export: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"weights|buffers"):
        load(str(export(Counts(), tmp_path / "m.pt2")))
    for layer in (nn.BatchNorm2d(1), nn.Dropout(0.5)):
        net = nn.Sequential(layer, nn.Flatten(), nn.Linear(64, 3)).train()
        path = tmp_path / "train.pt2"
        shapes = {"input": {0: torch.export.Dim("n", max=8)}}
        torch.export.save(torch.export.export(net, (images(2),), dynamic_shapes=shapes), path)
        with pytest.raises(ModelError, match="in eval mode"):
            load(str(path))


def test_normalisation_and_size(exported_net: tuple[nn.Module, Path]) -> None:
    net, path = exported_net
    loaded = load(str(path), mean=(0.25,), std=(0.5,), size=(8, 8), labels=("a", "b", "c"))
    assert loaded.size == (8, 8)
    assert torch.equal(loaded.model(images()), net((images() - 0.25) / 0.5))
    assert not loaded.model.training
    assert loaded.labels == ("a", "b", "c")
    larger = load(str(path), size=(12, 16))
    x = torch.linspace(0, 1, 2 * 12 * 16).reshape(2, 1, 12, 16)
    shrunk = nn.functional.interpolate(x, (8, 8), mode="bilinear", align_corners=False, antialias=True)
    assert torch.equal(larger.model(x), net(shrunk))
    assert larger.size == (12, 16)
    assert any("resized" in note for note in larger.notes)
    with pytest.raises(InputError, match="both or neither"):
        load(str(path), mean=(0.5,))


def test_trust_skips_the_scan(edited_json: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the scan refuses and torch takes; with trust it loads and says so."""
    path = edited_json(lambda value: value.update(guards_code=["L['x'].dim() == 4"]))
    with pytest.raises(UnsafeFileError, match="guard"):
        load(str(path))
    loaded = load(str(path), trust=True)
    assert any("without a scan" in note for note in loaded.notes)
    assert loaded.model(images()).shape == (3, 3)
    assert not any(module.training for module in loaded.model.modules())
    assert isinstance(loaded.model, Exported)


def test_a_limit_is_an_argument(exported_net: tuple[nn.Module, Path]) -> None:
    with pytest.raises(UnsafeFileError, match="above the limit of 1000"):
        load(str(exported_net[1]), limit=1000)


def test_a_transformer_with_size_branches(tmp_path: Path) -> None:
    """A program of other operators, with guards on its sizes and free height and width."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
            self.patch = nn.Conv2d(1, 8, 4, 4)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.patch(x).flatten(2).transpose(1, 2)
            if x.shape[0] % 7 != 3:
                h = h * 2
            return self.head(nn.functional.gelu(self.layer(h)).mean(1))

    net = Branches().eval()
    auto = torch.export.Dim.DYNAMIC
    program = torch.export.export(net, (images(2),), dynamic_shapes={"x": {0: auto, 2: auto, 3: auto}})
    torch.export.save(program, tmp_path / "m.pt2")
    loaded = load(str(tmp_path / "m.pt2"))
    assert loaded.size is None
    assert torch.allclose(loaded.model(images(4, 16)), net(images(4, 16)), atol=1e-6)
    with pytest.raises(InputError, match="guards"):
        loaded.model(images(10, 8))


@pytest.mark.skipif(not PROGRAMS, reason="SHAKETABLE_SHARED names no folder with models/*.pt2")
@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=() if k < 1 else pytest.mark.full) for k, p in enumerate(PROGRAMS)]
)
def test_real_programs(path: Path) -> None:
    loaded = load(str(path))
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = loaded.model(x)
    (g,) = torch.autograd.grad(logits.sum(), x)
    assert logits.shape == (2, 1000)
    assert g.abs().sum() > 0
    assert loaded.size == (224, 224)
    assert any(True for _ in loaded.model.parameters())
    trusted = load(str(path), trust=True).model
    assert torch.equal(trusted(x), logits)
