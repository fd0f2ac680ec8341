"""Randomness that is asked for: every generator is derived from a seed and a path.

A path names the use ("attack", epoch, step), so that a draw depends on where it is made and on nothing that was drawn
before it: a run that is resumed, split among workers or reordered draws the same numbers.
"""

import hashlib
import operator
from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor

from .errors import InputError


def generator(seed: int, *path: int | str) -> torch.Generator:
    """A CPU generator for one named use of a seed.

    Args:
        seed: any integer.
        path: what the numbers are for, for example ``"attack", epoch, step``. Other paths give independent streams.

    Draws are made on the CPU and moved, so a seed means the same on every device. The 63-bit state seed is the SHA-256 of
    the seed and the path. Checked by tests/core/test_seeds.py.
    """
    try:
        text = "\x1f".join(f"str:{p}" if isinstance(p, str) else f"int:{operator.index(p)}" for p in (seed, *path))
    except TypeError:
        found = str((seed, *path))
        raise InputError("seed", "integers, and words in the path", found, "Use int(seed).") from None
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@contextmanager
def own_random_state(tensors: Iterable[Tensor], generator: torch.Generator | None = None) -> Generator[None]:
    """Leave the global random state of the CPU, and of the tensors' devices, as it was.

    Args:
        generator: what to seed the state from inside (dropout draws from it); a copy is read, so nothing is consumed.
    """
    cuda = sorted({tensor.device.index for tensor in tensors if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        if generator is not None:
            copy = torch.Generator(generator.device)
            copy.set_state(generator.get_state())
            seed = int(torch.randint(2**62, (), generator=copy, device=copy.device))
            # not torch.manual_seed, which would seed the devices that were not forked as well
            torch.default_generator.manual_seed(seed)
            for index in cuda:
                torch.cuda.default_generators[index].manual_seed(seed)
        yield
