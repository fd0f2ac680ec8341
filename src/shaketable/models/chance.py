"""Whether an accuracy is above chance, and what is predicted instead."""

import torch
from jaxtyping import Int
from torch import Tensor

from shaketable.core.errors import ModelError
from shaketable.stats import Rate, binomial_p

LEVEL, QUARTER = 0.01, 0.25


def chance(predicted: Int[Tensor, " n"], y: Int[Tensor, " n"], classes: int) -> float:
    """The accuracy that predictions with the same shares would have if they did not depend on the image.

    This is the chance agreement of Cohen's kappa (1960): a constant answer is at chance however frequent its class is.
    If all labels are equal it would be the accuracy itself, so it is 1 / classes then.
    """
    said = torch.bincount(predicted, minlength=classes).double() / len(y)
    true = torch.bincount(y, minlength=classes).double() / len(y)
    return min(1.0, float((said * true).sum())) if float(true.max()) < 1 else 1 / classes


def above_chance(predicted: Int[Tensor, " n"], y: Int[Tensor, " n"], classes: int) -> bool:
    """Whether the accuracy is significantly above chance: exact one-sided binomial test, p < .01."""
    hits = int((predicted == y).sum())
    return binomial_p(hits, len(y), chance(predicted, y, classes)) < LEVEL


def check_chance(
    predicted: Int[Tensor, " n"], y: Int[Tensor, " n"], classes: int, names: tuple[str, ...] | None
) -> None:
    """Stop if a model is no better than chance.

    Raises:
        ModelError: the accuracy is not significantly above `chance`, and its 95 % interval ends below a quarter of the
            way from there to 1, so that too few images stop nothing. It names the class that is mostly predicted.

    Cost: no passes. Checked by tests/models/test_contract.py.
    """
    rate, level = Rate(int((predicted == y).sum()), len(y)), chance(predicted, y, classes)
    if rate.interval[1] >= level + QUARTER * (1 - level) or above_chance(predicted, y, classes):
        return
    counts = torch.bincount(predicted, minlength=classes)
    top = int(counts.argmax())
    found = f"{rate}; {_name(top, names)} is predicted for {100 * int(counts[top]) / len(y):.0f} % of the images"
    remedy = "Check weights, normalisation and labels; for a model with fresh weights say trained=False."
    raise ModelError("model, y", f"an accuracy above chance, {100 * level:.1f} %", found, remedy)


def check_order(predicted: Int[Tensor, " n"], y: Int[Tensor, " n"], names: tuple[str, ...] | None) -> None:
    """Stop if the labels are in another order than the model's classes.

    Raises:
        ModelError: with 5 images a class or more, every class's most frequent prediction is another class's for most
            classes, each class's is a different one, and together they are right for half of the images or more,
            and for 5 points more than the labels as they are.

    Cost: no passes. Checked by tests/models/test_contract.py.
    """
    present, rows = y.unique(return_inverse=True)
    heads, columns = predicted.unique(return_inverse=True)
    if len(present) < 2 or len(y) < 5 * len(present):
        return
    table = torch.zeros(len(present), len(heads), dtype=torch.long, device=y.device)
    table.index_put_((rows, columns), torch.ones_like(rows), accumulate=True)
    counts, best = table.max(1)
    stands = {int(a): int(heads[b]) for a, b in zip(present, best, strict=True)}
    moved = {a: b for a, b in stands.items() if a != b}
    renamed, now = int(counts.sum()) / len(y), float((predicted == y).double().mean())
    if len(set(stands.values())) < len(stands) or 2 * len(moved) <= len(stands) or renamed < max(0.5, now + 0.05):
        return
    pairs = ", ".join(f"{_name(a, names)} as {b}" for a, b in list(moved.items())[:3])
    found = f"{100 * now:.1f} % as they are and {100 * renamed:.1f} % renumbered: {pairs}{', …' * (len(moved) > 3)}"
    remedy = "Bring the labels into the model's order (--labels gives the model's), or renumber y."
    raise ModelError("y", "labels in the order of the model's classes", found, remedy)


def _name(index: int, names: tuple[str, ...] | None) -> str:
    return f"class {index}" + (f" ({names[index]!r})" if names is not None else "")
