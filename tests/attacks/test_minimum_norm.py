"""DDN, FMN and Carlini-Wagner: known minimum norms of linear models, and what all of them promise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaketable.attacks.cw import cw
from shaketable.attacks.ddn import ddn
from shaketable.attacks.fmn import fmn
from shaketable.core import GradientError, InputError

Make = Callable[..., Any]
DUAL = {"linf": 1.0, "l2": 2.0, "l1": float("inf")}

QUICK: dict[str, Callable[..., Any]] = {
    "ddn": lambda *a, **k: ddn(*a, **({"steps": 20} | k)),
    "fmn-linf": lambda *a, **k: fmn(*a, **({"steps": 20, "norm": "linf"} | k)),
    "fmn-l2": lambda *a, **k: fmn(*a, **({"steps": 20, "norm": "l2"} | k)),
    "fmn-l1": lambda *a, **k: fmn(*a, **({"steps": 20, "norm": "l1"} | k)),
    "fmn-l0": lambda *a, **k: fmn(*a, **({"steps": 20, "norm": "l0"} | k)),
    "cw": lambda *a, **k: cw(*a, **({"steps": 20, "search": 4, "constant": 0.1, "rate": 0.05} | k)),
}
each = pytest.mark.parametrize("name", sorted(QUICK))


class Linear:
    """A linear model of two classes in float64, images in the middle of a wide box, the model's labels."""

    def __init__(self) -> None:
        source = torch.Generator().manual_seed(0)
        self.weight = torch.randn(2, 20, generator=source, dtype=torch.float64)
        self.x = 0.3 + 0.4 * torch.rand(10, 20, generator=source, dtype=torch.float64)
        self.y = self(self.x).argmax(1)
        self.difference = self.weight[1] - self.weight[0]

    def __call__(self, z: Tensor) -> Tensor:
        return z @ self.weight.T

    def shortest(self, norm: str) -> Tensor:
        """The logit difference over the dual norm of its gradient; for l0 the fewest entries that suffice."""
        gap = (self.x @ self.difference).abs()
        if norm != "l0":
            return gap / torch.linalg.vector_norm(self.difference, DUAL[norm])
        way = torch.where(self.y == 1, -1.0, 1.0)[:, None] * self.difference
        gains = torch.maximum(way * (1 - self.x), -way * self.x).sort(1, descending=True).values.cumsum(1)
        return (gains < gap[:, None]).sum(1) + 1.0


@pytest.mark.parametrize(
    ("attack", "norm", "within"),
    [
        (lambda *a: ddn(*a, steps=60), "l2", 0.03),
        (lambda *a: fmn(*a, norm="l2", steps=100), "l2", 0.01),
        (lambda *a: fmn(*a, norm="linf", steps=150), "linf", 0.01),
        (lambda *a: fmn(*a, norm="l1", steps=150, box=(-9, 9)), "l1", 0.01),
        (lambda *a: fmn(*a, norm="l0", steps=60), "l0", 0.34),
        (lambda *a: cw(*a, steps=80, search=5, constant=0.1), "l2", 0.02),
    ],
    ids=["ddn", "fmn-l2", "fmn-linf", "fmn-l1", "fmn-l0", "cw"],
)
def test_reaches_the_minimum_norm_of_a_linear_model(attack: Any, norm: Any, within: float) -> None:
    problem = Linear()
    found = attack(problem, problem.x, problem.y)
    shortest = problem.shortest(norm)
    assert bool(found.found.all())
    assert bool((found.norms >= shortest * (1 - 1e-9)).all())
    assert bool((found.norms <= shortest * (1 + within)).all())
    assert bool((problem(found.points).argmax(1) != problem.y).all())


@pytest.mark.parametrize("attack", [ddn, fmn, cw])
def test_a_target_is_reached_at_its_boundary(attack: Any) -> None:
    """Targets of a linear model of two classes are the other class: the same points as without."""
    problem = Linear()
    more = {"norm": "l2"} if attack is fmn else {"search": 5, "constant": 0.1, "rate": 0.03} if attack is cw else {}
    free = attack(problem, problem.x, problem.y, steps=30, **more)
    aimed = attack(problem, problem.x, 1 - problem.y, steps=30, targeted=True, **more)
    assert torch.allclose(free.norms, aimed.norms, rtol=1e-6)
    assert bool((problem(aimed.points).argmax(1) == 1 - problem.y).all())


@each
def test_what_all_of_them_promise(problem: Make, name: str) -> None:
    p = problem(16)
    x, y, state = p.x.clone(), p.y.clone(), {k: v.clone() for k, v in p.model.state_dict().items()}
    random, seen = torch.get_rng_state(), []

    def model(z: Tensor) -> Tensor:
        seen.append(len(z))
        return p.model(z)

    found = QUICK[name](model, p.x, p.y)
    assert found.calls.forward == sum(seen)
    wrong = p.model(p.x).argmax(1) != p.y
    assert torch.equal(found.norms == 0, wrong)
    assert torch.equal(found.points[wrong], p.x[wrong])
    assert found.found.float().mean() > 0.9
    assert torch.equal(p.model(found.points).argmax(1) != p.y, found.found)
    assert found.points.min() >= 0
    assert found.points.max() <= 1
    norm = name[4:] if name.startswith("fmn") else "l2"
    order = {"linf": float("inf"), "l2": 2.0, "l1": 1.0, "l0": 0.0}[norm]
    again = torch.linalg.vector_norm((found.points - p.x).flatten(1), order, 1)
    assert torch.allclose(found.norms[found.found], again[found.found], rtol=1e-5)
    assert torch.equal(found.points, QUICK[name](p.model, p.x, p.y).points)
    assert torch.equal(x, p.x)
    assert torch.equal(y, p.y)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[k], v) for k, v in p.model.state_dict().items())
    assert all(w.grad is None and w.requires_grad for w in p.model.parameters())
    assert not p.model.training


@each
def test_passes_are_bounded_and_an_empty_batch_costs_none(problem: Make, name: str) -> None:
    p = problem(12)
    right = int((p.model(p.x).argmax(1) == p.y).sum())
    found = QUICK[name](p.model, p.x, p.y)
    if name == "cw":
        assert 12 + right <= found.calls.forward <= 12 + right * 4 * 20
        assert found.calls.backward <= right * 4 * 19
    else:
        assert found.calls.forward == 12 + right * 20
        assert found.calls.backward == right * 19
    none = QUICK[name](p.model, p.x[:0], p.y[:0])
    assert none.points.shape == (0, 1, 12, 12)
    assert none.calls.forward == 0
    still = QUICK[name](p.model, p.x, p.model(p.x).argmax(1) + 1 - 2 * (p.model(p.x).argmax(1) == 3).long())
    assert (still.calls.forward, still.calls.backward) == (12, 0)
    assert not still.norms.any()


@each
def test_pixels_outside_a_region_stay_bit_identical(problem: Make, name: str) -> None:
    p = problem()
    mask = torch.zeros(12, 12)
    mask[2:9, 3:9] = 1
    found = QUICK[name](p.model, p.x, p.y, mask=mask)
    assert torch.equal(found.points[..., mask == 0], p.x[..., mask == 0])
    assert int((found.found & (found.norms > 0)).sum()) > 5


def test_no_less_is_found_with_confidence_and_levels_are_kept(problem: Make) -> None:
    p = problem(12)
    plain = cw(p.model, p.x, p.y, steps=20, search=4, constant=0.1, rate=0.05)
    sure = cw(p.model, p.x, p.y, steps=20, search=4, constant=0.1, rate=0.05, confidence=1.0)
    own = lambda z: z.gather(1, p.y[:, None])[:, 0]  # noqa: E731
    logits = p.model(sure.points)
    margin = logits.scatter(1, p.y[:, None], -torch.inf).amax(1) - own(logits)
    searched = sure.found & (sure.norms > 0)
    assert bool((margin >= 1.0)[searched].all())
    assert bool((sure.norms > plain.norms)[searched].all())
    x = (p.x * 255).round() / 255
    coarse = ddn(p.model, x, p.y, levels=256)
    grey = coarse.points * 255
    assert torch.allclose(grey, grey.round(), rtol=0, atol=1e-4)
    assert coarse.found.all()


def test_a_model_without_gradients_is_refused(problem: Make) -> None:
    p = problem(8)
    for model in (lambda z: z.detach().flatten(1)[:, :4], lambda z: torch.round(z).flatten(1)[:, :4]):
        y = model(p.x).argmax(1)
        for attack in QUICK.values():
            with pytest.raises(GradientError):
                attack(model, p.x, y)


def test_batchnorm_in_train_mode_is_left_alone(problem: Make) -> None:
    p = problem(8)
    p.model.train()
    before = {k: v.clone() for k, v in p.model.state_dict().items()}
    ddn(p.model, p.x, p.y, steps=3)
    assert all(torch.equal(before[k], v) for k, v in p.model.state_dict().items())
    assert isinstance(p.model, nn.Module)


@pytest.mark.parametrize(
    ("attack", "change", "argument"),
    [
        (fmn, {"norm": "l3"}, "norm"),
        (fmn, {"steps": 0}, "steps"),
        (fmn, {"gamma": (1.5, 0.1)}, "gamma"),
        (fmn, {"step": (0.0, 0.1)}, "step"),
        (ddn, {"steps": 0}, "steps"),
        (ddn, {"gamma": 1.0}, "gamma"),
        (ddn, {"radius": 0.0}, "radius"),
        (ddn, {"levels": 1}, "levels"),
        (ddn, {"levels": 256, "box": None}, "box"),
        (cw, {"search": 0}, "search"),
        (cw, {"rate": 0.0}, "rate"),
        (cw, {"confidence": -1.0}, "confidence"),
        (cw, {"box": None}, "box"),
        (cw, {"y": torch.full((4,), 9)}, "y"),
        (ddn, {"y": torch.zeros(4)}, "y"),
        (fmn, {"x": torch.full((4, 1, 12, 12), float("nan"))}, "x"),
    ],
)
def test_mistakes_are_named(problem: Make, attack: Any, change: dict[str, Any], argument: str) -> None:
    p = problem(4)
    given = {"model": p.model, "x": p.x, "y": p.y} | change
    with pytest.raises(InputError) as caught:
        attack(given.pop("model"), given.pop("x"), given.pop("y"), **given)
    assert caught.value.argument == argument
    assert caught.value.remedy
