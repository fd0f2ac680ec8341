"""Calling a model of somebody else's without a trace: its buffers, its modes and the global randomness are put back."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Snapshot:
    """A model's buffers and modes at one moment, with copies of the buffers' values; see `snapshot`."""

    buffers: tuple[tuple[str, nn.Module, dict[str, Tensor | None], dict[str, Tensor]], ...]
    modes: tuple[tuple[nn.Module, bool], ...]

    def changed(self) -> tuple[str, ...]:
        """The names of the buffers that are not as they were: other values, replaced, added or removed."""
        names: list[str] = []
        for prefix, owner, kept, copies in self.buffers:
            now = owner._buffers
            for leaf in {**kept, **now}:
                same = leaf in kept and leaf in now and now[leaf] is kept[leaf]
                if not same or (leaf in copies and not _equal(kept[leaf], copies[leaf])):
                    names.append(f"{prefix}.{leaf}" if prefix else leaf)
        return tuple(names)

    def restore(self) -> None:
        """Put back the same tensors with the same values, bit for bit, and every module's mode."""
        for _, owner, kept, copies in self.buffers:
            for leaf, copy in copies.items():
                tensor = kept[leaf]
                if tensor is not None and not _equal(tensor, copy):
                    with torch.no_grad():
                        tensor.copy_(copy)
            now = owner._buffers
            if list(now) != list(kept) or any(now[leaf] is not tensor for leaf, tensor in kept.items()):
                owner._buffers.clear()
                owner._buffers.update(kept)
        for module, mode in self.modes:
            module.training = mode


def snapshot(model: nn.Module) -> Snapshot:
    """The buffers and modes as they are now. Cost: a copy of the buffers, not of the parameters."""
    buffers = []
    for name, owner in model.named_modules():
        if owner._buffers:
            kept = dict(owner._buffers)
            copies = {leaf: tensor.detach().clone() for leaf, tensor in kept.items() if tensor is not None}
            buffers.append((name, owner, kept, copies))
    return Snapshot(tuple(buffers), tuple((module, module.training) for module in model.modules()))


@contextlib.contextmanager
def untouched(model: nn.Module, device: torch.device, *, seed: int = 0) -> Iterator[Snapshot]:
    """Within it a model may be called at will; afterwards, also after an exception, nothing is left of it.

    Args:
        model: whose buffers and modes are put back. What it keeps elsewhere (Python attributes) is beyond reach.
        device: where it runs; that device's and the CPU's global generators are put back, and Python's and NumPy's.
        seed: of all of these within, so that a random model answers the same at every check.
    """
    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()
    cuda = [device.index if device.index is not None else torch.cuda.current_device()] if device.type == "cuda" else []
    kept = snapshot(model)
    try:
        with torch.random.fork_rng(devices=cuda):
            torch.default_generator.manual_seed(seed)
            for index in cuda:
                torch.cuda.default_generators[index].manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield kept
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        kept.restore()


def _equal(a: Tensor | None, b: Tensor) -> bool:
    """Equal to the bit: NaN equals NaN, and -0.0 is not 0.0."""
    if a is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
