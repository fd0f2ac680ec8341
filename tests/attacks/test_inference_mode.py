"""Under inference mode, with images and labels made in it, every attack finds what it finds outside, bit for bit."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaketable import attacks as st
from shaketable.core import Ball, generator

Make = Callable[..., Any]
Run = Callable[[nn.Module, Tensor, Tensor], Any]
BALL = Ball("linf", 0.012, box=(0, 1))
MEMBERS = (
    st.APGDAttack(steps=3),
    st.Averaged(st.APGDAttack("dlr-targeted", steps=3, targets=2), samples=2),
    st.FABAttack(targeted=True, steps=3),
    st.SquareAttack(queries=10),
)


def called(attack: st.Attack) -> Run:
    return lambda model, x, y: attack(model, x, y, BALL, generator=generator(0))


def mask(x: Tensor) -> Tensor:
    """Made where it is asked for; the first lines do not change."""
    return (torch.arange(x.shape[2])[:, None] > 2).expand(x.shape[2:]).to(x)


class Other(nn.Module):
    """A model besides the one that is attacked: the same, of mirrored images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.flip(3))


RUNS: dict[str, Run] = {
    "apgd": lambda m, x, y: st.apgd(m, x, y, eps=0.012, loss="dlr-targeted", steps=4, targets=2, mask=mask(x)),
    "autoattack": lambda m, x, y: st.autoattack(m, x, y, eps=0.005, version=MEMBERS, mask=mask(x)),
    "bpda": lambda m, x, y: st.pgd(nn.Sequential(st.bpda(lambda z: (8 * z).round() / 8), m), x, y, eps=0.03, steps=3),
    "curve": lambda m, x, y: st.curve(m, x, y, within=BALL, radii=(0.0, 0.006, 0.012), seed=0),
    "cw": lambda m, x, y: st.cw(m, x, y, steps=10, search=2, constant=0.1, rate=0.05, mask=mask(x)),
    "ddn": lambda m, x, y: st.ddn(m, x, y, steps=8, levels=256, mask=mask(x)),
    "di": called(st.di(steps=3)),
    "ensemble": lambda m, x, y: st.pgd(st.ensemble([m, Other(m)]), x, y, eps=0.012, steps=3),
    "eot": lambda m, x, y: st.pgd(st.eot(m, 2), x, y, eps=0.012, steps=3),
    "evaluate": lambda m, x, y: st.evaluate(m, x, y, within=BALL, seed=0, attack=st.AutoAttack(MEMBERS), points=True),
    "fab": lambda m, x, y: st.fab(m, x, y, steps=5, targeted=True, restarts=2, mask=mask(x)),
    "fgsm": lambda m, x, y: st.fgsm(m, x, y, eps=0.012, mask=mask(x)),
    "fmn": lambda m, x, y: st.fmn(m, x, y, norm="l2", steps=8, mask=mask(x)),
    "hopskipjump": lambda m, x, y: st.hopskipjump(m, x, y, start=x.flip(0), steps=2, mask=mask(x)),
    "lint": lambda m, x, y: st.lint(m, x, y, within=BALL, seed=0, attack=st.PGDAttack(steps=3)),
    "mi": called(st.mi(steps=3)),
    "ni": called(st.ni(steps=3)),
    "pgd": lambda m, x, y: st.pgd(m, x, (y + 1) % 4, eps=0.012, targeted=True, steps=3, restarts=2, mask=mask(x)),
    "regional": lambda m, x, y: st.regional(
        m, x, y, seed=0, steps=6, region="gradient:0.5", watched={"other": Other(m)}, target=(y + 1) % 4
    ),
    "selftest": lambda m, x, y: st.selftest(m, x, within=BALL, seed=0, attack=st.PGDAttack(steps=3), draws=30),
    "square": lambda m, x, y: st.square(m, x, y, eps=0.1, norm="l2", queries=15, mask=mask(x)),
    "surviving": lambda m, x, y: st.surviving(m, x, y, st.pgd(m, x, y, eps=0.012, steps=3)),
    "ti": called(st.ti(steps=3)),
    "transfer": lambda m, x, y: vars(
        st.transfer({"m": m, "other": Other(m)}, x, y, region=mask(x) > 0, seed=0, steps=5)
    ),
    "transfer_row": lambda m, x, y: st.transfer_row(
        "m",
        {"m": m, "other": Other(m)},
        x,
        y,
        regions={"whole": None, "trial": "trial:0.4"},
        seed=0,
        steps=5,
        examples=2,
    ),
    "vulnerability": lambda m, x, y: st.vulnerability(m, x, y, cells=(2, 2), tolerance=0.1, seed=0),
}
MORE: dict[str, Run] = {
    "autoattack's member that stops": called(st.APGDAttack("dlr-targeted", steps=3, targets=2, stop=True)),
    "fmn in l0": lambda m, x, y: st.fmn(m, x, y, norm="l0", steps=6),
    "hopskipjump from noise": lambda m, x, y: st.hopskipjump(m, x, y, norm="linf", steps=2),
    "regional, until it transfers": lambda m, x, y: st.regional(
        m, x, y, seed=0, steps=6, region=mask(x) > 0, watched={"other": Other(m)}, stop="first-transfer"
    ),
    "RegionalAttack": called(st.RegionalAttack(steps=4, step=0.1)),
}


def parts(found: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What a result holds, by name."""
    if is_dataclass(found):
        found = {field.name: getattr(found, field.name) for field in fields(found)}
    if isinstance(found, dict):
        for key, part in found.items():
            yield from parts(part, f"{name}.{key}")
    elif isinstance(found, tuple | list):
        for place, part in enumerate(found):
            yield from parts(part, f"{name}[{place}]")
    else:
        yield name, found


def test_every_public_function_is_here() -> None:
    public = {name: getattr(st, name) for name in st.__all__}
    assert {name for name, it in public.items() if inspect.isfunction(it) or isinstance(it, partial)} == set(RUNS)


@pytest.mark.parametrize("name", [*RUNS, *MORE])
def test_inference_mode_changes_nothing(problem: Make, name: str) -> None:
    p, run = problem(10), (RUNS | MORE)[name]
    outside = dict(parts(run(p.model, p.x, p.y)))
    with torch.inference_mode():
        x, y = p.x.clone(), p.y.clone()
        assert x.is_inference()
        inside = dict(parts(run(p.model, x, y)))
        assert torch.is_inference_mode_enabled()
    assert list(inside) == list(outside)
    for part, value in inside.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, outside[part]), part
        else:
            assert value == outside[part] or value != value, part
    assert torch.equal(x, p.x)
    assert torch.equal(y, p.y)


@pytest.mark.parametrize("name", ["autoattack", "cw", "ddn", "fmn", "hopskipjump", "regional"])
def test_results_are_ordinary_tensors(problem: Make, name: str) -> None:
    """So that a training step outside may follow."""
    p = problem(6)
    with torch.inference_mode():
        found = RUNS[name](p.model, p.x.clone(), p.y.clone())
    assert not [part for part, value in parts(found) if isinstance(value, Tensor) and value.is_inference()]


@pytest.mark.parametrize("name", ["pgd", "apgd", "lint", "autoattack", "cw", "ddn", "fab", "fmn", "hopskipjump"])
def test_labels_may_be_short_integers(problem: Make, name: str) -> None:
    p = problem(6)
    outside = dict(parts(RUNS[name](p.model, p.x, p.y)))
    with torch.inference_mode():
        inside = dict(parts(RUNS[name](p.model, p.x.clone(), p.y.int())))
    assert all(torch.equal(value, outside[part]) for part, value in inside.items() if isinstance(value, Tensor))
