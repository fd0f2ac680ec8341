"""ONNX models: they answer as they should, and say that they have no gradients."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from shaketable.core.errors import GradientError, InputError, ModelError
from shaketable.models.foreign import load

onnx: Any = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'shaketable[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'shaketable[onnx]'")

WEIGHT = np.linspace(-1, 1, 48 * 3, dtype=np.float32).reshape(48, 3)


def images(n: int = 5) -> Tensor:
    return torch.linspace(0, 1, n * 48).reshape(n, 3, 4, 4)


def write(
    path: Path,
    batch: int | str = "n",
    *,
    shape: tuple[int, ...] = (3, 4, 4),
    kind: str = "FLOAT",
    inputs: int = 1,
    location: str | None = None,
) -> Path:
    """Write flatten(x) @ WEIGHT as an ONNX model."""
    helper, proto = onnx.helper, onnx.TensorProto
    taken = [helper.make_tensor_value_info(f"x{i}", getattr(proto, kind), [batch, *shape]) for i in range(inputs)]
    weight = onnx.numpy_helper.from_array(WEIGHT, "w")
    if location is not None:
        weight.ClearField("raw_data")
        weight.data_location = proto.EXTERNAL
        weight.external_data.add(key="location", value=location)
    nodes = [helper.make_node("Cast", ["x0"], ["c"], to=proto.FLOAT), helper.make_node("Flatten", ["c"], ["f"], axis=1)]
    nodes.append(helper.make_node("MatMul", ["f", "w"], ["y"]))
    given = [helper.make_tensor_value_info("y", proto.FLOAT, [batch, 3])]
    graph = helper.make_graph(nodes, "net", taken, given, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("batch", ["n", 1, 2, 7])
def test_it_answers_in_any_batch(batch: int | str, tmp_path: Path) -> None:
    loaded = load(str(write(tmp_path / "net.onnx", batch)), mean=(0.5,) * 3, std=(0.25,) * 3)
    expected = ((images() - 0.5) / 0.25).flatten(1) @ torch.from_numpy(WEIGHT)
    assert torch.allclose(loaded.model(images()), expected, atol=1e-4)
    assert loaded.size == (4, 4)
    assert not loaded.gradients
    assert "no gradients" in loaded.notes[0]
    assert len(loaded.sha256 or "") == 64
    assert not loaded.model.training


def test_asking_for_its_gradient_is_a_typed_error(tmp_path: Path) -> None:
    model = load(str(write(tmp_path / "net.onnx"))).model
    x = images().requires_grad_()
    y = model(x)
    with pytest.raises(GradientError, match="ONNX"):
        torch.autograd.grad(y.sum(), x)


@pytest.mark.parametrize("x", [images().double(), images().mul(255).byte(), images()[0], torch.zeros(1, 1, 4, 4)])
def test_images_it_cannot_take(x: Tensor, tmp_path: Path) -> None:
    model = load(str(write(tmp_path / "net.onnx"))).model
    with pytest.raises(InputError, match=r"\(n, 3, 4, 4\)"):
        model(x)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"kind": "UINT8"}, "tensor(uint8)"),
        ({"inputs": 2}, "x0 tensor(float)"),
        ({"shape": (4, 4, 3)}, "channels last"),
        ({"shape": (48,)}, "[1, 48]"),
        ({"location": "../../etc/passwd"}, "../../etc/passwd"),
        ({"location": "/etc/passwd"}, "/etc/passwd"),
    ],
)
def test_models_it_cannot_be(options: dict[str, Any], found: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load(str(write(tmp_path / "net.onnx", 1, **options)))
    assert found in caught.value.found


@pytest.mark.parametrize("content", [b"not a model at all", b"\x08\x07", b"\0" * 64, b"\xff" * 64])
def test_damage(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        load(str(path))
    whole = write(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError):
        load(str(path))
