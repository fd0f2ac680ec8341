"""Exported programs: a forward pass and an input gradient through the quick twin, against the program itself.

The programs are files that not everybody has: *.pt2 in $SHAKETABLE_SHARED/models, or in ../shared/models. Without any there
is nothing to measure.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from cells import Comparison
from timing import interleave, ratio
from torch import nn

from shaketable.attacks.twin import quick_twin
from shaketable.models import load

FOLDER = Path(os.environ.get("SHAKETABLE_SHARED", Path(__file__).parents[2] / "shared")) / "models"
BATCH, OTHER = 8, "the program itself"


def programs(repetitions: int) -> Iterator[Comparison]:
    """Each program in turn, on a batch of random images."""
    for path in sorted(FOLDER.glob("*.pt2")):
        loaded = load(path)
        x = torch.rand(BATCH, 3, *(loaded.size or (224, 224)), generator=torch.Generator().manual_seed(0))
        seconds = interleave({"ours": _run(quick_twin(loaded.model), x), OTHER: _run(loaded.model, x)}, repetitions)
        a, b = seconds["ours"], seconds[OTHER]
        facts = {"batch": BATCH, "size": loaded.size}
        yield Comparison(f"a pass of {path.stem}'s quick twin", OTHER, ratio(b, a), 1.0, False, a, b, facts)


def _run(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        point = x.clone().requires_grad_()
        torch.autograd.grad(model(point).log_softmax(1)[:, 0].sum(), point)

    return run
