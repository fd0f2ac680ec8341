"""The strips of a transfer report: images as they were, and perturbed in each region."""

import base64

import torch
from torch import Tensor

from ..attacks.eight_bit import rounded
from ..attacks.transfer_matrix import Transfer
from ..data.decoding import decoded
from ..report import Section, Table, amplified, picture
from .transfer import EXAMPLES, Job

LARGE = 96  # side in pixels above which fewer images are shown
FEW = 3


def examples(job: Job, found: Transfer) -> list[Section]:
    """The first images, made on the first model; none where they are no pictures."""
    row, clean = found.rows[0], job.data.batch(range(min(EXAMPLES, len(job.data)))).x
    if not any(row["regions"][name]["examples"] for name in found.regions):
        return []
    clean = clean[: FEW if max(clean.shape[-2:]) > LARGE else None]
    rows, verdicts = [list(clean)], list[tuple[str | int, ...]]()
    for name in found.regions:
        points = _read(row["regions"][name]["examples"][: len(clean)], clean)
        rows += [list(points), [amplified(delta) for delta in points - rounded(clean)]]
        verdicts += [
            (name, k + 1, *(_said(found, name, model, k) for model in found.models)) for k in range(len(clean))
        ]
    under = "; ".join(found.regions)
    strip = picture(
        rows, title=f"Made on {row['source']}" + (f", after {row['steps']} steps" if row["steps"] else f" by {found.attack}"),
        description=f"{len(clean)} images: as they are, then for each region perturbed and the difference, amplified.",
        caption=f"From above: as they are; then for each region ({under}) perturbed, and the difference (grey: none; each "
        "amplified to its largest change).",
    )  # fmt: skip
    table = Table(
        title="What they fool", columns=("Region", "Image", *found.models), rows=tuple(verdicts),
        note="Of the images above, from the left. A model that errs on the clean image is not counted anywhere.",
    )  # fmt: skip
    text = "The first images of the sample, whatever became of them."
    return [Section(title="Examples", text=text, pictures=(strip,), tables=(table,))]


def _read(files: list[str], like: Tensor) -> Tensor:
    """The images of PNG files in base64."""
    pixels = [decoded(base64.b64decode(file), "an example", channels=like.shape[1]) for file in files]
    return torch.stack(pixels).to(like) / 255


def _said(found: Transfer, region: str, model: str, k: int) -> str:
    """What a model says to an image at the end."""
    row = found.rows[0]
    if not row["correct"][model][k]:
        return "errs when clean"
    if model == row["source"]:
        first = row["regions"][region]["left"]["first"][k]
        when = f" first at step {first}" if row["steps"] else ""
        return f"erred{when}" if first >= 0 else "right"
    return "errs" if row["regions"][region]["to"][model]["fixed"][k] else "right"
