"""A model's state as tensors and as a hash."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from shaketable.core.errors import ModelError


def fingerprint(model: nn.Module) -> str:
    """The SHA-256 of a model's state: names, dtypes, shapes and bytes of all parameters and buffers, sorted by name.

    Equal for equal weights, however and wherever they are kept (device, memory layout, order of definition). Buffers that
    a state dict leaves out count too, so that another normalisation is another model.

    Raises:
        ModelError: a tensor without plain bytes (sparse, quantised, on the meta device).

    Cost: one copy of each tensor to the CPU. Checked by tests/models/test_checkpoint.py.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(named_state(model), key=lambda item: item[0]):
        plain = plain_tensor(name, tensor)
        digest.update(f"{name}\x1f{plain.dtype}\x1f{tuple(plain.shape)}\x1f".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def named_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer, tied ones under each of their names, buffers outside the state dict too."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def plain_tensor(name: str, tensor: Tensor) -> Tensor:
    """The tensor detached, contiguous and on the CPU; raises ModelError for one that has no plain bytes."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "meta" if tensor.is_meta else "quantised" if tensor.is_quantized else str(tensor.layout)
        raise ModelError(name, "a dense tensor", f"a {kind} one", "Convert it (dequantize, to_dense) first.")
    return tensor.detach().cpu().contiguous().resolve_conj().resolve_neg()
