"""Random weight perturbation, the control of AWP: the same ball without the worst case."""

from ..core.places import Select
from .awp import Norm, WeightPerturbation, relative_ball


def rwp(
    gamma: float = 0.01, *, warmup: int = 0, every: int = 1, norm: Norm = "layer", select: Select = "matrices"
) -> WeightPerturbation:
    """Random weight perturbation: v drawn uniformly from AWP's ball, ||v_l|| <= gamma ||w_l||, anew at each step.

    One of the variants of Stutz, Hein & Schiele 2021: it minimises the average case over their ball, E_v[loss(w + v)], that
    `flatness.average` measures, where AWP minimises the worst case. ``awp(gamma, direction="random")`` is the same value.

    Args:
        gamma: the radius, a fraction of the weights' norm; .01 is AWP's, so that the two compare in the same ball. A random
            direction raises the loss far less than the gradient's: for an effect of its own take more (average flatness
            is measured at .5).
        warmup, every, select: see `WeightPerturbation`.
        norm: of what the norms are taken, see `awp`. "element" draws each v_i uniformly from [-gamma |w_i|, gamma |w_i|].

    The law is that of `Ball.sample`: uniform in the ball's volume, each layer (or group of `norm`) by itself. In a tensor of m
    entries the length is gamma ||w|| U^(1/m): .99 of the radius on average for m = 100, so nearly a draw from the sphere.

    Differences from the literature: Bisla, Wang & Choromanska 2022 (LPF-SGD) and Li et al. 2022 (RWP) draw Gaussians with a
    standard deviation of gamma ||w_f|| for each filter f, whose length is about gamma ||w_f|| sqrt(m): their gamma is this
    one over the root of the filter's size. The former average several draws a step and raise gamma while training, the
    latter add the loss at w itself. He, Rakin & Fan 2019 (PNI) learn the noise's size and keep it at test time.

    Cost: no pass; one draw and one copy of the perturbed tensors. Errors: see `WeightPerturbation`. Checked by
    tests/training/test_rwp.py.
    """
    return WeightPerturbation(relative_ball(gamma, norm), select=select, warmup=warmup, every=every, direction="random")
