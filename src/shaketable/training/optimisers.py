"""Optimisers as values: frozen, and called with the parameters they make one of PyTorch's."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from ..core import InputError


class Optimiser(Protocol):
    """What makes the optimiser of a training. The loop sets the rate of all its groups anew before each step."""

    def __call__(self, parameters: list[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.Optimizer: ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent with momentum: `torch.optim.SGD`.

    Args:
        momentum: .9, as AT, TRADES and AWP train.
        nesterov: False, as they do; the code of Stutz et al. 2021 trains with Nesterov's momentum.

    Weight decay is added to the gradient. Checked by tests/training/test_optimisers.py.
    """

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        require_momentum(self.momentum, self.nesterov)

    def __call__(self, parameters: list[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.Optimizer:
        """PyTorch's, over these parameters.

        Raises:
            InputError: no parameters, or a rate or weight decay that cannot be.
        """
        require_trainable(parameters, rate, weight_decay)
        return torch.optim.SGD(
            parameters, rate, momentum=self.momentum, weight_decay=weight_decay, nesterov=self.nesterov
        )


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015): `torch.optim.Adam`, or with decoupled weight decay `torch.optim.AdamW`.

    Args:
        beta1, beta2, eps: the paper's.
        decoupled: whether weight decay acts on the weights directly (AdamW, Loshchilov & Hutter 2019) or, as by default and
            as in Stutz et al. 2021, is added to the gradient, where Adam rescales it.

    Adam's usual rate is .001, not the .1 of SGD. Checked by tests/training/test_optimisers.py.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    decoupled: bool = False

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            beta = getattr(self, name)
            if not (isinstance(beta, int | float) and 0 <= beta < 1):
                raise InputError(name, "a number in [0, 1)", repr(beta), "The paper uses .9 and .999.")
        if not (isinstance(self.eps, int | float) and 0 < self.eps < math.inf):
            raise InputError("eps", "a finite number > 0", repr(self.eps), "The paper uses 1e-8.")
        require_flag("decoupled", self.decoupled)

    def __call__(self, parameters: list[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.Optimizer:
        """PyTorch's, over these parameters.

        Raises:
            InputError: no parameters, or a rate or weight decay that cannot be.
        """
        require_trainable(parameters, rate, weight_decay)
        make: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW if self.decoupled else torch.optim.Adam
        return make(parameters, rate, betas=(self.beta1, self.beta2), eps=self.eps, weight_decay=weight_decay)


def require_trainable(parameters: list[nn.Parameter], rate: float, weight_decay: float) -> None:
    """Raise an `InputError` unless an optimiser can be made of these."""
    usable = [isinstance(p, torch.Tensor) and p.is_floating_point() and p.requires_grad for p in parameters]
    if not usable or not all(usable):
        found = "none" if not usable else f"{usable.count(False)} others among {len(usable)}"
        remedy = "Give [p for p in model.parameters() if p.requires_grad]."
        raise InputError("parameters", "floating point parameters that require gradients", found, remedy)
    if not (isinstance(rate, int | float) and 0 < rate < math.inf):
        raise InputError("rate", "a finite number > 0", repr(rate), "AT's recipe takes 0.1 with SGD.")
    if not (isinstance(weight_decay, int | float) and 0 <= weight_decay < math.inf):
        raise InputError("weight_decay", "a finite number >= 0", repr(weight_decay), "AT's recipe takes 5e-4.")


def require_momentum(momentum: Any, nesterov: Any) -> None:
    """Raise an `InputError` unless these two can be."""
    if not (isinstance(momentum, int | float) and 0 <= momentum < 1):
        raise InputError("momentum", "a number in [0, 1)", repr(momentum), "Use 0.9, or 0 for none.")
    require_flag("nesterov", nesterov)
    if nesterov and not momentum:
        raise InputError("nesterov", "a momentum > 0 with it", "momentum 0", "Raise the momentum, or leave it out.")


def require_flag(name: str, value: Any) -> None:
    """Raise an `InputError` unless it is True or False."""
    if not isinstance(value, bool):
        raise InputError(name, "True or False", repr(value), "Write it without quotes.")
