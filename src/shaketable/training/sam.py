"""Sharpness-aware minimisation, SAM (Foret et al. 2021), and its adaptive form, ASAM (Kwon et al. 2021), as values."""

from ..core import Ball
from ..core.places import Select
from .adaptive import AdaptiveBall
from .awp import Sync, WeightPerturbation, climb, finite


def sam(
    rho: float = 0.05,
    *,
    warmup: int = 0,
    every: int = 1,
    steps: int = 1,
    select: Select = "all",
    shared: bool = False,
    sync: Sync = "global",
) -> WeightPerturbation:
    """SAM: v = rho g / ||g||, with one norm over all parameters (Foret, Kleiner, Mobahi & Neyshabur 2021, eq. 2, p = 2).

    Args:
        rho: the radius, in the unit of the weights; .05, the paper's for CIFAR-10.
        warmup, every, shared, sync: see `WeightPerturbation`.
        steps: of the ascent, 1/steps of the radius each, projected after each; the paper's 1.
        select: "all", as the authors: biases and normalisation layers, too.

    In robust training g is the gradient of the robust loss at x', as with AWP, of which it differs by its ball and by what
    it perturbs; with no attack it is SAM itself. Not invariant to the scale of layers: halving one layer and doubling the
    next leaves the net and changes v (`asam` mends that).

    Differences from the authors' code: there the L2 penalty is part of the loss whose gradient makes v, here v is that of
    the loss alone (the penalty's gradient is taken at w + v in both, by the optimiser's weight decay and
    ``decay_at="perturbed"``); BatchNorm's running statistics come from the first pass there and from the one at w + v
    here; with several devices v is each device's own there, ``sync="local"`` here.

    Cost, errors: see `WeightPerturbation`. Checked by tests/training/test_sam.py.
    """
    finite("rho", rho, "Give the length of the perturbation; the paper's is .05.")
    by = climb(steps)
    return WeightPerturbation(Ball("l2", rho, per="all"), by, select, warmup, every, shared=shared, sync=sync)


def asam(
    rho: float = 0.5,
    eta: float = 0.01,
    *,
    warmup: int = 0,
    every: int = 1,
    steps: int = 1,
    biases: bool = False,
    select: Select = "all",
    shared: bool = False,
    sync: Sync = "global",
) -> WeightPerturbation:
    """ASAM: v = rho T^2 g / ||T g||, T = diag(|w_i| + eta) (Kwon, Kim, Park & Choi 2021, algorithm 1, p = 2).

    Args:
        rho: the radius of ||T^-1 v||; .5 for CIFAR-10 and 1 for CIFAR-100, the authors'.
        eta: .01, the authors'; 0 makes it exactly invariant to the scale of layers, and of units within them.
        warmup, every, shared, sync: see `WeightPerturbation`.
        steps: of the ascent, 1/steps of the radius each, projected after each; the paper's 1.
        biases: whether biases are scaled, too; False, as the authors' code: their T is 1, so a net that has biases is
            invariant with True alone.
        select: "all", as the authors.

    The ball is an `AdaptiveBall`; its card says which tensors are scaled. "element" of `awp` bounds each entry by itself,
    this one all of them by one norm.

    Difference from the authors' loop: it takes v off before the optimiser steps, so weight decay acts at w: that is
    ``decay_at="restored"``.

    Cost, errors: see `WeightPerturbation`. Checked by tests/training/test_sam.py and test_adaptive.py.
    """
    finite("rho", rho, "Give the size of the perturbation in units of the weights; the authors' is .5.")
    by, within = climb(steps), AdaptiveBall(rho, eta, biases)
    return WeightPerturbation(within, by, select, warmup, every, shared=shared, sync=sync)
