"""Which weights flatness is measured in: those of every layer but normalisation layers, each tensor a layer of its own."""

from torch import Tensor, nn

from ..core import Ball, weights

_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """Name -> weight or bias of each layer, detached: the origin of a perturbation of the weights (Stutz et al. 2021).

    Convolution and linear weights, their biases, and any other parameter that is no normalisation layer's (a ViT's
    positions). Tied weights appear once.

    Checked by tests/flatness/test_average.py.
    """
    affine = {id(p) for module in model.modules() if isinstance(module, _NORMALISATIONS) for p in module.parameters()}
    chosen = {name for name, parameter in model.named_parameters() if id(parameter) not in affine}
    return weights(model, lambda name, _parameter: name in chosen)


def layers_ball(xi: float) -> Ball:
    """B_xi(w): ||nu_l|| <= xi ||w_l|| for every layer l (Stutz et al. 2021, section 3.2); a layer of norm 0 stays as it is."""
    return Ball("l2", xi, per="tensor", relative=True)
