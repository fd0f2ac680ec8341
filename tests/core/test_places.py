"""Places: weights, `at`, and activations."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable import core as st

Make = Callable[..., Any]


class Tied(nn.Module):
    """A network whose head is its embedding, with a matrix-shaped normalisation and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(6, 4, bias=False), nn.LayerNorm((2, 2)), nn.Linear(6, 4)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.norm(self.embed(x).reshape(-1, 2, 2)).flatten(1) + self.head(x)


def test_weights_are_matrices_alone(network: Make) -> None:
    model = network()
    assert list(st.weights(model)) == ["0.weight", "4.weight", "7.weight"]
    assert st.weights(model)["0.weight"].data_ptr() == model[0].weight.data_ptr()
    assert not st.weights(model)["0.weight"].requires_grad
    assert list(st.weights(model, "all")) == [name for name, _ in model.named_parameters()]
    chosen = st.weights(model, lambda name, p: name.endswith("bias") and p.dim() == 1)
    assert list(chosen) == ["0.bias", "1.bias", "4.bias", "7.bias"]


def test_tied_weights_appear_once_and_normalisation_not_at_all() -> None:
    assert list(st.weights(Tied())) == ["embed.weight"]
    assert set(st.weights(Tied(), "all")) == {"embed.weight", "norm.weight", "norm.bias", "head.bias", "scale"}


@pytest.mark.parametrize(
    ("model", "select"),
    [
        (nn.ReLU(), "matrices"),
        (nn.BatchNorm2d(3), "matrices"),
        (nn.Linear(2, 2), lambda n, p: False),
        (nn.ReLU(), "all"),
    ],
)
def test_nothing_selected_is_an_error(model: nn.Module, select: Any) -> None:
    with pytest.raises(st.InputError, match="select: expected at least one"):
        st.weights(model, select)


def test_an_unknown_selection_is_an_error() -> None:
    with pytest.raises(st.InputError, match="select: expected 'matrices', 'all' or a function"):
        st.weights(nn.Linear(2, 2), "conv")  # pyright: ignore


def test_at_replaces_tensors_everywhere_they_are_used() -> None:
    model, x = Tied(), torch.rand(3, 6)
    other = {"embed.weight": torch.rand(4, 6), "scale": torch.tensor(-1.0)}
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.embed.weight.copy_(other["embed.weight"])
        twin.scale.copy_(other["scale"])
    assert torch.equal(st.at(model, other)(x), twin(x))
    assert not torch.equal(model(x), twin(x))


def test_at_gives_the_gradient_by_the_replaced_tensors(network: Make, images: Make, labels: Make) -> None:
    model, x, y = network(dtype=torch.float64), images(dtype=torch.float64), labels()
    w = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    loss = F.cross_entropy(st.at(model, w)(x), y)
    found = torch.autograd.grad(loss, list(w.values()))
    wanted = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_at_on_batch_norm_in_train_mode_records_nothing(network: Make, images: Make) -> None:
    model, x = network().train(), images()
    before = copy.deepcopy(model.state_dict())
    f = st.at(model)
    first, second = f(x), f(x)
    assert torch.equal(first, second)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert torch.equal(copy.deepcopy(model)(x), first)  # the batch's statistics are used
    assert not torch.equal(model.eval()(x), first)
    moved = {"1.running_mean": torch.full((6,), 3.0)}
    assert not torch.equal(st.at(model, moved)(x), model(x))


def test_one_submodule_in_train_mode_is_enough_to_shelter(network: Make, images: Make) -> None:
    model, x = network(), images()
    model[1].train()
    before = model[1].running_mean.clone()
    st.at(model)(x)
    assert torch.equal(model[1].running_mean, before)


def test_at_of_a_function_is_the_function() -> None:
    assert st.at(torch.sin) is torch.sin


def test_at_with_unknown_names_is_an_error(network: Make) -> None:
    with pytest.raises(st.InputError, match=r"tensors: expected names.*0\.wait"):
        st.at(network(), {"0.wait": torch.ones(1)})


@pytest.mark.parametrize("layer", [str(k) for k in range(8)])
def test_activations_compose_to_the_whole_model(network: Make, images: Make, layer: str) -> None:
    """Also where the layer after it works in place."""
    model, x = network(), images()
    whole = model(x)
    a = st.activation(model, layer, x)
    assert torch.equal(
        a, model[: int(layer) + 1](x) if layer not in "15" else model[int(layer)](model[: int(layer)](x))
    )
    rest = st.from_activation(model, layer, x)
    kept = a.clone()
    assert torch.equal(rest(a, None), whole)
    assert torch.equal(a, kept)
    some = torch.tensor([3, 1])
    assert torch.allclose(rest(a[some], some), whole[some], rtol=1e-5, atol=1e-6)


def test_the_gradient_comes_from_the_activation_alone(network: Make, images: Make) -> None:
    model, x = network(dtype=torch.float64), images(dtype=torch.float64).requires_grad_()
    a = st.activation(model, "3", x).requires_grad_()
    logits = st.from_activation(model, "3", x)(a, None)
    by_a, by_x, before, after = torch.autograd.grad(
        logits.square().sum(), [a, x, model[0].weight, model[4].weight], allow_unused=True
    )
    assert by_x is None
    assert before is None
    assert bool(after.any())
    tail = a.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(model[4:](tail.clone()).square().sum(), tail)
    assert torch.equal(by_a, wanted)


def test_activations_are_a_place(network: Make, images: Make, labels: Make) -> None:
    model, x, y = network(), images(), labels()
    a, rest = st.activation(model, "1", x), st.from_activation(model, "1", x)

    def loss(point: Tensor, rows: Tensor | None) -> Tensor:
        return st.cross_entropy(rest(point, rows), y if rows is None else y[rows])

    found = st.perturb(loss, a, st.Ball("l2", 0.5), by=st.PGD(5, keep="best"))
    assert found.value is not None
    assert bool((found.value > loss(a, None)).all())
    assert bool((found.size > 0.3).all())
    assert bool((found.size < 0.50001).all())


def test_activations_made_under_inference_mode_are_a_place(network: Make, images: Make, labels: Make) -> None:
    model, y = network(), labels()
    with torch.inference_mode():
        x = images()
        a = st.activation(model, "3", x)
    assert not a.is_inference()
    rest = st.from_activation(model, "3", x)
    point = a.clone().requires_grad_()
    (slope,) = torch.autograd.grad(st.cross_entropy(rest(point, None), y).sum(), point)
    assert bool(slope.any())


def no_hooks(model: nn.Module) -> bool:
    return not any(module._forward_hooks for module in model.modules())


def test_hooks_are_removed_also_after_errors(network: Make, images: Make) -> None:
    model, x = network(), images()
    with pytest.raises(RuntimeError):
        st.activation(model, "0", torch.rand(2, 5, 8, 8))
    assert no_hooks(model)
    rest = st.from_activation(model, "0", x)
    with pytest.raises(st.InputError, match="point: expected a tensor of shape"):
        rest(torch.rand(6, 2), None)
    assert no_hooks(model)
    rest(st.activation(model, "0", x), None)
    assert no_hooks(model)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act, self.unused, self.pair = nn.Tanh(), nn.Tanh(), Pair()

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.pair(self.act(x))
        return self.act(one + two)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, 2 * x


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("act", "found 2 calls"),
        ("unused", "found 0 calls"),
        ("pair", "found tuple"),
        ("", "name of a module"),
        ("akt", r"Did you mean one of \['act'"),
    ],
)
def test_layers_that_are_no_place_are_an_error(layer: str, message: str) -> None:
    model, x = Twice(), torch.rand(2, 3)
    with pytest.raises(st.InputError, match=rf"(layer|point).*{message}"):
        st.activation(model, layer, x)
    with pytest.raises(st.InputError, match=r"layer|point"):
        st.from_activation(model, layer, x)(x, None)
    assert no_hooks(model)
