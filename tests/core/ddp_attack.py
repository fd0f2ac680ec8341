"""What attacks leave of a DistributedDataParallel model: run by torchrun for test_parallel_wrappers.py, in two processes.

Writes what process k found to the file k.json of the folder that it is given.
"""

import copy
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from shaketable import core as st
from shaketable.core.measure import measure

BALL = st.Ball("linf", 0.1, box=(0.0, 1.0))
Attack = Callable[[nn.Module, Tensor, Tensor], Any]


def network() -> nn.Module:
    source = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source))
    return model


def batch() -> tuple[Tensor, Tensor]:
    """Other images in each process."""
    source = torch.Generator().manual_seed(dist.get_rank())
    return torch.rand(4, 1, 6, 6, generator=source), torch.randint(0, 3, (4,), generator=source)


def inputs(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    return st.perturb(st.ce(model, y), x, BALL, by=st.PGD(3), start="sample", generator=st.generator(0)).point


def weights(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    objective = st.scalar(lambda w: F.cross_entropy(st.at(model, w)(x), y))
    found = st.perturb(objective, st.weights(model), st.Ball("l2", 0.1, per="tensor", relative=True), by=st.PGD(2))
    with st.perturbed(model, found.delta):
        pass
    return found.point


def activations(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    rest = st.from_activation(model, "2", x)
    objective = lambda a, rows: st.cross_entropy(rest(a, rows), y)  # noqa: E731
    return st.perturb(objective, st.activation(model, "2", x), st.Ball("l2", 0.1), by=st.PGD(2)).point


def divergence(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    return st.perturb(st.kl(model, x), x, BALL, by=st.PGD(2), generator=st.generator(0)).point


def measured(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    return measure(model, x, y, BALL, by=st.PGD(2), generator=st.generator(0)).robust_loss


def in_eval(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    model.eval()
    point = inputs(model, x, y)
    model.train()
    return point


def through_the_wrapper(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    """What an attack that knows nothing of wrappers does: here to show that these measurements notice it."""
    point = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(point), y), point)[0]


ATTACKS: dict[str, Attack] = {
    "inputs": inputs, "weights": weights, "activations": activations, "divergence": divergence, "measured": measured,
    "in eval mode": in_eval, "through the wrapper": through_the_wrapper,
}  # fmt: skip


def parallel() -> nn.parallel.DistributedDataParallel:
    return nn.parallel.DistributedDataParallel(network())


def collectives(act: Callable[[], Any]) -> int:
    """How many collective calls it makes, from Python or from C++."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        act()
    return sum(event.count for event in seen.key_averages() if event.key.startswith("gloo:"))


def gradients(model: nn.Module, attack: Attack | None, *, synchronised: bool) -> list[list[float]]:
    """Of two backward passes that follow an attack each; the second always synchronised."""
    x, y = batch()
    found: list[list[float]] = []
    for sync in (synchronised, True):
        if attack is not None:
            attack(model, x, y)
        model.zero_grad()
        parallel = isinstance(model, nn.parallel.DistributedDataParallel)
        with model.no_sync() if parallel and not sync else nullcontext():
            F.cross_entropy(model(x), y).backward()
        found.append([float(v) for p in model.parameters() for v in (p.grad if p.grad is not None else p).flatten()])
    return found


def tried(model: nn.Module, attack: Attack | None, *, synchronised: bool) -> Any:
    try:
        return gradients(model, attack, synchronised=synchronised)
    except RuntimeError as error:
        return str(error).split(". ")[0]


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    x, y = batch()
    said: dict[str, Any] = {
        "alone": gradients(network(), None, synchronised=False),
        "sync": gradients(parallel(), None, synchronised=True), "no_sync": gradients(parallel(), None, synchronised=False),
        "a pass": collectives(lambda: F.cross_entropy(parallel()(x), y).backward()), "attacks": {},
    }  # fmt: skip
    for name, attack in ATTACKS.items():
        model, plain = parallel(), network()
        before = copy.deepcopy(model.module.state_dict())
        said["attacks"][name] = {
            "collectives": collectives(lambda model=model, attack=attack: attack(model, x, y)),
            "untouched": all(torch.equal(before[k], v) for k, v in model.module.state_dict().items()),
            "as bare": _same(attack(model, x, y), attack(plain, x, y)),
            "sync": tried(parallel(), attack, synchronised=True),
            "no_sync": tried(parallel(), attack, synchronised=False),
        }
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


def _same(a: Any, b: Any) -> bool:
    return (
        a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) if isinstance(a, dict) else torch.equal(a, b)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
