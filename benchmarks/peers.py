"""The same jobs done by hand and by the peers, each as its documentation shows."""

import copy
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import foolbox
    import torchattacks


def passes_alone(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """The limit of PGD: its forward passes and input gradients, and nothing else."""
    for _ in range(steps):
        point = x.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)
    return x


def by_hand(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """PGD as one writes it down."""
    adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        grad = torch.autograd.grad(F.cross_entropy(model(adv), y), adv)[0]
        adv = adv.detach() + 0.25 * eps * grad.sign()
        adv = (x + (adv - x).clamp(-eps, eps)).clamp(0, 1)
    return adv.detach()


def with_torchattacks(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """torchattacks' PGD; its alpha is absolute."""
    return torchattacks.PGD(model, eps=eps, alpha=0.25 * eps, steps=steps)(x, y)


def with_foolbox(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """Foolbox's LinfPGD, from a random start."""
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1))
    _, clipped, _ = foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=steps)(wrapped, x, y, epsilons=eps)
    return clipped


def robust_by_torchattacks(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, batch: int) -> Tensor:
    """Which images are right before and after: classify a batch, attack it, classify what came back."""
    right = []
    for part, labels in zip(x.split(batch), y.split(batch), strict=True):
        points = with_torchattacks(model, part, labels, eps, steps)
        with torch.no_grad():
            right.append((model(part).argmax(1) == labels) & (model(points).argmax(1) == labels))
    return torch.cat(right)


def robust_by_foolbox(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, batch: int) -> Tensor:
    """Which images are right before and after, by Foolbox's own verdict: it counts misclassified images as fooled."""
    wrapped, right = foolbox.PyTorchModel(model, bounds=(0, 1)), []
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=steps)
    for part, labels in zip(x.split(batch), y.split(batch), strict=True):
        _, _, fooled = attack(wrapped, part, labels, epsilons=eps)
        right.append(~fooled)
    return torch.cat(right)


def _backward_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, step: float) -> Tensor:
    """PGD by `loss.backward()`, as many training scripts have it: the weights' gradients are made and thrown away."""
    adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        F.cross_entropy(model(adv), y).backward()
        assert adv.grad is not None
        adv = adv.detach() + step * eps * adv.grad.sign()
        adv = (x + (adv - x).clamp(-eps, eps)).clamp(0, 1)
    return adv.detach()


def step_by_backward(
    model: nn.Module, optimiser: Any, x: Tensor, y: Tensor, *, eps: float, steps: int, step: float, gamma: float | None
) -> float:
    """A step of AT, or with gamma of AT-AWP, in the `backward()` style: a proxy model, its SGD step, differences."""
    adv = _backward_pgd(model, x, y, eps, steps, step)
    moved: dict[str, Tensor] = {}
    if gamma is not None:
        proxy = copy.deepcopy(model)
        climb = torch.optim.SGD(proxy.parameters(), lr=0.01)
        climb.zero_grad()
        (-F.cross_entropy(proxy(adv), y)).backward()
        climb.step()
        with torch.no_grad():
            for (name, old), new in zip(model.named_parameters(), proxy.parameters(), strict=True):
                if old.dim() > 1:
                    change = new - old
                    moved[name] = gamma * old.norm() / (change.norm() + 1e-20) * change
            for name, old in model.named_parameters():
                if name in moved:
                    old.add_(moved[name])
    optimiser.zero_grad()
    loss = F.cross_entropy(model(adv), y)
    loss.backward()
    optimiser.step()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in moved:
                weight.sub_(moved[name])
    return float(loss.detach())
