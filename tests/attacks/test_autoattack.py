"""AutoAttack: the worst case of its members, each on survivors alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from shaketable.attacks import ATTACKS, FABAttack, PGDAttack, evaluate
from shaketable.attacks.apgd import APGDAttack
from shaketable.attacks.autoattack import AutoAttack, Averaged, autoattack, members
from shaketable.attacks.square import SquareAttack
from shaketable.core import Ball, Calls, GradientError, InputError, Perturbation, generator
from shaketable.jobs.choices import choose

Make = Callable[..., Any]
BALL = Ball("linf", 0.012, box=(0, 1))
STEADY = (PGDAttack("ce", steps=2, start="zero"), PGDAttack("dlr", steps=5, start="zero"), FABAttack(steps=8, search=0))
SMALL = (
    APGDAttack("ce", steps=6),
    APGDAttack("dlr-targeted", steps=4),
    FABAttack(targeted=True, steps=4, search=0),
    SquareAttack(queries=30, rescale=False),
)


def test_is_the_worst_case_of_its_members_each_on_survivors(problem: Make) -> None:
    p, run = problem(40, dtype=torch.float64), [0]

    def counted(z: Tensor) -> Tensor:
        run[0] += len(z)
        return p.model(z)

    found = AutoAttack(STEADY)(counted, p.x, p.y, BALL, generator=generator(0))
    wrong = p.model(p.x).argmax(1) != p.y
    alone = [attack.until_fooled()(p.model, p.x, p.y, BALL, generator=generator(0)).flags.stopped for attack in STEADY]
    assert torch.equal(found.flags.stopped, torch.stack([wrong, *alone]).any(0))
    assert torch.equal(p.model(found.point).argmax(1) != p.y, found.flags.stopped)
    left = ~wrong
    for number, (member, stopped) in enumerate(zip(found.members, alone, strict=True)):
        assert (member.attacked, member.broken) == (int(left.sum()), int((left & stopped).sum()))
        assert torch.equal(found.by == number, left & stopped)
        left = left & ~stopped
    assert sum(member.broken > 0 for member in found.members) >= 2
    assert torch.equal(found.by == -1, wrong | left)
    assert found.calls.forward == run[0]
    assert found.calls == sum((member.calls for member in found.members), Calls(40))
    assert [member.name for member in found.members] == ["0 PGDAttack", "1 PGDAttack", "2 FABAttack"]


def test_is_never_above_a_member(problem: Make) -> None:
    p = problem(60)
    robust = [evaluate(p.model, p.x, p.y, within=BALL, seed=0, attack=attack).robust_correct for attack in STEADY]
    found = evaluate(p.model, p.x, p.y, within=BALL, seed=0, attack=AutoAttack(STEADY), batch_size=25)
    assert torch.equal(found.robust_correct, torch.stack(robust).all(0))
    assert not found.findings


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.012), ("l2", 0.1), ("l1", 0.8)])
def test_small_ensembles_leave_nothing_outside_ball_and_mask(problem: Make, norm: Any, eps: float) -> None:
    p = problem(20)
    mask = torch.ones(12, 12)
    mask[:3] = 0
    ball = Ball(norm, eps, box=(0, 1), mask=mask)
    found = evaluate(p.model, p.x, p.y, within=ball, seed=0, attack=AutoAttack(SMALL), points=True)
    assert not found.findings  # points outside the ball would be one
    assert found.robust.hits < found.clean.hits
    assert found.points is not None
    assert torch.equal(found.points[:, :, :3], p.x[:, :, :3])
    first = evaluate(p.model, p.x, p.y, within=ball, seed=0, attack=SMALL[0])
    assert found.robust.hits <= first.robust.hits


def test_the_named_versions_are_the_published_ones() -> None:
    square, fab_t = SquareAttack(5000, 0.8, rescale=False), FABAttack(targeted=True, targets=9, steps=100, search=0)
    ce, targeted = APGDAttack("ce", steps=100), APGDAttack("dlr-targeted", steps=100, targets=9)
    standard = [("apgd-ce", ce), ("apgd-t", targeted), ("fab-t", fab_t), ("square", square)]
    assert list(members("standard", "linf").items()) == standard == list(members("standard", "l2").items())
    sparse = [("apgd-ce", replace(ce, restarts=5)), ("apgd-t", replace(targeted, targets=5)), *standard[2:]]
    assert list(members("standard", "l1").items()) == sparse
    five, dlr = replace(ce, restarts=5), APGDAttack("dlr", restarts=5)
    fab = FABAttack(restarts=5, search=0)
    plus = [
        ("apgd-ce", five),
        ("apgd-dlr", dlr),
        ("fab", fab),
        ("square", square),
        ("apgd-t", targeted),
        ("fab-t", fab_t),
    ]
    assert list(members("plus", "linf").items()) == plus
    assert list(members("rand", "linf").items()) == [
        ("apgd-ce", Averaged(ce, 20)), ("apgd-dlr", Averaged(APGDAttack("dlr"), 20))
    ]  # fmt: skip


def test_the_standard_version_runs_in_one_line() -> None:
    """On a linear model of four classes it reaches the exact verdict: gap over the dual norm of the weights' difference."""
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 36, generator=source)
    x = 0.4 + 0.2 * torch.rand(8, 1, 6, 6, generator=source)
    logits = x.flatten(1) @ weight.T
    y = logits.argmax(1)
    gap = (logits.amax(1, keepdim=True) - logits) / (weight[y][:, None] - weight).abs().sum(2)
    needed = gap.scatter(1, y[:, None], torch.inf).amin(1)
    eps = float(needed.sort().values[6:8].mean())
    found = autoattack(lambda z: z.flatten(1) @ weight.T, x, y, eps=eps, seed=1)
    assert torch.equal(found.flags.stopped, needed < eps)
    assert [m.name for m in found.members] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert found.members[-1].calls == Calls(5000 * int((needed >= eps).sum()), 0)
    assert bool(((found.point - x).flatten(1).abs().amax(1) <= eps * (1 + 1e-5)).all())


def test_attacks_without_gradients_go_on_where_others_cannot(problem: Make) -> None:
    p = problem(30)

    def detached(z: Tensor) -> Tensor:
        return p.model(z).detach()

    ball, attacks = Ball("linf", 0.03, box=(0, 1)), (APGDAttack(steps=3), SquareAttack(queries=20))
    found = AutoAttack(attacks)(detached, p.x, p.y, ball, generator=generator(0))
    attacked = detached(p.x).argmax(1) == p.y
    assert found.members[0].broken == 0 < found.members[1].broken < int(attacked.sum())
    assert torch.equal(found.flags.vanishing, attacked)
    with pytest.raises(GradientError):
        AutoAttack(attacks[:1])(detached, p.x, p.y, ball, generator=generator(0))
    judged = evaluate(detached, p.x, p.y, within=ball, seed=0, attack=AutoAttack(attacks))
    assert [finding.code for finding in judged.findings] == ["vanishing-gradient"]


def test_random_models_are_averaged(problem: Make) -> None:
    p, run = problem(12), [0]

    def noisy(z: Tensor) -> Tensor:
        run[0] += len(z)
        return p.model(z + 0.01 * torch.randn_like(z))

    attack = AutoAttack((Averaged(APGDAttack(steps=3), samples=5),))
    state = torch.get_rng_state()
    one, two = (attack(noisy, p.x, p.y, BALL, generator=generator(3)) for _ in range(2))
    assert torch.equal(one.point, two.point)
    assert torch.equal(state, torch.get_rng_state())
    assert run[0] == one.calls.forward + two.calls.forward


def test_an_attack_that_does_not_stop_is_judged_by_the_model(problem: Make) -> None:
    p = problem(30)

    def darker(model: Any, x: Tensor, y: Tensor, within: Ball, *, generator: Any) -> Perturbation:
        return PGDAttack(steps=3, start="zero")(model, x, y, within, generator=generator)

    found = AutoAttack((darker, SquareAttack(queries=5)))(p.model, p.x, p.y, BALL, generator=generator(0))
    assert torch.equal(p.model(found.point).argmax(1) != p.y, found.flags.stopped)
    assert found.members[0].broken > 0
    assert found.members[0].name == "0 function"


class Few:
    """A linear model of few classes, images of which the first is misclassified, and the passes that were made."""

    def __init__(self, classes: int) -> None:
        source = torch.Generator().manual_seed(0)
        self.weight, self.passed = torch.randn(classes, 36, generator=source), list[int]()
        self.x = 0.4 + 0.2 * torch.rand(6, 1, 6, 6, generator=source)
        self.y = self(self.x).argmax(1)
        self.y[0] = (self.y[0] + 1) % classes

    def __call__(self, z: Tensor) -> Tensor:
        self.passed.append(len(z))
        return z.flatten(1) @ self.weight.T

    def needed(self) -> Tensor:
        """The linf norm of the smallest perturbation that fools it; below 0 where none is needed."""
        logits = self(self.x)
        gap = (logits.gather(1, self.y[:, None]) - logits) / (self.weight[self.y][:, None] - self.weight).abs().sum(2)
        return gap.scatter(1, self.y[:, None], torch.inf).amin(1)


DLR = (SquareAttack(queries=5), APGDAttack("dlr-targeted", steps=2))


@pytest.mark.parametrize("eps", [1e-7, 0.3])
@pytest.mark.parametrize("rows", [slice(0, 6), slice(0, 1)], ids=["all", "none to attack"])
@pytest.mark.parametrize(
    ("classes", "version"),
    [
        (2, "standard"),
        (3, "standard"),
        (2, "plus"),
        (3, "plus"),
        (2, "rand"),
        (2, DLR),
        (3, DLR),
        (2, (PGDAttack("dlr"),)),
    ],
)
def test_too_few_classes_are_refused_whatever_the_images(classes: int, version: Any, rows: slice, eps: float) -> None:
    few = Few(classes)
    few.passed.clear()
    with pytest.raises(InputError) as caught:
        autoattack(few, few.x[rows], few.y[rows], eps=eps, version=version)
    assert caught.value.argument == "version"
    assert caught.value.found == str(classes)
    assert few.passed == [len(few.x[rows])]  # the clean images, before any attack
    few.passed.clear()
    none = autoattack(few, few.x[:0], few.y[:0], eps=eps, version=version)
    assert none.point.shape == (0, 1, 6, 6)
    assert not few.passed


def test_rand_needs_three_classes() -> None:
    few = Few(3)
    found = autoattack(few, few.x, few.y, eps=1e-7, version="rand")
    assert found.flags.stopped.tolist() == [True] + [False] * 5


@pytest.mark.parametrize("classes", [2, 3])
def test_what_is_named_instead_for_few_classes_works(classes: int) -> None:
    few = Few(classes)
    needed = few.needed()
    eps = float(needed.sort().values[3:5].mean())  # the first is misclassified
    with pytest.raises(InputError, match=r"Use apgd, apgd\(loss='ce-targeted'\), fab and square") as caught:
        autoattack(few, few.x, few.y, eps=eps)
    ball = Ball("linf", eps, box=(0, 1))
    for text in ("apgd", "apgd(loss='ce-targeted')", "fab", "square"):
        assert text in caught.value.remedy
        found = evaluate(few, few.x, few.y, within=ball, seed=0, attack=choose(text, ATTACKS, "attack"))
        assert not found.findings
        if text != "square":
            assert torch.equal(found.robust_correct, needed > eps)
    together = AutoAttack((APGDAttack(), APGDAttack("ce-targeted"), FABAttack(), SquareAttack(queries=20)))
    found = evaluate(few, few.x, few.y, within=ball, seed=0, attack=together)
    assert torch.equal(found.robust_correct, needed > eps)
    assert (found.clean.hits, found.robust.hits) == (5, 2)


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"version": "fast"}, "version"),
        ({"version": ()}, "version"),
        ({"norm": "l0", "eps": 3}, "within"),
        ({"y": torch.zeros(40)}, "y"),
        ({"x": torch.full((40, 1, 12, 12), float("nan"))}, "origin"),
        ({"model": lambda z: z.flatten(1)[:, :3]}, "version"),
    ],
)
def test_mistakes_are_named(problem: Make, change: dict[str, Any], argument: str) -> None:
    p = problem()
    given = {"model": p.model, "x": p.x, "y": p.y % 3, "eps": 0.001} | change
    with pytest.raises(InputError) as caught:
        autoattack(given.pop("model"), given.pop("x"), given.pop("y"), **given)
    assert caught.value.argument == argument
