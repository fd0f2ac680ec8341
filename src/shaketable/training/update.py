"""How the optimiser's step is made: BatchNorm's statistics, where weight decay acts, micro-batches, clipping, precision."""

import math
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..core import InputError

BatchNormPolicy = Literal["once", "authors", "frozen"]
DecayAt = Literal["perturbed", "restored"]
Precision = Literal["float32", "bfloat16", "float16"]

_BatchNorm = nn.modules.batchnorm._BatchNorm  # all of them, SyncBatchNorm's too


@dataclass(frozen=True)
class Update:
    """How a step is made of a batch, its adversarial points and its worst weights.

    Args:
        batch_norm: what moves BatchNorm's running statistics. "once": the training pass alone (TRADES' has two). "authors":
            every pass in train mode, as in the loops of AWP's authors: for AT each of the attack's passes, the pass at
            w + v, and a clean pass after the step (theirs is for logging); TRADES attacks in eval mode, so nothing is
            added. "frozen": nothing; BatchNorm normalises by its running statistics, as in careful fine-tuning.
        decay_at: where weight decay and the optimiser's step act. "perturbed": at w + v, as in the authors' code, where the
            optimiser steps before v is taken off. "restored": at w, with the gradients of w + v.
        accumulate: micro-batches that a batch is worked on in, one after the other; gradients, and those that AWP's v is
            made of, are those of the whole batch. BatchNorm's batch statistics are the micro-batch's.
        clip_gradient: the largest l2 norm of all gradients together; None: no limit. It acts on the gradients at w + v.
        clip_weights: every weight and bias is kept in [-clip_weights, clip_weights] (Stutz et al. 2021; .005 to .025).
        precision: "bfloat16" runs forward passes under autocast; "float16" too, with a gradient scaler (GPUs; untested).
        channels_last: images and convolutions in that memory format.

    Cost: "authors" one forward pass more for AT; none otherwise. Checked by tests/training/test_update.py.
    """

    batch_norm: BatchNormPolicy = "once"
    decay_at: DecayAt = "perturbed"
    accumulate: int = 1
    clip_gradient: float | None = None
    clip_weights: float | None = None
    precision: Precision = "float32"
    channels_last: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("batch_norm", BatchNormPolicy), ("decay_at", DecayAt), ("precision", Precision)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise InputError(name, f"one of {known}", repr(getattr(self, name)), "Choose one of them.")
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise InputError(
                "accumulate", "a whole number >= 1", repr(self.accumulate), "1 is the whole batch at once."
            )
        for name in ("clip_gradient", "clip_weights"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise InputError(name, "a number > 0, or None", repr(limit), "Leave it out for no limit.")

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The precision of forward passes. Nothing is cached, since a cache would not see the weights' perturbation."""
        if self.precision == "float32":
            return nullcontext()
        kind = torch.bfloat16 if self.precision == "bfloat16" else torch.float16
        return torch.autocast(device.type, kind, cache_enabled=False)


PRESETS = {"paper": Update(), "authors": Update(batch_norm="authors")}
"""Wu et al. 2020 as it is written, and as their code runs; in both the optimiser steps, and decays, at w + v."""


def batch_norms(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The BatchNorm layers that keep running statistics, by name."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextmanager
def frozen_statistics(model: nn.Module) -> Generator[None]:
    """BatchNorm normalises by its running statistics, and keeps them, for a while."""
    layers = [(layer, layer.training) for _, layer in batch_norms(model)]
    try:
        for layer, _ in layers:
            layer.eval()
        yield
    finally:
        for layer, training in layers:
            layer.training = training


@contextmanager
def in_mode(model: nn.Module, mode: Literal["train", "eval"]) -> Generator[None]:
    """The model in eval mode for a while, each module's own mode restored after; "train" leaves it as it is."""
    before = [(module, module.training) for module in model.modules()]
    try:
        if mode == "eval":
            model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training
