"""One step of robust training: attack the inputs, perturb the weights, step the optimiser, take the perturbation off."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import Calls, InputError, ShaketableError, at, bare, perturbed
from .awp import WeightPerturbation
from .inputs import Attacked, attack_inputs
from .labels import Labels
from .losses import RobustLoss
from .processes import Alone, Processes
from .shake import shake
from .update import Update, batch_norms, frozen_statistics


class DivergenceError(ShaketableError):
    """A training whose loss is no longer finite."""


@dataclass(frozen=True)
class Stepped:
    """What a step did.

    Args:
        loss: the robust loss that was minimised, at w + v, over the batch of all processes.
        calls: passes of the attack and of the weight perturbation in this process, in examples, as they were counted by
            `perturb`: the forward pass that makes TRADES' reference is not among them. The step itself is one
            forward-backward.
        silent: the attack or the weight perturbation found no gradient at all and did nothing.
        skipped: the optimiser did not step, since the scaled float16 gradients were not finite.
    """

    loss: float
    calls: Calls
    silent: bool
    skipped: bool = False


def train_step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: RobustLoss,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    within: Any,
    by: Any,
    weights: WeightPerturbation | None,
    generator: torch.Generator,
    update: Update = Update(),
    labels: Labels = Labels(),
    processes: Processes = Alone(),
    scaler: torch.amp.GradScaler | None = None,  # pyright: ignore[reportPrivateImportUsage]
) -> Stepped:
    """One step, as algorithm 1 of Wu et al. 2020: x' at w, then v at x', then the optimiser at w + v, then v off.

    Args:
        model: in train mode; its parameters, buffers and gradients change. A DistributedDataParallel is refused unless
            `processes` are given, and then taken for the module inside it.
        optimiser: over any of its parameters. Its weight decay and momentum act at w + v, as in the authors' code, or at w
            (``update.decay_at``).
        loss: AT, TRADES, ...
        x, y: the whole batch, the same in all processes.
        within, by: the ball and the ascent of the inputs.
        weights: the perturbation of the weights, or None.
        generator: of the attack's start and of whatever else is drawn; the same in all processes.
        update: BatchNorm policy, micro-batches, clipping, precision.
        labels: smoothing and noise, which labels the attack raises the loss of, which examples it leaves alone.
        processes: that share the work, each on its rows of the batch; all end in the same weights.
        scaler: of float16 gradients.

    Raises:
        DivergenceError: the loss, or a gradient, is NaN or infinite; the weights are as they were before the step (a
            BatchNorm's running statistics may have moved).
        InputError: options that do not go together.
        ProcessError: another process ended.

    Cost: that of the attack, of the weight perturbation, and one forward-backward. Several processes sum the gradients once,
    one flag, and with a weight perturbation its gradient at each of its steps. Checked by tests/training/test_steps.py and
    test_matrix.py; two processes against one by test_group_training.py.
    """
    model = _own(model, weights, update, processes)
    held = frozen_statistics(model) if update.batch_norm == "frozen" else nullcontext()
    with held, update.autocast(x.device):
        batch = attack_inputs(
            model, loss, x, y, within=within, by=by, generator=generator, update=update, labels=labels,
            processes=processes, weights=weights,
        )  # fmt: skip
        calls, silent = batch.calls, batch.silent
        if silent:
            _require_finite("loss", _unattacked(model, optimiser, loss, batch, processes))
        swap: Any = nullcontext()
        if weights is not None:
            found = shake(model, loss, batch, weights, processes=processes, generator=generator)
            calls, silent = calls + found.calls, silent or found.delta is None
            swap = nullcontext() if found.delta is None else perturbed(model, found.delta)
        optimiser.zero_grad(set_to_none=True)
        with swap:
            value = _gradients(model, optimiser, loss, batch, processes, scaler)
            skipped = not _usable(value, optimiser, scaler)
            if update.decay_at == "perturbed":
                _advance(optimiser, update, scaler)
        if update.decay_at == "restored":
            _advance(optimiser, update, scaler)
        if update.clip_weights is not None:
            with torch.no_grad():
                for p in _parameters(optimiser):
                    p.clamp_(-update.clip_weights, update.clip_weights)
        if update.batch_norm == "authors" and loss.attack_mode == "train":
            with torch.no_grad():
                for part in batch.parts:
                    model(part.x)
    if update.batch_norm != "frozen":
        _average_statistics(model, batch, processes)
    return Stepped(float(value), calls, silent, skipped)


def _own(model: nn.Module, weights: WeightPerturbation | None, update: Update, processes: Processes) -> nn.Module:
    """The bare module, after a look at what does not go together."""
    inside = bare(model)
    parallel = inside is not model and any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules())
    if parallel and processes.count == 1:
        remedy = "Give the module inside, model.module; for several processes give processes=st.training.Group()."
        raise InputError("model", "a bare module", "a DistributedDataParallel", remedy)
    local = weights is not None and weights.sync == "local" and processes.count > 1
    if local and update.decay_at == "perturbed":
        remedy = (
            'Set decay_at="restored": each process has another v, so weight decay at w + v would part their weights.'
        )
        raise InputError("decay_at", '"restored" with sync="local"', '"perturbed"', remedy)
    return inside


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimiser.param_groups for p in group["params"]]


def _gradients(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: RobustLoss,
    batch: Attacked,
    processes: Processes,
    scaler: Any,
) -> Tensor:
    """The loss of the whole batch, and its gradient in the parameters' `grad`, over all parts and processes."""
    total: Tensor | None = None
    for part in batch.parts:
        value = loss.outer(model, part.x, part.adversarial, part.target)
        if value.numel() != 1:
            found = f"shape {tuple(value.shape)}"
            raise InputError("loss", "one number from its outer function", found, "Take the mean over the examples.")
        value = value if part.share == 1.0 else value * part.share
        (value if scaler is None else scaler.scale(value)).backward()
        total = value.detach() if total is None else total + value.detach()
    parameters = _parameters(optimiser)
    if total is None:
        total = parameters[0].new_zeros(())
        if scaler is not None:
            scaler.scale(total)  # a scaler that has scaled nothing cannot unscale what the others have
    if processes.count > 1:
        total = _summed(total, parameters, processes)
    return total


def _unattacked(
    model: nn.Module, optimiser: torch.optim.Optimizer, loss: RobustLoss, batch: Attacked, processes: Processes
) -> Tensor:
    """The loss of the whole batch at the clean images; the same in all processes."""
    total = torch.zeros((), device=_parameters(optimiser)[0].device)
    with torch.no_grad():
        for part in batch.parts:
            total += part.share * loss.outer(at(model), part.x, part.x, part.target)
    processes.add([total])
    return total


def _summed(total: Tensor, parameters: list[Tensor], processes: Processes) -> Tensor:
    """The gradients and the loss, summed over the processes in one go; a parameter that none used keeps no gradient."""
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=total.device)
    total = total.double().reshape(1)
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    processes.add([total, used, *(p.grad for p in parameters if p.grad is not None)])
    for p, count in zip(parameters, used.tolist(), strict=True):
        if not count:
            p.grad = None
    return total[0]


def _usable(value: Tensor, optimiser: torch.optim.Optimizer, scaler: Any) -> bool:
    """Whether loss and gradients are finite; only a scaler may go on without, and skips the step."""
    if scaler is not None:
        scaler.unscale_(optimiser)
    _require_finite("loss", value)
    try:
        _require_finite("gradient", *(p.grad for p in _parameters(optimiser) if p.grad is not None))
    except DivergenceError:
        if scaler is None:
            raise
        return False
    return True


def _advance(optimiser: torch.optim.Optimizer, update: Update, scaler: Any) -> None:
    if update.clip_gradient is not None:
        torch.nn.utils.clip_grad_norm_(_parameters(optimiser), update.clip_gradient)
    if scaler is None:
        optimiser.step()
    else:
        scaler.step(optimiser)
        scaler.update()


def _average_statistics(model: nn.Module, batch: Attacked, processes: Processes) -> None:
    """BatchNorm's running statistics, averaged over the processes by their examples, so that all hold the same."""
    if processes.count == 1:
        return
    share, held = sum(part.share for part in batch.parts), list[Tensor]()
    for layer in (layer for _, layer in batch_norms(model) if layer.training):  # in eval mode it has moved nothing
        for name, buffer in layer.named_buffers(recurse=False):
            if name == "num_batches_tracked":
                buffer.mul_(int(processes.rank == 0))
            else:
                buffer.mul_(share)
            held.append(buffer)
    processes.add(held)


def _require_finite(name: str, *tensors: Tensor) -> None:
    """Raise a `DivergenceError` unless all entries are finite; one wait for the device."""
    ends = [end.float() for t in tensors if t.numel() for end in torch.aminmax(t.detach())]  # NaN is both ends
    if ends and not bool(torch.isfinite(torch.stack(ends)).all()):
        found = f"{float(tensors[0].detach())}" if name == "loss" else "NaN or infinite entries"
        remedy = "Lower the learning rate or gamma, or add a warm-up; the last checkpoint is from before this step."
        raise DivergenceError(name, "a finite number", found, remedy)
