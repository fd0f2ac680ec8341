"""What transfer depends on: each figure counted again by hand from the matrix's rows."""

from typing import Any

import pytest
import torch

from shaketable.attacks import transfer
from shaketable.attacks.transfer_causes import by_margin, by_step, by_target, carriers
from shaketable.attacks.transfer_matrix import Transfer
from shaketable.core import InputError, generator


@pytest.fixture(scope="module")
def found() -> Transfer:
    source = torch.Generator().manual_seed(0)
    base = torch.randn(48, 4, generator=source)
    weights = {name: base + 0.4 * torch.randn(48, 4, generator=source) for name in ("a", "b", "c")}
    models: dict[str, Any] = {name: (lambda z, w=w: 4 * (z - 0.5).flatten(1) @ w) for name, w in weights.items()}
    x = torch.rand(60, 3, 4, 4, generator=generator(0))
    return transfer(models, x, models["a"](x).argmax(1), regions={"whole": None, "c": "centre:0.3"}, seed=0, steps=20)


@pytest.mark.parametrize("region", ["whole", "c"])
def test_quarters_of_the_margin_make_the_whole(found: Transfer, region: str) -> None:
    quarters, whole = by_margin(found, region), by_margin(found, region, parts=1)[0]
    assert whole == found.mean(region)
    rates: list[list[float]] = [[], [], [], []]
    for s, t in found.pairs:
        rows = sorted((i for i, ok in enumerate(found.valid(s, t)) if ok), key=lambda i: found.margins[t][i])
        hits = found.hits(s, t, region)
        for part in range(4):
            mine = [hits[i] for rank, i in enumerate(rows) if rank * 4 // len(rows) == part]
            rates[part].append(sum(mine) / len(mine))
    for quarter, each in zip(quarters, rates, strict=True):
        assert quarter.value == pytest.approx(sum(each) / 6)
    assert quarters[0].value > quarters[3].value


def test_steps_lead_to_the_oracle(found: Transfer) -> None:
    shares = [by_step(found, step, "c").value for step in (1, 5, 20)]
    assert shares == sorted(shares)
    assert by_step(found, 20, "c") == found.mean("c", oracle=True)
    rates = []
    for s, t in found.pairs:
        first = [k for k, ok in zip(found.first(s, t, "c"), found.valid(s, t), strict=True) if ok]
        rates.append(sum(k is not None and k <= 5 for k in first) / len(first))
    assert shares[1] == pytest.approx(sum(rates) / 6)


def test_targets_make_the_mean(found: Transfer) -> None:
    rates = [by_target(found, name, "c").value for name in found.models]
    assert sum(rates) / 3 == pytest.approx(found.mean("c").value)
    assert rates[0] == pytest.approx((found.rate("b", "a", "c").value + found.rate("c", "a", "c").value) / 2)
    with pytest.raises(InputError, match="target"):
        by_target(found, "d", "c")


def test_a_few_images_carry_half(found: Transfer) -> None:
    counts = torch.tensor([found.hits(s, t, "c") for s, t in found.pairs]).sum(0)
    half, fooling = carriers(found, "c")
    ordered = counts.sort(descending=True).values
    assert 2 * ordered[:half].sum() >= counts.sum() > 2 * ordered[: half - 1].sum()
    assert fooling == int((counts > 0).sum())
    assert 0 < half < fooling <= 60
    with pytest.raises(InputError, match="parts"):
        by_margin(found, "c", parts=0)
