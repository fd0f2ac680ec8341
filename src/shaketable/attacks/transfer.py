"""Transfer between models: of the perturbations made on each, which fool the others (Ozbulak et al. 2020)."""

import base64
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from ..core.errors import InputError
from ..core.seeds import generator
from .eight_bit import encoded
from .events import Event, Norms
from .masks import area
from .regional import regional
from .regions import mask_of
from .towards import TargetLoss
from .transfer_matrix import Transfer, collected

WHOLE = "whole"


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

    Cost: for each source and region, `regional` once, however many the targets.
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
    examples = examples if x.dim() == 4 and x.shape[1] in (1, 3) else 0
    others = {name: model for name, model in models.items() if name != source}
    row: dict[str, Any] = {
        "source": source, "models": list(models), "n": len(x), "seed": seed, "attack": "regional", "steps": steps,
        "step": step, "loss": loss, "regions": {},
    }  # fmt: skip
    for name, place in regions.items():
        mask = mask_of(place, models[source], x, y, generator(seed, "region"))
        found = regional(
            models[source], x, y, region=mask, seed=seed, watched=others, stop=stop, check=check, steps=steps, step=step,
            loss=loss, points=examples, batch_size=batch_size, progress=progress,
        )  # fmt: skip
        row["target"] = found.target.tolist()
        row["correct"] = {source: found.correct.tolist()} | {k: v.correct.tolist() for k, v in found.watched.items()}
        row["margin"] = {source: found.margin.tolist()} | {k: v.margin.tolist() for k, v in found.watched.items()}
        row["regions"][name] = {
            "area": 1.0 if mask is None else area(mask, x.shape),
            "left": of_event(found.left),
            "reached": of_event(found.reached),
            "end": of_norms(found.norms),
            "to": {
                k: of_event(v.transfer)
                | {key: None if t is None else t.tolist() for key, t in (("fixed", v.fixed), ("aimed", v.aimed))}
                for k, v in found.watched.items()
            },
            "vanishing": int(found.vanishing.sum()),
            "saturated": int(found.saturated.sum()),
            "calls": [found.calls.forward, found.calls.backward],
            "checks": found.checks.forward,
            "examples": [] if found.point is None else [base64.b64encode(f).decode() for f in encoded(found.point)],
        }
    return row


def of_event(event: Event) -> dict[str, Any]:
    """An event in numbers and lists."""
    return {"first": event.first.tolist()} | of_norms(event.norms)


def of_norms(sizes: Norms) -> dict[str, Any]:
    """Norms in lists; infinite ones are None."""
    return {name: [v if math.isfinite(v) else None for v in values.tolist()] for name, values in vars(sizes).items()}
