"""Transfer: the matrix against counting by hand, rows apart, paired norms, survival, intervals over images."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats
from torch import Tensor

from shaketable.attacks.regional import regional
from shaketable.attacks.survival import survival
from shaketable.attacks.transfer import transfer, transfer_row
from shaketable.attacks.transfer_causes import by_margin, by_step, by_target
from shaketable.attacks.transfer_matrix import Transfer, collected
from shaketable.core import InputError, generator
from shaketable.stats import Mean, Rate

Make = Callable[..., Any]
REGIONS = {"whole": None, "centre": "centre:0.3", "random": "random:0.3"}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """Three linear models that mostly agree."""
    source = torch.Generator().manual_seed(0)
    base = torch.randn(48, 3, generator=source)
    weights = {name: base + 0.5 * torch.randn(48, 3, generator=source) for name in ("a", "b", "c")}
    return {name: (lambda z, w=w: 8 * (z - 0.5).flatten(1) @ w) for name, w in weights.items()}


@pytest.fixture(scope="module")
def images(models: dict[str, Any]) -> tuple[Tensor, Tensor]:
    x = torch.rand(50, 3, 4, 4, generator=generator(0)) * 0.6 + 0.2
    return x, models["a"](x).argmax(1)


@pytest.fixture(scope="module")
def found(models: dict[str, Any], images: tuple[Tensor, Tensor]) -> Transfer:
    return transfer(models, *images, regions=REGIONS, seed=0, steps=20, batch_size=50)


def test_rates_are_counted_on_images_that_both_get_right(
    found: Transfer, models: dict[str, Any], images: tuple[Tensor, Tensor]
) -> None:
    x, y = images
    right = {name: model(x).argmax(1) == y for name, model in models.items()}
    assert found.models == ("a", "b", "c")
    assert len(found.pairs) == 6
    for region, place in REGIONS.items():
        for source, target in found.pairs:
            one = regional(models[source], x, y, region=place, seed=0, steps=20, check="every", batch_size=50)
            assert one.point is not None
            valid = right[source] & right[target]
            assert found.valid(source, target) == valid.tolist()
            fooled = models[target](one.point).argmax(1) != y
            assert found.rate(source, target, region) == Rate(int((fooled & valid).sum()), int(valid.sum()))
            aimed = models[target](one.point).argmax(1) == one.target
            assert found.rate(source, target, region, aimed=True) == Rate(int((aimed & valid).sum()), int(valid.sum()))
            oracle = found.rate(source, target, region, oracle=True)
            assert oracle.hits >= found.rate(source, target, region).hits
            assert oracle.hits == sum(k is not None for k in found.first(source, target, region))
            left = Rate(int((one.left.happened & right[source]).sum()), int(right[source].sum()))
            assert found.white_box(source, region) == left
    assert found.rate("a", "b", "whole").hits > found.rate("a", "b", "centre").hits > 0


def test_rows_are_separable_and_json(found: Transfer, models: dict[str, Any], images: tuple[Tensor, Tensor]) -> None:
    rows = [
        json.loads(json.dumps(
            transfer_row(name, models, *images, regions=REGIONS, seed=0, steps=20, batch_size=50), allow_nan=False
        ))
        for name in ("c", "a", "b")
    ]  # fmt: skip
    again = collected(rows)
    assert again.rows == found.rows
    assert str(again) == str(found)
    with pytest.raises(InputError, match="one a source"):
        collected([rows[0], rows[0]])
    with pytest.raises(InputError, match="one seed"):
        collected([rows[0], rows[1] | {"seed": 1}])


def test_the_mean_over_pairs_has_an_interval_over_images(found: Transfer) -> None:
    rates = [found.rate(s, t, "centre", oracle=True).value for s, t in found.pairs]
    mean = found.mean("centre", oracle=True)
    assert mean.value == pytest.approx(sum(rates) / 6)
    assert mean.low < mean.value < mean.high
    hits = sum(found.rate(s, t, "centre", oracle=True).hits for s, t in found.pairs)
    cells = Rate(hits, sum(found.rate(s, t, "centre").n for s, t in found.pairs))
    assert mean.high - mean.low > cells.interval[1] - cells.interval[0]  # pairs share images


def by_hand(hits: dict[tuple[str, str], list[bool]], right: dict[str, list[bool]]) -> Transfer:
    """A matrix of which the outcomes at the last iterate are given; norms are 1."""
    n, models = len(next(iter(right.values()))), list(right)
    norms = {name: [1.0] * n for name in ("l0", "l0_inside", "l2", "linf")}
    rows = [
        {
            "source": s, "models": models, "n": n, "seed": 0, "attack": "regional", "steps": 5, "step": 0.1, "loss": "ce",
            "correct": right, "margin": {name: [1.0] * n for name in models},
            "regions": {"whole": {"area": 1.0, "left": {"first": [2] * n} | norms, "to": {
                t: {"first": [3 if hit else -1 for hit in hits[s, t]], "fixed": hits[s, t], "aimed": hits[s, t]} | norms
                for t in models if t != s
            }}},
        }
        for s in models
    ]  # fmt: skip
    rows = [row | {"regions": row["regions"] | {"again": row["regions"]["whole"]}} for row in rows]
    return collected(rows)


PAIRS = [(s, t) for s in "abc" for t in "abc" if s != t]


@pytest.mark.parametrize("hit", [False, True])
@pytest.mark.parametrize("n", [1, 2, 20])
def test_rates_of_0_and_1_have_wilson_intervals_of_the_images(hit: bool, n: int) -> None:
    """As many draws as images that some pair counts: here all but the last, which no pair gets right."""
    right = {"a": [True] * n + [False], "b": [True] * n + [False], "c": [True] * n + [True]}
    made = by_hand({pair: [hit] * (n + 1) for pair in PAIRS}, right)
    expected = Rate(n if hit else 0, n)
    for mean in (
        made.mean("whole"), made.mean("whole", oracle=True), made.mean("whole", aimed=True), by_target(made, "a", "whole"),
        by_step(made, 5, "whole"), by_margin(made, "whole", parts=1)[0],
    ):  # fmt: skip
        assert (mean.value, (mean.low, mean.high), mean.n) == (float(hit), expected.interval, n)
        assert mean.high - mean.low > 0.1


def test_what_shows_no_spread_is_unknown() -> None:
    """One image on which pairs differ, images that all fool the same targets, a ratio of one image, and no image."""
    right = {name: [True] * 20 for name in "abc"}
    outcomes = {(s, t): t == "a" for s, t in PAIRS}
    one = by_hand({pair: [hit] for pair, hit in outcomes.items()}, {name: [True] for name in "abc"})
    many = by_hand({pair: [hit] * 20 for pair, hit in outcomes.items()}, right)
    for made in (one, many):
        mean = made.mean("whole")
        assert mean.value == pytest.approx(1 / 3)
        assert (mean.low, mean.high) == (-math.inf, math.inf)
        ratio = made.ratio("again", "whole").value
        assert (ratio.low, ratio.value, ratio.high) == ((0.0, 1.0, math.inf) if made is one else (1.0, 1.0, 1.0))
        assert "mean over pairs 33.3 % (interval unknown)" in str(made)
        same = made.ratio("whole", "whole").value
        assert (same.low, same.value, same.high) == (1.0, 1.0, 1.0)
    none = by_hand({pair: [True] * 4 for pair in PAIRS}, {name: [False] * 4 for name in "abc"})
    assert none.mean("whole").n == 0
    assert math.isnan(none.mean("whole").high)
    assert math.isnan(none.ratio("whole", "whole").value.high)
    mixed = by_hand({pair: [k % 2 == 0 for k in range(20)] for pair in PAIRS}, right).mean("whole")
    assert 0.2 < mean_width(mixed) < 0.6


def mean_width(mean: Mean) -> float:
    assert mean.low < mean.value < mean.high
    return mean.high - mean.low


def test_ratios_are_paired_on_common_successes(found: Transfer) -> None:
    logs, common = [], 0
    for source, target in found.pairs:
        row = next(row for row in found.rows if row["source"] == source)
        a, b = (row["regions"][name]["to"][target] for name in ("centre", "whole"))
        for i, ok in enumerate(found.valid(source, target)):
            if ok and a["first"][i] > 0 and b["first"][i] > 0 and not a["first"][i] == b["first"][i] == 1:
                logs.append(math.log(a["l2"][i] / b["l2"][i]))
                common += 1
    ratio = found.ratio("centre", "whole")
    assert ratio.common == common > 10
    assert ratio.value.value == pytest.approx(math.exp(sum(logs) / common))
    assert ratio.value.low < ratio.value.value < ratio.value.high
    assert ratio.first.hits < ratio.second.hits
    itself = found.ratio("whole", "whole", norm="linf").value
    assert (itself.low, itself.value, itself.high) == (1.0, 1.0, 1.0)
    assert found.ratio("centre", "whole", norm="l0").value.high < 0.4
    left = found.ratio("centre", "whole", what="left", norm="linf")
    assert left.value.value > 1
    assert left.first.n == sum(sum(row["correct"][row["source"]]) for row in found.rows)


def test_successes_inside_a_claimed_ball_are_counted(
    found: Transfer, models: dict[str, Any], images: tuple[Tensor, Tensor]
) -> None:
    x, y = images
    one = regional(models["b"], x, y, region="centre:0.3", seed=0, steps=20, batch_size=50)
    mine = one.correct & (one.left.first > 0)
    for steps in (3, 8, 20):
        inside = found.inside("b", steps / 255, "centre")
        assert inside == Rate(int((mine & (one.left.norms.linf <= (steps + 0.01) / 255)).sum()), int(mine.sum()))
    assert 0 < found.inside("b", 8 / 255, "centre").hits < found.inside("b", 20 / 255, "centre").hits
    assert found.inside("b", 20 / 255, "centre", what="reached").n <= int(mine.sum())


def test_failures_are_censored_norms(found: Transfer) -> None:
    curve = found.survival("centre", norm="l2")
    total = sum(found.rate(s, t, "centre").n for s, t in found.pairs)
    hits = sum(found.rate(s, t, "centre", oracle=True).hits for s, t in found.pairs)
    assert (curve.fallen, curve.censored) == (hits, total - hits)
    assert curve.censored > 0
    assert curve(0.0) == 1.0
    assert curve.shares == tuple(sorted(curve.shares, reverse=True))
    assert found.survival("whole", norm="l0").median <= 1.0


@settings(max_examples=30, deadline=None)
@given(some.lists(some.tuples(some.integers(0, 9), some.booleans()), min_size=1, max_size=30))
def test_survival_is_the_kaplan_meier_estimate(pairs: list[tuple[int, bool]]) -> None:
    sizes, fell = [float(size) for size, _ in pairs], [down for _, down in pairs]
    curve = survival(sizes, fell)
    peer = stats.ecdf(stats.CensoredData.right_censored(sizes, [not down for down in fell])).sf
    for size in np.arange(-0.5, 10.5, 0.5):
        assert curve(size) == pytest.approx(float(peer.evaluate(size)), abs=1e-12)


def test_images_may_be_dropped_at_transfer(
    found: Transfer, models: dict[str, Any], images: tuple[Tensor, Tensor]
) -> None:
    short = transfer(models, *images, region="centre:0.3", seed=0, steps=20, batch_size=50, stop="first-transfer")
    assert short.regions == ("region",)
    for source, target in short.pairs:
        assert short.first(source, target) == found.first(source, target, "centre")
    assert short.rows[0]["regions"]["region"]["calls"] < found.rows[0]["regions"]["centre"]["calls"]
    with pytest.raises(InputError, match="fixed"):
        short.rate("a", "b")
    assert "oracle" in str(short)
    assert "fixed budget" not in str(short)


def test_it_prints_a_matrix_to_read(found: Transfer) -> None:
    text = str(found)
    assert "centre: 25.0 % of the pixels, 50 images, 20 steps of 0.0039" in text  # the nearest that 16 pixels allow
    assert text.count("source \\ target") == 6
    rate = found.rate("a", "c", "random")
    assert f"{rate.hits}/{rate.n}" in text
    assert repr(found) == "Transfer(3 models, 3 regions, 50 images)"


def test_models_of_other_sizes_are_wrapped(models: dict[str, Any], images: tuple[Tensor, Tensor]) -> None:
    """A model that takes 2 x 2 images gets its resize around it, and is attacked through it."""
    weight = torch.randn(12, 3, generator=generator(1))
    wrapped = {"a": models["a"], "small": lambda z: torch.nn.functional.avg_pool2d(z, 2).flatten(1) @ weight}
    found = transfer(wrapped, *images, seed=0, steps=3)
    assert found.regions == ("whole",)
    assert len(found.pairs) == 2


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"models": {"a": lambda z: z.flatten(1)[:, :3]}}, "models"),
        ({"regions": {}}, "regions"),
        ({"region": "whole", "regions": {"whole": None}}, "region"),
        ({"regions": {"c": "circel:0.5,0.5,0.2"}}, "region"),
    ],
)
def test_mistakes_are_named(
    models: dict[str, Any], images: tuple[Tensor, Tensor], change: dict[str, Any], argument: str
) -> None:
    given = {"models": models, "seed": 0, "steps": 2} | change
    with pytest.raises(InputError) as caught:
        transfer(given.pop("models"), *images, **given)
    assert caught.value.argument == argument


def test_classes_must_agree(models: dict[str, Any], images: tuple[Tensor, Tensor], found: Transfer) -> None:
    with pytest.raises(InputError, match="same classes"):
        transfer({"a": models["a"], "two": lambda z: z.flatten(1)[:, :2]}, *images, seed=0, steps=2)
    with pytest.raises(InputError, match="Did you mean 'centre'"):
        found.rate("a", "b", "center")
