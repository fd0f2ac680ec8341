"""Regional perturbation (Ozbulak et al. 2020): signs of the gradient towards a random class, in a region of the image."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core.ascent import PGD
from ..core.ball import Ball
from ..core.errors import InputError
from ..core.perturb import Perturbation, perturb
from ..core.record import Calls
from ..core.seeds import generator as make_generator
from ..core.seeds import own_random_state
from ..core.tree import ordinary
from .batches import batches
from .events import Event, Norms, norms
from .regions import mask_of
from .towards import TARGET_LOSSES, TargetLoss, Towards
from .trajectory import Path, schedule
from .twin import quick_twin

BATCH = 32  # iterates between two checks are kept as signs: 16 bytes an entry at most
PRESETS: dict[str, dict[str, Any]] = {
    "exact": {"steps": 250, "step": 1 / 255, "loss": "precise", "stop": "fixed"},
    "paper": {"steps": 250, "step": 0.0039, "loss": "ce", "stop": "first-transfer"},
    "authors": {"steps": 250, "step": 0.0039, "loss": "ce", "stop": "first-transfer"},
}


@dataclass(frozen=True, eq=False)
class Watched:
    """What became of another model along the source's path.

    Args:
        correct: right on the clean images, (n,); transfer is counted only where it and the source are.
        margin: its true logit minus the largest other, on the clean images: how hard it is to fool.
        transfer: the first iterate that fools it: what an attacker gets who may ask this model at each step (an oracle).
        fixed: whether the last iterate fools it: what one gets who may not. None with stop="first-transfer".
        aimed: whether it gives the class that the source was led to at the last iterate; None likewise.
    """

    correct: Bool[Tensor, " n"]
    margin: Float[Tensor, " n"]
    transfer: Event
    fixed: Bool[Tensor, " n"] | None
    aimed: Bool[Tensor, " n"] | None


@dataclass(frozen=True, eq=False)
class Regional:
    """What `regional` found, an entry for each image in the order they came.

    Args:
        target: the class that the image was led to.
        correct: the source is right on the clean image.
        margin: the source's true logit minus the largest other, on the clean image.
        left, reached: when the source first gave another than the true class, and when the target.
        watched: for each watched model, when it was first fooled.
        point: the last iterates, of as many images as were asked for; None if of none.
        norms: of the last iterates.
        vanishing: the first gradient is (nearly) zero.
        saturated: the loss was exactly 0 at some iterate, so that signs after it are of rounding errors.
        steps: the budget.
        calls: the passes of the source, in images; `checks`: those of the watched models.
    """

    target: Int[Tensor, " n"]
    correct: Bool[Tensor, " n"]
    margin: Float[Tensor, " n"]
    left: Event
    reached: Event
    watched: Mapping[str, Watched]
    point: Float[Tensor, "n ..."] | None
    norms: Norms
    vanishing: Bool[Tensor, " n"]
    saturated: Bool[Tensor, " n"]
    steps: int
    calls: Calls
    checks: Calls


@torch.inference_mode(False)  # a gradient needs tensors that were made outside of it
def regional(
    model: Any,
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    region: Any = None,
    seed: int,
    watched: Mapping[str, Any] | None = None,
    stop: Literal["fixed", "first-transfer"] = "fixed",
    check: Literal["sparse", "every"] = "sparse",
    steps: int = 250,
    step: float = 1 / 255,
    loss: TargetLoss = "precise",
    target: Int[Tensor, " n"] | None = None,
    points: bool | int = True,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Regional:
    """The paper's attack on one source, and when each watched model is first fooled along its path.

    x_{n+1} = clip_[0,1](x_n - step sign(gradient of CE(source(x_n), target)) region): no eps ball, no random start, no
    momentum; targeted on the source at a class drawn uniformly from those that are not true. A watched model is fooled when
    it does not give the true class. The path does not depend on the watched models: one serves them all.

    Args:
        model: the source, from inputs in [0, 1] to logits; left as it is.
        x, y: images and their true labels.
        region: where they may change: None (everywhere), a mask, a text for `regions.region_of`, or a function (model, x, y,
            generator) -> mask.
        seed: of the targets, and of a region that is drawn.
        watched: other models, by name; of the same classes. One that takes images of another size or scale is given with
            its resize around it.
        stop: "fixed": walk to the budget; "first-transfer": drop an image once all watched models have been fooled.
        check: "sparse": watched models look at 15 of 50 iterates (27 of 250); where one is fooled that was not at the check
            before, the iterates in between are looked at one by one, so the first is found. What it cannot see is a
            model that is fooled and recovers between two checks; "every": look at each iterate.
        steps, step: 250 of 1/255, which keeps 8-bit images on their levels but for rounding.
        loss: "precise", cross-entropy from a float64 log-softmax; "ce", in the model's own precision, as the paper does;
            "margin", the target's logit against the largest other, which never saturates.
        target: the classes to lead to, instead of drawing them.
        points: keep the images at every event, which takes events x images of memory; or a number: keep the last iterates
            of the first so many images alone.
        batch_size: 32. progress: called after each batch with the number of its images.

    Differences: `PRESETS` names "exact" (the default), "paper" (step .0039, float32 cross-entropy, stop at first transfer)
    and "authors", the same; give ``**PRESETS["paper"]``. The authors' code saves by truncation to 8 bits, which loses a step of
    .0039 upwards and keeps it downwards, divides L2 by the image's side, refuses odd sizes and takes one image at a time;
    none of that is repeated here. float32 cross-entropy saturates: see `Regional.saturated`.

    Cost: steps + 1 forward and `steps` backward passes of the source an image; of each watched model a forward pass a check
    until it is fooled, the iterates of one gap where it is, and one at the end. On a CPU the path of a convolutional source is
    walked on a copy (`quick_twin`), whose logits are the source's but for rounding.

    Raises:
        InputError: what `batches` refuses; an unknown stop, check or loss; a target that is the true class; watched models of
            other classes; stop="first-transfer" with nothing watched.
        GradientError: no image of a batch has a gradient.

    Checked by tests/attacks/test_regional.py: a hand-written loop bit for bit; sparse against every check.
    """
    watched = dict(watched or {})
    _require(stop, check, steps, step, loss, watched)
    mask = mask_of(region, model, x, y, make_generator(seed, "region"))
    draws = torch.rand(len(x), generator=make_generator(seed, "regional"), dtype=torch.float64).to(x.device)
    if target is not None and (target.shape != y.shape or bool((target == y).any())):
        raise InputError("target", "a class other than the true one for each image", "others", "Choose wrong classes.")
    source, found, first, checks = quick_twin(model), [], 0, schedule(steps, check == "every")
    kept = {"step": step, "checks": checks, "drop": stop == "first-transfer", "keep": points is True}
    for images, labels, ball in batches(x, y, Ball("linf", 1.0, box=(0, 1), mask=mask), batch_size or BATCH):
        rows = slice(first, first + len(images))
        goal = None if target is None else ordinary(target)[rows].long()
        objective = Towards(source, labels, draws[rows], loss, target=goal)
        path = Path(objective, watched, images, labels, ball.mask, **kept)  # pyright: ignore[reportArgumentType]
        with torch.no_grad(), own_random_state([images]):
            path.run()
        shown = points if points is True else max(0, min(points - first, len(images))) if points else None
        found.append(_of(path, steps, shown, stop))
        first += len(images)
        if progress is not None:
            progress(len(images))
    if not found:
        path = Path(Towards(model, y, draws, loss, target=target), watched, x, y, mask, **kept)
        found.append(_of(path, steps, True if points else None, stop))
    return _joined(found)


@dataclass(frozen=True)
class RegionalAttack:
    """The same steps within a ball, whose mask is the region: for `evaluate`, and for comparison with other attacks.

    delta <- project(delta + step * radius * steepest(gradient)) towards a class drawn for each image, from the image itself.
    In ``Ball("linf", 1, box=(0, 1), mask=region)`` it is the paper's attack; in a smaller ball its steps shrink with it.

    Args:
        steps: 250, the paper's.
        step: in units of the ball's radius; 1/255 is the paper's in a ball of radius 1.
        loss: see `regional`.
        stop: drop an image as soon as the model does not give its true class; `evaluate` switches it on.

    A targeted attack of one random class: as a measure of robustness it is weak, an upper bound far above PGD's.

    Cost: `steps` forward and backward passes an image; with `stop` one more forward pass, and none after it is fooled.
    Checked by tests/attacks/test_regional.py and tests/attacks/test_contract.py.
    """

    steps: int = 250
    step: float = 1 / 255
    loss: TargetLoss = "precise"
    stop: bool = False

    def __post_init__(self) -> None:
        PGD(self.steps, self.step)
        if self.loss not in TARGET_LOSSES:
            raise InputError("loss", f"one of {', '.join(TARGET_LOSSES)}", repr(self.loss), "Choose one of them.")

    def until_fooled(self) -> "RegionalAttack":
        """The same attack, with `stop`."""
        return replace(self, stop=True)

    def __call__(
        self, model: Any, x: Float[Tensor, "n ..."], y: Int[Tensor, " n"], within: Ball, *, generator: torch.Generator
    ) -> Perturbation:
        """Attack a batch; see `Attack` for the arguments. The generator draws the targets."""
        draws = torch.rand(len(x), generator=generator, dtype=torch.float64, device=generator.device).to(x.device)
        objective = Towards(model, y, draws, self.loss, stops=self.stop)
        return perturb(objective, x, within, by=PGD(self.steps, self.step), start="zero", generator=generator)


def _require(stop: str, check: str, steps: int, step: float, loss: str, watched: Mapping[str, Any]) -> None:
    if stop not in ("fixed", "first-transfer"):
        raise InputError("stop", "'fixed' or 'first-transfer'", repr(stop), "Choose one of them.")
    if check not in ("sparse", "every"):
        raise InputError("check", "'sparse' or 'every'", repr(check), "Choose one of them.")
    if stop == "first-transfer" and not watched:
        raise InputError("watched", "models to transfer to", "none", "Give watched={'name': model}, or stop='fixed'.")
    RegionalAttack(steps, step, loss)  # pyright: ignore[reportArgumentType]


def _of(path: Path, steps: int, points: bool | int | None, stop: str) -> Regional:
    """What is kept of one batch's path."""
    watched: dict[str, Watched] = {}
    for name, sighting in path.seen.items():
        seen, margin = sighting.event(), path.margins.get(name, path.margin)
        last = (path.fixed[name], path.aimed[name]) if stop == "fixed" else (None, None)
        watched[name] = Watched(seen.first != 0, margin, seen, *last)
    left, point = path.left.event(), None if points is None else path.last if points is True else path.last[:points]
    return Regional(
        path.target, left.first != 0, path.margin, left, path.reached.event(), watched, point,
        norms(path.last, path.x, path.mask), path.vanishing, path.saturated, steps, path.calls, path.watching,
    )  # fmt: skip


def _joined(parts: list[Any]) -> Any:
    """The results of batches as one: tensors joined, passes added, and so on within."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, Calls):
        return sum(parts, Calls())
    if isinstance(first, dict):
        return {name: _joined([part[name] for part in parts]) for name in first}
    if is_dataclass(first):
        return type(first)(**{f.name: _joined([getattr(part, f.name) for part in parts]) for f in fields(first)})
    return first
