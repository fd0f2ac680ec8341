"""Entropy-SGD (Chaudhari et al. 2017): descent on the local entropy, whose gradient Langevin steps estimate."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..core import InputError, generator
from .optimisers import require_flag, require_momentum, require_trainable

Preset = Literal["paper", "authors"]

_PRESETS = {"paper": (0.75, 1e-4, 1e-3), "authors": (0.25, math.sqrt(2) * 1e-4, 0.0)}  # alpha, noise, scoping


@dataclass(frozen=True)
class EntropySGD:
    """Entropy-SGD, algorithm 1 of Chaudhari et al. 2017, as an optimiser: each mini-batch is one Langevin step.

    With x the weights, x' the inner iterate and mu its running mean, both x at the start of a cycle, each of L steps does

        x' <- x' - inner_rate * (g(x') + gamma_t (x' - x)) + sqrt(inner_rate) * noise * N(0, I)
        mu <- (1 - alpha) mu + alpha x'

    and after the L-th step x <- x - rate * (x - mu), gamma_t = gamma (1 + scoping)^t for the t-th such update. That the outer
    step has no gamma in it is the paper's section on scoping (recalled) and its code. L = 1 without noise, momentum and weight
    decay is SGD of the rate `rate * alpha * inner_rate`.

    Args:
        steps: L, mini-batches a cycle; 20 in the paper; Stutz et al. 2021 take 1, 2, 3 and 5.
        gamma, scoping: the scope and its growth; 1e-4 and 1e-3 (the authors' scripts; Stutz et al.).
        noise: epsilon, the root of the temperature; 1e-4.
        inner_rate: of the Langevin steps; .1. The schedule changes the outer rate alone.
        alpha: the weight of the newest iterate in mu; .75.
        momentum, nesterov: of both loops; .9 with Nesterov's (the authors' scripts). The inner one is from zero in each cycle,
            and neither the proximal term nor the noise enters it.
        preset: decides alpha, noise and scoping where they are None. "paper" (recalled): .75, 1e-4, 1e-3. "authors": their
            PyTorch code, which Stutz et al. ran: .25 (there .75 is the weight of the old mean), sqrt(2) 1e-4 (its noise is
            sqrt(2 inner_rate) epsilon), 0 (its count of updates is never raised, so gamma does not grow).
        seed: of the noise, which depends on the seed, the step's number and the parameter's place alone.

    Weight decay is added to the gradient in the inner steps, and to x - mu in the outer one, as in the authors' code. Other
    differences from it: it evaluates one more mini-batch a cycle, whose gradient it drops, and starts the outer momentum from
    the first of those; here every mini-batch is used, and momentum starts from zero. The released code of Stutz et al. takes
    as many outer updates as 150, 75, 50 and 30 epochs have mini-batches for L = 1, 2, 3 and 5, and momentum 0: here 150 epochs
    for each L, since an epoch has 1/L as many outer updates as mini-batches.

    Cost of a step: no pass; memory of four copies of the weights (two without momentum); the noise is drawn on the CPU.
    Checked by tests/training/test_entropy_sgd.py.
    """

    steps: int = 20
    gamma: float = 1e-4
    scoping: float | None = None
    noise: float | None = None
    inner_rate: float = 0.1
    alpha: float | None = None
    momentum: float = 0.9
    nesterov: bool = True
    preset: Preset = "paper"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.preset not in get_args(Preset):
            raise InputError("preset", "'paper' or 'authors'", repr(self.preset), "Choose one of them.")
        if not isinstance(self.steps, int) or self.steps < 1:
            raise InputError("steps", "a whole number >= 1", repr(self.steps), "The paper takes 20.")
        if not isinstance(self.seed, int):
            raise InputError("seed", "a whole number", repr(self.seed), "Use int(seed).")
        for name, usual in (("gamma", "1e-4"), ("scoping", "1e-3"), ("noise", "1e-4")):
            value = getattr(self, name)
            if value is None and name != "gamma":
                continue
            if not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise InputError(name, "a finite number >= 0", repr(value), f"The paper's is {usual}.")
        if not (isinstance(self.inner_rate, int | float) and 0 < self.inner_rate < math.inf):
            raise InputError("inner_rate", "a finite number > 0", repr(self.inner_rate), "The paper's is 0.1.")
        if self.alpha is not None and not (isinstance(self.alpha, int | float) and 0 < self.alpha <= 1):
            raise InputError("alpha", "a weight in (0, 1]", repr(self.alpha), "The paper's is 0.75.")
        require_momentum(self.momentum, False)
        require_flag("nesterov", self.nesterov)

    def __call__(self, parameters: list[nn.Parameter], rate: float, weight_decay: float) -> "LocalEntropy":
        """The optimiser, over these parameters; `rate` is that of the outer update.

        Raises:
            InputError: no parameters, or a rate or weight decay that cannot be.
        """
        require_trainable(parameters, rate, weight_decay)
        alpha, noise, scoping = _PRESETS[self.preset]
        return LocalEntropy(
            parameters, rate, weight_decay, steps=self.steps, gamma=self.gamma,
            scoping=scoping if self.scoping is None else self.scoping, noise=noise if self.noise is None else self.noise,
            inner_rate=self.inner_rate, alpha=alpha if self.alpha is None else self.alpha, momentum=self.momentum,
            nesterov=self.nesterov, seed=self.seed,
        )  # fmt: skip


class LocalEntropy(torch.optim.Optimizer):
    """Entropy-SGD over parameters; made by `EntropySGD`, whose card says what it does.

    Between the steps of a cycle the parameters hold the inner iterate x', after the L-th step the outer weights x. Of x
    only the displacement x' - x is kept, as the sum of the steps taken, so that every step is an addition that does not
    depend on where the parameters are. A caller may step at w + v and keep w + (after - before), as AWP does with another v
    at each step: the proximal term, the mean and the way back to x are then those of w, without v. The gradient, and weight
    decay as in SGD, are taken at w + v; the outer weight decay at x + v.

    Everything is in the state: `state_dict` resumes bit for bit, also in the middle of a cycle. A parameter without a
    gradient stays as it is until the outer update. State is at least float32, whatever the parameters are; x comes back
    to the last bit where x' stays nearer to x than x is to zero, and else to the rounding of x' - x.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        rate: float,
        weight_decay: float,
        *,
        steps: int,
        gamma: float,
        scoping: float,
        noise: float,
        inner_rate: float,
        alpha: float,
        momentum: float,
        nesterov: bool,
        seed: int,
    ) -> None:
        super().__init__(
            parameters,
            {
                "lr": rate, "weight_decay": weight_decay, "steps": steps, "gamma": gamma, "scoping": scoping, "noise": noise,
                "inner_rate": inner_rate, "alpha": alpha, "momentum": momentum, "nesterov": nesterov, "seed": seed, "count": 0,
            },
        )  # fmt: skip

    @property
    def inner_steps(self) -> int:
        """How many steps of the cycle are taken; at 0 the parameters are the outer weights."""
        group = self.param_groups[0]
        return group["count"] % group["steps"]

    def outer_weights(self) -> list[Tensor]:
        """The outer weights x, in the order of the parameters; in the middle of a cycle the parameters hold x' instead."""
        return [
            (_wide(p) - self.state[p]["offset"]).to(p.dtype) if p in self.state else p.detach().clone()
            for group in self.param_groups
            for p in group["params"]
        ]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One Langevin step with the gradients that are there, and after the L-th the outer update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            for place, p in enumerate(group["params"]):
                if p.grad is not None and p not in self.state:
                    self.state[p] = _fresh(p, group)
                if p in self.state:
                    self._advance(p, group, (index, place))
            group["count"] += 1
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`. PyTorch's own would round the state to the parameters' type."""
        super().load_state_dict(state_dict)
        saved = [name for group in state_dict["param_groups"] for name in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        for name, p in zip(saved, own, strict=True):
            if name in state_dict["state"]:
                kept = state_dict["state"][name]
                self.state[p] = {key: tensor.to(p.device, copy=True) for key, tensor in kept.items()}

    def _advance(self, p: Tensor, group: dict[str, Any], place: tuple[int, int]) -> None:
        """The inner step of a parameter, and after the L-th the outer one from where the cycle began."""
        state, at = self.state[p], _wide(p)
        last = (group["count"] + 1) % group["steps"] == 0
        base = at - state["offset"]
        if p.grad is not None:
            slope = _with_momentum(p.grad.to(at) + group["weight_decay"] * at, state.get("inner"), group)
            gamma = group["gamma"] * (1 + group["scoping"]) ** (group["count"] // group["steps"])
            move = _noise(at, group, place) - group["inner_rate"] * (slope + gamma * state["offset"])
            if not last:
                p.copy_(at + move)
                move = _wide(p) - at  # what the rounding of the parameter made of it
            state["offset"] += move
            state["mean"].lerp_(state["offset"], group["alpha"])
        if last:
            slope = _with_momentum(group["weight_decay"] * base - state["mean"], state.get("outer"), group)
            p.copy_(base - group["lr"] * slope)
            for name in ("offset", "mean", "inner"):
                if name in state:
                    state[name].zero_()


def _wide(p: Tensor) -> Tensor:
    """A copy in at least float32."""
    return p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)


def _fresh(p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
    """x' - x, mu - x, and the momentum of both loops."""
    names = ("offset", "mean", "inner", "outer") if group["momentum"] else ("offset", "mean")
    return {name: torch.zeros_like(_wide(p)) for name in names}


def _with_momentum(slope: Tensor, velocity: Tensor | None, group: dict[str, Any]) -> Tensor:
    """As `torch.optim.SGD` does it; the velocity is raised in place."""
    if velocity is None:
        return slope
    velocity.mul_(group["momentum"]).add_(slope)
    return slope + group["momentum"] * velocity if group["nesterov"] else velocity


def _noise(like: Tensor, group: dict[str, Any], place: tuple[int, int]) -> Tensor | float:
    """sqrt(inner_rate) * noise * N(0, I), drawn anew for each step and parameter from the seed and their numbers."""
    if not group["noise"]:
        return 0.0
    source = generator(group["seed"], "langevin", group["count"], *place)
    drawn = torch.randn(like.shape, generator=source, dtype=like.dtype).to(like.device)
    return math.sqrt(group["inner_rate"]) * group["noise"] * drawn
