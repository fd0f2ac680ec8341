"""Which labels the attack and the weight update see: smoothing, noise, no leaking, and examples that are not attacked."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core import InputError, at
from ..core.seeds import own_random_state

AttackLabels = Literal["true", "predicted"]


@dataclass(frozen=True)
class Labels:
    """How labels are used, as Stutz, Hein & Schiele 2021 vary it. The defaults leave everything as it is, at no cost.

    Args:
        smoothing: s in [0, 1]: the weight update learns (1 - s) onehot(y) + s / K for K classes (Szegedy et al. 2016);
            Stutz et al. try .1, .2 and .3.
        noise: in [0, 1]: for the weight update, each label is replaced with this probability by a class drawn uniformly
            from all K, its own included, so that a share of noise * (K - 1) / K is wrong: what Stutz et al.'s code does
            (.1 to .5; elsewhere "symmetric noise" may leave the own class out). Drawn anew at every step. Noise comes first,
            smoothing second.
        attack: "true": the attack raises the loss of the labels; "predicted": that of the model's own predictions at the
            clean images, so that no label leaks into the attack (Kurakin et al. 2017). A loss whose attack uses no labels
            (TRADES) attacks no differently, but pays for the predictions.
        ignore_incorrect: the weight update sees an example that is misclassified without an attack as it is, unattacked.

    Predictions are made in the mode that the model is in (Stutz et al.: train mode), without moving its buffers or the
    global random state, and no gradient flows through them. Cost: one forward pass with "predicted", and one with
    ignore_incorrect. Checked by tests/training/test_labels.py.
    """

    smoothing: float = 0.0
    noise: float = 0.0
    attack: AttackLabels = "true"
    ignore_incorrect: bool = False

    def __post_init__(self) -> None:
        for name in ("smoothing", "noise"):
            share = getattr(self, name)
            if not 0 <= share <= 1:
                raise InputError(name, "a number in [0, 1]", str(share), "Use .1 to .5, or 0 for none.")
        if self.attack not in get_args(AttackLabels):
            raise InputError("attack", "'true' or 'predicted'", repr(self.attack), "Choose one of them.")

    def for_attack(self, model: Any, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
        """The labels whose loss the attack raises."""
        return y if self.attack == "true" else _predicted(model, x)

    def for_update(self, y: Int[Tensor, " n"], classes: int, generator: torch.Generator) -> Tensor:
        """What the weight update learns: labels (n,), or with smoothing probabilities (n, classes), in float32.

        Args:
            y: labels below `classes`.
            generator: draws the noise, twice n numbers however few labels it replaces; unused without noise.
        """
        if not (self.smoothing or self.noise):
            return y
        low, high = (int(end) for end in torch.aminmax(y)) if len(y) else (0, 0)
        if low < 0 or high >= classes:
            found = f"{classes} for labels from {low} to {high}"
            raise InputError("classes", "more classes than the highest label, and none below 0", found, "Check both.")
        if self.noise:
            device = generator.device
            hit = torch.rand(len(y), generator=generator, device=device) < self.noise
            other = torch.randint(classes, (len(y),), generator=generator, device=device)
            y = torch.where(hit.to(y.device), other.to(y), y)
        if not self.smoothing:
            return y
        rest = torch.full((len(y), classes), self.smoothing / classes, device=y.device, dtype=torch.float32)
        return rest.scatter_add_(1, y.long()[:, None], torch.full_like(rest, 1 - self.smoothing)[:, :1])

    def keep(
        self, model: Any, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], adversarial: Float[Tensor, "n ..."]
    ) -> Float[Tensor, "n ..."]:
        """The adversarial examples, with the clean one in place of each whose clean prediction is not y."""
        if not self.ignore_incorrect:
            return adversarial
        wrong = _predicted(model, x) != y
        return torch.where(wrong.reshape(-1, *[1] * (x.dim() - 1)), x, adversarial)


def _predicted(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad(), own_random_state([x]):
        return at(model)(x).argmax(1)
