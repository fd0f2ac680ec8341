"""The model that a training is judged by: the one that is trained, or the average of its weights."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core import GradientError, ce, generator, perturb
from ..data import Batch
from .entropy_sgd import LocalEntropy
from .plan import Plan
from .state import State
from .statistics import reestimate
from .update import batch_norms


def result_model(state: State, plan: Plan, batch: Callable[[int], Batch], steps: int) -> nn.Module:
    """The trained model itself; or a copy of it with averaged weights and re-estimated BatchNorm statistics; or, in the
    middle of a cycle of Entropy-SGD, a copy with the outer weights.

    Args:
        batch: training batches of this epoch by number, not augmented; the statistics are estimated on their adversarial
            points.
        steps: how many batches there are.

    Nobody else's EMA or SWA estimates the statistics on adversarial inputs: PyTorch's `update_bn` takes clean ones, and
    averaging the running statistics (as often done for EMA) takes those of other weights.

    Cost: none without an average. With one and BatchNorm layers, the plan's attack, on cross-entropy whatever the loss is,
    and one forward pass on each of `plan.statistics_batches` batches; every process does all of it.
    Checked by tests/training/test_result.py.
    """
    averaged = plan.average is not None and bool(state.average)
    weights = state.average if averaged else _outer_weights(state)
    if not weights:
        return state.plain
    model = copy.deepcopy(state.plain)
    prefix = "" if state.plain is state.model else "plain."
    with torch.no_grad():
        for name, p in model.named_parameters():
            if prefix + name in weights:
                p.copy_(weights[prefix + name])
    if not averaged:
        return model
    if not batch_norms(model):
        return model
    device = next(model.parameters()).device

    def batches() -> list[tuple[Tensor, Tensor]]:
        chosen = (batch(k).to(device) for k in range(min(steps, plan.statistics_batches)))
        return [(b.x, b.y) for b in chosen]

    def attack(net: nn.Module, x: Tensor, y: Tensor, k: int) -> Tensor:
        source = generator(plan.seed, "statistics", state.epoch, k)
        try:
            return perturb(ce(net, y), x, plan.within, by=plan.attack, start="sample", generator=source).point
        except GradientError:
            return x

    reestimate(model, batches(), attack=attack)
    return model


def _outer_weights(state: State) -> dict[str, Tensor]:
    """Entropy-SGD's outer weights by name, if the model holds an inner iterate now."""
    optimiser = state.optimiser
    if not isinstance(optimiser, LocalEntropy) or not optimiser.inner_steps:
        return {}
    stepped = [p for group in optimiser.param_groups for p in group["params"]]
    outer = {id(p): x for p, x in zip(stepped, optimiser.outer_weights(), strict=True)}
    return {name: outer[id(p)] for name, p in state.model.named_parameters() if id(p) in outer}
