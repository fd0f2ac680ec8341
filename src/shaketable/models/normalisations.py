"""Which normalisation and channel order a model was trained with: named, if it is clearly another than the present one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from shaketable.core.errors import ModelError
from shaketable.stats import binomial_p

from .chance import above_chance

KNOWN: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "CIFAR-100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "SVHN": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "MNIST": ((0.1307,), (0.3081,)),
    "Fashion-MNIST": ((0.2860,), (0.3530,)),
}
_CAFFE = ((103.939 / 255, 116.779 / 255, 123.68 / 255), (1 / 255,) * 3)  # BGR, the mean subtracted from 0..255
SCREEN, SLICE, GAIN, LEVEL = 64, 256, 0.05, 0.01

Predict = Callable[[Float[Tensor, "n c h w"]], Float[Tensor, "n k"]]


@dataclass(frozen=True)
class Normalisation:
    """A guess at what the network wants to see: the image with its channels reversed or not, (x - mean) / std.

    Args:
        name: for people.
        mean, std: one number a channel.
        reverse: channels in the order blue, green, red.
        remedy: what to do if it is the right one.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reverse: bool = False
    remedy: str = ""

    def apply(self, x: Float[Tensor, "n c h w"], present: "Normalisation | None") -> Float[Tensor, "n c h w"]:
        """The input that makes the network see that, behind the normalisation that is present."""
        x = x.flip(1) if self.reverse else x
        seen = (x - _column(self.mean, x)) / _column(self.std, x)
        return seen if present is None else seen * _column(present.std, x) + _column(present.mean, x)


def present_in(model: nn.Module, x: Float[Tensor, "n c h w"]) -> Normalisation | None:
    """The first layer that computes (x - mean) / std, with its numbers, or None.

    Any module with such attributes counts (mean or mu; std, sigma or sd), if calling it on an image does compute that.
    """
    for module in model.modules():
        mean = next((getattr(module, name) for name in ("mean", "mu") if hasattr(module, name)), None)
        std = next((getattr(module, name) for name in ("std", "sigma", "sd") if hasattr(module, name)), None)
        means, stds = _numbers(mean, x.shape[1]), _numbers(std, x.shape[1])
        if means is None or stds is None:
            continue
        guess = Normalisation("the present normalisation", means, stds)
        try:
            out = module(x[:1].clone())
        except Exception:  # any layer of somebody else's may want other arguments: then it is not the one
            continue
        wanted = guess.apply(x[:1], None)
        if isinstance(out, Tensor) and out.shape == wanted.shape and torch.allclose(out, wanted, rtol=1e-3, atol=1e-4):
            return guess
    return None


def candidates(channels: int, present: Normalisation | None) -> list[Normalisation]:
    """The guesses worth trying for images of so many channels, without the present one."""
    zeros, ones, halves = (0.0,) * channels, (1.0,) * channels, (0.5,) * channels
    table = {name: stats for name, stats in KNOWN.items() if len(stats[0]) == channels}
    table |= {"[-1, 1]": (halves, halves), "0..255": (zeros, (1 / 255,) * channels)}
    if present is not None:
        table |= {"none": (zeros, ones)}
    current = present or Normalisation("none", zeros, ones)
    found = [Normalisation(name, mean, std, False, _flags(mean, std)) for name, (mean, std) in table.items()]
    if present is None:  # a model that normalises by itself, out of sight, although its network was trained without
        for name in [n for n, s in KNOWN.items() if len(s[0]) == channels] + ["[-1, 1]"]:
            mean, std = table[name]
            undone = tuple(-m / s for m, s in zip(mean, std, strict=True)), tuple(1 / s for s in std)
            remedy = "Take the normalisation out of the model: its network was trained without."
            found.append(Normalisation(f"none (the model applies {name}'s by itself)", *undone, False, remedy))
    if channels == 3:
        flip = "Reverse the channels before the model: x.flip(1)."
        name = "the same, with channels in BGR order"
        found.append(Normalisation(name, current.mean, current.std, True, flip))
        found.append(Normalisation("Caffe's (BGR, 0..255 less the mean)", *_CAFFE, True, f"{flip} {_flags(*_CAFFE)}"))
    return [c for c in found if c.reverse or not (_close(c.mean, current.mean) and _close(c.std, current.std))]


def check_normalisation(
    predict: Predict, model: nn.Module, x: Float[Tensor, "n c h w"], y: Int[Tensor, " n"], predicted: Int[Tensor, " n"]
) -> None:
    """Stop if another normalisation or channel order would gain 5 points or more, significantly.

    Args:
        predict: the model's logits without gradients.
        model: in which the present normalisation is looked for.
        x, y: images and labels, and `predicted`: the model's classes for them as it is.

    Raises:
        ModelError: naming the better one, both accuracies, the paired test's p value and what to do.

    Every guess is tried on at most 256 images, spread evenly: first on at most 64 of those that are wrong now, since only
    they can be gained, and on the others if the gain that is asked for is still within reach. The best one stops the job
    if it is above chance there, gains at least .05, and McNemar's exact one-sided test has p < .01 over the number of
    guesses. Cost: 4 to 13 guesses x the images that are wrong, 64 at most, and 256 for each that may gain enough.
    Checked by tests/models/test_contract.py.
    """
    present, right = present_in(model, x), predicted == y
    guesses = candidates(x.shape[1], present)
    level = LEVEL / len(guesses)
    many = _spread(len(x), SLICE, x.device)
    wrong = many[~right[many]]
    few = wrong[_spread(len(wrong), SCREEN, x.device)]
    least = max(math.ceil(GAIN * len(many)), math.floor(-math.log2(level)) + 1)  # of fewer, no test has such a p
    better: list[tuple[float, float, Normalisation]] = []
    for guess in guesses if len(wrong) >= least else []:
        gained = int((predict(guess.apply(x[few], present)).argmax(1) == y[few]).sum())
        if gained == 0 or gained + len(wrong) - len(few) < least:
            continue
        logits = predict(guess.apply(x[many], present))
        hits = logits.argmax(1) == y[many]
        gain, p = _gain(hits, right[many])
        if gain >= GAIN and p < level and above_chance(logits.argmax(1), y[many], logits.shape[1]):
            better.append((gain, p, guess))
    if not better:
        return
    gain, p, guess = max(better, key=lambda item: item[0])
    now, what = float(right[many].double().mean()), "none" if present is None else _show(present)
    raise ModelError(
        "x" if guess.reverse else "mean, std",
        f"the normalisation and channel order that suit the network: {guess.name} would give {100 * (now + gain):.1f} %",
        f"{what}, which gives {100 * now:.1f} % on the same {len(many)} images (paired test, p = {p:.1g})",
        guess.remedy,
    )


def _gain(hits: Bool[Tensor, " n"], before: Bool[Tensor, " n"]) -> tuple[float, float]:
    """The share of images gained, and McNemar's exact one-sided p value for it."""
    gained, lost = int((hits & ~before).sum()), int((~hits & before).sum())
    p = binomial_p(gained, gained + lost, 0.5)
    return (gained - lost) / len(hits), p


def _spread(n: int, most: int, device: torch.device) -> Int[Tensor, " k"]:
    """At most so many rows of n, evenly spread, since data sets are often sorted by class."""
    return torch.linspace(0, n - 1, min(n, most), dtype=torch.float64).round().long().to(device)


def _column(values: Sequence[float], x: Tensor) -> Tensor:
    return torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1)


def _numbers(value: object, channels: int) -> tuple[float, ...] | None:
    """One number a channel out of a number, a sequence or a tensor, or None."""
    if isinstance(value, Tensor):
        value = value.flatten().tolist()
    value = [value] if isinstance(value, int | float) else value
    if not isinstance(value, list | tuple) or not all(isinstance(v, int | float) for v in value):
        return None
    numbers = tuple(float(v) for v in value) * (channels if len(value) == 1 else 1)
    return numbers if len(numbers) == channels else None


def _close(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(abs(p - q) < 2e-3 for p, q in zip(a, b, strict=True))


def _flags(mean: Sequence[float], std: Sequence[float]) -> str:
    numbers = " ".join(f"{v:.6g}" for v in mean), " ".join(f"{v:.6g}" for v in std)
    return f"Load the model with --mean {numbers[0]} --std {numbers[1]}."


def _show(present: Normalisation) -> str:
    return f"mean {tuple(round(v, 4) for v in present.mean)}, std {tuple(round(v, 4) for v in present.std)}"
