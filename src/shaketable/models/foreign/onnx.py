"""ONNX models, run by ONNX Runtime: they answer, but have no gradients."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shaketable.core.errors import GradientError, InputError, ModelError
from shaketable.files import sha256_of
from shaketable.models.spec import Loaded
from shaketable.plugins import extra

NO_GRADIENTS = (
    "ONNX Runtime computes no gradients: parts that need them are left out; attacks without gradients remain."
)


class _Session(torch.autograd.Function):
    """The session as a function of the image; asking for its gradient is a typed error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Any) -> Tensor:
        return run(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        expected, remedy = "a model with gradients", "Use an attack without gradients, or bring the model as .pt2."
        raise GradientError("model", expected, "an ONNX model, which has none", remedy)


class Onnx(nn.Module):
    """An ONNX Runtime session as a model of (n, c, h, w) float32 images to (n, classes) logits.

    Args:
        session: an `onnxruntime.InferenceSession` of one image input.
        shape: of the input; None where free.

    A fixed batch (often 1) is met by running the images in pieces, the last padded with zeros.
    """

    def __init__(self, session: Any, shape: tuple[int | None, ...]) -> None:
        super().__init__()
        self.session, self.shape = session, shape
        self.taken, self.given = session.get_inputs()[0].name, session.get_outputs()[0].name
        self.eval()

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        fits = x.ndim == 4 and all(s in (None, g) for g, s in zip(x.shape[1:], self.shape[1:], strict=True))
        if x.dtype != torch.float32 or not fits:
            wanted = ", ".join(["n", *("any" if s is None else str(s) for s in self.shape[1:])])
            found = f"{x.dtype} {tuple(x.shape)}"
            raise InputError("x", f"float32 images of shape ({wanted})", found, "Convert or resize the images.")
        return _Session.apply(x, self.run)  # type: ignore[return-value]

    def run(self, x: Tensor) -> Tensor:
        """The logits, without gradients, on the image's device."""
        images = x.detach().cpu().contiguous()
        step = self.shape[0] or max(len(images), 1)
        answers: list[Tensor] = []
        for start in range(0, len(images), step):
            piece = images[start : start + step]
            short = 0 if self.shape[0] is None else step - len(piece)
            padded = torch.cat([piece, piece.new_zeros(short, *piece.shape[1:])]) if short else piece
            (answer,) = self.session.run([self.given], {self.taken: padded.numpy()})
            answers.append(torch.from_numpy(answer)[: len(piece)])
        logits = torch.cat(answers) if answers else images.new_zeros(0, 1)
        return logits.to(x.device)


def load_onnx(path: Path) -> Loaded:
    """Load an ONNX model with ONNX Runtime, on the CPU.

    Args:
        path: a `.onnx` file of one input (n, c, h, w) in float32 and logits (n, classes) as its first output.

    Weights that lie in further files must lie in the model's folder: a path that leads out of it is refused before the
    runtime opens it. Custom operators are not loaded.

    Raises:
        ModelError: onnx or onnxruntime is missing, or the file is no such model.

    Checked by tests/models/foreign/test_onnx.py.
    """
    onnx, runtime = (extra(package, "onnx", str(path), error=ModelError) for package in ("onnx", "onnxruntime"))
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:
        raise ModelError(str(path), "an ONNX model", f"{type(error).__name__}", "Fetch the file again.") from error
    _refuse_outside(path, graph)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        remedy = "Check it with onnx.checker, or export it with an opset that this runtime knows."
        raise ModelError(str(path), "an ONNX model that runs", first, remedy) from error
    inputs = session.get_inputs()
    kinds = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
        remedy = "Export the model with one float32 image input (n, c, h, w)."
        raise ModelError(str(path), "one input tensor(float) of shape (n, c, h, w)", kinds, remedy)
    shape = tuple(size if isinstance(size, int) else None for size in inputs[0].shape)
    if shape[3] in (1, 3) and shape[1] not in (1, 3):
        remedy = "Export it with channels first, or put a transpose before it."
        raise ModelError(str(path), "channels first, (n, c, h, w)", f"channels last, {inputs[0].shape}", remedy)
    size = (shape[2], shape[3]) if shape[2] and shape[3] else None
    notes = (NO_GRADIENTS,)
    model = Onnx(session, shape)
    return Loaded(model, None, path.stem, str(path), sha256_of(path), size, gradients=False, notes=notes)


def _refuse_outside(path: Path, graph: Any) -> None:
    """Refuse weights in files outside the model's folder."""
    folder = path.absolute().parent.resolve()
    for tensor in _tensors(graph):
        for entry in tensor.external_data:
            if entry.key == "location" and not (folder / entry.value).resolve().is_relative_to(folder):
                expected, remedy = "weights within the model's folder", "Do not load it."
                raise ModelError(str(path), expected, f"weights in {entry.value!r}", remedy)


def _tensors(graph: Any) -> Iterator[Any]:
    """Every tensor of a graph, also those in its nodes' attributes and in graphs within them."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                if inner.node or inner.initializer:
                    yield from _tensors(inner)
