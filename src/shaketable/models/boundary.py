"""What makes a job on a model meaningless, found at the boundary: faulty images, labels, weights, modes and outputs."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from shaketable.core.errors import InputError, ModelError, ShaketableError

_SHAPES = ("shape", "size", "channel", "dimension", "dim ", "guard")


def check_images(x: object, *, channels: int | None, size: tuple[int, int] | None) -> Tensor:
    """The images, if they are what the package works on: (n, c, h, w), floating, within [0, 1], finite, n > 0.

    Args:
        x: the images.
        channels: that the model takes, None: unknown.
        size: (h, w) that the model takes, None: unknown.

    Raises:
        InputError: naming the first fault that was found. Checked by tests/models/test_contract.py, a table.
    """
    if not isinstance(x, Tensor):
        found = type(x).__name__
        raise InputError("x", "a torch.Tensor (n, c, h, w)", found, "Use torch.from_numpy(x).float() / 255.")
    shape = tuple(x.shape)
    if x.ndim != 4:
        remedy = "Add the missing dimension: x.unsqueeze(0) for one image, x.unsqueeze(1) for grey images."
        raise InputError("x", "4 dimensions, (n, c, h, w)", f"shape {shape}", remedy)
    if x.numel() == 0:
        raise InputError("x", "at least one image with pixels", f"shape {shape}", "Give some images.")
    if not x.is_floating_point():
        remedy = "Use x.float() / 255 for 8-bit images."
        raise InputError("x", "floating-point pixels in [0, 1]", str(x.dtype), remedy)
    _check_range(x)
    if shape[1] not in (1, 3, 4) and shape[3] in (1, 3, 4) and shape[1] != channels:
        raise InputError("x", "channels first, (n, c, h, w)", f"shape {shape}", "Use x.permute(0, 3, 1, 2).")
    if channels is not None and shape[1] != channels:
        raise _channels(shape, channels)
    if size is not None and shape[2:] != tuple(size):
        remedy = f"Resize the images to {size[0]} x {size[1]}, or load the model with --size {shape[2]} {shape[3]}."
        raise InputError("x", f"images of {size[0]} x {size[1]} pixels", f"{shape[2]} x {shape[3]}", remedy)
    return x


def check_labels(y: object, x: Tensor) -> Tensor:
    """The labels, if they are (n,) int64 on the images' device. Raises InputError."""
    if not isinstance(y, Tensor):
        raise InputError("y", "a torch.Tensor (n,)", type(y).__name__, "Use torch.as_tensor(y).")
    if y.shape != x.shape[:1]:
        onehot = y.ndim == 2 and len(y) == len(x)
        remedy = "Use y.argmax(1) for one-hot labels." if onehot else "Give one label for each image."
        raise InputError("y", f"shape ({len(x)},), a label an image", f"shape {tuple(y.shape)}", remedy)
    if y.dtype is not torch.int64:
        raise InputError("y", "whole numbers, torch.int64", str(y.dtype), "Use y.long(), if the values are whole.")
    if y.device != x.device:
        raise InputError("y", f"labels on {x.device}, as the images", str(y.device), "Move them: y.to(x.device).")
    return y


def check_label_range(y: Tensor, classes: int) -> None:
    """Raises InputError unless every label is one of 0 .. classes - 1."""
    low, high = int(y.min()), int(y.max())
    if low >= 0 and high < classes:
        return
    remedy = "Use the labels that the model was trained with, or another model."
    if low == 1 and high == classes:
        remedy = "They seem to start at 1: use y - 1."
    elif low < 0:
        remedy = "Drop the images without a label (negative ones)."
    raise InputError("y", f"labels from 0 to {classes - 1}, the model's classes", f"{low} to {high}", remedy)


def check_model(model: object, x: Tensor) -> nn.Module:
    """The model, if it is a module in eval mode with finite weights on the images' device and of their dtype.

    Raises:
        ModelError: no module, in training mode, uninitialised or non-finite weights.
        InputError: images of another dtype or on another device than the weights.
    """
    if not isinstance(model, nn.Module):
        remedy = "Wrap it: a Module whose forward calls it."
        raise ModelError("model", "a torch.nn.Module", type(model).__name__, remedy)
    names = [
        name or "the model" for name, module in model.named_modules() if module.training and _matters(name, module)
    ]
    if names:
        found = f"training mode in {', '.join(names[:3])}{'' if len(names) < 4 else f' and {len(names) - 3} more'}"
        raise ModelError("model", "a model in eval mode", found, "Call model.eval() first.")
    for name, tensor in _tensors(model):
        if is_lazy(tensor):
            raise ModelError("model", "weights", f"{name!r}, not initialised", "Run one batch through it first.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            found = f"{bad} of {tensor.numel()} values of {name!r} are NaN or infinite"
            raise ModelError("model", "finite weights", found, "The training diverged: use an earlier checkpoint.")
    for tensor in model.parameters():
        if tensor.is_floating_point():
            if tensor.dtype != x.dtype:
                remedy = f"Convert one of them: x.to({tensor.dtype}), or model.to({x.dtype})."
                raise InputError("x", f"{tensor.dtype}, as the model's weights", str(x.dtype), remedy)
            if tensor.device != x.device:
                remedy = "Move one of them: x.to(device), or model.to(device)."
                raise InputError("x", f"images on {tensor.device}, as the model", str(x.device), remedy)
            break
    return model


def partly_training(model: nn.Module) -> tuple[str, ...]:
    """The names of modules in training mode inside a model in eval mode."""
    return tuple(name for name, module in model.named_modules() if module.training)


def check_outputs(out: object, n: int, classes: int | None) -> Tensor:
    """The outputs, if they are finite (n, classes) logits. Raises ModelError."""
    if not isinstance(out, Tensor):
        remedy = "Return the logits alone: wrap the model in a Module whose forward returns out.logits or out[0]."
        raise ModelError("model", "a tensor of logits (n, classes)", type(out).__name__, remedy)
    shape = tuple(out.shape)
    if out.ndim != 2 or len(out) != n or shape[1] < 2:
        remedy = "Give a classifier; one logit z for two classes becomes torch.cat([-z, z], 1) / 2."
        expected = f"({n}, classes) logits, two classes or more"
        raise ModelError("model", expected, f"an output of shape {shape}", remedy)
    if not out.is_floating_point():
        raise ModelError("model", "floating-point logits", str(out.dtype), "Return logits, not predicted classes.")
    if classes is not None and shape[1] != classes:
        remedy = "Use the data set, or the labels, that this model was trained with."
        raise ModelError("model", f"{classes} classes", f"{shape[1]} logits", remedy)
    finite = torch.isfinite(out).all(1)
    if not bool(finite.all()):
        first = int((~finite).nonzero()[0])
        found = f"NaN or infinite outputs for {int((~finite).sum())} of {n} images, first for image {first}"
        raise ModelError("model", "finite logits", found, "Check the weights and normalisation (a std near 0?).")
    return out


def explain(error: Exception, model: nn.Module, x: Tensor) -> ShaketableError:
    """The typed error for a forward pass that failed: the images' channels or size, or the model."""
    if isinstance(error, ShaketableError):
        return error
    shape, text = tuple(x.shape), (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError):
        return InputError("batch", "a batch that fits the memory", f"out of memory at {len(x)}", "Use a smaller batch.")
    channels = model_channels(model)
    if channels is not None and shape[1] != channels:
        return _channels(shape, channels)
    found = f"{type(error).__name__} at shape {shape}: {text}"
    if any(word in text.lower() for word in _SHAPES):
        return InputError("x", "images of the size that the model takes", found, "Resize them, or load it with --size.")
    return ModelError(
        "model", "a forward pass that runs", found, "Try model(x[:1]) by hand; is it an image classifier?"
    )


def model_channels(model: nn.Module) -> int | None:
    """The channels that the first convolution takes, in order of definition, or None."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
    return None


def _check_range(x: Tensor) -> None:
    finite = torch.isfinite(x)
    if not bool(finite.all()):
        image = int((~finite).flatten(1).any(1).nonzero()[0])
        found = f"{int((~finite).sum())} NaN or infinite pixels, first in image {image}"
        raise InputError("x", "finite pixels", found, "Look at how the images were read; drop or repair those.")
    low, high = float(x.min()), float(x.max())
    expected, found = "pixels in [0, 1]", f"{low:.4g} to {high:.4g}"
    if low < 0 or high > 1:
        if low >= -1e-3 and high <= 1 + 1e-3:
            raise InputError("x", expected, f"{found}: overshoot, from resizing perhaps", "Use x.clamp(0, 1).")
        if low < 0:
            kind = "[-1, 1]" if low >= -1 and high <= 1 else "normalised already"
            remedy = (
                "Give plain images; normalisation is the model's first layer (--mean, --std, or models.normalised)."
            )
            raise InputError("x", expected, f"{found}: {kind}", remedy)
        kind, remedy = (
            ("0..255", "Use x / 255.") if high <= 255 else ("more than 8 bits", "Divide by the largest value.")
        )
        raise InputError("x", expected, f"{found}: {kind}", remedy)
    step = 1 / 255
    if 0 < high <= step * 1.001 and bool(((x > 0) & (x < step * 0.999)).any()):
        raise InputError("x", "pixels that use [0, 1]", f"{found}: divided by 255 twice", "Divide by 255 only once.")


def _channels(shape: tuple[int, ...], channels: int) -> InputError:
    kinds = {1: "grey", 3: "colour", 4: "colour and alpha"}
    remedies = {(1, 3): "Use x.expand(-1, 3, -1, -1).", (3, 1): "Use x.mean(1, keepdim=True).", (4, 3): "Use x[:, :3]."}
    found = f"{shape[1]} channel{'s' * (shape[1] > 1)} ({kinds.get(shape[1], 'other')} images)"
    expected = f"{channels} channel{'s' * (channels > 1)} ({kinds.get(channels, 'other')} images), as the model takes"
    return InputError("x", expected, found, remedies.get((shape[1], channels), "Use images of the model's kind."))


def _matters(name: str, module: nn.Module) -> bool:
    """The model itself, and layers whose statistics would move; others are a finding (dropout may be a defence)."""
    statistics = isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None
    return name == "" or statistics


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
