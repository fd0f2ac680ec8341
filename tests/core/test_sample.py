"""`Ball.sample`: the laws of its draws, by Kolmogorov-Smirnov tests with fixed seeds."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from shaketable import core as st
from shaketable.core.norms import draw

ROWS, ENTRIES, RADIUS = 4000, 5, 0.7
ORDER = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
KEEPS = 1e-3  # a true law fails one test of a thousand; the seeds are fixed, so it fails none here


def sample(norm: str, law: str, **fields: Any) -> Tensor:
    origin = torch.zeros(ROWS, ENTRIES, dtype=torch.float64)
    ball = st.Ball(norm, fields.pop("radius", RADIUS), **fields).on(origin)
    return ball.sample(origin, st.generator(3, norm, law), law)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("masked", [False, True])
def test_radius_follows_the_law(norm: str, masked: bool) -> None:
    mask = torch.tensor([1, 0, 1, 1, 0]) if masked else None
    inside = 3 if masked else ENTRIES
    ratio = {}
    for law in ("ball", "sphere", "radius"):
        found = sample(norm, law, mask=mask)
        if masked:
            assert not bool(found[:, [1, 4]].any())
        ratio[law] = torch.linalg.vector_norm(found, ORDER[norm], 1) / RADIUS
    assert torch.allclose(ratio["sphere"], torch.ones(ROWS, dtype=torch.float64), rtol=1e-12)
    assert stats.kstest(ratio["radius"], "uniform").pvalue > KEEPS
    assert stats.kstest(ratio["ball"], lambda r: r**inside).pvalue > KEEPS


def test_directions_are_uniform() -> None:
    beta = stats.beta((ENTRIES - 1) / 2, (ENTRIES - 1) / 2)  # of a coordinate of the sphere, moved to [0, 1]
    for law in ("ball", "sphere", "radius"):
        round_ = sample("l2", law)
        cosine = round_[:, 0] / round_.norm(dim=1)
        assert stats.kstest((cosine + 1) / 2, beta.cdf).pvalue > KEEPS
        share = sample("l1", law).abs()
        assert stats.kstest(share[:, 2] / share.sum(1), stats.beta(1, ENTRIES - 1).cdf).pvalue > KEEPS
    for norm in ("l2", "l1", "linf"):
        ups = int((sample(norm, "sphere") > 0).sum())
        assert stats.binomtest(ups, ROWS * ENTRIES).pvalue > KEEPS


def test_linf_ball_is_a_uniform_cube_and_its_sphere_has_equal_faces() -> None:
    cube = sample("linf", "ball")
    for column in cube.T:
        assert stats.kstest((column / RADIUS + 1) / 2, "uniform").pvalue > KEEPS
    faces = (sample("linf", "sphere").abs() / RADIUS).argmax(1)
    assert stats.chisquare(torch.bincount(faces, minlength=ENTRIES)).pvalue > KEEPS


def test_l0_draws_as_many_entries_anywhere() -> None:
    found = sample("l0", "ball", radius=2, mask=torch.tensor([1, 1, 0, 1, 1]))
    assert bool(((found != 0).sum(1) == 2).all())
    assert not bool(found[:, 2].any())
    assert stats.chisquare((found != 0).sum(0)[[0, 1, 3, 4]]).pvalue > KEEPS
    assert stats.kstest((found[found != 0] + 1) / 2, "uniform").pvalue > KEEPS
    wide = st.Ball("l0", 2, box=(-8, 8)).sample(torch.zeros(ROWS, ENTRIES), st.generator(0))
    assert 7.9 < float(wide.abs().max()) <= 8  # an entry may go anywhere in the box


def test_each_example_has_its_own_radius() -> None:
    origin, radius = torch.zeros(4, 3, 2, 2), torch.tensor([0.0, 0.1, 1.0, 5.0])
    for norm in ("linf", "l2", "l1"):
        found = st.Ball(norm, radius).sample(origin, st.generator(0), "sphere").flatten(1)
        assert torch.allclose(torch.linalg.vector_norm(found, ORDER[norm], 1), radius, rtol=1e-5)
    counted = st.Ball("l0", torch.tensor([0, 1, 2, 12])).sample(origin, st.generator(0)).flatten(1)
    assert (counted != 0).sum(1).tolist() == [0, 1, 2, 12]


@pytest.mark.parametrize("per", ["example", "element", "filter", "tensor", "all"])
def test_the_sphere_is_of_the_right_groups(per: str) -> None:
    origin = {"a": torch.ones(3, 4), "b": torch.ones(2) * 2}
    ball = st.Ball("l2", 0.5, per=per, relative=True)
    sizes = ball.size(ball.sample(origin, st.generator(1), "sphere"), origin)
    for size in [sizes] if isinstance(sizes, Tensor) else sizes.values():
        assert torch.allclose(size, torch.full_like(size, 0.5), rtol=1e-5)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_box_is_kept(norm: str) -> None:
    origin = torch.tensor([[0.0, 1.0, 0.5, 0.999]]).repeat(500, 1)
    found = st.Ball(norm, 3, box=(0, 1)).sample(origin, st.generator(0))
    point = (origin + found).clamp(0, 1)
    assert float((point - origin - found).abs().max()) <= 1.2e-7
    assert bool((found[:, 0] >= 0).all())
    assert bool((found[:, 1] <= 0).all())
    assert float(found.abs().max()) > 0.5


class _Extreme:
    """`torch.rand` with its extreme draws in place: the smallest number that it can give is 0."""

    def __init__(self) -> None:
        self.rand = torch.rand

    def __call__(self, *size: int, **options: Any) -> Tensor:
        numbers = self.rand(*size, **options)
        numbers[..., 0] = 0.0
        return numbers


def test_l1_survives_the_extreme_draws_of_the_uniform_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """-log(1 - |2 u - 1|) is infinite at u = 0, which float32 draws once in 2^24."""
    monkeypatch.setattr(torch, "rand", _Extreme())
    found = draw("l1", "sphere", torch.ones(50, 6), 1.0, st.generator(0))
    assert bool(torch.isfinite(found).all())
    assert torch.allclose(found.abs().sum(1), torch.ones(50))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_half_precision_draws_follow_float32(norm: str) -> None:
    origin = torch.zeros(8, 3000)
    fine = st.Ball(norm, 4).sample(origin, st.generator(5))
    coarse = st.Ball(norm, 4).sample(origin.bfloat16(), st.generator(5))
    assert coarse.dtype == torch.bfloat16
    assert torch.allclose(coarse.float(), fine, rtol=8e-3, atol=1e-6)


def test_the_seed_decides() -> None:
    origin = torch.zeros(3, 4)
    for norm in ("linf", "l2", "l1", "l0"):
        ball = st.Ball(norm, 2)
        assert torch.equal(ball.sample(origin, st.generator(1)), ball.sample(origin, st.generator(1)))
        assert not torch.equal(ball.sample(origin, st.generator(1)), ball.sample(origin, st.generator(2)))
