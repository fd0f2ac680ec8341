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


def transfer_by_hand(
    source: nn.Module, target: nn.Module, x: Tensor, y: Tensor, goal: Tensor, steps: int, step: float
) -> Tensor:
    """When images led to a class on one model first fool another, by the loop of Ozbulak et al. 2020, but in batches.

    The target is asked at every step, and an image is dropped once it fools it. -1 where none does; 0 where it errs before.
    """
    with torch.no_grad():
        first = torch.where(target(x).argmax(1) == y, -1, 0)
    left = torch.nonzero(first < 0)[:, 0]
    points = x[left]
    for k in range(1, steps + 1):
        if not len(left):
            break
        points = points.detach().requires_grad_()
        grad = torch.autograd.grad(F.cross_entropy(source(points), goal[left], reduction="sum"), points)[0]
        with torch.no_grad():
            points = (points - step * grad.sign()).clamp(0, 1)
            fooled = target(points).argmax(1) != y[left]
        first[left[fooled]] = k
        left, points = left[~fooled], points[~fooled]
    return first


class ByHand:
    """Steps of AT, and with gamma of AT-AWP, as one writes them down: nothing that can be left out, nothing checked."""

    def __init__(
        self, model: nn.Module, optimiser: Any, *, eps: float, steps: int, step: float, gamma: float | None
    ) -> None:
        assert step == 0.25  # by_hand's
        self.model, self.optimiser, self.eps, self.steps, self.gamma = model, optimiser, eps, steps, gamma
        self.matrices = [p for p in model.parameters() if p.dim() > 1]

    def __call__(self, x: Tensor, y: Tensor) -> None:
        """One step."""
        points = by_hand(self.model, x, y, self.eps, self.steps)
        change, old = ([], []) if self.gamma is None else self._move(points, y, self.gamma)
        self.optimiser.zero_grad()
        F.cross_entropy(self.model(points), y).backward()
        self.optimiser.step()
        with torch.no_grad():
            for w, v, before in zip(self.matrices, change, old, strict=False):
                w.copy_(before - (before + v).sub_(w))

    def _move(self, points: Tensor, y: Tensor, gamma: float) -> tuple[list[Tensor], list[Tensor]]:
        slopes = torch.autograd.grad(F.cross_entropy(self.model(points), y), self.matrices)
        with torch.no_grad():
            change = [g * (gamma * w.norm() / g.norm()) for g, w in zip(slopes, self.matrices, strict=True)]
            old = [w.clone() for w in self.matrices]
            for w, v in zip(self.matrices, change, strict=True):
                w.add_(v)
        return change, old


class ByBackward:
    """Steps of AT, and with gamma of AT-AWP, as training scripts have them: `loss.backward()` everywhere.

    Written from the algorithm of Wu et al. 2020. The attack's passes make the weights' gradients as well, which nobody
    reads. For v a proxy network gets the weights, takes one step of SGD up the loss, and what that changed is scaled to
    gamma times the norm of each layer, added, and subtracted after the optimiser's step.
    """

    def __init__(
        self, model: nn.Module, optimiser: Any, *, eps: float, steps: int, step: float, gamma: float | None
    ) -> None:
        self.model, self.optimiser = model, optimiser
        self.eps, self.steps, self.step, self.gamma = eps, steps, step, gamma
        self.proxy = copy.deepcopy(model)
        self.climb = torch.optim.SGD(self.proxy.parameters(), lr=0.01)

    def __call__(self, x: Tensor, y: Tensor) -> float:
        """One step; returns the loss."""
        points = self._attack(x, y)
        change = {} if self.gamma is None else self._change(points, y, self.gamma)
        self._add(change, 1.0)
        self.optimiser.zero_grad()
        loss = F.cross_entropy(self.model(points), y)
        loss.backward()
        self.optimiser.step()
        self._add(change, -1.0)
        return float(loss.detach())

    def _attack(self, x: Tensor, y: Tensor) -> Tensor:
        points = (x + torch.empty_like(x).uniform_(-self.eps, self.eps)).clamp(0, 1)
        for _ in range(self.steps):
            points = points.detach().requires_grad_()
            F.cross_entropy(self.model(points), y).backward()
            assert points.grad is not None
            points = points.detach() + self.step * self.eps * points.grad.sign()
            points = (x + (points - x).clamp(-self.eps, self.eps)).clamp(0, 1)
        return points.detach()

    def _change(self, points: Tensor, y: Tensor, gamma: float) -> dict[str, Tensor]:
        self.proxy.load_state_dict(self.model.state_dict())
        self.climb.zero_grad()
        (-F.cross_entropy(self.proxy(points), y)).backward()
        self.climb.step()
        change = {}
        with torch.no_grad():
            for (name, old), new in zip(self.model.named_parameters(), self.proxy.parameters(), strict=True):
                if old.dim() > 1:
                    moved = new - old
                    change[name] = gamma * old.norm() / (moved.norm() + 1e-20) * moved
        return change

    @torch.no_grad()
    def _add(self, change: dict[str, Tensor], sign: float) -> None:
        for name, weight in self.model.named_parameters():
            if name in change:
                weight.add_(change[name], alpha=sign)
