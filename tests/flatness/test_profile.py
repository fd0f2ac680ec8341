"""Options of the average case: the clean loss, a nu for each batch, antithetic pairs, several radii at once."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable.core import PGD, Ball, Calls, InputError, generator
from shaketable.flatness.average import average, profile
from shaketable.flatness.layers import layer_weights, layers_ball

Make = Callable[..., Any]
LINF = Ball("linf", 0.05, box=(0.0, 1.0))


def data(n: int = 25, classes: int = 3, seed: int = 3) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 10, generator=source, dtype=torch.float64)
    return x, torch.arange(n) % classes


class Counting(nn.Module):
    """A small net that counts the examples it is run on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(10, 8), nn.Linear(8, 3)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.second(torch.relu(self.first(x)))


def losses(model: nn.Module, x: Tensor, y: Tensor, nu: dict[str, Tensor] | None = None, sign: int = 1) -> Tensor:
    moved = {name: w + sign * nu[name] for name, w in layer_weights(model).items()} if nu else {}
    with torch.no_grad():
        return F.cross_entropy(torch.func.functional_call(model, moved, (x,)), y, reduction="none")


def drawn(model: nn.Module, k: int, batch: int = 0, xi: float = 0.5) -> Any:
    return layers_ball(xi).sample(layer_weights(model), generator(1, "flatness", k, *([batch] if batch else [])))


def test_the_clean_loss_is_the_cross_entropy_without_an_attack(fill: Make) -> None:
    model = fill(Counting())
    x, y = data()
    found = average(model, x, y, seed=1, loss="clean", samples=4, batch_size=10)
    rises = [losses(model, x, y, drawn(model, k)) - losses(model, x, y) for k in range(4)]
    assert found.draws == pytest.approx([float(rise.mean()) for rise in rises], abs=1e-12)
    assert torch.allclose(found.per_image, sum(rises, torch.zeros(25)) / 4, atol=1e-12)
    assert found.reference == pytest.approx(float(losses(model, x, y).mean()))
    with torch.no_grad():
        assert torch.equal(found.correct, model(x).argmax(1) == y)
    assert found.calls == Calls(5 * 25, 0)  # one forward pass a draw, and the reference
    split = found.split()
    assert split.correct is not None
    assert split.incorrect is not None
    assert split.correct.n + split.incorrect.n == 25


def test_images_are_attacked_anew_at_every_draw(fill: Make) -> None:
    """Adversarial examples that were kept would cost less than this: all passes are seen by the model itself."""
    model = fill(Counting())
    x, y = data()
    found = average(model, x, y, seed=1, within=LINF, by=PGD(7), samples=3, reference_restarts=2, batch_size=10)
    assert found.calls == Calls(25 * (3 * (7 + 2) + 2 * (7 + 1) + 2), 25 * (3 * 7 + 2 * 7))
    assert model.seen == found.calls.forward
    assert found.facts["clean"] == pytest.approx(
        average(model, x, y, seed=1, loss="clean", samples=3, batch_size=10).value.value
    )


def test_each_batch_can_have_a_nu_of_its_own(fill: Make) -> None:
    model = fill(Counting())
    x, y = data()
    options: dict[str, Any] = {"seed": 1, "loss": "clean", "samples": 3}
    found = average(model, x, y, nu="batch", batch_size=10, **options)
    parts = [slice(0, 10), slice(10, 20), slice(20, 25)]
    for k, draw in enumerate(found.draws):
        rises = [losses(model, x[p], y[p], drawn(model, k, b)) - losses(model, x[p], y[p]) for b, p in enumerate(parts)]
        assert draw == pytest.approx(float(torch.cat(rises).mean()), abs=1e-12)
    whole = average(model, x, y, nu="batch", batch_size=25, **options)  # one batch has the nu of all
    assert whole == average(model, x, y, nu="all", batch_size=25, **options)
    assert whole.draws != found.draws


def test_antithetic_pairs_are_nu_and_minus_nu(fill: Make) -> None:
    model = fill(Counting())
    x, y = data()
    found = average(model, x, y, seed=1, loss="clean", samples=6, antithetic=True)
    base = losses(model, x, y).mean()
    for k, draw in enumerate(found.draws):
        own = losses(model, x, y, drawn(model, k // 2), 1 - 2 * (k % 2)).mean() - base
        assert draw == pytest.approx(float(own), abs=1e-12)
    pairs = [(a + b) / 2 for a, b in zip(found.draws[::2], found.draws[1::2], strict=True)]
    assert found.value.n == 3
    assert found.value.value == pytest.approx(sum(pairs) / 3)
    with pytest.raises(InputError, match="samples: expected an even number"):
        average(model, x, y, seed=1, samples=5, antithetic=True)


def test_a_profile_is_what_each_radius_gives_by_itself(fill: Make) -> None:
    model = fill(Counting())
    x, y = data()
    options: dict[str, Any] = {"seed": 1, "within": LINF, "by": PGD(3), "samples": 2, "reference_restarts": 2}
    seen: list[tuple[int, int]] = []
    found = profile(model, x, y, xi=(0.0, 0.25, 1), progress=lambda done, of: seen.append((done, of)), **options)
    spent, model.seen = model.seen, 0
    assert found.xi == (0.0, 0.25, 1.0)
    for xi, one in zip(found.xi, found.results, strict=True):
        assert one == average(model, x, y, xi=xi, **options)
        assert one.facts["xi"] == xi
    assert found.calls.forward == spent
    assert seen == [(k, 6) for k in range(1, 7)]
    assert abs(found.results[2].value.value) > abs(found.results[1].value.value)
    with pytest.raises(InputError, match="xi: expected one radius or more"):
        profile(model, x, y, seed=1, xi=())


class Watching:
    """The layers' ball, with its eye on whether draws are let go of."""

    def __init__(self) -> None:
        self.drawn: list[weakref.ref[Tensor]] = []

    def sample(self, origin: Any, source: torch.Generator, law: Any) -> Any:
        nu: Any = layers_ball(0.5).sample(origin, source, law)
        self.drawn += [weakref.ref(part) for part in nu.values()]
        return nu


def test_memory_does_not_grow_with_the_samples(fill: Make) -> None:
    model, ball, alive = fill(Counting()), Watching(), []
    x, y = data()

    def look(_done: int, _of: int) -> None:
        alive.append(sum(part() is not None for part in ball.drawn))

    average(model, x, y, seed=1, xi=ball, loss="clean", samples=12, progress=look)
    assert len(ball.drawn) == 12 * 4
    assert max(alive) <= 4  # of one draw: two weights and two biases


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"loss": "robst"}, "loss"),
        ({"law": "cube"}, "law"),
        ({"nu": "each"}, "nu"),
        ({"loss": "clean", "x": torch.full((25, 10), float("inf")).double()}, "x"),
        ({"loss": "clean", "y": torch.full((25,), 3)}, "y"),
        ({"loss": "clean", "samples": 1.5}, "samples, xi"),
    ],
)
def test_bad_options(change: dict[str, Any], argument: str, fill: Make) -> None:
    x, y = data()
    given = {"x": x, "y": y} | change
    with pytest.raises(InputError) as caught:
        average(fill(Counting()), given.pop("x"), given.pop("y"), seed=0, **given)
    assert caught.value.argument == argument


def test_weights_and_losses_that_are_not_finite_are_refused(fill: Make) -> None:
    x, y = data()
    model = fill(Counting())
    with torch.no_grad():
        model.second.bias[0] = torch.nan
    with pytest.raises(InputError, match="model: expected a finite loss"):
        average(model, x, y, seed=0, loss="clean")
    with torch.no_grad():
        model.second.bias[0] = 0
        model.first.weight *= 1e300
        model.second.weight *= 1e300
    with pytest.raises(InputError, match="model: expected a finite loss"):
        average(model, x, y, seed=0, loss="clean")
