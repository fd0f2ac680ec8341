"""`perturbed`, the one in-place swap: given back to the bit, and an optimiser's step kept."""

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
    """A network whose head is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 4, bias=False), nn.Linear(6, 4)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x) + self.head(x)


def noise(model: nn.Module, scale: float = 0.01, select: Any = "matrices") -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(3)
    return {n: scale * torch.randn(w.shape, generator=source) for n, w in st.weights(model, select).items()}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_perturbed_is_w_plus_v_inside_and_w_after(network: Make, images: Make) -> None:
    model, x = network(), images()
    before, v, identity = state(model), noise(model, 3.0), [id(p) for p in model.parameters()]
    expected = st.at(model, {n: before[n] + d for n, d in v.items()})(x)
    with st.perturbed(model, v) as inside:
        assert inside is model
        assert torch.equal(model(x), expected)
        assert all(torch.equal(model.state_dict()[n], before[n] + d) for n, d in v.items())
    assert same(model, before)
    assert [id(p) for p in model.parameters()] == identity
    assert all(p.requires_grad for p in model.parameters())


def test_perturbed_is_undone_after_an_exception(network: Make) -> None:
    model = network()
    before = state(model)
    with pytest.raises(KeyboardInterrupt), st.perturbed(model, noise(model, 3.0)):
        raise KeyboardInterrupt
    assert same(model, before)


def test_perturbed_is_undone_when_it_fails_on_entering(network: Make) -> None:
    model = network()
    before, v = state(model), noise(model, 3.0)
    v["7.weight"] = torch.ones(v["7.weight"].shape, device="meta")  # cannot be added: the third of three
    with pytest.raises(NotImplementedError, match="meta"), st.perturbed(model, v):
        pass
    assert same(model, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_perturbed_never_drifts(network: Make, dtype: torch.dtype, given: torch.dtype) -> None:
    model = network().to(dtype)
    before, v = state(model), {n: d.to(given) for n, d in noise(model, 0.3).items()}
    for _ in range(2000 if dtype == given else 50):
        with st.perturbed(model, v):
            pass
    assert same(model, before)


def test_perturbed_comes_back_from_infinity(network: Make) -> None:
    """A perturbation that overflows: infinity minus infinity is no number, and must not stay in the weights."""
    model = network()
    before = state(model)
    with st.perturbed(model, {"0.weight": torch.full((6, 3, 3, 3), torch.inf)}):
        assert bool(torch.isinf(model[0].weight.detach()).all())
    assert same(model, before)


def test_perturbed_nests(network: Make) -> None:
    model = network()
    before, v = state(model), noise(model)
    with st.perturbed(model, v):
        middle = state(model)
        with st.perturbed(model, noise(model, 5.0, "all")):
            assert not same(model, middle)
        assert same(model, middle)
    assert same(model, before)


def test_perturbed_on_tied_weights_moves_them_once() -> None:
    model, x = Tied(), torch.rand(3, 6)
    before, v = state(model), noise(model, 1.0)
    with st.perturbed(model, v):
        assert torch.equal(model.head.weight, before["embed.weight"] + v["embed.weight"])
        assert torch.equal(model(x), st.at(model, {"embed.weight": before["embed.weight"] + v["embed.weight"]})(x))
    assert same(model, before)
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_an_optimisers_step_is_kept_and_the_perturbation_is_not(
    network: Make, images: Make, labels: Make, momentum: float
) -> None:
    """w_saved + (w_after - w_perturbed), to the bit; and AWP's adding and subtracting, but for its rounding."""
    model, x, y = network().train(), images(), labels()
    twin = copy.deepcopy(model)
    ours, theirs = (torch.optim.SGD(m.parameters(), 0.1, momentum=momentum, weight_decay=5e-4) for m in (model, twin))
    for _ in range(3):
        v, saved = noise(model, 0.05), state(model)
        with st.perturbed(model, v):
            pushed = state(model)
            ours.zero_grad()
            F.cross_entropy(model(x), y).backward()
            ours.step()
            stepped = state(model)
        for name, now in model.state_dict().items():
            old, before, after = saved[name], pushed[name], stepped[name]
            expected = torch.where(after == before, old, old + (after - before)) if name in v else after
            assert torch.equal(now, expected)
        own = dict(twin.named_parameters())
        with torch.no_grad():
            for name, d in v.items():
                own[name].add_(d)
        theirs.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        theirs.step()
        with torch.no_grad():
            for name, d in v.items():
                own[name].sub_(d)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, twin.state_dict()[name], rtol=1e-4, atol=1e-6), name
    assert not same(model, saved)


def test_a_weight_that_no_gradient_reached_is_the_same_to_the_bit(network: Make, images: Make, labels: Make) -> None:
    model = network()
    before = state(model)
    optimiser = torch.optim.SGD([model[7].weight], 0.1)
    with st.perturbed(model, noise(model, 3.0)):
        F.cross_entropy(model(images()), labels()).backward()
        optimiser.step()
    assert torch.equal(model[0].weight, before["0.weight"])
    assert torch.equal(model[4].weight, before["4.weight"])
    assert not torch.equal(model[7].weight, before["7.weight"])


@pytest.mark.parametrize(
    "v", [{"0.wait": torch.ones(6, 3, 3, 3)}, {"0.weight": torch.ones(3)}, {"1.running_mean": torch.ones(6)}]
)
def test_a_delta_of_other_names_or_shapes_is_an_error(network: Make, v: dict[str, Tensor]) -> None:
    model = network()
    before = state(model)
    with pytest.raises(st.InputError, match="delta: expected names and shapes"), st.perturbed(model, v):
        pass
    assert same(model, before)
