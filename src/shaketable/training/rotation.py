"""Self-supervision by rotation prediction beside adversarial training (Hendrycks et al., NeurIPS 2019)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import InputError, ModelError, Objective, at, cross_entropy, generator
from ..core import scalar as Scalar
from ..core.places import bare
from ..core.seeds import own_random_state
from .at import AT
from .friendly import stopping
from .losses import RobustLoss, of_weights
from .mart import MART
from .trades import TRADES


@dataclass(frozen=True)
class Rotation:
    """A robust loss plus weight times CE(head(rot_r(x')), r): a second head says by r quarter turns an image was rotated.

    Hendrycks et al. 2019 with AT: CE(f(x'), y) + weight * CE(head(rot_r(x')), r), where x' raises both at once. The head is
    a linear layer on the features that enter the model's last linear layer (`WithRotationHead`).

    Args:
        weight: lambda; .5, the authors' code (Stutz et al. 2021 try .5 to 8).
        base: the robust loss beside it, AT in the paper. It decides the attack's start and mode.

    One rotation an image: r is the example's place in the batch modulo 4, so a shuffled training sees all rotations of every
    image; the order of the batch is part of the loss. Differences from the authors, who rotate every image by all four
    angles: their code runs 5 images for one (upright for the class, four for the rotation), each attacked for its own
    task; here 2 for one, and one x' per image, attacked for both, as the paper's equation has it. The two tasks are two
    passes, so in train mode a BatchNorm normalises each by its own statistics and records both (the authors' one pass
    mixes them). Where a batch is worked on in parts, r counts within each part.

    Cost: that of the base, plus one forward-backward for each of the attack's steps and of the weight updates. Images must
    be square. Checked by tests/training/test_rotation.py.
    """

    weight: float = 0.5
    base: RobustLoss = AT()

    def __post_init__(self) -> None:
        if not 0 <= self.weight < math.inf:
            raise InputError("weight", "a finite number >= 0", str(self.weight), "Use .5.")

    @property
    def start(self) -> Any:
        """The base's."""
        return self.base.start

    @property
    def attack_mode(self) -> Literal["train", "eval"]:
        """The base's."""
        return self.base.attack_mode

    def prepare(self, model: nn.Module, x: Float[Tensor, "n c h w"], seed: int) -> "WithRotationHead":
        """The model with a rotation head, which is to be trained instead; see `WithRotationHead`."""
        return WithRotationHead(model, x, seed)

    def inner(self, model: Any, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"]) -> Objective:
        """The base's objective plus weight times the rotation's cross-entropy, for each example."""
        _require_head(model)
        return _BothTasks(model, self.base.inner(model, x, y), self.weight)

    def outer(self, model: Any, x: Tensor, adversarial: Float[Tensor, "n c h w"], y: Tensor) -> Float[Tensor, ""]:
        """The base's loss plus weight times the mean rotation loss at the adversarial points.

        Args:
            model: a `WithRotationHead`, or a function of (x) and of (x, True) like it.
        """
        _require_head(model)
        turns = torch.arange(len(adversarial), device=adversarial.device) % 4
        rotation = F.cross_entropy(model(_rotated(adversarial, turns), True), turns)
        return self.base.outer(model, x, adversarial, y) + self.weight * rotation

    def weights(self, model: nn.Module, x: Tensor, adversarial: Tensor, y: Tensor) -> Scalar:
        """`outer` as a function of the weights, the head's included."""
        return of_weights(self.outer, model, x, adversarial, y)


class WithRotationHead(nn.Module):
    """A model, and a linear head with four outputs on the features that enter its last linear layer.

    Called as (x) it is the model; as (x, True) it gives the rotation logits (n, 4), from one pass of the model. `plain` is
    the model itself (not a copy), `head` the new layer, on the device and of the dtype of the model's last one. Its weights
    are drawn as torch's linear layers are, uniform within 1 / sqrt(features), from the seed alone. Compiled, the rotation
    pass is right but runs in pieces (torch.compile breaks the graph at its hook).

    Args:
        model: its output must be that of a linear layer, as it is.
        x: a few sample images, by which the layer is found. One forward pass, in the model's mode; nothing is changed.

    Raises:
        InputError: images that are not square, or not of shape (n, c, h, w).
        ModelError: no linear layer's output is the model's output.
    """

    def __init__(self, model: nn.Module, x: Float[Tensor, "n c h w"], seed: int) -> None:
        super().__init__()
        if x.dim() != 4 or x.shape[2] != x.shape[3] or not len(x):
            remedy = "Crop or pad the images to squares; a quarter turn must keep their shape."
            raise InputError("x", "square images of shape (n, c, h, h)", f"shape {tuple(x.shape)}", remedy)
        model = bare(model)
        name = _last_linear(model, x)
        last = model.get_submodule(name)
        assert isinstance(last, nn.Linear)
        self.plain, self._layer = model, name
        like = {"device": last.weight.device, "dtype": last.weight.dtype}
        self.head = nn.utils.skip_init(nn.Linear, last.in_features, 4, **like)
        source, bound = generator(seed, "rotation head"), 1 / math.sqrt(last.in_features)
        with torch.no_grad():
            for p in self.head.parameters():
                p.copy_(bound * (2 * torch.rand(p.shape, generator=source, dtype=torch.float64) - 1))
        self.training = self.head.training = model.training

    def forward(self, x: Float[Tensor, "n c h w"], rotated: bool = False) -> Float[Tensor, "n k"]:
        """The model's logits, or with `rotated` the four rotation logits."""
        return self._turns(x) if rotated else self.plain(x)

    def _turns(self, x: Tensor) -> Tensor:
        """The hook lives for this pass alone, so that no copy and no saved model holds it."""
        seen = list[Tensor]()

        def keep(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.append(inputs[0])

        hook = self.plain.get_submodule(self._layer).register_forward_pre_hook(keep)
        try:
            self.plain(x)
        finally:
            hook.remove()
        return self.head(seen[-1])


@dataclass(frozen=True)
class _BothTasks:
    """The base's objective plus weight times the rotation's, for each example; r goes by the place in the whole batch."""

    model: Any
    base: Any
    weight: float
    stops: bool = False

    @property
    def start(self) -> Any:
        return getattr(self.base, "start", None)

    def __call__(self, point: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.base(point, rows) + self._rotation(point, rows)

    def judge(self, point: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The values, and which examples the base calls misclassified."""
        value, done = stopping(self.base).judge(point, rows)
        return value + self._rotation(point, rows), done

    def _rotation(self, point: Tensor, rows: Tensor | None) -> Tensor:
        turns = (torch.arange(len(point), device=point.device) if rows is None else rows) % 4
        return self.weight * cross_entropy(at(self.model)(_rotated(point, turns), True), turns)


def rotation(weight: float = 0.5, base: Literal["at", "trades", "mart"] = "at") -> Rotation:
    """Self-supervision by rotation; see `Rotation`. `base` is the robust loss beside it, with its own defaults."""
    bases: dict[str, Callable[[], RobustLoss]] = {"at": AT, "trades": TRADES, "mart": MART}
    if base not in bases:
        raise InputError("base", f"one of {', '.join(bases)}", repr(base), "Choose one of them.")
    return Rotation(weight, bases[base]())


def _rotated(x: Float[Tensor, "n c h w"], turns: Int[Tensor, " n"]) -> Float[Tensor, "n c h w"]:
    """Each image, turned counter-clockwise by its number of quarters."""
    wide = turns.reshape(-1, 1, 1, 1)
    for r in (1, 2, 3):
        x = torch.where(wide == r, torch.rot90(x, r, (2, 3)), x)
    return x


def _last_linear(model: nn.Module, x: Tensor) -> str:
    """The name of the linear layer whose output is the model's output."""
    outputs = dict[str, Tensor]()

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            outputs[name] = output.clone()

        return hook

    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    hooks = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
    try:
        with torch.no_grad(), own_random_state([x]):
            logits = at(model)(x)
    finally:
        for hook in hooks:
            hook.remove()
    found = [name for name, output in outputs.items() if isinstance(logits, Tensor) and torch.equal(output, logits)]
    if not found:
        remedy = "Train without rotation, or end the model in nn.Linear (scale or normalise before it)."
        had = f"{len(layers)} linear layers, none of which gives the output"
        raise ModelError("model", "a linear layer whose output is the model's output", had, remedy)
    return found[-1]


def _require_head(model: Any) -> None:
    if isinstance(model, nn.Module) and not isinstance(bare(model), WithRotationHead):
        remedy = "Train what loss.prepare(model, x, seed) returns, and take its attribute plain when done."
        raise InputError("model", "a model with a rotation head", type(model).__name__, remedy)
