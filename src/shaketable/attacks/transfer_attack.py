"""Transfer of what any attack finds in its ball, at its end: to set beside the paper's attack in the same regions."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core.ball import Ball
from ..core.errors import InputError
from ..core.seeds import generator
from .attack import Attack
from .eight_bit import encoded
from .evaluate import evaluate
from .events import NEVER, Event, Norms, norms
from .masks import area
from .regions import mask_of
from .transfer import given, of_event, of_norms, started
from .verdicts import logits_of


def attack_row(
    source: str,
    models: Mapping[str, Any],
    x: Float[Tensor, "n ..."],
    y: Int[Tensor, " n"],
    *,
    regions: Mapping[str, Any],
    attack: Attack,
    name: str,
    within: Ball,
    seed: int,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
    examples: int = 0,
) -> dict[str, Any]:
    """One source's row of a transfer matrix, as `transfer_row` has it, for an attack within a ball.

    The attack is run on every image to its end, also on those that already fool the source: what fools a model by a hair
    seldom fools another. Nothing but the end is known: "some iterate" is the last one, and no class is led to.

    Args:
        attack, within: any attack, and its ball, whose mask is the region.
        name: of the attack, which the matrix has.
        others: see `transfer_row`.

    Cost: for each region the attack on every image of the source, and 2 forward passes an image of every model.
    Raises:
        InputError: what `evaluate` and `transfer_row` raise; an attack that leaves its ball.

    Checked by tests/attacks/test_transfer_attack.py.
    """
    if source not in models or len(models) < 2 or not regions:
        found = f"{source!r} of {sorted(models)} in {list(regions)}"
        raise InputError("models", "two or more, the source among them, and a region", found, "Name them.")
    clean = {model: logits_of(models[model], x) for model in models}
    right = {model: given(logits) == y for model, logits in clean.items()}
    row = started(source, clean, y, seed=seed) | {"attack": name, "steps": 0, "step": 0.0, "loss": ""}
    for place, region in regions.items():
        mask = mask_of(region, models[source], x, y, generator(seed, "region"))
        found = evaluate(
            models[source], x, y, within=replace(within, mask=mask), attack=attack, seed=seed, measure="loss", points=True,
            batch_size=batch_size, progress=progress,
        )  # fmt: skip
        assert found.points is not None
        points = found.points.to(x)
        sizes = norms(points, x, None if mask is None else mask.expand_as(x))
        after = {model: given(logits_of(models[model], points)) == y for model in models}
        events = {model: _event(right[model], after[model], sizes) for model in models}
        shown = points[: examples if x.dim() == 4 and x.shape[1] in (1, 3) else 0]
        row["regions"][place] = {
            "area": 1.0 if mask is None else area(mask, x.shape),
            "left": of_event(events[source]),
            "reached": of_event(_event(right[source], torch.ones_like(right[source]), sizes)),
            "end": of_norms(sizes),
            "to": {
                model: of_event(events[model]) | {"fixed": (~after[model]).tolist(), "aimed": None}
                for model in models if model != source
            },
            "vanishing": sum(f.count for f in found.findings if f.code in ("no-gradient", "vanishing-gradient")),
            "saturated": 0, "calls": [found.calls.forward, found.calls.backward], "checks": 2 * (len(models) - 1) * len(x),
            "examples": [base64.b64encode(file).decode() for file in encoded(shown)] if len(shown) else [],
        }  # fmt: skip
    return row


def _event(right: Tensor, after: Tensor, sizes: Norms) -> Event:
    """That a model errs: on the clean image (0), at the end (1), never."""
    first = torch.where(right, torch.where(after, NEVER, 1), 0)
    known = {
        name: torch.where(first == 1, size, torch.where(first == 0, 0.0, torch.inf))
        for name, size in vars(sizes).items()
    }
    return Event(first, Norms(**known), None)
