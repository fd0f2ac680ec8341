"""How a step is made: BatchNorm policies, micro-batches, clipping, precision."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.core import PGD, Ball, InputError, at, generator
from shaketable.training import PRESETS, Labels, Update, awp, mart, rwp, sam, trades, train_step
from shaketable.training import at as at_loss

Make = Callable[..., Any]
BALL = Ball("linf", 0.1, box=(0, 1))
LOSSES: dict[str, Any] = {"at": at_loss, "trades": trades, "mart": mart}
PERTURBATIONS: dict[str, Any] = {
    "none": lambda: None,
    "awp": lambda: awp(0.05),
    "three steps": lambda: awp(0.05, steps=3),
    "shared": lambda: awp(0.05, shared=True),
    "sam": lambda: sam(0.1),
    "random": lambda: rwp(0.05),
}


def take(model: nn.Module, loss: Any, x: Tensor, y: Tensor, weights: Any = None, **options: Any) -> Any:
    optimiser = options.pop("optimiser", None) or torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.01)
    given = {"within": BALL, "by": PGD(3, 0.4), "generator": generator(3)} | options
    return train_step(model, optimiser, loss, x, y, weights=weights, **given)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def test_presets_differ_in_what_moves_batchnorm_alone() -> None:
    paper, authors = PRESETS["paper"], PRESETS["authors"]
    assert (paper.batch_norm, authors.batch_norm) == ("once", "authors")
    assert (paper.decay_at, authors.decay_at) == ("perturbed", "perturbed")
    assert paper == Update()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"batch_norm": "never"}, "batch_norm: expected one of once, authors, frozen, found 'never'"),
        ({"decay_at": "w"}, "decay_at: expected one of perturbed, restored"),
        ({"precision": "int8"}, "precision: expected one of float32, bfloat16, float16"),
        ({"accumulate": 0}, "accumulate: expected a whole number >= 1, found 0"),
        ({"accumulate": 1.5}, "accumulate: expected a whole number >= 1"),
        ({"clip_gradient": 0.0}, "clip_gradient: expected a number > 0, or None"),
        ({"clip_weights": float("nan")}, "clip_weights: expected a number > 0, or None"),
    ],
)
def test_updates_that_cannot_be(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        Update(**values)
    assert says in str(caught.value)


# --- BatchNorm ---------------------------------------------------------------------------------------------------------


def replay(model: nn.Module, passes: list[Tensor]) -> dict[str, Tensor]:
    """The buffers after train-mode passes over these inputs, at the weights that the model has."""
    model = copy.deepcopy(model).train()
    with torch.no_grad():
        for x in passes:
            model(x)
    return {name: b.clone() for name, b in model.named_buffers()}


def test_authors_statistics_are_those_of_every_pass_in_train_mode(network: Make, batch: Make) -> None:
    """AT, no AWP: each pass of the attack, the training pass, and a clean pass after the step, in this order."""
    model, (x, y) = network("batch", dtype=torch.float64), batch(dtype=torch.float64)
    before, looked = copy.deepcopy(model), list[Tensor]()
    model.register_forward_pre_hook(lambda _m, given: looked.append(given[0].detach().clone()))
    take(model, at_loss(), x, y, update=Update(batch_norm="authors"))
    assert len(looked) == 3 + 1 + 1
    assert torch.equal(looked[-1], x)
    assert all(float((seen - x).abs().max()) <= 0.1 + 1e-12 for seen in looked)
    assert int(model[1].num_batches_tracked) == 5
    at_w = replay(before, looked[:4])
    with torch.no_grad():
        for name, p in before.named_parameters():
            p.copy_(dict(model.named_parameters())[name])
        for name, b in before.named_buffers():
            b.copy_(at_w[name])
    expected = replay(before, looked[4:])
    for name, b in model.named_buffers():
        assert torch.equal(b, expected[name]), name


def test_the_weights_are_the_same_under_authors_and_once(network: Make, batch: Make) -> None:
    """The policy is about running statistics, which a step in train mode does not use."""
    x, y = batch(dtype=torch.float64)
    ends = []
    for policy in ("once", "authors"):
        model = network("batch", dtype=torch.float64)
        take(model, at_loss(), x, y, awp(0.05), update=Update(batch_norm=policy))
        ends.append(model)
    for (name, a), b in zip(ends[0].named_parameters(), ends[1].parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(ends[0][1].running_mean, ends[1][1].running_mean)


def test_losses_that_attack_in_eval_mode_have_the_same_statistics_under_both(network: Make, batch: Make) -> None:
    x, y = batch()
    ends = []
    for policy in ("once", "authors"):
        model = network("batch")
        take(model, trades(), x, y, awp(0.05), update=Update(batch_norm=policy))
        ends.append(state(model))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_frozen_statistics_stay_and_normalise(loss: str, network: Make, batch: Make) -> None:
    model, (x, y) = network("batch", dtype=torch.float64), batch(dtype=torch.float64)
    with torch.no_grad():
        model[1].running_mean.fill_(0.3)
        model[1].running_var.fill_(2.0)
    before = copy.deepcopy(model)
    done = take(model, LOSSES[loss](), x, y, by=PGD(0), update=Update(batch_norm="frozen"))
    assert model.training
    assert all(module.training for module in model.modules())
    for name, b in model.named_buffers():
        assert torch.equal(b, dict(before.named_buffers())[name])
    if loss == "at":
        start = LOSSES[loss]()
        from shaketable.core.perturb import drawn_start

        point = (x + drawn_start(start.start, x, BALL, generator(3))).clamp(0, 1)  # type: ignore[operator]
        with torch.no_grad():
            assert done.loss == pytest.approx(float(F.cross_entropy(before.eval()(point), y)), rel=1e-12)


# --- micro-batches -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_micro_batches_make_the_step_of_the_whole_batch(
    loss: str, perturbation: str, parts: int, network: Make, batch: Make
) -> None:
    """Also with parts of different sizes (7 in 4 parts), and with AWP's v, which is that of the whole batch."""
    x, y = batch(7, dtype=torch.float64)
    ends, losses = [], []
    for accumulate in (1, parts):
        model = network("group", dtype=torch.float64)
        optimiser = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
        for k in range(3):
            done = take(
                model, LOSSES[loss](), x, y, PERTURBATIONS[perturbation](), optimiser=optimiser,
                generator=generator(5, k), update=Update(accumulate=accumulate, clip_gradient=0.7),
            )  # fmt: skip
        ends.append(state(model))
        losses.append(done.loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-11)
    for name in ends[0]:
        torch.testing.assert_close(ends[1][name], ends[0][name], rtol=1e-11, atol=1e-13, msg=name)


def test_more_micro_batches_than_examples(network: Make, batch: Make) -> None:
    model, (x, y) = network("group"), batch(3)
    assert take(model, at_loss(), x, y, awp(), update=Update(accumulate=10)).loss > 0


def test_micro_batches_refuse_restarts(network: Make, batch: Make) -> None:
    model, (x, y) = network("group"), batch(4)
    with pytest.raises(InputError, match="one restart where a batch is worked on in parts"):
        take(model, at_loss(), x, y, by=PGD(2, restarts=2), update=Update(accumulate=2))


# --- clipping ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay_at", ["perturbed", "restored"])
def test_gradients_are_clipped_together_and_awp_is_not(decay_at: Any, network: Make, batch: Make) -> None:
    x, y = batch(dtype=torch.float64)
    free, held = network("group", dtype=torch.float64), network("group", dtype=torch.float64)
    take(free, at_loss(), x, y, awp(0.1), update=Update(decay_at=decay_at))
    take(held, at_loss(), x, y, awp(0.1), update=Update(decay_at=decay_at, clip_gradient=0.05))
    norm = torch.stack([p.grad.norm() for p in free.parameters()]).norm()
    assert float(norm) > 0.05
    for (name, p), q in zip(free.named_parameters(), held.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad * 0.05 / (norm + 1e-6), rtol=1e-9, atol=0, msg=name)


def test_weights_are_clipped_after_the_perturbation_is_off(network: Make, batch: Make) -> None:
    model, (x, y) = network("batch"), batch()
    take(model, at_loss(), x, y, awp(0.5), update=Update(clip_weights=0.2))
    largest = max(float(p.detach().abs().max()) for p in model.parameters())
    assert largest == pytest.approx(0.2)


# --- precision ---------------------------------------------------------------------------------------------------------


def test_bfloat16_runs_the_passes_and_keeps_the_weights_in_float32(network: Make, batch: Make) -> None:
    x, y = batch(8)
    model, exact = network("group"), network("group")
    kinds: set[torch.dtype] = set()
    model[0].register_forward_hook(lambda _m, _i, out: kinds.add(out.dtype))
    low = take(model, at_loss(), x, y, awp(0.05), update=Update(precision="bfloat16"))
    full = take(exact, at_loss(), x, y, awp(0.05))
    assert kinds == {torch.bfloat16}
    assert all(p.dtype is torch.float32 and p.grad.dtype is torch.float32 for p in model.parameters())
    assert low.loss == pytest.approx(full.loss, rel=0.05)
    assert low.loss != full.loss


def test_autocast_sees_the_perturbed_weights(network: Make, batch: Make) -> None:
    """A cache of cast weights would not: the loss would be that at w."""
    model, (x, y) = network("group"), batch(8)
    before = copy.deepcopy(model)
    seen: dict[str, Tensor] = {}

    class Watching(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.update({name: p.detach().clone() for name, p in model.named_parameters()})
            return super().step(closure)

    done = take(
        model, at_loss(), x, y, awp(2.0), by=PGD(0), optimiser=Watching(model.parameters(), 0.1),
        update=Update(precision="bfloat16"),
    )  # fmt: skip
    from shaketable.core.perturb import drawn_start

    point = (x + drawn_start("sample", x, BALL, generator(3))).clamp(0, 1)  # type: ignore[operator]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        there, here = F.cross_entropy(at(before, seen)(point), y), F.cross_entropy(before(point), y)
    assert done.loss == pytest.approx(float(there), rel=1e-6)
    assert abs(float(there) - float(here)) > 0.1


def test_micro_batches_under_bfloat16_with_everything_else(network: Make, batch: Make) -> None:
    model, (x, y) = network("batch"), batch(8)
    labels = Labels(smoothing=0.1, noise=0.3, attack="predicted", ignore_incorrect=True)
    update = Update(accumulate=2, precision="bfloat16", clip_gradient=1.0, clip_weights=1.0, batch_norm="authors")
    before = state(model)
    done = take(model, at_loss(), x, y, awp(0.05), update=update, labels=labels)
    assert done.loss > 0
    after = state(model)
    assert all(bool(torch.isfinite(t.float()).all()) for t in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in before)
