"""Trainings that one process or several do together, for test_group_training.py; as a program, a server that forks two.

Every task takes the processes that share it and returns tensors and plain values, so that a test can do it alone and compare.
The server imports the package once, then reads requests, JSON lines, and answers each with how its two processes ended; what
they returned is in the request's folder. No request takes longer than its limit: what has not ended by then is killed.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shaketable.attacks import PGDAttack, evaluate
from shaketable.core import PGD, Ascent, Ball, Calls, Flags, ShaketableError, generator
from shaketable.data import Dataset, from_arrays
from shaketable.training import (
    AT,
    EMA,
    LOSSES,
    OPTIMISERS,
    SWA,
    WEIGHTS,
    Alone,
    Epoch,
    Friendly,
    Group,
    Labels,
    Plan,
    Processes,
    Update,
    awp,
    begin,
    evaluate_slices,
    fit,
    train_step,
)

BALL = Ball("linf", 0.1, box=(0.0, 1.0))
SIZES = (7, 6, 1, 8, 5, 2, 3, 1, 7, 4) * 2
"""Of the batches of twenty steps: odd ones, and of one example, so that one of two processes has none."""

PERTURBATIONS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "awp": lambda: awp(0.05),
    "awp shared": lambda: awp(0.05, shared=True),
    "awp three steps": lambda: awp(0.05, steps=3),
    "sam": lambda: WEIGHTS["sam"](rho=0.1),
    "rwp": lambda: WEIGHTS["rwp"](gamma=0.05),
    "awp local": lambda: awp(0.05, sync="local"),
}


@dataclass(frozen=True)
class Given:
    """An ascender that does not climb: points that depend on the images alone, half of the radius away."""

    def __call__(self, objective: Any, origin: Any, within: Any, start: Any) -> Ascent:
        start()  # what is drawn after it, rwp's v, is then the same in parts of a batch, which have drawn their start
        none = torch.zeros(len(origin), dtype=torch.bool)
        delta = within.project(0.05 * torch.sign(torch.sin(1000 * origin)), origin)
        return Ascent(delta, None, Calls(), Flags(none, none, none))


ASCENTS: dict[str, Any] = {"pgd": PGD(2, 0.5), "given": Given(), "start": PGD(0), "friendly": Friendly(3, 0.4, 1)}


class Doubled(nn.Module):
    """Images are in float32; what follows is in float64."""

    def forward(self, x: Tensor) -> Tensor:
        return x.double()


class Branches(nn.Module):
    """Some weights are used by bright images alone, and some by none."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bright, self.never, self.last = (nn.Linear(*s) for s in ((108, 6), (6, 6), (6, 6), (6, 4)))

    def forward(self, x: Tensor) -> Tensor:
        hidden, bright = torch.tanh(self.first(x.flatten(1))), x[:, :1, 0, 0] > 0.5
        if bool(bright.any()):
            hidden = hidden + bright * torch.tanh(self.bright(hidden))
        return self.last(hidden)


class Breaks(nn.Module):
    """A network whose logits, or gradients by the weights, are NaN where the first pixel of an image is white."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how = nn.Linear(108, 4), how

    def forward(self, x: Tensor) -> Tensor:
        logits, white = self.net(x.flatten(1)), x[:, :1, 0, 0] >= 1
        if self.how == "logits":
            return torch.where(white, torch.nan, logits)
        if self.how == "gradient" and bool(white.any()):
            return logits + (0 * self.net.weight.sum()).sqrt()  # 0, with a slope of 0 / 0
        return logits


def drawn(model: nn.Module, seed: int = 1, dtype: torch.dtype = torch.float64) -> Any:
    """The model with weights from a seed, in train mode."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=source, dtype=torch.float64))
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d | nn.GroupNorm):
                m.weight.add_(1.0)
    return model.to(dtype).train()


def network(norm: str = "none", *, channels: int = 3, classes: int = 4, dtype: torch.dtype = torch.float64) -> Any:
    """A convolutional network for 6 x 6 images; with "dropout" one without a normalisation."""
    norms: dict[str, Callable[[], nn.Module]] = {
        "batch": lambda: nn.BatchNorm2d(4),
        "group": lambda: nn.GroupNorm(2, 4),
    }
    layer = norms.get(norm, nn.Identity)
    layers = [
        nn.Conv2d(channels, 4, 3, padding=1),
        layer(),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2),
        layer(),
        nn.ReLU(),
    ]
    last = [nn.Flatten(), nn.Dropout(0.3 if norm == "dropout" else 0.0), nn.Linear(16, classes)]
    return drawn(nn.Sequential(*layers, *last), dtype=dtype)


def batch(n: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 6, 6, generator=source, dtype=torch.float64)
    return x.to(dtype), torch.randint(0, 4, (n,), generator=source)


def images(n: int, seed: int = 0) -> Dataset:
    """Grey 6 x 6 images of two classes, dark and bright to the left."""
    source = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = 0.3 + 0.2 * torch.rand(n, 1, 6, 6, generator=source)
    x[:, :, :, :3] += 0.35 * y.reshape(-1, 1, 1, 1)
    return from_arrays(x, y, classes=["dark", "bright"])


def tensors_of(value: Any, path: str = "") -> dict[str, Tensor]:
    """All tensors in a nest of dicts and lists, by their path."""
    if isinstance(value, Tensor):
        return {path: value.detach().clone()}
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {name: t for key, part in parts for name, t in tensors_of(part, f"{path}/{key}").items()}


def whole(processes: Processes, model: nn.Module, optimiser: torch.optim.Optimizer, **more: Any) -> dict[str, Tensor]:
    """Weights, buffers, the optimiser's state and more; the same in all processes, or an error."""
    found = tensors_of({"model": model.state_dict(), "optimiser": optimiser.state_dict()["state"]} | more)
    processes.require_same("the training", found)
    return found


def steps(processes: Processes, given: dict[str, Any]) -> list[Any]:
    """Of each case, what is left after some steps and the losses on the way."""
    return [_steps(processes, **case) for case in given["cases"]]


def _steps(
    processes: Processes,
    loss: str = "at",
    weights: str = "none",
    *,
    norm: str = "none",
    dtype: str = "float64",
    by: str = "pgd",
    sizes: list[int] | None = None,
    labels: dict[str, Any] | None = None,
    accumulate: tuple[int, ...] = (1,),
    **update: Any,
) -> dict[str, Any]:
    """`accumulate` holds the numbers of parts in turn, the other way round after ten steps."""
    kind = getattr(torch, dtype)
    model, minimised = network(norm, dtype=kind), LOSSES[loss]()
    if hasattr(minimised, "prepare"):
        model = minimised.prepare(model, batch(2, 0, kind)[0], 0)
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-3)
    half = update.get("precision") == "float16"
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0) if half else None  # pyright: ignore[reportPrivateImportUsage]
    losses, silent, skipped = list[float](), 0, 0
    for k, n in enumerate(SIZES if sizes is None else sizes):
        done = train_step(
            model, optimiser, minimised, *batch(n, k, kind), within=BALL, by=ASCENTS[by], weights=PERTURBATIONS[weights](),
            generator=generator(7, k), update=Update(accumulate=accumulate[(k + k // 10) % len(accumulate)], **update),
            labels=Labels(**(labels or {})), processes=processes, scaler=scaler,
        )  # fmt: skip
        losses.append(done.loss)
        silent, skipped = silent + done.silent, skipped + done.skipped
    return {"left": whole(processes, model, optimiser), "losses": losses, "silent": silent, "skipped": skipped}


def frozen(processes: Processes, given: dict[str, Any]) -> list[Any]:
    """BatchNorm's statistics, before and after steps that must not move them: by policy, and where a layer is in eval mode."""
    found: list[Any] = []
    for policy in ("frozen", "once"):
        model = network("batch", dtype=torch.float32)
        source = torch.Generator().manual_seed(3)
        for layer in (model[1], model[4]):
            layer.running_mean.copy_(torch.randn(4, generator=source))
            layer.running_var.copy_(torch.rand(4, generator=source) + 0.5)
        if policy == "once":
            model[4].eval()
        before = {name: b.clone() for name, b in model.named_buffers()}
        optimiser = torch.optim.SGD(model.parameters(), 0.05)
        for k in range(6):
            train_step(
                model, optimiser, AT(), *batch(7, k, torch.float32), within=BALL, by=PGD(1), weights=awp(0.05),
                generator=generator(7, k), update=Update(batch_norm=policy), processes=processes,
            )  # fmt: skip
        found.append({"before": before, "after": whole(processes, model, optimiser)})
    return found


def branches(processes: Processes, given: dict[str, Any]) -> list[Any]:
    """Which parameters have a gradient after a step, and the weights: with bright images for one process, then for none."""
    model = drawn(Branches())
    optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-2)
    found: list[Any] = []
    for k, bright in enumerate((1.0, 0.0)):
        x, y = batch(7, k)
        x[:, 0, 0, 0] = torch.tensor([0.0] * 5 + [bright] * 2, dtype=x.dtype)
        train_step(
            model, optimiser, AT(start="zero"), x, y, within=BALL, by=PGD(0), weights=awp(0.05),
            generator=generator(0), processes=processes,
        )  # fmt: skip
        some = [name for name, p in model.named_parameters() if p.grad is not None]
        found.append({"used": some, "left": whole(processes, model, optimiser)})
    return found


def broken(processes: Processes, given: dict[str, Any]) -> list[Any]:
    """What is said of a step that finds something that is not finite, and whether the weights stayed."""
    found: list[Any] = []
    for case in given["cases"]:
        model, (x, y) = drawn(Breaks(case["how"])), batch(case.get("n", 5), 0)
        x[:, 0, 0, 0] = 0.0
        x[case.get("rows", []), 0, 0, 0] = 1.0
        with torch.no_grad():
            if case["how"] == "weights":
                model.net.weight.fill_(torch.nan)
        before = tensors_of(model.state_dict())
        optimiser = torch.optim.SGD(model.parameters(), 0.05)
        mask = torch.ones(1, 3, 6, 6, dtype=torch.bool)
        mask[:, 0, 0, 0] = False  # the first pixel stays
        said = "nothing"
        try:
            train_step(
                model, optimiser, AT(), x, y, within=replace(BALL, mask=mask), by=PGD(2),
                weights=PERTURBATIONS[case["weights"]](), generator=generator(0), update=Update(decay_at="restored"),
                processes=processes,
            )  # fmt: skip
        except ShaketableError as error:
            said = f"{type(error).__name__}: {error}"
        after = tensors_of(model.state_dict())
        stayed = all(torch.equal(before[name].view(torch.uint8), t.view(torch.uint8)) for name, t in after.items())
        found.append({"said": said, "stayed": stayed})
    return found


def white_noise(processes: Processes, given: dict[str, Any]) -> str:
    """Images of one process' rows are NaN: this process says so, and the other one's next call ends."""
    x, y = batch(4, 0)
    x[3] = torch.nan
    model = network()
    train_step(
        model, torch.optim.SGD(model.parameters(), 0.05), AT(), x, y, within=BALL, by=PGD(1), weights=None,
        generator=generator(0), processes=processes,
    )  # fmt: skip
    return "trained"


def local(processes: Processes, given: dict[str, Any]) -> dict[str, Any]:
    """A step at points that are the images themselves, with each process' own v and with one v; and what is refused."""
    found: dict[str, Any] = {}
    for sync in ("local", "global"):
        model = network("group")
        optimiser = torch.optim.SGD(model.parameters(), 0.5, weight_decay=0.1)
        weights = awp(0.3, sync=sync)
        train_step(
            model, optimiser, AT(start="zero"), *batch(7, 0), within=BALL, by=PGD(0), weights=weights,
            generator=generator(0), update=Update(decay_at="restored"), processes=processes,
        )  # fmt: skip
        found[sync] = whole(processes, model, optimiser)
    model = network()
    try:
        train_step(
            model, torch.optim.SGD(model.parameters(), 0.1), AT(), *batch(4, 0), within=BALL, by=PGD(1),
            weights=awp(sync="local"), generator=generator(0), processes=processes,
        )  # fmt: skip
    except ShaketableError as error:
        found["said"] = f"{type(error).__name__}: {error}"
    return found


def parallel(processes: Processes, given: dict[str, Any]) -> dict[str, Any]:
    """Of a DistributedDataParallel: what a step alone says, and steps and trainings in a group, wrapped and bare."""
    found: dict[str, Any] = {}
    for wrapped in (False, True):
        own = network("group")
        model = nn.parallel.DistributedDataParallel(own) if wrapped else own
        optimiser = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        found["said"] = []
        for alone in (model, nn.DataParallel(model)) if wrapped else ():
            try:
                train_step(
                    alone, optimiser, AT(), *batch(5, 0), within=BALL, by=PGD(1), weights=awp(), generator=generator(0)
                )
            except ShaketableError as error:
                found["said"].append(f"{type(error).__name__}: {error}")
        for k in range(3):
            train_step(
                model, optimiser, AT(), *batch(5, k), within=BALL, by=PGD(2), weights=awp(), generator=generator(k),
                processes=processes,
            )  # fmt: skip
        found["wrapped" if wrapped else "bare"] = whole(processes, own, optimiser)
        plan = Plan(within=BALL, attack=PGD(1), epochs=1, batch_size=5, select=None)
        other = drawn(nn.Sequential(Doubled(), network("none", channels=1, classes=2)))
        state = begin(nn.parallel.DistributedDataParallel(other) if wrapped else other, plan)
        found[f"unwrapped {wrapped}"] = state.model is other
        list(fit(state, plan, images(15), {}, processes=processes))
        found[f"fitted {wrapped}"] = whole(processes, state.model, state.optimiser)
    return found


def fitted(processes: Processes, given: dict[str, Any]) -> list[Any]:
    """Whole trainings on images in float32, of models in float64: weights, averages, history."""
    return [_fitted(processes, **case) for case in given["cases"]]


def _fitted(
    processes: Processes,
    loss: str,
    weights: str,
    *,
    norm: str = "group",
    unlabelled: bool = False,
    average: str = "none",
    labels: dict[str, Any] | None = None,
    optimiser: str = "sgd",
    batch_size: int = 7,
    **update: Any,
) -> dict[str, Any]:
    averages = {"none": None, "ema": EMA(0.9), "swa": SWA(0.5, every=2)}
    plan = Plan(
        loss=LOSSES[loss](), weights=PERTURBATIONS[weights](), within=BALL, attack=PGD(2), evaluation=PGD(2), epochs=2,
        batch_size=batch_size, optimiser=OPTIMISERS[optimiser](), rate=0.01 if optimiser == "adam" else 0.05, seed=4,
        average=averages[average], labels=Labels(**(labels or {})), update=Update(**update), statistics_batches=3,
    )  # fmt: skip
    model = nn.Sequential(Doubled(), network(norm, channels=1, classes=2))
    train, state = images(23), begin(model, plan, images(2).batch([0, 1]).x)
    more = images(9, seed=5) if unlabelled else None
    slices = {"train": images(70, seed=1), "validation": images(10, seed=2)}
    torch.manual_seed(processes.rank)  # the global state has no say
    events = list(fit(state, plan, train, slices, unlabelled=more, processes=processes))
    left = whole(processes, state.model, state.optimiser, average=state.average, best=state.best, last=state.last)
    records = [
        [e.train_loss, *r.values()] for e in events if isinstance(e, Epoch) for r in map(vars, e.slices.values())
    ]
    return {"left": left, "records": records, "best": state.best_epoch, "silent": [e.silent for e in state.history]}


def evaluated(processes: Processes, given: dict[str, Any]) -> dict[str, Any]:
    """The learning curves' records and the final numbers of a model in float32, of many batches and of one."""
    model = network("batch", channels=1, classes=2, dtype=torch.float32)
    model[7].p = 0.5  # not used in eval mode
    slices = {"many": images(150, seed=1), "one": images(10, seed=2), "odd": images(65, seed=3)}
    plan = Plan(within=BALL, evaluation=PGD(2), select=None)
    before = tensors_of(model.state_dict())
    found = evaluate_slices(model, plan, slices, processes=processes)
    said: dict[str, Any] = {
        "records": {name: list(vars(record).values()) for name, record in found.slices.items()}, "constant": found.constant,
    }  # fmt: skip
    model.eval()
    for measure in ("accuracy", "loss"):
        for n, size in ((11, 4), (8, 100), (6, 3)):
            seen: list[int] = []
            done = evaluate(
                model, images(n, seed=6), within=BALL, attack=PGDAttack(steps=2, restarts=2), seed=1, measure=measure,
                batch_size=size, share=None if isinstance(processes, Alone) else processes, progress=seen.append,
            )  # fmt: skip
            said[f"{measure} {n} {size}"] = {
                "tensors": {name: t.double() for name, t in tensors_of(vars(done)).items()},
                "calls": [done.calls.forward, done.calls.backward], "rates": [str(done.clean), str(done.robust)],
                "losses": [str(done.clean_loss), str(done.adversarial_loss), done.size],
                "findings": [str(f) for f in done.findings],
            }  # fmt: skip
            said[f"progress {measure} {n} {size}"] = seen
    doubtful = evaluate(
        drawn(Breaks("logits"), dtype=torch.float32).eval(), *_white(13), within=Ball("linf", 0.0, box=(0.0, 1.0)), seed=1,
        batch_size=3, share=None if isinstance(processes, Alone) else processes,
    )  # fmt: skip
    said["findings"] = [str(f) for f in doubtful.findings]
    said["untouched"] = all(torch.equal(before[name], t) for name, t in tensors_of(model.state_dict()).items())
    return said


def _white(n: int) -> tuple[Tensor, Tensor]:
    x, y = batch(n, 0, torch.float32)
    x[::4, 0, 0, 0] = 1.0
    return x, y


def apart(processes: Processes, given: dict[str, Any]) -> str:
    """A training in which one process' weights are moved behind the others' back."""
    plan = Plan(within=BALL, attack=PGD(1), epochs=2, batch_size=6, select=None)
    model = network("none", channels=1, classes=2, dtype=torch.float32)
    state = begin(model, plan)
    for k, _ in enumerate(fit(state, plan, images(12), {}, processes=processes)):
        if k == 0 and processes.rank:
            with torch.no_grad():
                model[0].bias[0] = torch.nextafter(model[0].bias[0], torch.tensor(9.0))
    return "trained"


@contextmanager
def by_file(path: Path, rank: int) -> Iterator[Processes]:
    """A group that finds itself through a file."""
    limit = timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2, timeout=limit)
    try:
        yield Group()
    finally:
        dist.destroy_process_group()


def process(rank: int, request: dict[str, Any]) -> dict[str, Any]:
    """Do the task as one of the processes; an error, if it ended by one."""
    folder, began = Path(request["folder"]), time.monotonic()
    try:
        with by_file(folder / "store", rank) as group:
            found = globals()[request["task"]](group, request["given"])
        torch.save(found, folder / f"{rank}.pt")
        said = {}
    except Exception as error:
        said = {"error": type(error).__name__, "text": str(error)}
    return said | {"seconds": time.monotonic() - began}


def answer(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Fork the processes, wait for them, kill what lasts longer than the limit."""
    folder, children, found = Path(request["folder"]), list[int](), list[dict[str, Any]]()
    for rank in (0, 1):
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)  # answers alone go to the output
            (folder / f"{rank}.json").write_text(json.dumps(process(rank, request)))
            os._exit(0)
        children.append(child)
    end = time.monotonic() + request["limit"]
    for rank, child in enumerate(children):
        hung = False
        while not os.waitpid(child, os.WNOHANG)[0]:
            if time.monotonic() > end:
                hung = True
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                break
            time.sleep(0.005)
        said = folder / f"{rank}.json"
        found.append({"hung": hung, **(json.loads(said.read_text()) if said.exists() else {"error": "died"})})
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    _steps(Alone(), sizes=[2])  # imports all that the first optimiser of a process does
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
