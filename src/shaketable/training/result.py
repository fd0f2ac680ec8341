"""The model that a training is judged by: the one that is trained, or the average of its weights."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..core import GradientError, ce, generator, perturb
from ..data import Batch
from .plan import Plan
from .state import State
from .statistics import reestimate
from .update import batch_norms


def result_model(state: State, plan: Plan, batch: Callable[[int], Batch], steps: int) -> nn.Module:
    """The trained model itself, or a copy of it with averaged weights and re-estimated BatchNorm statistics.

    Args:
        batch: training batches of this epoch by number, the adversarial points of which the statistics are estimated on.
        steps: how many batches there are.

    Nobody else's EMA or SWA estimates the statistics on adversarial inputs: PyTorch's `update_bn` takes clean ones, and
    averaging the running statistics (as often done for EMA) takes those of other weights.

    Cost: none without an average. With one and BatchNorm layers, the plan's attack, on cross-entropy whatever the loss is,
    and one forward pass on each of `plan.statistics_batches` batches; every process does all of it. Checked by tests/training/test_result.py.
    """
    if plan.average is None or not state.average:
        return state.plain
    model = copy.deepcopy(state.plain)
    prefix = "" if state.plain is state.model else "plain."
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, mean in state.average.items():
            if name.startswith(prefix) and name[len(prefix) :] in own:
                own[name[len(prefix) :]].copy_(mean)
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
