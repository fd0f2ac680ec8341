"""What every measure of flatness promises, and which values the presets stand for."""

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from shaketable.core import PGD, Ball, InputError
from shaketable.flatness import measures
from shaketable.flatness.measures import Average, Worst
from shaketable.flatness.presets import AUTHORS, EQUAL, PAPER, PRESETS
from shaketable.flatness.sharpness import AdaptiveSharpness, FilterNormalised, SAMSharpness
from shaketable.jobs.choices import choose

Make = Callable[..., Any]
LINF = Ball("linf", 0.05, box=(0.0, 1.0))
TABLE: dict[str, Any] = {
    "average": Average,
    "worst": Worst,
    "adaptive": AdaptiveSharpness,
    "sam": SAMSharpness,
    "filter": FilterNormalised,
}
TEXTS = [
    "average(samples=2, reference_restarts=1)",
    "average(samples=2, loss='clean', antithetic=True)",
    "average(samples=2, preset='authors')",
    "worst(restarts=2, reference_restarts=1)",
    "worst(restarts=2, loss='clean')",
    "worst(restarts=2, preset='authors')",
    "adaptive(steps=3)",
    "adaptive(case='average', samples=2)",
    "adaptive(loss='robust', steps=2, restarts=2)",
    "sam(steps=3)",
    "sam(loss='robust', steps=2)",
    "filter(samples=2, reference_restarts=1)",
    "filter(case='worst', restarts=2, loss='clean')",
]
ABSOLUTE = "sam"  # moves weights that are 0 as well


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.bn(self.conv(x))).flatten(1))


def data(n: int = 24, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(3)
    return torch.rand(n, 1, 4, 4, generator=source, dtype=torch.float64).to(dtype), torch.arange(n) % 3


def call(text: str, model: nn.Module, x: Tensor, y: Tensor, seed: int = 1, **more: Any) -> Any:
    return choose(text, TABLE, "measure")(model, x, y, seed=seed, within=LINF, by=PGD(1, 1.0), batch_size=14, **more)


@pytest.mark.parametrize("text", TEXTS)
def test_the_contract(text: str, fill: Make) -> None:
    model = fill(Net())
    model.conv.weight.requires_grad_(False)
    x, y = data()
    before, state, kept = copy.deepcopy(model.state_dict()), torch.get_rng_state(), x.clone()
    seen: list[tuple[int, int]] = []
    found = call(text, model, x, y, progress=lambda done, of: seen.append((done, of)))
    assert found == call(text, model, x, y)
    if text not in ("adaptive(steps=3)", "sam(steps=3)"):  # which start at w and draw nothing
        assert found.draws != call(text, model, x, y, seed=2).draws
    assert seen == [(k + 1, seen[-1][1]) for k in range(seen[-1][1])]
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, kept)
    assert not any(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True]
    assert all(p.grad is None for p in model.parameters())
    assert (found.examples, len(found.per_image), len(found.correct)) == (24, 24, 24)
    assert found.value.value == pytest.approx(float(found.per_image.mean()), abs=1e-12)
    assert found.value.low <= found.value.value <= found.value.high
    assert found.value.value != 0
    assert not found.constant
    assert min(found.calls.forward, found.facts["xi"] * 1e9) > 0
    with torch.no_grad():
        assert torch.equal(found.correct, model(x).argmax(1) == y)
    split = found.split()
    parts = [part for part in (split.correct, split.incorrect) if part is not None]
    assert sum(part.n for part in parts) == 24
    assert sum(part.n * part.value for part in parts) == pytest.approx(24 * found.value.value, abs=1e-9)


@pytest.mark.parametrize("text", TEXTS)
def test_batches_of_one_single_precision_and_zero_layers(text: str, fill: Make) -> None:
    model = fill(Net())
    with torch.no_grad():
        model.conv.bias.zero_()
    x, y = data()
    one = call(text, model, x[:1], y[:1])
    assert one.examples == 1
    assert math.isfinite(one.value.value)
    assert not one.constant
    single = call(text, copy.deepcopy(model).float(), x[:5].float(), y[:5])
    assert torch.isfinite(single.per_image).all()
    assert single.per_image.dtype == torch.float64


@pytest.mark.parametrize("text", TEXTS)
def test_a_constant_predictor_is_flat_and_marked(text: str, fill: Make) -> None:
    model = fill(Net())
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.zero_()
    x, y = data()
    for n in (24, 1):
        found = call(text, model, x[:n], y[:n])
        assert found.constant
        assert found.facts["classes"] == 1
        if not text.startswith(ABSOLUTE):
            assert found.value.value == 0
            assert set(found.draws) == {0.0}
    with torch.no_grad():  # not the same logits, but the same class for all of them
        model.head.weight.fill_(1e-4)
        model.head.weight[0] += 1e-5
        model.head.bias[1] = 1.0
    assert call(text, model, x, y).constant


@pytest.mark.parametrize("text", TEXTS)
def test_what_every_measure_refuses(text: str, fill: Make) -> None:
    model = fill(Net())
    x, y = data()
    with pytest.raises(InputError, match="eval mode"):
        call(text, copy.deepcopy(model).train(), x, y)
    with pytest.raises(InputError, match="finite"):
        call(text, model, x * torch.nan, y)
    with pytest.raises(InputError, match="one or more"):
        call(text, model, x[:0], y[:0])
    with pytest.raises(InputError, match="labels below 3"):
        call(text, model, x, y + 1)
    with torch.no_grad():
        model.head.weight[0, 0] = torch.inf
    with pytest.raises(InputError, match="finite"):
        call(text, model, x, y)


def test_the_presets_are_what_the_paper_and_its_code_say() -> None:
    assert (PAPER.law, PAPER.nu, PAPER.batch_size, PAPER.samples, PAPER.xi) == ("ball", "batch", 128, 10, 0.5)
    assert (PAPER.worst_xi, PAPER.worst_xi_clean, PAPER.worst_step) == (0.00075, 0.003, 0.001)
    assert (PAPER.reference_restarts, PAPER.worst_restarts, PAPER.worst_reference_restarts) == (10, 10, 10)
    assert PAPER.step(0.00075) == pytest.approx(4 / 3)  # .001 ||w|| in radii of .00075 ||w||
    differs = {name for name, value in asdict(PAPER).items() if asdict(AUTHORS)[name] != value}
    assert differs == {
        "law", "nu", "reference_restarts", "worst_xi", "worst_step", "worst_reference_restarts", "worst_law"
    }  # fmt: skip
    assert (AUTHORS.law, AUTHORS.nu, AUTHORS.worst_xi, AUTHORS.worst_step) == ("sphere", "all", 0.003, 0.01)
    assert AUTHORS.step(0.003) == pytest.approx(10 / 3)
    assert replace(PAPER, reference_restarts=1) == EQUAL
    assert EQUAL.worst_reference_restarts == EQUAL.worst_restarts
    assert list(PRESETS) == ["paper", "authors", "equal"]
    assert PAPER.step(0.0) == 1.0


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_is_what_it_says(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the functions are called with; they are measured elsewhere."""
    asked: list[dict[str, Any]] = []
    for name in ("average", "worst"):
        monkeypatch.setattr(measures, name, lambda *_images, **options: asked.append(options))
    p, nothing = PRESETS[preset], torch.zeros(0)
    always: dict[str, Any] = {"seed": 1, "within": LINF, "by": PGD(1), "progress": None}
    for made in (Average(preset=preset), Worst(preset=preset), Worst(preset=preset, loss="clean")):
        made(nn.Linear(1, 1), nothing, nothing, **always)
    assert asked[0] == always | {
        "loss": "robust", "xi": 0.5, "samples": 10, "law": p.law, "nu": p.nu, "antithetic": False, "batch_size": 128,
        "reference_restarts": p.reference_restarts,
    }  # fmt: skip
    assert asked[1] == always | {
        "loss": "robust", "xi": p.worst_xi, "restarts": 10, "step": p.worst_step / p.worst_xi, "nu": p.nu,
        "law": p.worst_law, "batch_size": 128, "reference_restarts": p.worst_reference_restarts,
    }  # fmt: skip
    assert asked[2] == asked[1] | {"loss": "clean", "xi": 0.003, "step": p.worst_step / 0.003}
    Average(0.1, 2, "clean", preset, "radius", "batch", 3, True)(
        nn.Linear(1, 1), nothing, nothing, **always, batch_size=7
    )
    assert asked[3] == always | {
        "loss": "clean", "xi": 0.1, "samples": 2, "law": "radius", "nu": "batch", "antithetic": True, "batch_size": 7,
        "reference_restarts": 3,
    }  # fmt: skip


def test_measures_are_values_of_literals_and_called_alike() -> None:
    for made in TABLE.values():
        assert made() == made()
        assert all(isinstance(v, str | int | float | bool | None) for v in asdict(made()).values())
        taken = inspect.signature(made.__call__).parameters
        assert list(taken)[4:] == ["seed", "within", "by", "batch_size", "progress"]


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Average(preset="papers"), "preset"),
        (lambda: Worst(preset="code"), "preset"),
        (lambda: Average(xi=-1.0), "xi"),
        (lambda: Worst(xi=math.inf), "xi"),
        (lambda: Average(loss="clear"), "loss"),  # pyright: ignore
        (lambda: Worst(nu="each"), "nu"),  # pyright: ignore
        (lambda: Average(law="cube"), "law"),  # pyright: ignore
    ],
)
def test_bad_values_are_refused_when_they_are_made(make: Callable[[], Any], argument: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert caught.value.argument == argument
