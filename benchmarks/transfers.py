"""A transfer matrix: one path a source for all targets, against a run for every pair."""

import copy
from collections.abc import Iterator

import peers
import torch
from cells import Comparison
from subjects import subject
from timing import interleave, ratio
from torch import nn

from shaketable.attacks import Transfer, transfer

STEPS, STEP = 50, 0.01


def matrix(count: int, repetitions: int) -> Iterator[Comparison]:
    """Four networks of the Fashion-MNIST recipes: three as trained, and the ordinary one with noise on its weights."""
    count = min(count, 120)
    subjects = {name: subject(name, count) for name in ("AT-AWP", "AT", "ordinary")}
    x, y = subjects["AT"].x, subjects["AT"].y
    models: dict[str, nn.Module] = {name: s.model for name, s in subjects.items()} | {
        "noisy": _noisy(subjects["ordinary"].model)
    }
    pairs = [(a, b) for a in models for b in models if a != b]
    found: dict[str, object] = {}

    def ours() -> None:
        found["ours"] = transfer(models, x, y, seed=0, steps=STEPS, step=STEP, loss="ce", stop="first-transfer")

    def by_hand() -> None:
        goal = torch.tensor(_one(found["ours"]).rows[0]["target"])
        found["by hand"] = {
            (a, b): torch.cat([
                peers.transfer_by_hand(models[a], models[b], *part, STEPS, STEP)
                for part in zip(x.split(32), y.split(32), goal.split(32), strict=True)
            ])
            for a, b in pairs
        }  # fmt: skip

    seconds = interleave({"ours": ours, "a run for every pair": by_hand}, repetitions)
    made, by_pair = _one(found["ours"]), found["by hand"]
    assert isinstance(by_pair, dict)
    rates = {"ours": made.mean(oracle=True).value}
    hits = [(by_pair[a, b] > 0)[torch.tensor(made.valid(a, b))].double().mean() for a, b in pairs]
    rates["a run for every pair"] = float(torch.stack(hits).mean())
    facts = {
        "models": list(models), "images": count, "steps": STEPS, "step": STEP, "transfer at some step": rates,
        "forward and backward of sources": [sum(r["regions"]["whole"]["calls"][k] for r in made.rows) for k in (0, 1)],
        "forward of targets": sum(r["regions"]["whole"]["checks"] for r in made.rows),
    }  # fmt: skip
    if abs(rates["ours"] - rates["a run for every pair"]) > 0.01:
        raise AssertionError(f"the two find other rates: {facts}")
    other, bar = "a run for every pair", (len(models) - 1) / 2
    against = ratio(seconds[other], seconds["ours"])
    yield Comparison("transfer matrix, 4 networks", other, against, bar, False, seconds["ours"], seconds[other], facts)


def _one(found: object) -> Transfer:
    assert isinstance(found, Transfer)
    return found


def _noisy(model: nn.Module) -> nn.Module:
    noisy, draw = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in noisy.parameters():
            p.add_(0.1 * p.std() * torch.randn(p.shape, generator=draw) if p.numel() > 1 else 0.0)
    return noisy.eval()
