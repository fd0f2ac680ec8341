"""Models of timm and Hugging Face: what happens without the package, always; with it, where it is installed."""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from shaketable.core.errors import ModelError
from shaketable.models.foreign import load
from shaketable.models.foreign.hubs import _labels, _size, _statistics, load_timm


def images(n: int = 2, channels: int = 3, size: int = 16) -> Tensor:
    return torch.linspace(0, 1, n * channels * size * size).reshape(n, channels, size, size)


@pytest.mark.parametrize(
    ("source", "package", "extra"),
    [
        ("timm:resnet18", "timm", "timm"),
        ("hf:org/name", "transformers", "huggingface"),
        ("model.onnx", "onnx", "onnx"),
        ("model.onnx", "onnxruntime", "onnx"),
    ],
)
def test_a_missing_package_names_its_extra(
    source: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def missing(name: str, *rest: object) -> ModuleType:
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name) if importlib.util.find_spec(name) else ModuleType(name)

    if source.endswith(".onnx"):
        (tmp_path / source).write_bytes(b"\x08\x07\x12\x00")
        source = str(tmp_path / source)
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModelError) as caught:
        load(source)
    assert caught.value.remedy == f"pip install 'shaketable[{extra}]'"
    assert package in caught.value.expected


def test_a_package_that_does_not_import_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As timm beside a torchvision of another torch."""

    def broken(name: str) -> ModuleType:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModelError, match="torchvision::nms") as caught:
        load("timm:resnet18")
    assert "matching versions" in caught.value.remedy


@pytest.mark.parametrize(
    ("processor", "mean", "std", "size"),
    [
        (
            {
                "do_normalize": True,
                "image_mean": [0.5, 0.4, 0.3],
                "image_std": [0.2] * 3,
                "size": {"height": 8, "width": 9},
            },
            (0.5, 0.4, 0.3),
            (0.2,) * 3,
            (8, 9),
        ),
        ({"do_normalize": False, "image_mean": [0.5], "image_std": [0.5], "size": 224}, (), (), (224, 224)),
        ({"image_mean": [0.5], "image_std": [0.25], "size": {"shortest_edge": 256}}, (0.5,), (0.25,), None),
        (
            {"image_mean": [127.5], "image_std": [51.0], "do_rescale": False, "crop_size": 32, "do_center_crop": True},
            (0.5,),
            (0.2,),
            (32, 32),
        ),
        ({}, (), (), None),
    ],
)
def test_what_an_image_processor_means(
    processor: dict[str, object], mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, int] | None
) -> None:
    """The normalisation equals the processor's own chain on bytes: rescale, less mean, over std."""
    notes: list[str] = []
    found = _statistics(processor, notes)
    assert found[0] == pytest.approx(mean)
    assert found[1] == pytest.approx(std)
    assert _size(processor) == size
    assert bool(notes) == bool(mean)


def test_labels_come_in_the_order_of_the_logits() -> None:
    class Config:
        id2label = {1: "b", 0: "a", 2: "c"}  # noqa: RUF012

    assert _labels(Config()) == ("a", "b", "c")
    Config.id2label = {1: "b"}
    assert _labels(Config()) is None
    assert _labels(object()) is None


def _installed(package: str) -> bool:
    try:
        importlib.import_module(package)
    except Exception:
        return False
    return True


@pytest.fixture
def huggingface_folder(tmp_path: Path) -> tuple[nn.Module, Path]:
    """A tiny vision transformer, saved as Hugging Face does."""
    transformers = importlib.import_module("transformers")
    config = transformers.ViTConfig(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        num_labels=3,
        id2label={0: "cat", 1: "dog", 2: "owl"},
        label2id={"cat": 0, "dog": 1, "owl": 2},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = transformers.ViTForImageClassification(config).eval()
    folder = tmp_path / "tiny-vit"
    net.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    processor = {"image_processor_type": "ViTImageProcessor", "do_normalize": True, "image_mean": [0.5, 0.4, 0.3]}
    processor |= {"image_std": [0.2, 0.3, 0.4], "do_rescale": True, "rescale_factor": 1 / 255, "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return net, folder


@pytest.mark.skipif(
    not _installed("transformers"), reason="transformers is not installed: pip install 'shaketable[huggingface]'"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_hugging_face_folder(huggingface_folder: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    net, folder = huggingface_folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    loaded = load(f"hf:{folder}")
    x = images().requires_grad_()
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    assert torch.allclose(loaded.model(x), net((x - mean) / std).logits, atol=1e-6)
    (g,) = torch.autograd.grad(loaded.model(x).sum(), x)
    assert g.any()
    assert loaded.labels == ("cat", "dog", "owl")
    assert loaded.size == (16, 16)
    assert loaded.name == "tiny-vit"
    assert not any(module.training for module in loaded.model.modules())
    (folder / "preprocessor_config.json").unlink()
    plain = load(f"hf:{folder}", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    assert torch.allclose(plain.model(x), loaded.model(x))
    assert torch.allclose(load(str(folder)).model(x), net(x).logits)
    assert any("give --mean" in note for note in plain.notes)


@pytest.mark.skipif(
    not _installed("transformers"), reason="transformers is not installed: pip install 'shaketable[huggingface]'"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_hugging_face_folder_of_pickles_or_of_nothing(
    huggingface_folder: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    net, folder = huggingface_folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (folder / "model.safetensors").unlink()
    torch.save(net.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ModelError) as caught:
        load(f"hf:{folder}")
    assert "--trust" in caught.value.remedy
    with pytest.raises(ModelError):
        load(f"hf:{tmp_path / 'nothing'}")


@pytest.mark.skipif(not _installed("timm"), reason="timm is not installed, or does not import beside this torch")
def test_a_timm_model() -> None:
    loaded = load_timm("timm:resnet18", pretrained=False)
    timm = sys.modules["timm"]
    config = timm.create_model("resnet18", pretrained=False).pretrained_cfg
    assert loaded.size == tuple(config["input_size"][1:])
    assert loaded.model(images(1, 3, 64)).shape == (1, 1000)
    assert tuple(loaded.model.normalise.mean.flatten().tolist()) == pytest.approx(tuple(config["mean"]))
    assert not loaded.model.training
    with pytest.raises(ModelError, match="Did you mean 'resnet18"):
        load_timm("timm:resnet81")
