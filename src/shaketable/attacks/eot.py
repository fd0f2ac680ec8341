"""Expectation over transformation: attacks on models that are random (Athalye et al. 2018a)."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.errors import InputError
from ..core.places import at
from .minimal import require_count

Over = Literal["logits", "probabilities"]


class EOT(nn.Module):
    """A random model, averaged over draws of its randomness; see `eot`."""

    def __init__(self, model: Any, samples: int, over: Over) -> None:
        super().__init__()
        self.model: Any = model
        self.samples, self.over = samples, over
        self.training = getattr(model, "training", False)  # the wrapper itself has no mode

    def forward(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "n k"]:
        """The average of `samples` passes."""
        model = at(self.model)
        drawn = [model(x) for _ in range(self.samples)]
        if self.over == "logits":
            return torch.stack(drawn).mean(0)
        return torch.stack([logits.log_softmax(1) for logits in drawn]).logsumexp(0) - torch.tensor(self.samples).log()


def eot(model: Any, samples: int = 20, *, over: Over = "logits") -> EOT:
    """A random model (noise, dropout that is kept on, random resizing) as one whose gradients an attack can follow.

    E_t f(t(x)) is estimated by `samples` passes, each with draws of its own, so that its gradient is the mean of theirs
    (Athalye et al. 2018a, section 2.1). Any attack takes the result for a model: ``pgd(eot(model), x, y, eps=8 / 255)``.

    Args:
        model: from inputs to logits, random by torch's global generator, which attacks seed (from the generator that they
            are given) and give back as it was. A draw that is made once a batch is made anew in each pass.
        samples: 20, that of AutoAttack's version for random models.
        over: "logits", their mean; or "probabilities", the logarithm of the mean of the softmaxes, which is the prediction
            of a defence that votes.

    AutoAttack's version averages the gradients of the losses instead: the loss of the mean here, the mean of the losses
    there. They agree in the limit of little noise, and for the margin as long as the best other class is the same; the mean
    of cross-entropies gives more weight to draws that are already lost.

    Cost: `samples` passes of the model for each pass that an attack counts; memory for the activations of all of them.

    Raises:
        InputError: fewer than one sample, or another `over`.

    Checked by tests/attacks/test_eot_and_bpda.py: the gradient of a noisy quadratic near that of its mean, seeds, PGD on
    a noisy model stronger than without.
    """
    require_count("samples", samples, 1)
    if over not in ("logits", "probabilities"):
        raise InputError("over", "'logits' or 'probabilities'", repr(over), "Choose one of them.")
    return EOT(model, samples, over)
