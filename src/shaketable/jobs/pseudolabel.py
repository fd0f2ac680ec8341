"""`shaketable pseudolabel MODEL`: images with the labels that a model gives them, in a file that training takes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..core import ConfigError, ModelError, generator
from ..core.seeds import own_random_state
from ..data import UNLABELLED, Dataset, open_unlabelled, parts_of, write_pseudolabelled
from ..report import Finding, Report
from ..runs import Progress, Quiet
from .ground import Ground, counted, prepare
from .left_over import left_over
from .matching import Match, match
from .pseudolabel_config import PseudolabelConfig
from .run_images import drawn_by, run_folder, same_data

FILE = "pseudolabelled.npz"


@dataclass(frozen=True)
class Chosen:
    """The images to label, and what the reader must know of where they are from."""

    data: Dataset
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Labelling:
    """A model and the images that it is to label, checked against each other."""

    config: PseudolabelConfig
    ground: Ground
    match: Match
    chosen: Chosen


@dataclass(frozen=True)
class Labelled:
    """Images and the labels that a model gave them.

    Args:
        labels: of all images, indices of the match's classes.
        confidence: the probability of each.
        kept: which images are written.
        sha256: of the file.
    """

    labels: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    kept: Bool[Tensor, " n"]
    sha256: str


def run(config: PseudolabelConfig, *, progress: Progress | None = None) -> Report:
    """Label images, write `pseudolabelled.npz` into the config's folder, and report.

    The data's own labels, where there are some, are compared with the model's in the report; nothing of the file depends
    on them. Cost: `models.check` on 512 images, then one forward pass an image. Checked by
    tests/end_to_end/test_pseudolabel.py.
    """
    from .pseudolabel_report import report

    labelling = prepare_labelling(config)
    with (progress or Quiet()).stage("label", len(labelling.chosen.data)) as stage:
        labelled = label(labelling, counted(stage))
    return report(labelling, labelled)


def prepare_labelling(config: PseudolabelConfig) -> Labelling:
    """Find the images, load the model, and check the contract between them.

    Raises:
        ShaketableError: whatever cannot be; see `data.open_unlabelled`, `left_over` and `match`.
    """
    ground = prepare(config)
    chosen = _choose(config)
    return Labelling(config, ground, match(config, chosen.data, ground.device), chosen)


def label(labelling: Labelling, advance: Callable[[int], None]) -> Labelled:
    """Label the images, and write those whose label is confident enough.

    Raises:
        ConfigError: a min_confidence that no image reaches.
        ModelError: logits that are not finite.
        StorageError: the folder cannot be written.
    """
    config, data, found = labelling.config, labelling.chosen.data, labelling.match
    predicted = predict(
        found.loaded.model, data, device=labelling.ground.device, batch_size=config.batch_size, seed=config.seed,
        advance=advance,
    )  # fmt: skip
    labels, confidence = found.label(predicted.labels), predicted.confidence
    kept = confidence >= config.min_confidence
    if not kept.any():
        highest = f"{float(confidence.max()):.4g} as the highest confidence of {len(kept)} images"
        raise ConfigError("min_confidence", "a probability that some image reaches", highest, "Lower it.")
    rows = kept.nonzero()[:, 0]
    sha256 = write_pseudolabelled(
        config.out / FILE, data.pixels.read(rows), labels[rows], confidence=confidence[rows], classes=found.classes,
        source=f"{data.name}, labelled by {found.loaded.name}",
    )  # fmt: skip
    return Labelled(labels, confidence, kept, sha256)


@dataclass(frozen=True)
class Predicted:
    """The most probable class of each image, by its logit's index, and its probability."""

    labels: Int[Tensor, " n"]
    confidence: Float[Tensor, " n"]


def predict(
    model: nn.Module, data: Dataset, *, device: torch.device, batch_size: int, seed: int, advance: Callable[[int], None]
) -> Predicted:
    """Pass all images through a model once; the softmax is taken in float64. Only the images are looked at.

    Args:
        seed: of a model that draws while it predicts.
        advance: is told after each batch how many more images are done.

    Raises:
        ModelError: logits that are not finite.
    """
    labels, confidence, done = [], [], 0
    for rows in torch.arange(len(data)).split(batch_size):
        x = data.batch(rows).x.to(device)
        with torch.no_grad(), own_random_state([x], generator(seed, "pseudolabel", done)):
            logits = model(x).cpu().double()
        if not torch.isfinite(logits).all():
            first = done + int((~torch.isfinite(logits)).any(1).nonzero()[0])
            remedy = "Look at this image, and at the model's weights."
            raise ModelError("model", "finite logits", f"NaN or infinity for image {first} of {data.name}", remedy)
        top = logits.softmax(1).max(1)
        labels.append(top.indices)
        confidence.append(top.values)
        done += len(rows)
        advance(len(rows))
    return Predicted(torch.cat(labels), torch.cat(confidence))


def _choose(config: PseudolabelConfig) -> Chosen:
    """The images that are to be labelled."""
    folder = run_folder(config.model)
    if config.part == "rest":
        if folder is None:
            remedy = "Give the folder that `shaketable train` wrote, which has its config.json."
            raise ConfigError("part", "a run's folder as MODEL, for the rest of its images", config.model, remedy)
        if config.size is not None:
            remedy = "Leave it out: the model takes the run's images as they are."
            raise ConfigError("size", "none beside --part rest", str(config.size), remedy)
        rest = left_over(folder, data=config.data)
        findings = [] if rest.verified else [_unverified()]
        if rest.unlabelled is not None:
            findings.append(_trained_on(f"the pseudo-labelled images of {rest.unlabelled}"))
        return Chosen(_drawn(rest.data, config), tuple(findings))
    own = None if folder is None else _data_of(folder)
    source = config.data if config.data is not None else own
    if source is None:
        remedy = "Give --data, for example a folder of images."
        raise ConfigError("data", "images to label, since MODEL is no run's folder", "none", remedy)
    data = open_unlabelled(source, split=config.part, size=config.size)
    findings = []
    if own is not None and same_data(own, source) and config.part in ("all", "train"):
        findings.append(_trained_on("some of these images"))
    if config.part in ("all", "test") and data.classes != UNLABELLED and "test" in parts_of(source):
        message = "Test images are among them: what is trained on this file must not be evaluated on these."
        findings.append(_warning("test-images", message, "Use --part train or --part rest."))
    return Chosen(_drawn(data, config), tuple(findings))


def _drawn(data: Dataset, config: PseudolabelConfig) -> Dataset:
    """As many images as were asked for, in their own order."""
    if config.count is None or config.count >= len(data):
        return data
    rows = torch.randperm(len(data), generator=generator(config.seed, "count"))[: config.count]
    return data.take(rows.sort().values)


def _data_of(folder: Path) -> str | None:
    """What a run trained on; None for another library's folder, which has a config.json too."""
    try:
        return drawn_by(folder).data
    except ConfigError:
        return None


def _unverified() -> Finding:
    message = "The run has no report, so it could not be checked that its images were drawn from the data as it is now."
    return _warning("split-unverified", message, "Finish the run, or make sure that the data has not changed.")


def _trained_on(what: str) -> Finding:
    message = f"The model was trained on {what}; on those its labels are memory, and its accuracy here is too high."
    return _warning("trained-on", message, "Use --part rest, or images that it has never seen.")


def _warning(code: str, message: str, remedy: str) -> Finding:
    return Finding(level="warning", code=code, message=message, remedy=remedy)
