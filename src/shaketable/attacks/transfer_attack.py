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
from ..core.record import Calls
from ..core.seeds import generator
from .attack import Attack
from .eight_bit import encoded
from .evaluate import evaluate
from .evaluation import Evaluation
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

    The attack is run to its end on every image that the source gets right, also on those that already fool it: what fools a
    model by a hair seldom fools another. The others stay as they are. Nothing but the end is known: "some iterate" is the
    last one, and no class is led to.

    Args:
        attack, within: any attack, and its ball, whose mask is the region.
        name: of the attack, which the matrix has.
        others: see `transfer_row`.

    Cost: for each region the attack on the images that the source gets right, and 1 forward pass of every model on each of
    these; besides, 1 of every model on every image.
    Raises:
        InputError: what `evaluate` and `transfer_row` raise; an attack that leaves its ball.

    Checked by tests/attacks/test_transfer_attack.py.
    """
    if source not in models or len(models) < 2 or not regions:
        found = f"{source!r} of {sorted(models)} in {list(regions)}"
        raise InputError("models", "two or more, the source among them, and a region", found, "Name them.")
    clean = {model: logits_of(models[model], x) for model in models}
    right = {model: given(logits) == y for model, logits in clean.items()}
    rows = right[source].nonzero()[:, 0]
    row = started(source, clean, y, seed=seed) | {"attack": name, "steps": 0, "step": 0.0, "loss": ""}
    for place, region in regions.items():
        mask = mask_of(region, models[source], x, y, generator(seed, "region"))
        ball = replace(within, mask=mask if mask is None or len(mask) == 1 else mask[rows])
        points, found = x.clone(), None
        if len(rows):
            found = evaluate(
                models[source], x[rows], y[rows], within=ball, attack=attack, seed=seed, measure="loss", points=True,
                batch_size=batch_size, progress=progress,
            )  # fmt: skip
            assert found.points is not None
            points[rows] = found.points.to(x)
        if progress is not None and len(rows) < len(x):
            progress(len(x) - len(rows))
        sizes = norms(points, x, None if mask is None else mask.expand_as(x))
        after = {model: ok.clone() for model, ok in right.items()}
        for model, ok in after.items():
            ok[rows] = given(logits_of(models[model], points[rows])) == y[rows]
        events = {model: _event(right[model], after[model], sizes) for model in models}
        shown = points[: examples if x.dim() == 4 and x.shape[1] in (1, 3) else 0]
        row["regions"][place] = {
            **_spent(found, (len(models) - 1) * (len(x) + len(rows))),
            "area": 1.0 if mask is None else area(mask, x.shape),
            "left": of_event(events[source]),
            "reached": of_event(_event(right[source], torch.ones_like(right[source]), sizes)),
            "end": of_norms(sizes),
            "to": {
                model: of_event(events[model]) | {"fixed": (~after[model]).tolist(), "aimed": None}
                for model in models if model != source
            },
            "examples": [base64.b64encode(file).decode() for file in encoded(shown)] if len(shown) else [],
        }  # fmt: skip
    return row


def _spent(found: Evaluation | None, checks: int) -> dict[str, Any]:
    """The passes, and the images without a gradient; None where nothing was attacked."""
    none, calls = ("no-gradient", "vanishing-gradient"), Calls() if found is None else found.calls
    vanishing = 0 if found is None else sum(f.count for f in found.findings if f.code in none)
    return {"vanishing": vanishing, "saturated": 0, "calls": [calls.forward, calls.backward], "checks": checks}


def _event(right: Tensor, after: Tensor, sizes: Norms) -> Event:
    """That a model errs: on the clean image (0), at the end (1), never."""
    first = torch.where(right, torch.where(after, NEVER, 1), 0)
    known = {
        name: torch.where(first == 1, size, torch.where(first == 0, 0.0, torch.inf))
        for name, size in vars(sizes).items()
    }
    return Event(first, Norms(**known), None)
