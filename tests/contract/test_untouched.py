"""The contract of `perturb`: nothing of the caller's changes, the seed decides, and what goes in may be of any kind."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable import core as st

NORMS = ("linf", "l2", "l1", "l0")
RADIUS: dict[str, Any] = {"linf": 0.1, "l2": 0.8, "l1": 5.0, "l0": 6}


def fixed(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def build(*, dropout: float = 0.0) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(dropout),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(fixed(seed, *parameter.shape) - 0.4)
        model[1].running_mean.copy_(fixed(50, 6) - 0.5)
        model[1].running_var.copy_(fixed(51, 6) + 0.5)
    return model


X, Y = fixed(100, 6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1])
AWP = st.Ball("l2", 0.01, per="tensor", relative=True)


@dataclass(frozen=True)
class Place:
    """A call of `perturb` on a model, whose run is to leave no trace."""

    run: Callable[[nn.Module, Tensor, Tensor], st.Perturbation]


def _inputs(**options: Any) -> Place:
    norm, loss, by = options.get("norm", "linf"), options.get("loss", st.ce), options.get("by", st.PGD(3))
    ball = st.Ball(norm, RADIUS[norm], box=(0, 1), mask=options.get("mask"))
    return Place(
        lambda model, x, y: st.perturb(loss(model, y), x, ball, by=by, start="sample", generator=st.generator(0))
    )


def _weights(model: nn.Module, x: Tensor, y: Tensor) -> st.Perturbation:
    loss = st.scalar(lambda w: F.cross_entropy(st.at(model, w)(x), y))
    return st.perturb(loss, st.weights(model), AWP, by=st.PGD(3), generator=st.generator(0))


def _activation(model: nn.Module, x: Tensor, y: Tensor) -> st.Perturbation:
    rest = st.from_activation(model, "2", x)
    loss = lambda p, rows: st.cross_entropy(rest(p, rows), y if rows is None else y[rows])  # noqa: E731
    return st.perturb(loss, st.activation(model, "2", x), st.Ball("l2", 0.5), generator=st.generator(0))


def _joint(model: nn.Module, x: Tensor, y: Tensor) -> st.Perturbation:
    loss = st.scalar(lambda p: F.cross_entropy(st.at(model, p["w"])(p["x"]), y))
    origin = {"w": st.weights(model), "x": x}
    return st.perturb(loss, origin, {"w": AWP, "x": st.Ball("linf", 0.1, box=(0, 1))}, generator=st.generator(0))


PLACES = {
    **{f"inputs {norm}": _inputs(norm=norm) for norm in NORMS},
    "inputs kl": _inputs(loss=lambda model, y: st.kl(model, X, generator=st.generator(1))),
    "inputs margin that stops": _inputs(loss=lambda model, y: st.margin(model, y, stop=True), by=st.PGD(4, restarts=2)),
    "inputs dlr best": _inputs(loss=st.dlr, by=st.PGD(3, momentum=0.9, keep="best")),
    "a region": _inputs(mask=torch.arange(8) < 4),
    "weights": Place(_weights),
    "activations": Place(_activation),
    "joint": Place(_joint),
}


class Trace:
    """Everything that a call must leave as it was, taken before and compared after, to the bit."""

    def __init__(self, model: nn.Module, *tensors: Tensor) -> None:
        self.model, self.tensors = model, tensors
        self.values = [t.detach().clone() for t in (*model.state_dict().values(), *tensors)]
        self.versions = [t._version for t in (*model.state_dict().values(), *tensors)]
        self.facts = self._facts()
        self.random = torch.get_rng_state()
        self.grad_mode = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def _facts(self) -> list[Any]:
        model = self.model
        return [
            [(name, id(p), p.requires_grad, p.grad is None) for name, p in model.named_parameters()],
            [(name, id(b)) for name, b in model.named_buffers()],
            [(name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()],
            [(t.requires_grad, t.grad is None, t.is_leaf) for t in self.tensors],
        ]

    def check(self) -> None:
        now = (*self.model.state_dict().values(), *self.tensors)
        assert all(torch.equal(a, b) for a, b in zip(now, self.values, strict=True))
        assert [t._version for t in now] == self.versions
        assert self._facts() == self.facts
        assert torch.equal(torch.get_rng_state(), self.random)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == self.grad_mode


@pytest.fixture(params=["eval", "train", "train with dropout"])
def model(request: pytest.FixtureRequest) -> nn.Sequential:
    net = build(dropout=0.5 if "dropout" in request.param else 0.0)
    net[0].bias.requires_grad_(False)  # a frozen parameter stays frozen
    return net.train("train" in request.param)


@pytest.mark.parametrize("name", PLACES)
def test_nothing_is_changed(model: nn.Module, name: str) -> None:
    x, y = X.clone(), Y.clone()
    trace = Trace(model, x, y)
    found = PLACES[name].run(model, x, y)
    trace.check()
    assert not torch.is_tensor(found.delta) or bool(found.delta.any())


class BrokenError(RuntimeError):
    pass


@pytest.mark.parametrize("name", [name for name in PLACES if name not in ("inputs kl",)])
def test_nothing_is_changed_by_a_call_that_fails_in_the_middle(model: nn.Sequential, name: str) -> None:
    passes: Iterator[int] = iter(range(99))

    def fail(module: nn.Module, inputs: Any) -> None:
        if next(passes) == 2:
            raise BrokenError

    model[6].register_forward_pre_hook(fail)
    x, y = X.clone(), Y.clone()
    trace = Trace(model, x, y)
    with pytest.raises(BrokenError):
        PLACES[name].run(model, x, y)
    trace.check()


def test_masks_starts_and_radii_are_not_changed() -> None:
    model, mask, start, radius = build().eval(), (X > 0.3).float(), X * 0.05, torch.full((6,), 0.1)
    before = [t.clone() for t in (mask, start, radius)]
    ball = st.Ball("linf", radius, box=(0, 1), mask=mask)
    found = st.perturb(st.ce(model, Y, stop=True), X, ball, by=st.PGD(3), start=start)
    assert all(torch.equal(a, b) for a, b in zip((mask, start, radius), before, strict=True))
    assert found.delta.data_ptr() != start.data_ptr()
    assert found.point.data_ptr() != X.data_ptr()


@pytest.mark.parametrize("name", PLACES)
def test_the_same_seed_gives_the_same_result(model: nn.Module, name: str) -> None:
    """Also with dropout, and whatever the global state: the randomness inside is seeded from the generator."""
    results = []
    for k in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(k)
            results.append(PLACES[name].run(model, X, Y))
    for a, b in zip(flat(results[0].point), flat(results[1].point), strict=True):
        assert torch.equal(a, b)


def flat(tree: Any) -> list[Tensor]:
    return [leaf for part in tree.values() for leaf in flat(part)] if isinstance(tree, dict) else [tree]


@pytest.mark.parametrize("start", ["sample", st.Gaussian(0.01)])
@pytest.mark.parametrize("norm", NORMS)
def test_another_seed_gives_another_result(norm: str, start: Any) -> None:
    model, ball = build().eval(), st.Ball(norm, RADIUS[norm], box=(0, 1))
    one, two = (
        st.perturb(st.ce(model, Y), X, ball, by=st.PGD(2), start=start, generator=st.generator(k)) for k in range(2)
    )
    assert not torch.equal(one.point, two.point)


def test_another_seed_gives_another_dropout() -> None:
    model = build(dropout=0.5).train()
    one, two = (st.perturb(st.ce(model, Y), X, st.Ball("l2", 1.0), generator=st.generator(k)) for k in range(2))
    assert not torch.equal(one.point, two.point)


def test_a_generator_that_draws_nothing_is_not_consumed_and_one_that_draws_goes_on() -> None:
    model, source, ball = build(dropout=0.5).train(), st.generator(0), st.Ball("linf", 0.1)
    state = source.get_state()
    st.perturb(st.ce(model, Y), X, ball, by=st.PGD(2), generator=source)
    assert torch.equal(source.get_state(), state)
    one, two = (st.perturb(st.ce(model, Y), X, ball, start="sample", generator=source) for _ in range(2))
    assert not torch.equal(one.point, two.point)


def expected(loss: Any = st.ce) -> Tensor:
    return st.perturb(loss(build().eval(), Y), X, st.Ball("linf", 0.1), by=st.PGD(3)).point


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("made", ["outside", "inside"])
@pytest.mark.parametrize("name", [name for name in PLACES if name.startswith(("inputs", "a region"))])
def test_works_under_every_grad_mode(mode: Any, made: str, name: str) -> None:
    net = build().train()
    wanted = PLACES[name].run(net, X, Y)
    trace = Trace(net)
    with mode():
        x, y = (X.clone(), Y.clone()) if made == "inside" else (X, Y)
        assert x.is_inference() == (made == "inside" and mode is torch.inference_mode)
        found = PLACES[name].run(net, x, y)
    trace.check()
    for a, b in zip(flat(found.point), flat(wanted.point), strict=True):
        assert torch.equal(a, b)
        assert not a.is_inference()  # a training step may follow outside
        assert not a.requires_grad


def test_inference_tensors_from_elsewhere_are_taken() -> None:
    with torch.inference_mode():
        x, y, mask = X.clone(), Y.clone(), torch.ones_like(X)
    ball = st.Ball("linf", 0.1, mask=mask)
    assert torch.equal(st.perturb(st.ce(build().eval(), y), x, ball, by=st.PGD(3)).point, expected())


def test_inputs_that_require_a_gradient_or_have_one_are_taken() -> None:
    model = build().eval()
    leaf = X.clone().requires_grad_()
    grown = leaf * 1.0
    for x in (leaf, grown):
        found = st.perturb(st.ce(model, Y), x, st.Ball("linf", 0.1), by=st.PGD(3))
        assert torch.equal(found.point, expected())
        assert not found.point.requires_grad
        assert not found.origin.requires_grad
    assert leaf.grad is None
    grown.sum().backward()  # the caller's graph is intact
    assert leaf.grad is not None


def test_frozen_models_can_be_attacked() -> None:
    model = build().eval().requires_grad_(False)
    assert torch.equal(st.perturb(st.ce(model, Y), X, st.Ball("linf", 0.1), by=st.PGD(3)).point, expected())


@pytest.mark.parametrize("name", ["weights", "activations", "joint"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_places_of_a_closure_work_under_every_grad_mode(mode: Any, name: str) -> None:
    net = build().train()
    wanted = PLACES[name].run(net, X, Y)
    with mode():
        found = PLACES[name].run(net, X, Y)
    assert all(torch.equal(a, b) for a, b in zip(flat(found.point), flat(wanted.point), strict=True))


@pytest.mark.parametrize("name", [name for name in PLACES if name not in ("joint", "inputs kl")])
def test_a_batch_of_one_and_an_empty_one(name: str) -> None:
    model = build().eval()
    one = PLACES[name].run(model, X[:1], Y[:1])
    assert all(bool(torch.isfinite(leaf).all()) for leaf in flat(one.point))
    if name != "weights":
        none = PLACES[name].run(model, X[:0], Y[:0])
        assert len(none.point) == 0
        assert none.calls == st.Calls(0, 0)
