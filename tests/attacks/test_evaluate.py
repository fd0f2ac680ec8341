"""Evaluation: exact verdicts, honest counts, and every way in which an attack or a model can mislead it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.attacks import PGDAttack, evaluate
from shaketable.core import Ball, Calls, generator

Make = Callable[..., Any]
BALL = Ball("linf", 0.015, box=(0, 1))


def iterates(model: Any, x: Tensor, y: Tensor, eps: float, steps: int, delta: Tensor) -> list[Tensor]:
    """The points of a plain PGD loop that drops nothing."""
    points = []
    for _ in range(steps + 1):
        point = (x + delta).clamp(0, 1).requires_grad_()
        points.append(point.detach())
        gradient = torch.autograd.grad(F.cross_entropy(model(point), y, reduction="sum"), point)[0]
        delta = (delta + 0.25 * eps * gradient.sign()).clamp(-eps, eps)
        delta = (x + delta).clamp(0, 1) - x
    return points


@pytest.mark.parametrize("start", ["zero", "sample"])
def test_agrees_with_the_plain_loop_image_by_image(problem: Make, start: Any) -> None:
    """Exactly, in float64: fooled if any iterate of the loop fools; and so never above the last iterate's accuracy."""
    p = problem(120, dtype=torch.float64)
    clean = p.model(p.x).argmax(1) == p.y
    x, y = p.x[clean], p.y[clean]
    delta = torch.zeros_like(x) if start == "zero" else BALL.on(x).sample(x, generator(5, "evaluate", 0))
    right = torch.stack([p.model(point).argmax(1) == y for point in iterates(p.model, x, y, 0.015, 20, delta)])
    found = evaluate(p.model, p.x, p.y, within=BALL, seed=5, attack=PGDAttack(start=start), batch_size=120)
    assert torch.equal(found.clean_correct, clean)
    assert torch.equal(found.robust_correct[clean], right.all(0))
    assert not found.robust_correct[~clean].any()
    assert found.robust.hits <= int(right[-1].sum())
    assert 0 < found.robust.hits < found.clean.hits < 120
    assert not found.findings


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_robust_accuracy_of_a_linear_model_is_exact(norm: Any) -> None:
    """A linear model of two classes is robust at x if and only if its margin exceeds eps times the dual norm."""
    source = torch.Generator().manual_seed(1)
    weight = torch.randn(2, 16, generator=source, dtype=torch.float64)
    x, y = torch.randn(300, 16, generator=source, dtype=torch.float64), torch.randint(2, (300,), generator=source)
    difference = weight[1] - weight[0]
    margin = (x @ difference) * torch.where(y == 1, 1.0, -1.0)
    reach = 0.2 * torch.linalg.vector_norm(difference, 1 if norm == "linf" else 2)
    attack = PGDAttack("margin", steps=60)
    found = evaluate(lambda z: z @ weight.T, x, y, within=Ball(norm, 0.2), seed=0, attack=attack)
    assert torch.equal(found.clean_correct, margin > 0)
    assert torch.equal(found.robust_correct, margin > reach)
    assert 0 < found.robust.hits < found.clean.hits


class _Tally(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int]) -> Tensor:
        counts[0] += len(x)
        ctx.counts = counts
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        ctx.counts[1] += len(gradients[0])
        return gradients[0], None


@pytest.mark.parametrize("measure", ["accuracy", "loss"])
def test_passes_are_counted(problem: Make, measure: Any) -> None:
    p, counts = problem(), [0, 0]
    attack = PGDAttack(steps=6, restarts=2)
    found = evaluate(
        lambda z: p.model(_Tally.apply(z, counts)), p.x, p.y, within=BALL, seed=0, attack=attack, batch_size=16,
        measure=measure,
    )  # fmt: skip
    assert found.calls == Calls(*counts)
    full = Calls(40 + 2 * 7 * 40 + 40, 2 * 6 * 40)
    if measure == "loss":
        assert found.calls == full
    else:
        assert found.calls.forward < 0.7 * full.forward


def test_no_weight_gradients_are_made(problem: Make) -> None:
    p = problem()
    evaluate(p.model, p.x, p.y, within=BALL, seed=0)
    assert all(w.grad is None and w.requires_grad for w in p.model.parameters())


def test_restarts_are_for_survivors(problem: Make) -> None:
    p = problem()
    one = evaluate(p.model, p.x, p.y, within=BALL, seed=0, attack=PGDAttack(steps=2))
    more = evaluate(p.model, p.x, p.y, within=BALL, seed=0, attack=PGDAttack(steps=2, restarts=4))
    assert bool((more.robust_correct <= one.robust_correct).all())
    assert more.calls.forward - one.calls.forward <= 3 * 3 * one.robust.hits


def test_robust_loss_drops_nothing(problem: Make) -> None:
    """measure="loss" is the cross-entropy at the last iterate of every image, the misclassified ones included."""
    p = problem(dtype=torch.float64)
    delta = BALL.on(p.x).sample(p.x, generator(1, "evaluate", 0))
    last = iterates(p.model, p.x, p.y, 0.015, 20, delta)[-1]
    expected = F.cross_entropy(p.model(last), p.y, reduction="none").detach()
    found = evaluate(p.model, p.x, p.y, within=BALL, seed=1, measure="loss", points=True)
    assert torch.equal(found.points, last)
    assert torch.allclose(found.adversarial_losses, expected, rtol=1e-12)
    assert found.adversarial_loss.value == pytest.approx(float(expected.mean()))
    loud = PGDAttack(restarts=3, keep="best")
    worst = evaluate(p.model, p.x, p.y, within=BALL, seed=1, measure="loss", attack=loud)
    assert bool((worst.adversarial_losses >= found.adversarial_losses - 1e-12).all())
    stopped = evaluate(p.model, p.x, p.y, within=BALL, seed=1)
    assert stopped.adversarial_loss.value < found.adversarial_loss.value


def test_what_is_reported_is_what_is_stored(problem: Make) -> None:
    p = problem()
    found = evaluate(p.model, p.x, p.y, within=BALL, seed=0, points=True)
    assert found.points is not None
    logits = p.model(found.points).detach()
    assert torch.equal(found.robust_correct, found.clean_correct & (logits.argmax(1) == p.y))
    assert torch.allclose(found.adversarial_losses, F.cross_entropy(logits, p.y, reduction="none"), atol=1e-6)
    assert torch.allclose(found.clean_losses, F.cross_entropy(p.model(p.x), p.y, reduction="none"), atol=1e-6)
    sizes = (found.points.double() - p.x.double()).abs().flatten(1).amax(1)
    assert torch.equal(found.sizes, sizes)
    assert found.size <= 0.015 + 1.2e-7
    assert torch.equal(found.points[~found.clean_correct], p.x[~found.clean_correct])
    assert str(found.robust) in str(found)


@pytest.mark.parametrize("size", [1, 7, 40])
def test_verdicts_do_not_depend_on_the_batch_size(problem: Make, size: int) -> None:
    p = problem(dtype=torch.float64)
    attack = PGDAttack(start="zero")
    whole = evaluate(p.model, p.x, p.y, within=BALL, seed=0, attack=attack)
    parts = evaluate(p.model, p.x, p.y, within=BALL, seed=0, attack=attack, batch_size=size)
    assert torch.equal(whole.robust_correct, parts.robust_correct)
    assert whole.calls == parts.calls


def test_the_seed_decides(problem: Make) -> None:
    p = problem()
    first, again, other = (evaluate(p.model, p.x, p.y, within=BALL, seed=s, points=True) for s in (1, 1, 2))
    assert torch.equal(first.points, again.points)
    assert not torch.equal(first.points, other.points)


def test_all_forms_of_data_are_the_same(problem: Make) -> None:
    from shaketable.data.dataset import Batch

    p = problem()
    pairs = list(zip(p.x.split(16), p.y.split(16), strict=True))
    whole = evaluate(p.model, p.x, p.y, within=BALL, seed=0, batch_size=16)
    done: list[int] = []
    for data in (pairs, iter(pairs), (Batch(*pair) for pair in pairs), [list(pair) for pair in pairs]):
        found = evaluate(p.model, data, within=BALL, seed=0, progress=done.append)  # pyright: ignore
        assert torch.equal(found.robust_correct, whole.robust_correct)
        assert torch.equal(found.adversarial_losses, whole.adversarial_losses)
    assert done == 4 * [16, 16, 8]


def test_a_dataset_is_taken_as_it_is() -> None:
    from shaketable.data import open_dataset
    from shaketable.models.architectures import small_cnn

    data = open_dataset("fashion-mnist").take(range(20))
    model = small_cnn(channels=1, classes=10, size=(28, 28)).eval()
    found = evaluate(model, data, within=Ball("linf", 0.1, box=(0, 1)), seed=0, batch_size=8)
    batch = data.batch(range(20))
    same = evaluate(model, batch.x, batch.y, within=Ball("linf", 0.1, box=(0, 1)), seed=0, batch_size=8)
    assert found.clean.n == 20
    assert torch.equal(found.robust_correct, same.robust_correct)


def test_each_image_may_have_its_own_radius_and_mask(problem: Make) -> None:
    p = problem()
    radius = torch.linspace(0, 0.03, 40)
    mask = torch.rand(40, 1, 12, 12, generator=torch.Generator().manual_seed(0)) < 0.5
    ball = Ball("linf", radius, box=(0, 1), mask=mask)
    found = evaluate(p.model, p.x, p.y, within=ball, seed=0, batch_size=16, points=True)
    assert found.points is not None
    assert bool((found.sizes <= radius.double() + 1.2e-7).all())
    assert torch.equal(found.points[~mask], p.x[~mask])
    assert not found.findings
    assert found.robust_correct[0] == found.clean_correct[0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_works_in_any_gradient_mode(problem: Make, mode: Any) -> None:
    p = problem()
    expected = evaluate(p.model, p.x, p.y, within=BALL, seed=0)
    with mode():
        found = evaluate(p.model, p.x + 0, p.y + 0, within=BALL, seed=0)
    assert torch.equal(expected.robust_correct, found.robust_correct)


def test_nothing_is_touched(problem: Make) -> None:
    p = problem()
    state, x = {k: v.clone() for k, v in p.model.state_dict().items()}, p.x.clone()
    random = torch.get_rng_state()
    evaluate(p.model, p.x, p.y, within=BALL, seed=0)
    assert all(torch.equal(state[k], v) for k, v in p.model.state_dict().items())
    assert torch.equal(x, p.x)
    assert torch.equal(random, torch.get_rng_state())
    assert all(w.requires_grad for w in p.model.parameters())
    assert all(not m.training for m in p.model.modules())


# Models and attacks that mislead.


class _Quantised(nn.Module):
    """A defence that rounds its input: no gradient at all."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.round(4 * x) / 4)


class _Detached(_Quantised):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).detach()


def test_a_model_without_gradients_is_a_finding(problem: Make) -> None:
    p = problem()
    found = evaluate(_Detached(p.model).eval(), p.x, p.y, within=BALL, seed=0, batch_size=16)
    assert found.robust == found.clean
    assert [(f.code, f.level, f.count) for f in found.findings] == [("no-gradient", "finding", found.clean.hits)]
    assert "no evidence" in found.findings[0].remedy


def test_a_rounding_defence_is_a_finding(problem: Make) -> None:
    """Random starts may fool it, but those that survive were never attacked."""
    p = problem()
    found = evaluate(_Quantised(p.model).eval(), p.x, p.y, within=BALL, seed=0, batch_size=16)
    (finding,) = found.findings
    assert finding.level == "finding"
    assert finding.code in ("no-gradient", "vanishing-gradient")
    assert finding.count >= found.robust.hits > 0


def test_some_images_without_gradients_are_a_finding(problem: Make) -> None:
    p = problem()
    dark = p.x.flatten(1).mean(1) < p.x.mean()

    def model(x: Tensor) -> Tensor:
        hide = (x.flatten(1).mean(1) < p.x.mean())[:, None]
        logits = p.model(x)
        return torch.where(hide, logits.detach(), logits)

    found = evaluate(model, p.x, p.y, within=BALL, seed=0)
    (finding,) = found.findings
    assert (finding.code, finding.level) == ("vanishing-gradient", "finding")
    assert 0 < finding.count <= int((dark & found.robust_correct).sum()) + 2


class _Noisy(_Quantised):
    """A randomised defence."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return logits + torch.randn(logits.shape)


def test_a_random_defence_is_a_finding_and_can_be_repeated(problem: Make) -> None:
    p = problem()
    model, before = _Noisy(p.model).eval(), torch.get_rng_state()
    first, again = (evaluate(model, p.x, p.y, within=BALL, seed=3) for _ in range(2))
    assert "verdict-changed" in [f.code for f in first.findings]
    assert torch.equal(first.robust_correct, again.robust_correct)
    assert first.findings == again.findings
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_that_a_defence_keeps_on_is_evaluated(problem: Make) -> None:
    p = problem()
    model = nn.Sequential(p.model, nn.Dropout(0.5)).eval()
    model[1].train()
    found = evaluate(model, p.x, p.y, within=BALL, seed=0)
    assert "verdict-changed" in [f.code for f in found.findings]
    assert model[1].training


class _Poisoned(_Quantised):
    """NaN where the first pixel is bright."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        return torch.where((x[:, 0, 0, 0] > 0.5)[:, None], torch.nan, logits)


def test_nan_counts_as_wrong_and_is_a_finding(problem: Make) -> None:
    p = problem()
    found = evaluate(_Poisoned(p.model).eval(), p.x, torch.zeros_like(p.y), within=BALL, seed=0)
    bright = p.x[:, 0, 0, 0] > 0.5
    assert not found.clean_correct[bright].any()
    (finding,) = [f for f in found.findings if f.code == "nonfinite"]
    assert finding.count >= int(bright.sum())


def _no_ball(model: Any, x: Tensor, y: Tensor, within: Ball, *, generator: torch.Generator) -> Any:
    return PGDAttack()(model, x, y, Ball("linf", 0.3, box=(-1, 2)), generator=generator)


def _no_box(model: Any, x: Tensor, y: Tensor, within: Ball, *, generator: torch.Generator) -> Any:
    return PGDAttack()(model, x, y, Ball("linf", 0.015), generator=generator)


def _just_over(model: Any, x: Tensor, y: Tensor, within: Ball, *, generator: torch.Generator) -> Any:
    return PGDAttack()(model, x, y, Ball("linf", 0.01501, box=(0, 1)), generator=generator)


def _no_mask(model: Any, x: Tensor, y: Tensor, within: Ball, *, generator: torch.Generator) -> Any:
    return PGDAttack()(model, x, y, Ball("linf", 0.015, box=(0, 1)), generator=generator)


@pytest.mark.parametrize("attack", [_no_ball, _no_box, _just_over, _no_mask])
def test_points_outside_are_discarded(problem: Make, attack: Any) -> None:
    p = problem()
    ball = BALL if attack is not _no_mask else Ball("linf", 0.015, box=(0, 1), mask=torch.eye(12))
    found = evaluate(p.model, p.x, p.y, within=ball, seed=0, attack=attack)
    (finding,) = found.findings
    assert finding.code == "outside-ball"
    if attack is not _no_box:  # few pixels are near the ends of the box
        assert finding.count == found.clean.hits
        assert found.robust == found.clean
        assert found.size == 0


def test_a_users_attack_needs_the_call_alone(problem: Make) -> None:
    p = problem()

    def attack(model: Any, x: Tensor, y: Tensor, within: Ball, *, generator: torch.Generator) -> Any:
        return PGDAttack()(model, x, y, within, generator=generator)

    found = evaluate(p.model, p.x, p.y, within=BALL, seed=0, attack=attack)
    quick = evaluate(p.model, p.x, p.y, within=BALL, seed=0)
    assert not found.findings
    assert found.robust.hits >= quick.robust.hits
    assert found.calls.forward > quick.calls.forward


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"x": torch.zeros(0, 1, 12, 12), "y": torch.zeros(0, dtype=torch.long)}, "x"),
        ({"x": [], "y": None}, "x"),
        ({"x": torch.full((40, 1, 12, 12), float("nan"))}, "x"),
        ({"x": torch.full((40, 1, 12, 12), 255.0)}, "origin"),
        ({"x": torch.zeros(40, 1, 12, 12, dtype=torch.uint8)}, "x"),
        ({"x": "images", "y": None}, "x"),
        ({"x": 3, "y": None}, "x"),
        ({"x": [1, 2], "y": None}, "x"),
        ({"x": [(torch.zeros(2, 1, 12, 12), torch.zeros(2).long())]}, "y"),
        ({"y": None}, "y"),
        ({"y": torch.full((40,), 4)}, "y"),
        ({"y": torch.full((40,), -1)}, "y"),
        ({"y": torch.zeros(39, dtype=torch.long)}, "y"),
        ({"y": torch.zeros(40, 4)}, "y"),
        ({"batch_size": 0}, "batch_size"),
        ({"x": [(torch.zeros(2, 1, 12, 12), torch.zeros(2).long())], "y": None, "batch_size": 4}, "batch_size"),
        ({"measure": "error"}, "measure"),
        ({"within": Ball("linf", 0.1, per="tensor")}, "within"),
        ({"within": Ball("linf", torch.full((39,), 0.1), box=(0, 1))}, "radius"),
        ({"attack": PGDAttack(targeted=True)}, "attack"),
        ({"attack": lambda model, x, y, within, *, generator: x}, "attack"),
        ({"model": lambda x: (x.flatten(1), 0)}, "model"),
        ({"model": lambda x: x.sum(dim=(1, 2, 3))}, "model"),
    ],
)
def test_mistakes_are_named(problem: Make, change: dict[str, Any], argument: str) -> None:
    from shaketable.core import InputError

    p = problem()
    given = {"model": p.model, "x": p.x, "y": p.y, "within": BALL} | change
    with pytest.raises(InputError) as caught:
        evaluate(given.pop("model"), given.pop("x"), given.pop("y"), seed=0, **given)
    assert caught.value.argument == argument
    assert caught.value.remedy


def test_radii_of_images_need_one_tensor(problem: Make) -> None:
    from shaketable.core import InputError

    p = problem()
    ball = Ball("linf", torch.full((40,), 0.1), box=(0, 1))
    with pytest.raises(InputError, match="all batches"):
        evaluate(p.model, [(p.x, p.y)], within=ball, seed=0)


@pytest.mark.parametrize("which", ["all", "normalisation"])
def test_a_train_mode_model_is_refused(problem: Make, which: str) -> None:
    from shaketable.core import InputError

    p = problem()
    (p.model if which == "all" else p.model[1]).train()
    with pytest.raises(InputError, match="BatchNorm2d"):
        evaluate(p.model, p.x, p.y, within=BALL, seed=0)


@pytest.mark.parametrize(("shape", "sizes"), [((3, 32, 32), [256, 4]), ((3, 40, 40), [100, 100, 60])])
def test_small_images_make_larger_batches(shape: tuple[int, ...], sizes: list[int]) -> None:
    """Where nobody says a size; the model is asked about each batch of clean images, and takes no other pass."""
    seen: list[int] = []

    def model(z: Tensor) -> Tensor:
        seen.append(len(z))
        return z.flatten(1)[:, :2] * torch.tensor([1.0, 0.0])

    x = torch.full((260, *shape), 0.5)
    evaluate(model, x, torch.ones(260, dtype=torch.int64), within=BALL, seed=0)  # all wrong: nothing to attack
    assert seen == sizes
