"""Driving a training: resume, train, save, and stop when asked, so that no moment of a crash costs the run."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError
from ..data import Dataset
from ..models import ModelSpec, read_manifest
from ..models import load as load_model
from ..models import save as save_model
from ..training import Alone, Epoch, Plan, Processes, State, Step, finished, fit
from . import generation
from .interrupt import Interrupted, interrupts

REMEDY = "Give the run's own settings, or another --out folder."


@dataclass(frozen=True)
class Driven:
    """How a training went.

    Args:
        resumed: the epoch (counted from 1) in which it went on, or None.
        elsewhere: facts of the machine that differ from where it began; then the end need not be bit-identical.
        collapsed: whether it ended early because the model predicted a single class.
    """

    resumed: int | None
    elsewhere: tuple[str, ...]
    collapsed: bool


def drive(
    state: State,
    plan: Plan,
    train: Dataset,
    slices: dict[str, Dataset],
    *,
    folder: Path,
    spec: ModelSpec,
    identity: dict[str, Any],
    machine: dict[str, Any],
    save_every: float = 30.0,
    unlabelled: Dataset | None = None,
    processes: Processes = Alone(),
    show: Callable[[Step | Epoch], None] = lambda _event: None,
) -> Driven:
    """Train a state to its end, from the folder's checkpoint if there is one.

    Args:
        folder: of the run; checkpoints are in its subfolder "checkpoints".
        identity: what must be the same to go on: the configuration and the data's fingerprints.
        machine: what should be the same for a bit-identical end: versions, threads, device.
        save_every: seconds between two checkpoints, which are made at the end of a step. No result depends on it.
        unlabelled: see `fit`.
        processes: that share the work. All resume from the same folder, the first one writes, and all stop at the same step.
        show: told of every step and epoch.

    A run that is killed at any moment and resumed, on the same machine with the same number of threads, ends with the same
    weights, bit for bit, as one that was not: all draws depend on (seed, epoch, step), and all other state is saved.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written first.
        InputError: an identity or a machine that is no JSON.
        CheckpointError: the folder's checkpoint is damaged, of another run, or not the same in all processes.
        ProcessError: another process ended, or holds other weights.
        StorageError: a checkpoint could not be written; the one before stays.

    Checked by tests/runs/test_kills.py: random SIGKILLs, then the same hash of the weights.
    """
    root = folder / "checkpoints"
    identity, machine = generation.as_json("identity", identity), generation.as_json("machine", machine)
    with interrupts() as requests:
        resumed, elsewhere = _resume_all(state, root, spec, identity, machine, processes)
        saved = time.monotonic()
        for event in fit(state, plan, train, slices, unlabelled=unlabelled, processes=processes):
            show(event)
            ended = isinstance(event, Epoch) and finished(state, plan)
            stop = processes.any(requests.stop)
            if processes.rank == 0 and (stop or ended or time.monotonic() - saved >= save_every):
                _save(state, root, spec, identity, machine)
                saved = time.monotonic()
            if stop:
                processes.barrier()  # the checkpoint is written before any process ends
                where = "after the last epoch" if ended else f"in epoch {state.epoch + 1} of {plan.epochs}"
                raise Interrupted(f"Stopped {where}; the run is in {folder}: go on with --resume.")
    return Driven(resumed, elsewhere, state.constant >= plan.patience)


def _save(state: State, root: Path, spec: ModelSpec, identity: dict[str, Any], machine: dict[str, Any]) -> None:
    def write(temporary: Path) -> None:
        save_model(temporary / "model.safetensors", state.plain, spec)
        generation.write_tensors(temporary / "state.pt", state.state_dict())

    name = f"{state.epoch:06d}-{state.step:06d}"
    generation.save(root, name, {"identity": identity, "machine": machine}, write)


def _resume_all(
    state: State, root: Path, spec: ModelSpec, identity: dict[str, Any], machine: dict[str, Any], processes: Processes
) -> tuple[int | None, tuple[str, ...]]:
    """Resume in all processes: the first one tidies the folder, then the others read, and nobody writes before all have."""
    if processes.rank == 0:
        generation.clean(root)
        found = _resume(state, root, spec, identity, machine)
        processes.barrier()
    else:
        processes.barrier()
        found = _resume(state, root, spec, identity, machine)
    processes.barrier()
    if processes.rank == 0 and (newest := generation.latest_name(root)) is not None:
        generation.clean(root, keep=newest)  # a crash may have come between a checkpoint and its predecessor's end
    places = processes.gather([state.epoch, state.step])
    if any(place != places[0] for place in places):
        seen = ", ".join(f"epoch {epoch}, step {step}" for epoch, step in places)
        remedy = "Put the run's folder, --out, where all of them see it."
        raise CheckpointError(str(root), "the same checkpoint in all processes", f"in order of rank: {seen}", remedy)
    processes.require_same("the weights to begin with", state.model.state_dict())
    return found


def _resume(
    state: State, root: Path, spec: ModelSpec, identity: dict[str, Any], machine: dict[str, Any]
) -> tuple[int | None, tuple[str, ...]]:
    """Load the newest checkpoint into the state; returns the epoch it goes on in and what the machine differs in."""
    found = generation.latest(root)
    if found is None:
        return None, ()
    other = differences(found.facts.get("identity", {}), identity)
    if other:
        raise CheckpointError(
            str(found.folder), "a checkpoint of this run", f"other settings: {'; '.join(other)}", REMEDY
        )
    path = found.folder / "model.safetensors"
    if other := differences(read_manifest(path).spec.to_json(), spec.to_json()):
        raise CheckpointError(str(path), "a checkpoint of this model", f"another one: {'; '.join(other)}", REMEDY)
    weights = load_model(path, trust=True).model.state_dict()  # the same spec: its code, if any, has run already
    saved = generation.read_tensors(found.folder / "state.pt")
    try:
        state.plain.load_state_dict(weights)
        state.load_state_dict(saved)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        wrong = f"{type(error).__name__}: {error}"[:200]
        raise CheckpointError(str(found.folder), "a state of this training", wrong, REMEDY) from error
    return state.epoch + 1, tuple(differences(found.facts.get("machine", {}), machine))


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, as "key: old, now new"."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [line for k in keys for line in differences(old.get(k), new.get(k), f"{path}.{k}" if path else str(k))]
    return [] if old == new or repr(old) == repr(new) else [f"{path}: {old!r}, now {new!r}"]  # NaN is NaN here
