"""The conformance suite of anomaly detectors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.errors import ShaketableError
from .outcome import require, run


def check_detector(make: Callable[..., Any], *, n: int = 120) -> tuple[str, ...]:
    """What comparisons of detectors rely on: `make(seed=0)` has `fit(images)`, which returns it, and `score_samples(images)`.

    Args:
        make: makes an unfitted detector of a seed.
        n: images that it is fitted on: (n, 1, 8, 8) in [0, 1], a bright bar and noise.

    Checks: scores of shape (n,), finite; higher for images that are plainly unlike (noise without the bar) on average; the same
    for the same seed; of an image alone as in a batch; fitting again forgets; images and the global random state untouched;
    scoring before fitting, and NaN, are errors of its own and no riddle.

    Returns: the names of the checks. Raises: ConformanceError.
    """
    train, new, odd = _images(n, 0), _images(20, 1), torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    checks: dict[str, Callable[[], None]] = {
        "returns itself from fit": lambda: require(_fitted(make, train) is not None, "fit returned None"),
        "gives one finite score an image": lambda: _scores(make, train, new),
        "scores what is unlike higher": lambda: _higher(make, train, new, odd),
        "gives the same for the same seed": lambda: _repeats(make, train, new),
        "scores an image alone as in a batch": lambda: _alone(make, train, new),
        "forgets when it is fitted again": lambda: _forgets(make, train, new, odd),
        "touches nothing": lambda: _touches(make, train, new),
        "refuses to score before it is fitted": lambda: _refuses(lambda: make(seed=0).score_samples(new)),
        "refuses NaN": lambda: _refuses(lambda: make(seed=0).fit(torch.full_like(train, torch.nan))),
    }
    return run(f"detector {getattr(make, '__name__', make)!r}"[:120], checks)


def _images(n: int, seed: int) -> Tensor:
    x = 0.1 * torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    x[:, :, 3:5] += 0.7
    return x


def _fitted(make: Callable[..., Any], train: Tensor, seed: int = 0) -> Any:
    return make(seed=seed).fit(train)


def _of(detector: Any, x: Tensor) -> Tensor:
    return torch.as_tensor(detector.score_samples(x)).double()


def _scores(make: Callable[..., Any], train: Tensor, new: Tensor) -> None:
    found = _of(_fitted(make, train), new)
    require(found.shape == (len(new),), f"shape {tuple(found.shape)} for {len(new)} images")
    require(bool(torch.isfinite(found).all()), "scores that are not finite")


def _higher(make: Callable[..., Any], train: Tensor, new: Tensor, odd: Tensor) -> None:
    detector = _fitted(make, train)
    usual, other = float(_of(detector, new).mean()), float(_of(detector, odd).mean())
    require(
        other > usual, f"a mean score of {other:g} where ordinary images have {usual:g}: higher must be more anomalous"
    )


def _repeats(make: Callable[..., Any], train: Tensor, new: Tensor) -> None:
    one, two = (_of(_fitted(make, train), new) for _ in range(2))
    require(torch.equal(one, two), f"scores differ by up to {float((one - two).abs().max()):g}")


def _alone(make: Callable[..., Any], train: Tensor, new: Tensor) -> None:
    detector = _fitted(make, train)
    whole, alone = _of(detector, new), torch.cat([_of(detector, new[k : k + 1]) for k in range(5)])
    require(torch.allclose(whole[:5], alone, rtol=1e-4, atol=1e-6), "the scores depend on the rest of the batch")


def _forgets(make: Callable[..., Any], train: Tensor, new: Tensor, odd: Tensor) -> None:
    once, again = _fitted(make, train), make(seed=0).fit(odd.repeat(6, 1, 1, 1)).fit(train)
    require(torch.equal(_of(once, new), _of(again, new)), "what it was fitted on before has an effect")


def _touches(make: Callable[..., Any], train: Tensor, new: Tensor) -> None:
    before, random = (train.clone(), new.clone()), torch.get_rng_state()
    _of(_fitted(make, train), new)
    require(torch.equal(before[0], train) and torch.equal(before[1], new), "it changes the images")
    require(torch.equal(random, torch.get_rng_state()), "it draws from the global random state")


def _refuses(call: Callable[[], Any]) -> None:
    try:
        call()
    except (ShaketableError, ValueError):
        return
    except Exception as error:
        require(False, f"{type(error).__name__} instead of a ValueError that says what to do")
    require(False, "no error")
