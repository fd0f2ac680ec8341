"""Every robust loss x weight perturbation x architecture x policy takes a step that is what it says.

The loss is compared with a formula written here in float64; the weights, to the bit, with what the preset says of w, v, the
gradient and the optimiser; BatchNorm's statistics, to the bit, with a replay of the passes that the policy lets count.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.core import PGD, Ball, generator
from shaketable.models import ModelSpec, build
from shaketable.training import LOSSES, WEIGHTS, Rotation, Update, awp, rotation, train_step

N, CLASSES, EPS = 6, 4, 0.1
RATE, MOMENTUM, DECAY = 0.05, 0.9, 5e-3
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Tied(nn.Module):
    """Two layers of one and the same weight, and a last one of its transpose's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(36, 36)
        self.second = nn.Linear(36, 36)
        self.second.weight = self.first.weight
        self.last = nn.Linear(36, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x.flatten(1)).tanh()).relu())


def convolutional(norm: Callable[[], nn.Module]) -> nn.Module:
    layers = [nn.Conv2d(1, 4, 3, padding=1), norm(), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), norm(), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, CLASSES))


def weight_normed() -> nn.Module:
    model = convolutional(nn.Identity)
    for name in ("0", "3", "7"):
        nn.utils.parametrizations.weight_norm(model.get_submodule(name))
    return model


def vit() -> nn.Module:
    spec = ModelSpec("vit", CLASSES, 1, (6, 6), arguments={"patch": 3, "dim": 8, "depth": 1, "heads": 2})
    return build(spec, 0)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "batchnorm": lambda: convolutional(lambda: nn.BatchNorm2d(4)),
    "groupnorm": lambda: convolutional(lambda: nn.GroupNorm(2, 4)),
    "vit": vit,
    "tied": Tied,
    "weight norm": weight_normed,
}
PERTURBATIONS = {
    **{name: (lambda name=name: WEIGHTS[name]()) for name in WEIGHTS},
    "shared": lambda: awp(shared=True),
    "filter": lambda: awp(norm="filter"),
    "global": lambda: awp(norm="global"),
    "element": lambda: awp(norm="element"),
    "three steps": lambda: awp(steps=3),
}


def make(architecture: str) -> nn.Module:
    model = ARCHITECTURES[architecture]().double().train()
    source = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=source, dtype=torch.float64))
            if "original0" in name:
                p.abs_()
    return model


def images() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    x = torch.rand(N, 1, 6, 6, generator=source, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (N,), generator=source)


@dataclass(frozen=True)
class Recording:
    """PGD that writes down where it ended, and that it is asked for one step less where the last one is shared."""

    ends: list[Tensor]

    def __call__(self, objective: Any, origin: Any, within: Any, start: Any) -> Any:
        found = PGD(3, 0.4)(objective, origin, within, start)
        self.ends.append((origin + found.delta).clamp(0, 1))
        return found


class Watching(torch.optim.SGD):
    """SGD that writes down the weights that it steps from and to."""

    def step(self, closure: Any = None) -> Any:
        def now() -> dict[int, Tensor]:
            return {id(p): p.detach().clone() for group in self.param_groups for p in group["params"]}

        self.before = now()
        super().step(closure)
        self.after = now()


def outer_by_hand(name: str, model: Any, x: Tensor, adversarial: Tensor, y: Tensor) -> Tensor:
    """The papers' formulae, on probabilities."""
    rows = torch.arange(len(y))
    if name == "rotation":
        turned = torch.stack([torch.rot90(image, k % 4, (1, 2)) for k, image in enumerate(adversarial)])
        q = model(turned, True).softmax(1)
        p = model(adversarial).softmax(1)
        return -p[rows, y].log().mean() - 0.5 * q[rows, rows % 4].log().mean()
    if name == "at":
        return -model(adversarial).softmax(1)[rows, y].log().mean()
    p, q = model(x).softmax(1), model(adversarial).softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1)
    if name in ("trades", "rst"):
        return -p[rows, y].log().mean() + 6.0 * divergence.mean()
    assert name == "mart"
    rival = torch.where(F.one_hot(y, CLASSES).bool(), torch.zeros_like(q), q).amax(1)
    boosted = -q[rows, y].log() - (1 - rival).log()
    return (boosted + 5.0 * divergence * (1 - p[rows, y])).mean()


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers()}


def combinations() -> list[Any]:
    """All of them, 500; the fast tier takes 100, in which each two meet under both ways to decay."""
    all_of_them = product(*map(enumerate, (LOSSES, PERTURBATIONS, ARCHITECTURES, ("perturbed", "restored"))))
    return [
        pytest.param(*names, marks=() if sum(places) % len(ARCHITECTURES) == decay else pytest.mark.full)
        for (*places, decay), names in (zip(*one, strict=True) for one in all_of_them)
    ]


@pytest.mark.parametrize(("loss_name", "perturbation", "architecture", "decay_at"), combinations())
def test_a_step(loss_name: str, perturbation: str, architecture: str, decay_at: Any) -> None:
    x, y = images()
    loss, weights = LOSSES[loss_name](), PERTURBATIONS[perturbation]()
    model = make(architecture)
    if isinstance(loss, Rotation):
        model = loss.prepare(model, x, 0)
    ends: list[Tensor] = []
    shared = weights is not None and weights.shared
    by: Any = PGD(3, 0.4) if shared else Recording(ends)
    optimiser = Watching(model.parameters(), RATE, momentum=MOMENTUM, weight_decay=DECAY)
    velocity: dict[int, Tensor] = {}
    for k in range(2):
        w = {id(p): p.detach().clone() for p in model.parameters()}
        twin = copy.deepcopy(model)
        done = train_step(
            model, optimiser, loss, x, y, within=Ball("linf", EPS, box=(0, 1)), by=by, weights=weights,
            generator=generator(4, k), update=Update(decay_at=decay_at),
        )  # fmt: skip
        assert not done.silent
        adversarial = points_of(ends, k, shared, twin, loss, x, y)
        shaken = weights_at(model, twin)
        with torch.no_grad():
            expected = outer_by_hand(loss_name, copy.deepcopy(shaken), x, adversarial, y)
        assert done.loss == pytest.approx(float(expected), rel=1e-10)
        check_weights(model, shaken, optimiser, w, velocity, decay_at)
        check_statistics(model, shaken, loss, x, adversarial, y)
        moved = [
            name for name, p in shaken.named_parameters() if not torch.equal(p, dict(twin.named_parameters())[name])
        ]
        assert bool(moved) == (weights is not None), moved


def points_of(ends: list[Tensor], k: int, shared: bool, twin: nn.Module, loss: Any, x: Tensor, y: Tensor) -> Tensor:
    """Where the attack ended: written down, or for a shared last step found again by the whole attack."""
    if not shared:
        assert len(ends) == k + 1
        return ends[-1]
    from shaketable.core import perturb

    model = twin if loss.attack_mode == "train" else copy.deepcopy(twin).eval()
    found = perturb(
        loss.inner(model, x, y), x, Ball("linf", EPS, box=(0, 1)), by=PGD(3, 0.4), start=loss.start,
        generator=generator(4, k),
    )  # fmt: skip
    return found.point


def weights_at(model: nn.Module, twin: nn.Module) -> nn.Module:
    """A copy of the model as it was, at the weights at which the step took its gradients: w + v."""
    shaken = copy.deepcopy(twin)
    with torch.no_grad():
        for name, p in shaken.named_parameters():
            p.copy_(SEEN[id(model)][name])
    return shaken


SEEN: dict[int, dict[str, Tensor]] = {}


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes down the weights inside `perturbed`, whatever the optimiser sees later."""
    from shaketable.training import step

    gradients = step._gradients

    def noted(model: nn.Module, *given: Any) -> Any:
        SEEN[id(model)] = {name: p.detach().clone() for name, p in model.named_parameters()}
        return gradients(model, *given)

    monkeypatch.setattr(step, "_gradients", noted)


def check_weights(
    model: nn.Module,
    shaken: nn.Module,
    optimiser: Watching,
    w: dict[int, Tensor],
    velocity: dict[int, Tensor],
    decay_at: str,
) -> None:
    """SGD's update from w + v, or from w with the gradients of w + v; then w + (after - before): to the bit."""
    at = dict(shaken.named_parameters())
    for name, p in model.named_parameters():
        base = at[name].detach() if decay_at == "perturbed" else w[id(p)]
        assert torch.equal(optimiser.before[id(p)], base), name
        if p.grad is None:
            assert torch.equal(p, w[id(p)])
            continue
        slope = p.grad.add(base, alpha=DECAY)
        velocity[id(p)] = velocity[id(p)].mul(MOMENTUM).add(slope) if id(p) in velocity else slope.clone()
        after = base.add(velocity[id(p)], alpha=-RATE)
        assert torch.equal(optimiser.after[id(p)], after), name
        expected = torch.where(after == base, w[id(p)], w[id(p)] + (after - base)) if decay_at == "perturbed" else after
        same = at[name].detach()
        if decay_at == "perturbed" and torch.equal(same, w[id(p)]):
            assert torch.equal(p, after) or torch.equal(p, expected), name
        else:
            assert torch.equal(p, expected), name


def check_statistics(model: nn.Module, shaken: nn.Module, loss: Any, x: Tensor, adversarial: Tensor, y: Tensor) -> None:
    """The training pass at w + v alone moved the buffers."""
    before = statistics(shaken)
    with torch.no_grad():
        loss.outer(shaken.train(), x, adversarial, y)
    expected, found = statistics(shaken), statistics(model)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
        if name.endswith("num_batches_tracked"):
            assert int(value) > int(before[name])


@pytest.mark.parametrize("loss_name", LOSSES)
def test_the_gradient_is_that_of_the_formula(loss_name: str) -> None:
    x, y = images()
    loss = LOSSES[loss_name]()
    model = make("groupnorm")
    if isinstance(loss, Rotation):
        model = loss.prepare(model, x, 0)
    ends: list[Tensor] = []
    twin = copy.deepcopy(model)
    train_step(
        model, torch.optim.SGD(model.parameters(), RATE), loss, x, y, within=Ball("linf", EPS, box=(0, 1)),
        by=Recording(ends), weights=None, generator=generator(4),
    )  # fmt: skip
    value = outer_by_hand(loss_name, twin, x, ends[0], y)
    slopes = torch.autograd.grad(value, list(twin.parameters()))
    for (name, p), slope in zip(model.named_parameters(), slopes, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad, slope, rtol=1e-9, atol=1e-12, msg=name)


def test_the_formulae_differ() -> None:
    """The comparisons can fail: no two losses agree on one model and batch."""
    x, y = images()
    model = make("groupnorm")
    adversarial = (x + 0.05).clamp(0, 1)
    with torch.no_grad():
        values = [float(outer_by_hand(name, model, x, adversarial, y)) for name in ("at", "trades", "mart")]
        head = rotation().prepare(model, x, 0)
        values.append(float(outer_by_hand("rotation", head, x, adversarial, y)))
    assert min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) > 1e-3
