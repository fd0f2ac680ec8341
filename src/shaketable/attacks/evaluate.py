"""Robust accuracy and robust loss, with no work on images that are already lost, recomputed from what was found."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core.ball import Ball
from ..core.errors import GradientError, InputError
from ..core.losses import cross_entropy
from ..core.perturb import Perturbation
from ..core.places import at
from ..core.record import Calls
from ..core.seeds import generator
from ..core.tree import leaves
from ..data.dataset import Dataset
from ..models.untouched import untouched
from .attack import Attack
from .batches import Batches, batches
from .evaluation import Counts, Evaluation
from .parts import Part, Parts, joined
from .pgd import PGDAttack
from .sharing import Share, gathered
from .twin import quick_twin

Measure = Literal["accuracy", "loss"]


def evaluate(
    model: Any,
    x: Float[Tensor, "n ..."] | Dataset | Batches,
    y: Int[Tensor, " n"] | None = None,
    *,
    within: Ball,
    seed: int,
    attack: Attack | None = None,
    measure: Measure = "accuracy",
    batch_size: int | None = None,
    points: bool = False,
    progress: Callable[[int], None] | None = None,
    share: Share | None = None,
    kept: Parts | None = None,
) -> Evaluation:
    """Attack a model's images and say how many it still classifies correctly.

    Args:
        model: from inputs to logits, in eval mode, on any device; left as it is.
        x: images with their labels in `y`; or a `Dataset`; or any iterable of batches (x, y).
        within: the perturbations that are allowed: a `Ball` per example, usually with box=(0, 1). Radii or masks of each
            image need x to be one tensor.
        seed: of all that is drawn. Batch i draws from ``generator(seed, "evaluate", i)``, so the batch size belongs to
            the config of an attack that starts at random.
        attack: `PGDAttack()`: PGD-20 from a random start.
        measure: "accuracy": images that the model gets wrong are not attacked, and an attack that can is told to drop an
            image once it is fooled; "loss": every image is attacked to the end, for the robust loss (the mean over images
            of the highest loss found, Stutz et al. 2021; take restarts=10 and keep="best" for their RLoss).
        batch_size: how many images of a tensor or a Dataset make a batch; None: 256 small ones, of CIFAR-10's size at
            most, else 100. Batches that are given stay as they are.
        points: keep the adversarial images; they take as much memory as the images.
        progress: called after each batch with the number of its images.
        share: processes that share the batches, each every count-th one; all get the whole evaluation, which is the one
            that a single process makes. Not together with `points`.
        kept: where finished batches are kept, so that an evaluation that was stopped goes on: what is there is taken from
            there. Whoever gives it sees to it that it is of the same model, images and options. Not together with `points`.

    What is reported is recomputed from the stored points, by the model itself in a pass of its own: their logits, whether
    they lie in ball, box and mask, their size. Where that contradicts the attack it is a finding, and so are missing
    gradients, NaN and points outside the ball (which do not count). A model whose logits are not finite at a point is wrong
    there.

    Cost, in passes of one image: 1 forward for each image, the attack's (`PGDAttack`) for each image attacked, and 1
    forward for each of those. On a CPU, convolutional models are attacked through a copy (`quick_twin`).
    Memory does not grow with the number of images, but for `points`.

    Raises:
        InputError: a model in train mode (with BatchNorm, or dropout; dropout that a model in eval mode keeps on is taken
            for a defence); no images; inputs that are not finite or outside the box; labels out of range; a ball that is
            not per example; logits of a wrong shape; a targeted attack.

    Checked by tests/attacks/test_evaluate.py: the plain loop image by image, a linear model's exact robust accuracy,
    counted passes, defences without gradients, random and NaN models; tests/reference/test_attacks_peers.py: torchattacks
    and Foolbox.
    """
    attack = PGDAttack() if attack is None else attack
    if points and not (share is None and kept is None):
        remedy = "Ask for them in one process, with nothing kept."
        raise InputError("points", "False where processes share an evaluation, or it is kept", "True", remedy)
    _require_usable(model, within, attack, measure)
    fast = getattr(attack, "until_fooled", None) if measure == "accuracy" else None
    device = _device(model)
    parts: list[Part] = []
    with torch.inference_mode(False), _kept(model, device):
        plan = _Plan(model, quick_twin(model), attack if fast is None else fast(), fast is not None, measure)
        for index, (images, labels, ball) in enumerate(batches(x, y, within, batch_size)):
            if share is not None and index % share.count != share.rank:
                continue
            part = None if kept is None else kept.get(index)
            if part is None:
                drawn = generator(seed, "evaluate", index)
                _seed_global(generator(seed, "evaluate", index, "model").initial_seed(), device)
                if device is not None:
                    images, labels = images.to(device), labels.to(device)
                part = plan.judge(images, labels, ball, drawn)
                if kept is not None:
                    kept.put(index, part)
            parts.append(part if points else replace(part, points=None))
            if progress is not None:
                progress(len(images))
    if share is not None and share.count > 1:
        parts = gathered(share, [part.table for part in parts], [part.notes for part in parts], Part.of_table)
    if not parts:
        raise InputError("x", "at least one image", "none", "Check the data set and the split.")
    return joined(parts, measure)


@dataclass(frozen=True)
class _Plan:
    """How batches are judged: by the model, after an attack on its twin."""

    model: Any
    twin: Any
    attack: Attack
    stops: bool
    measure: Measure

    def judge(self, x: Tensor, y: Tensor, ball: Ball, drawn: torch.Generator) -> Part:
        """Look at a batch, attack what is worth it, look again at what the attack left."""
        clean, loss, finite = _look(self.model, x, y)
        n, attacked = len(x), int(clean.sum()) if self.measure == "accuracy" else len(x)
        size = torch.zeros(n, dtype=torch.float64, device=x.device)
        if attacked == 0:
            return Part(clean, clean, loss, loss, size, Calls(n, 0), Counts(nonfinite=int((~finite).sum())), x)
        rows = torch.nonzero(clean)[:, 0] if attacked < n else torch.arange(n, device=x.device)
        part, labels, limits = x[rows], y[rows], ball.rows(rows).on(x[rows])
        found = self._attack(part, labels, limits, drawn)
        final = part if found is None else found.point
        inside, sizes = _checked(final, part, limits)
        outside = ~inside
        final = torch.where(outside.reshape(-1, *[1] * (x.dim() - 1)), part, final)

        correct, after, steady = _look(self.model, final, labels)
        robust, worst, points = clean.clone(), loss.clone(), x.clone()
        robust[rows], worst[rows], points[rows] = correct & clean[rows], after, final
        size[rows] = torch.where(outside, 0.0, sizes)
        counts = Counts(attacked=attacked, outside=int(outside.sum()))
        calls = Calls(n + attacked, 0)
        weird = ~finite
        weird[rows] |= ~steady
        if found is None:
            counts += Counts(refused=attacked)
            calls += Calls(attacked, attacked)
        else:
            calls += found.calls
            weird[rows] |= found.flags.nonfinite
            flags = found.flags
            changed = (flags.stopped == correct) & ~outside if self.stops else torch.zeros_like(correct)
            counts += Counts(vanishing=int((flags.vanishing & correct).sum()), changed=int(changed.sum()))
        counts += Counts(nonfinite=int(weird.sum()))
        return Part(clean, robust, loss, worst, size, calls, counts, points, getattr(found, "members", ()))

    def _attack(self, x: Tensor, y: Tensor, ball: Ball, drawn: torch.Generator) -> Perturbation | None:
        """What the attack found; None if there was no gradient to follow."""
        try:
            with torch.inference_mode(False), torch.enable_grad():
                found = self.attack(self.twin, x, y, ball, generator=drawn)
        except GradientError:
            return None
        point = getattr(found, "point", None)
        if not isinstance(point, Tensor) or point.shape != x.shape or point.dtype != x.dtype:
            got = f"{point.dtype} of shape {tuple(point.shape)}" if isinstance(point, Tensor) else type(found).__name__
            raise InputError(
                "attack", f"a Perturbation whose point is {x.dtype} of shape {tuple(x.shape)}", got,
                "Return what st.perturb returns.",
            )  # fmt: skip
        return found


def _look(model: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each image: whether it is classified correctly, its cross-entropy, and whether its logits are finite."""
    with torch.no_grad():
        logits = at(model)(x)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError("model", f"logits of shape ({len(x)}, classes)", found, "Return the logits alone.")
    if int(y.min()) < 0 or int(y.max()) >= logits.shape[1]:
        found = f"labels from {int(y.min())} to {int(y.max())}"
        remedy = "Number the classes from 0, as the model does; or is it another model's data set?"
        raise InputError("y", f"labels in 0..{logits.shape[1] - 1}, the model's classes", found, remedy)
    finite = torch.isfinite(logits).all(1)
    return finite & (logits.argmax(1) == y), cross_entropy(logits.detach(), y), finite


def _checked(point: Tensor, x: Tensor, ball: Ball) -> tuple[Bool[Tensor, " n"], Float[Tensor, " n"]]:
    """Which points lie in box and mask exactly, and in the ball but for the rounding of x + delta; and their sizes."""
    n, m = len(x), x[0].numel()
    exact = x.double()
    delta = (point.double() - exact).nan_to_num(torch.inf)
    size = length = ball.size(delta, exact)
    if ball.relative:
        length = replace(ball, relative=False).size(delta, exact)
    inside = torch.isfinite(size)  # pyright: ignore[reportArgumentType]
    if ball.box is not None:
        inside &= ((point >= ball.box[0]) & (point <= ball.box[1])).reshape(n, -1).all(1)
    if ball.mask is not None:
        inside &= ((point == x) | leaves(ball.mask)[0]).reshape(n, -1).all(1)
    reach = ball.reach(exact) if ball.norm != "l0" else ball.radius
    limit = torch.as_tensor(reach, dtype=torch.float64, device=x.device).reshape(-1)
    rounding = {"linf": 1.0, "l2": m**0.5, "l1": float(m), "l0": 0.0}[ball.norm]
    largest = max(float(t.abs().max()) for t in (x, point.nan_to_num(0.0, 0.0, 0.0)))
    slack = torch.finfo(x.dtype).eps * (rounding * largest + 4 * limit)
    return inside & (length <= limit + slack), size  # pyright: ignore


def _require_usable(model: Any, within: Ball, attack: Any, measure: str) -> None:
    if measure not in ("accuracy", "loss"):
        raise InputError("measure", "'accuracy' or 'loss'", repr(measure), "Choose one of them.")
    if not within.rowwise:
        raise InputError("within", "a ball with per='example'", f"per={within.per!r}", "Attack each image by itself.")
    if getattr(attack, "labels_are_targets", getattr(attack, "targeted", False)):
        remedy = "Use the attack on target classes by itself, or an untargeted one here."
        raise InputError("attack", "an attack on the true labels", "targeted=True", remedy)
    if not isinstance(model, nn.Module):
        return
    normalises, drops = nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd
    for name, module in model.named_modules():
        wrong = isinstance(module, normalises) or (isinstance(module, drops) and model.training)
        if module.training and wrong:
            found = f"{type(module).__name__} {name!r} in train mode"
            raise InputError("model", "a model in eval mode", found, "Call model.eval() first.")


def _kept(model: Any, device: torch.device | None) -> AbstractContextManager[Any]:
    """Afterwards the model's buffers and modes and the global random states are what they were."""
    if isinstance(model, nn.Module):
        return untouched(model, device or torch.device("cpu"))
    return torch.random.fork_rng(devices=[])


def _seed_global(seed: int, device: torch.device | None) -> None:
    """Seed what a random model draws from; `torch.manual_seed` would touch the generators of all devices."""
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _device(model: Any) -> torch.device | None:
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return tensors[0].device if tensors else None
