"""The learning curves: losses and accuracies, clean and attacked, on fixed slices of the data."""

import torch
from torch import Tensor, nn

from ..core import generator
from ..core.measure import Measured, measure
from ..data import Dataset
from .plan import Plan
from .processes import Alone, Processes
from .state import Evaluated, SliceRecord
from .update import in_mode

CHUNK = 64  # images that are attacked together; each chunk draws by its number, whichever process has it


def evaluate_slices(
    model: nn.Module, plan: Plan, slices: dict[str, Dataset], *, processes: Processes = Alone()
) -> Evaluated:
    """Each slice's record by the plan's evaluation, in eval mode, from the same starts every time; the model is not changed.

    Several processes share the chunks of a slice by their number; none is padded, and the record is the same however many
    there are.
    """
    records, classes = dict[str, SliceRecord](), set[int]()
    with in_mode(model, "eval"):
        for name, part in slices.items():
            loss, correct, robust_loss, robust_correct, predicted = _measured(model, plan, name, part, processes)
            classes |= set(predicted.int().tolist())
            records[name] = SliceRecord(
                len(part), float(loss.mean()), int(correct.sum()), float(robust_loss.mean()), int(robust_correct.sum())
            )
    return Evaluated(records, len(classes) == 1 and sum(r.n for r in records.values()) > 1)


def _measured(model: nn.Module, plan: Plan, name: str, part: Dataset, processes: Processes) -> Tensor:
    """Rows of per-example losses and correctness, of all chunks in order, in float64."""
    device = next(model.parameters()).device
    table = torch.zeros(5, len(part), dtype=torch.float64, device=device if device.type == "cuda" else "cpu")
    for k, rows in enumerate(torch.arange(len(part)).split(CHUNK)):
        if k % processes.count != processes.rank:
            continue
        batch = part.batch(rows).to(device)
        with plan.update.autocast(device):
            found = measure(
                model,
                batch.x,
                batch.y,
                plan.within,
                by=plan.evaluation,
                generator=generator(plan.seed, "slice", name, k),
            )
        table[:, rows] = _columns(found, table.device)
    processes.add([table])  # what another process measured is 0 here: the sum is exact
    return table


def _columns(found: Measured, device: torch.device) -> Tensor:
    columns = (found.loss, found.correct, found.robust_loss, found.robust_correct, found.predicted)
    return torch.stack([column.to(device).double() for column in columns])
