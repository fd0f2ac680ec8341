"""The quick twin computes what the model computes, and leaves it alone."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.attacks.twin import quick_twin
from shaketable.models.foreign import Exported


def _gradient(model: nn.Module, x: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    point = x.clone().requires_grad_()
    out = model(point)
    return out.detach(), torch.autograd.grad((out * along).sum(), point)[0]


@pytest.mark.parametrize("size", [(11, 8), (12, 12)])
@pytest.mark.parametrize("padding", [0, 1, (2, 1)])
@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kernel", [1, 3, (5, 2)])
def test_values_and_gradients_are_the_models(channels: int, kernel, stride, padding, size) -> None:  # pyright: ignore
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 5, kernel, stride, padding), nn.ReLU(), nn.Conv2d(5, 4, 1, bias=False))
    x = torch.rand(3, channels, *size)
    along = torch.randn(model(x).shape)
    value, gradient = _gradient(model, x, along)
    twin = quick_twin(model)
    assert twin is not model
    quick_value, quick_gradient = _gradient(twin, x, along)
    assert torch.allclose(value, quick_value, atol=1e-5)
    assert torch.allclose(gradient, quick_gradient, atol=1e-5)


def test_whole_networks_agree() -> None:
    from shaketable.models.architectures import ARCHITECTURES

    torch.manual_seed(0)
    for name, size in (("small_cnn", 28), ("preact_resnet18", 32)):
        narrow = {"width": 8}
        model = ARCHITECTURES[name](channels=3, classes=10, size=(size, size), **narrow).eval()
        x, along = torch.rand(2, 3, size, size), torch.randn(2, 10)
        (value, gradient), (quick, quick_gradient) = (_gradient(m, x, along) for m in (model, quick_twin(model)))
        assert torch.allclose(value, quick, rtol=1e-4, atol=1e-5)
        assert torch.allclose(gradient, quick_gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)),
    ],
)
def test_other_convolutions_are_left_to_pytorch(conv: nn.Module) -> None:
    model = nn.Sequential(conv, nn.ReLU(inplace=True))
    x = torch.rand(2, 4, 9, 9)
    along = torch.randn(model(x).shape)
    (value, gradient), (quick, quick_gradient) = (_gradient(m, x, along) for m in (model, quick_twin(model)))
    assert torch.allclose(value, quick, atol=1e-6)
    assert torch.allclose(gradient, quick_gradient, atol=1e-6)


def test_the_model_is_left_alone_and_the_twin_is_frozen() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    strides = [p.stride() for p in model.parameters()]
    twin = quick_twin(model)
    assert [type(m) for m in model] == [nn.Conv2d, nn.ReLU, nn.Flatten, nn.Linear]
    assert [p.stride() for p in model.parameters()] == strides
    assert all(p.requires_grad for p in model.parameters())
    assert not any(p.requires_grad for p in twin.parameters())
    assert isinstance(twin.copy[0], nn.Conv2d)
    assert not twin.training


def test_hooks_and_function_transforms_still_work() -> None:
    model, seen = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)), []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    x, twin = torch.rand(2, 2, 8, 8), quick_twin(model)
    expected = torch.autograd.grad(model(point := x.clone().requires_grad_()).sum(), point)[0]
    assert torch.allclose(torch.func.grad(lambda z: twin(z).sum())(x), expected, atol=1e-6)
    assert seen == [2, 2]


def test_weights_that_need_gradients_get_them() -> None:
    twin = quick_twin(nn.Conv2d(1, 2, 3)).requires_grad_()
    x = torch.rand(1, 1, 5, 5, requires_grad=True)
    twin(x).sum().backward()
    assert float(twin.copy.weight.grad.abs().sum()) > 0


class _Viewing(nn.Module):
    """A model that takes its maps for contiguous, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).view(x.size(0), -1))


def test_a_model_that_views_its_maps_is_attacked_as_well() -> None:
    model, x = _Viewing().eval(), torch.rand(3, 2, 8, 8)
    along, twin = torch.randn(3, 3), quick_twin(model)
    (value, gradient), (quick, quick_gradient) = (_gradient(m, x, along) for m in (model, twin))
    assert torch.allclose(value, quick, atol=1e-6)
    assert torch.allclose(gradient, quick_gradient, atol=1e-6)
    with pytest.raises(RuntimeError, match="channels"):
        twin(torch.rand(3, 1, 8, 8))


class _Locked(nn.Module):
    """A model that cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lock = nn.Conv2d(1, 2, 3), threading.Lock()


@pytest.mark.parametrize(
    "model", [lambda x: x, nn.Linear(3, 2), nn.Conv2d(1, 2, 3).double(), _Locked(), nn.Conv1d(1, 2, 3)]
)
def test_the_model_itself_where_nothing_is_gained(model) -> None:  # pyright: ignore
    assert quick_twin(model) is model


class Padded(nn.Module):
    """Convolutions as programs that come from TensorFlow Lite have them: each with a padding before it."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 4, 3, 2), nn.Conv2d(4, 4, 3)]
        )
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        sides = [(1, 1, 2, 2), (0, 0, 0, 0), (0, 1, 0, 1), (1, 1, 1, 1)]
        for convolution, side in zip(self.convolutions, sides, strict=True):
            x = convolution(F.pad(x, side)).clamp(0, 6)
        return self.head(F.pad(x, (1, 1, 1, 1)).sum((2, 3)))


class Uneven(nn.Module):
    """Grouped convolutions, each after a padding that is not the same on both sides, and one that is dilated."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(3, 3, 3, 2, groups=3),
                nn.Conv2d(3, 6, (1, 3), groups=3),
                nn.Conv2d(6, 6, 2, groups=2, dilation=2),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        for convolution, side in zip(self.convolutions, [(0, 1, 0, 1), (2, 0, 3, 1), (0, 1, 1, 0)], strict=True):
            x = convolution(F.pad(x, side))
        return x.sum((2, 3))


class Fitted(nn.Module):
    """A padding and a clamp that depend on the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 3, 3, 2, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardtanh(F.relu(x), 0.0, x.shape[2] / 16)
        return self.convolution(F.pad(x, (0, 1 + x.shape[3] % 2, 0, 1 + x.shape[2] % 2))).sum((2, 3))


class Normed(nn.Module):
    """Convolutions with batch normalisation, the last of which is read twice, and clamps of ReLUs."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(4, affine=k != 1) for k in range(4)])
        for norm in self.norms:
            nn.init.uniform_(norm.running_mean, -1, 1)  # pyright: ignore
            nn.init.uniform_(norm.running_var, 0.5, 2)  # pyright: ignore
            if norm.affine:
                nn.init.uniform_(norm.weight, -2, 2)  # pyright: ignore
                nn.init.uniform_(norm.bias, -1, 1)  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions[:3], self.norms[:3], strict=True):
            x = F.hardtanh(F.relu(norm(convolution(x))), 0.0, 1.5)
        positive = F.relu(x - 0.5)
        x = self.convolutions[3](F.hardtanh(positive, 0.0, 1.0) + F.hardtanh(positive, -1.0, 0.5))
        return (self.norms[3](x) * x).sum((2, 3))


class Viewed(nn.Module):
    """A network that cannot take images of another layout."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 100, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.convolution(x).view(x.shape[0], -1))


class InPlace(nn.Module):
    """A network that writes into what a padding by nothing has copied."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0)).mul_(2.0).sum((2, 3))


def exported(net: nn.Module) -> Exported:
    sizes = {"x": {0: torch.export.Dim("n", min=1, max=64)}}
    program = torch.export.export(net.eval(), (torch.zeros(2, 3, 12, 12),), dynamic_shapes=sizes)
    return Exported(program.module(), (None, 3, 12, 12), (1, 64))


def paddings(model: Exported) -> list[list[int]]:
    return [list(node.args[1]) for node in model.program.graph.nodes if "pad" in str(node.target)]  # pyright: ignore


def operations(model: Exported, name: str) -> int:
    return sum(f"aten.{name}." in str(node.target) for node in model.program.graph.nodes)  # pyright: ignore


def test_a_program_loses_its_idle_paddings() -> None:
    torch.manual_seed(0)
    model = exported(Padded())
    twin = quick_twin(model)
    assert paddings(model) == [[1, 1, 2, 2], [0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert paddings(twin) == [[0, 1, 0, 1], [1, 1, 1, 1]]  # one that is not the same on both sides, one that is summed
    x = torch.rand(7, 3, 12, 12)
    same_passes(model, twin, x)
    assert twin.takes
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    same_passes(model, twin, x)  # the weights are the model's own


def test_grouped_convolutions_take_uneven_paddings() -> None:
    torch.manual_seed(0)
    model = exported(Uneven())
    twin = quick_twin(model)
    assert paddings(model) == [[0, 1, 0, 1], [2, 0, 3, 1], [0, 1, 1, 0]]
    assert paddings(twin) == [
        [1, 0, 1, 0],
        [0, 2, 0, 2],
        [0, 1, 1, 0],
    ]  # of two kernels, and of the images of a dilated one
    same_passes(model, twin, torch.rand(7, 3, 12, 12))
    assert twin(torch.rand(7, 3, 12, 12)).shape == (7, 6)


def test_paddings_that_are_worked_out_are_left() -> None:
    sides = {"x": {0: torch.export.Dim("n", min=1, max=64), 2: torch.export.Dim("h", min=8, max=64)}}
    program = torch.export.export(Fitted().eval(), (torch.zeros(2, 3, 12, 12),), dynamic_shapes=sides)
    model = Exported(program.module(), (None, 3, None, 12), (1, 64))
    twin = quick_twin(model)
    for height in (11, 12):
        same_passes(model, twin, torch.rand(7, 3, height, 12))
    assert len(paddings(twin)) == 1


def test_a_program_loses_its_batch_normalisations_and_double_clamps() -> None:
    torch.manual_seed(0)
    model = exported(Normed())
    twin = quick_twin(model)
    assert (operations(model, "batch_norm"), operations(twin, "batch_norm")) == (4, 1)
    assert (operations(model, "relu"), operations(twin, "relu")) == (4, 1)  # one is clamped below 0 as well
    assert operations(twin, "conv2d") == 4
    x = torch.rand(7, 3, 12, 12)
    same_passes(model, twin, x)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.add_(0.1 if tensor.is_floating_point() else 0)
    same_passes(model, twin, x)  # the weights and statistics are the model's own


def test_a_program_that_looks_by_view_gets_its_images_as_they_are() -> None:
    model = exported(Viewed())
    twin = quick_twin(model)
    x = torch.rand(7, 3, 12, 12)
    same_passes(model, twin, x)
    assert not twin.takes


def test_a_program_that_writes_keeps_its_paddings() -> None:
    model = exported(InPlace())
    twin = quick_twin(model)
    x = torch.rand(7, 3, 12, 12)
    kept = x.clone()
    assert paddings(twin) == [[0, 0, 0, 0]]
    assert torch.allclose(twin(x), model(x))
    assert torch.equal(x, kept)


def same_passes(model: Exported, twin: Exported, x: Tensor) -> None:
    """Logits and gradients are the same but for rounding."""
    found = []
    for one in (model, twin):
        point = x.clone().requires_grad_()
        logits = one(point)
        found.append((logits, *torch.autograd.grad(logits.square().sum(), point)))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)
