"""BatchNorm's running statistics, estimated anew on adversarial inputs."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import InputError, ModelError
from ..core.seeds import own_random_state
from .update import batch_norms

Attack = Callable[[nn.Module, Float[Tensor, "n ..."], Int[Tensor, " n"], int], Float[Tensor, "n ..."]]


def reestimate(
    model: nn.Module, batches: Iterable[tuple[Float[Tensor, "n ..."], Int[Tensor, " n"]]], *, attack: Attack
) -> None:
    """Estimate BatchNorm's running statistics on adversarial inputs, in place.

    For weights that no training pass has seen, such as an EMA or SWA: Izmailov et al. 2018 estimate the statistics anew on
    clean training images (PyTorch's `update_bn`), but a robustly trained network has seen adversarial ones.

    Each statistic becomes the mean over the batches of what BatchNorm measures on a batch, the mean and the unbiased variance
    of each channel (the cumulative average of ``momentum=None``); every batch counts the same. All layers are measured in one
    pass, in which BatchNorm normalises by the batch's statistics, so that each layer sees inputs normalised by the ones
    before it. All other modules are in eval mode in that pass, dropout is off: the statistics are those of the activations
    that the network meets in use (PyTorch's `update_bn` leaves dropout on).

    Args:
        model: whose BatchNorm layers (1d, 2d, 3d, synchronised) get new running means and variances, and as
            `num_batches_tracked` the number of batches they are the mean of (a layer that is called twice in a pass counts
            twice). Its parameters, its modules' modes and momenta are as before. A layer that no pass reaches, or that keeps
            no statistics, stays as it is. InstanceNorm is left alone.
        batches: (x, y), two examples or more in each. Not read at all without BatchNorm.
        attack: (model, x, y, number of the batch from 0) -> adversarial x, of x's shape. It is called with the model in the
            mode that it was given in, and with the old running statistics; if it moves them, they are put back.

    The new statistics are put in at the end, together: after an error the model is as it was.

    Raises:
        InputError: no batch, a batch of one example, or an attack that returns another shape.
        ModelError: an activation that is not finite.

    Cost: the attack and one forward pass for each batch; nothing at all without BatchNorm. With a synchronised BatchNorm all
    processes must call it with as many batches. Checked by tests/training/test_statistics.py.
    """
    layers = [_Layer(name, layer) for name, layer in batch_norms(model)]
    if not layers:
        return
    count = 0
    try:
        for x, y in batches:
            adversarial = attack(model, x, y, count)
            _require_usable(x, adversarial)
            with torch.no_grad(), own_random_state([x]), _measuring(model, layers):
                model(adversarial.detach())
                for layer in layers:
                    layer.record()
            for layer in layers:
                layer.put_back()
            count += 1
    finally:
        for layer in layers:
            layer.put_back()
    if not count:
        raise InputError("batches", "at least one batch", "none", "Give training batches; a list can be used twice.")
    for layer in layers:
        layer.install()


class _Layer:
    """A BatchNorm layer, its statistics before, and the sum of those measured."""

    def __init__(self, name: str, layer: Any) -> None:
        self.name, self.layer = name, layer
        self.before = {key: buffer.clone() for key, buffer in layer.named_buffers(recurse=False)}
        self.sums = [torch.zeros(layer.num_features, dtype=torch.float64) for _ in range(2)]
        self.calls = 0

    def record(self) -> None:
        """Add what was measured since the statistics were reset; a layer may have been called more than once, or never."""
        calls = int(self.layer.num_batches_tracked)
        if not calls:
            return
        self.calls += calls
        for total, measured in zip(self.sums, (self.layer.running_mean, self.layer.running_var), strict=True):
            total += calls * measured.to("cpu", torch.float64)
            if not bool(torch.isfinite(total).all()):
                found = f"NaN or infinite ones before {self.name!r}"
                remedy = "Look at the weights, or at the attack's result."
                raise ModelError("model", "finite activations", found, remedy)

    def put_back(self) -> None:
        """The statistics as they were before."""
        for key, buffer in self.layer.named_buffers(recurse=False):
            buffer.copy_(self.before[key])

    def install(self) -> None:
        """The mean of what was measured."""
        if self.calls:
            for own, total in zip((self.layer.running_mean, self.layer.running_var), self.sums, strict=True):
                own.copy_(total / self.calls)
            self.layer.num_batches_tracked.fill_(self.calls)


@contextmanager
def _measuring(model: nn.Module, layers: list[_Layer]) -> Generator[None]:
    """BatchNorm measures from nothing, everything else is in eval mode; modes and momenta are given back after."""
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer.layer, layer.layer.momentum) for layer in layers]
    try:
        model.eval()
        for layer, _ in momenta:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None
        yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, momentum in momenta:
            layer.momentum = momentum


def _require_usable(x: Tensor, adversarial: Any) -> None:
    if len(x) < 2:
        found, remedy = f"{len(x)}", "Leave the last batch out; a variance needs two examples."
        raise InputError("batches", "two examples or more in each", found, remedy)
    if not isinstance(adversarial, Tensor) or adversarial.shape != x.shape:
        found = f"{tuple(adversarial.shape)}" if isinstance(adversarial, Tensor) else type(adversarial).__name__
        raise InputError("attack", f"adversarial inputs of shape {tuple(x.shape)}", found, "Return perturbed x alone.")
