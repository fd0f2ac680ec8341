"""Transfer between models: of the perturbations made on each, which fool the others (Ozbulak et al. 2020)."""

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import InputError
from ..core.seeds import generator
from .eight_bit import encoded
from .events import NEVER, Event, Norms
from .masks import area
from .regional import Regional, regional
from .regions import mask_of
from .towards import TargetLoss, target_classes
from .trajectory import clean_margin
from .transfer_matrix import Transfer, collected
from .verdicts import logits_of

WHOLE, REGIONAL = "whole", "regional"


def transfer(
    models: Mapping[str, Any],
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    region: Any = None,
    regions: Mapping[str, Any] | None = None,
    seed: int,
    steps: int = 250,
    step: float = 1 / 255,
    loss: TargetLoss = "precise",
    stop: Literal["fixed", "first-transfer"] = "fixed",
    check: Literal["sparse", "every"] = "sparse",
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Transfer:
    """Attack every model in a region, and look how many of the others each perturbation fools.

    Args:
        models: by name, two or more, from the images to logits of the same classes. x is in the size and range that all
            accept: wrap the resize (and the normalisation) of a model around it.
        x, y: images in [0, 1] and their true labels.
        region: see `regional`; or `regions`, several by name, to compare. Of each image the target class is the same for
            all regions and all sources with as many classes, so that they can be compared image by image.
        seed, steps, step, loss, stop, check, batch_size, progress: see `regional`.

    Only images that source and target both get right are counted. What fools a target at the last iterate (fixed budget)
    and at some iterate (an oracle, who may ask the target at every step: what the paper reports) are kept apart.

    Cost: 1 forward pass an image of every model a source; for each source and region `regional` once on the images that the
    source gets right, however many the targets.
    Raises:
        InputError: fewer than two models; both or neither of region and regions where they clash; what `regional` raises.

    Checked by tests/attacks/test_transfer.py.
    """
    if region is not None and regions is not None:
        raise InputError("region", "region or regions", "both", "Name them all in regions.")
    places = {WHOLE if region is None else "region": region} if regions is None else dict(regions)
    rows = []
    for source in models:
        row = transfer_row(
            source, models, x, y, regions=places, seed=seed, steps=steps, step=step, loss=loss, stop=stop, check=check,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        rows.append(row)
    return collected(rows)


def transfer_row(
    source: str,
    models: Mapping[str, Any],
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    regions: Mapping[str, Any],
    seed: int,
    steps: int = 250,
    step: float = 1 / 255,
    loss: TargetLoss = "precise",
    stop: Literal["fixed", "first-transfer"] = "fixed",
    check: Literal["sparse", "every"] = "sparse",
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
    examples: int = 0,
) -> dict[str, Any]:
    """One source's row of the matrix, in numbers, lists and dicts that JSON can hold; `collected` joins rows.

    Rows do not depend on each other, so processes may share them. An infinite norm (no success) is None.

    Args:
        examples: keep the last iterates of the first so many images, as PNG files in base64; of what is no grey or RGB
            image, none are kept.
        others: see `transfer`.

    Checked by tests/attacks/test_transfer.py: rows by JSON give the same matrix.
    """
    if source not in models or len(models) < 2:
        found = f"{source!r} of {sorted(models)}"
        raise InputError("models", "two or more, the source among them", found, "Give {'a': model_a, 'b': model_b}.")
    if not regions:
        raise InputError("regions", "at least one", "none", "Give {'whole': None}.")
    clean = {name: logits_of(model, x) for name, model in models.items()}
    row = started(source, clean, y, seed=seed) | {"attack": REGIONAL, "steps": steps, "step": step, "loss": loss}
    target = target_classes(clean[source].shape[1], y, seed)
    rows = torch.tensor(row["correct"][source], device=x.device).nonzero()[:, 0]
    others = {name: model for name, model in models.items() if name != source}
    for name, place in regions.items():
        mask = mask_of(place, models[source], x, y, generator(seed, "region"))
        shown = int((rows < examples).sum()) if x.dim() == 4 and x.shape[1] in (1, 3) else 0
        found = regional(
            models[source], x[rows], y[rows], region=mask if mask is None or len(mask) == 1 else mask[rows], seed=seed,
            watched=others, stop=stop, check=check, steps=steps, step=step, loss=loss, target=target[rows], points=shown,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        if progress is not None and len(rows) < len(x):
            progress(len(x) - len(rows))
        row["target"] = target.tolist()
        row["regions"][name] = {"area": 1.0 if mask is None else area(mask, x.shape)} | _spread(found, rows, len(x))
        if shown and found.point is not None:
            points = x[:examples].clone()
            points[rows[:shown]] = found.point
            row["regions"][name]["examples"] = [base64.b64encode(file).decode() for file in encoded(points)]
    return row


def started(source: str, clean: Mapping[str, Tensor], y: Tensor, *, seed: int) -> dict[str, Any]:
    """What a row holds of the clean images, by their logits.

    Raises:
        InputError: models of other classes, labels that they do not have.
    """
    for name, logits in clean.items():
        if logits.shape != clean[source].shape:
            found = f"shape {tuple(logits.shape)}"
            remedy = "All models must name the same classes and accept these images; wrap a resize around it."
            raise InputError("models", f"logits of shape {tuple(clean[source].shape)} from {name!r}", found, remedy)
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < clean[source].shape[1]:
        found = f"labels from {int(y.min())} to {int(y.max())}"
        raise InputError("y", f"labels below {clean[source].shape[1]}", found, "Number them as the models do.")
    return {
        "source": source, "models": list(clean), "n": len(y), "seed": seed, "regions": {},
        "correct": {name: (given(logits) == y).tolist() for name, logits in clean.items()},
        "margin": {name: clean_margin(logits, y).tolist() for name, logits in clean.items()},
    }  # fmt: skip


def given(logits: Float[Tensor, "n k"]) -> Int[Tensor, " n"]:
    """The classes that logits give; -1 where they are not finite."""
    return torch.where(torch.isfinite(logits).all(1), logits.argmax(1), -1)


def _spread(found: Regional, rows: Tensor, n: int) -> dict[str, Any]:
    """What was found of some images, in the places of all; the others are those that the source gets wrong as they are."""

    def put(values: list[Any], other: Any) -> list[Any]:
        whole = [other] * n
        for k, value in zip(rows.tolist(), values, strict=True):
            whole[k] = value
        return whole

    def event(of: Event, other: int) -> dict[str, Any]:
        known = of_event(of)
        return {key: put(value, other if key == "first" else None) for key, value in known.items()}

    return {
        "left": event(found.left, 0),
        "reached": event(found.reached, NEVER),
        "end": {name: put(values, 0.0) for name, values in of_norms(found.norms).items()},
        "to": {
            name: event(seen.transfer, NEVER)
            | {k: None if t is None else put(t.tolist(), False) for k, t in (("fixed", seen.fixed), ("aimed", seen.aimed))}
            for name, seen in found.watched.items()
        },
        "vanishing": int(found.vanishing.sum()), "saturated": int(found.saturated.sum()),
        "calls": [found.calls.forward, found.calls.backward], "checks": found.checks.forward, "examples": [],
    }  # fmt: skip


def of_event(event: Event) -> dict[str, Any]:
    """An event in numbers and lists."""
    return {"first": event.first.tolist()} | of_norms(event.norms)


def of_norms(sizes: Norms) -> dict[str, Any]:
    """Norms in lists; infinite ones are None."""
    return {name: [v if math.isfinite(v) else None for v in values.tolist()] for name, values in vars(sizes).items()}
