"""Exported programs: `.pt2` files of `torch.export.save`, scanned, loaded and made to behave like a model."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shaketable.core.errors import InputError, ModelError
from shaketable.files import sha256_of
from shaketable.models.spec import Loaded

from .exported_graph import Program
from .exported_scan import scan_program

_REEXPORT = (
    "Export it again: torch.export.export(model.eval(), (example,), "
    "dynamic_shapes={'x': {0: torch.export.Dim('n', max=512)}})."
)


class Exported(nn.Module):
    """An exported program as a model: (n, c, h, w) float32 in [0, 1] to (n, classes) logits, with gradients.

    Args:
        program: the module that `torch.export` made.
        shape: of its input, None where a size is free; empty if unknown.
        batch: the least and the most images of a call.
        writes: whether the program writes into its input, so that a copy is given to it.

    It is always in eval mode: `.train()` and `.eval()` change nothing (a program has its mode from the export; torch's own
    raise). Its layers are nodes of a graph, not modules, so there is nothing to hook by name. It can be neither pickled nor
    relied on to deep-copy: send the path to a worker and load it there.

    Raises:
        InputError: pixels that are no float32 (a program runs on uint8 and answers nonsense), another size, or a batch
            outside the program's limits.

    Checked by tests/models/foreign/test_exported.py.
    """

    def __init__(
        self, program: nn.Module, shape: tuple[int | None, ...], batch: tuple[int, int | None], *, writes: bool = False
    ) -> None:
        super().__init__()
        self.program = program
        self.shape, self.batch, self.writes = shape, batch, writes
        for module in self.modules():
            module.training = False

    def train(self, mode: bool = True) -> "Exported":
        """Does nothing; see the class."""
        return self

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        self._check(x)
        try:
            return logits_of(self.program(x.clone() if self.writes else x))
        except AssertionError as error:
            found = f"{tuple(x.shape)}: {str(error)[:200]}"
            raise InputError(
                "x", "images that meet the program's guards", found, "Give a size it was exported for."
            ) from error

    def _check(self, x: Tensor) -> None:
        if x.dtype != torch.float32:
            raise InputError("x", "float32 images in [0, 1]", str(x.dtype), "Use x.float() / 255 for bytes.")
        wanted = ("n", *(size if size is not None else "any" for size in self.shape[1:]))
        if self.shape and (
            x.ndim != len(self.shape)
            or any(size not in (None, given) for given, size in zip(x.shape[1:], self.shape[1:], strict=True))
        ):
            expected = f"images of shape ({', '.join(map(str, wanted))})"
            raise InputError("x", expected, str(tuple(x.shape)), "Resize the images to the program's size.")
        low, high = self.batch
        if x.ndim and not low <= len(x) <= (high if high is not None else len(x)):
            expected = f"a batch of {low}" if low == high else f"a batch of {low} to {high or 'any number of'} images"
            raise InputError("x", expected, str(len(x)), "Split the batch; the program was exported for these sizes.")


def load_program(path: Path, *, trust: bool = False, limit: int | None = None) -> Loaded:
    """Load a `.pt2` program.

    Args:
        path: the file.
        trust: load it without the scan. This runs what the file brings.
        limit: the most bytes that it may declare; see `safety.memory_limit`.

    Raises:
        UnsafeFileError: see `exported_scan.scan_program`.
        ModelError: the program is damaged, was exported in training mode, changes its own weights or does not give
            (n, classes) logits for one image of its size.

    Cost: the scan, and one forward pass of the least batch. Checked by tests/models/foreign/test_exported.py.
    """
    if trust:
        notes = ("The file was loaded without a scan, as asked: whatever code it holds has run.",)
        model = Exported(_module(path, path), (), (0, None), writes=True)
        return Loaded(model, None, path.stem, str(path), sha256_of(path), notes=notes)
    scanned = scan_program(path, limit=limit)
    program = scanned.program
    if program.device != "cpu":
        remedy = "Move it with torch.export.passes.move_to_device_pass(program, 'cpu') and save it again."
        raise ModelError(str(path), "a program exported on the CPU", f"one for {program.device}", remedy)
    if program.facts & {"trains", "mutates"}:
        raise ModelError(str(path), "a program in eval mode", "one that trains or changes its own buffers", _REEXPORT)
    module = _module(path, io.BytesIO(scanned.archive))
    model = Exported(module, program.shape, program.batch, writes="in-place" in program.facts)
    _probe(path, model)
    height, width = program.shape[2:]
    size = (height, width) if height and width else None
    notes = tuple(_notes(program, scanned.parameters, scanned.buffers))
    return Loaded(model, None, path.stem, str(path), sha256_of(path), size, notes=notes)


def logits_of(output: Any) -> Tensor:
    """The logits of a model's output: a tensor, the one tensor of a tuple, or what is named logits."""
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    if isinstance(logits, list | tuple) and len(logits) == 1:
        logits = logits[0]
    if not isinstance(logits, Tensor):
        found = f"a {type(output).__name__}" + (
            f" of {', '.join(map(str, output))}" if isinstance(output, dict) else ""
        )
        raise ModelError("model", "one tensor of logits, or an output named logits", found, "Return the logits alone.")
    return logits


def _module(path: Path, source: Path | io.BytesIO) -> nn.Module:
    """What `torch.export.load` makes of it; its errors are made ours."""
    log = _Log()
    try:
        with log.kept():
            return torch.export.load(source).module()
    except Exception as error:
        # torch logs the cause, then tries an older layout and raises about that
        cause = log.causes[0] if log.causes else error
        lines = str(cause).strip().splitlines() or [""]
        found = f"one that torch {torch.__version__} cannot load ({type(cause).__name__}: {lines[0][:200]})"
        raise ModelError(str(path), "an exported program", found, _REEXPORT) from error


class _Log(logging.Handler):
    """Keeps the exceptions that torch.export logs, instead of printing them."""

    def __init__(self) -> None:
        super().__init__()
        self.causes: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.causes.append(record.exc_info[1])

    @contextmanager
    def kept(self) -> Iterator[None]:
        log = logging.getLogger("torch.export")
        propagate, log.propagate = log.propagate, False
        handlers = log.handlers
        log.handlers = list[logging.Handler]([self])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            log.propagate, log.handlers = propagate, handlers


def _probe(path: Path, model: Exported) -> None:
    """Run one image of zeros: the output must be logits, and no weight may be written to."""
    if len(model.shape) != 4:
        raise ModelError(
            str(path), "a program of images (n, c, h, w)", f"an input of {len(model.shape)} axes", _REEXPORT
        )
    x = torch.zeros(max(model.batch[0], 1), *(size or 32 for size in model.shape[1:]))
    tensors = [*model.parameters(), *model.buffers()]
    versions = [tensor._version for tensor in tensors]
    try:
        with torch.no_grad():
            logits = model(x)
    except (InputError, ModelError):
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {str(error).strip()[:200]}"
        raise ModelError(str(path), f"a program that runs on images of {tuple(x.shape)}", found, _REEXPORT) from error
    if logits.ndim != 2 or len(logits) != len(x):
        raise ModelError(str(path), "logits of shape (n, classes)", str(tuple(logits.shape)), _REEXPORT)
    if versions != [tensor._version for tensor in tensors]:
        raise ModelError(str(path), "a program that leaves its weights alone", "one that writes into them", _REEXPORT)


def _notes(program: Program, parameters: int, buffers: int) -> Iterator[str]:
    yield "An exported program: always in eval mode; its layers are graph nodes, so activations cannot be hooked by name."
    low, high = program.batch
    if high is not None:
        yield f"It takes batches of {low} to {high} images." if low != high else f"It takes batches of exactly {low}."
    if not parameters:
        yield f"Its weights are {buffers} buffers or constants: weight perturbations and flatness see none of them."
    if program.facts & {"no-grad", "detach"}:
        yield "Part of it is cut off from the gradient (no_grad or detach): gradients may be masked."
