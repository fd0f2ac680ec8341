"""The model contract, checked before any job: what would make it meaningless stops it, the rest is reported."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shaketable.stats import Rate

from .behaviour import Finding as Finding
from .behaviour import forward_findings, gradient_findings, output_findings
from .boundary import (
    check_images,
    check_label_range,
    check_labels,
    check_model,
    check_outputs,
    explain,
    model_channels,
    partly_training,
)
from .chance import check_chance, check_order
from .normalisations import check_normalisation
from .spec import Loaded, whole
from .untouched import untouched

FEW, FEWER = 16, 8


@dataclass(frozen=True)
class Contract:
    """A model that a job can run on.

    Args:
        findings: what the evaluation must take into account; empty for an ordinary model.
        accuracy: on the images given, or None without labels.
        classes: how many logits the model has.
    """

    findings: tuple[Finding, ...]
    accuracy: Rate | None
    classes: int


def check(
    model: nn.Module | Loaded,
    x: Tensor,
    y: Tensor | None = None,
    *,
    classes: int | None = None,
    size: tuple[int, int] | None = None,
    trained: bool = True,
    batch: int = 64,
) -> Contract:
    """Check that a model and data fit each other and the package's conventions.

    Args:
        model: in eval mode; a `Loaded` also tells its channels, size, labels and whether it has gradients.
        x: (n, c, h, w) floating images in [0, 1], of the weights' dtype and on their device. A few hundred, spread over
            the classes, are a good check; all of them are passed through the model.
        y: (n,) int64 labels. Without them nothing is said of accuracy and normalisation.
        classes: that the model must have; None: any.
        size: (h, w) that the images must have; None: as `Loaded` says, or any that runs.
        trained: False for a model with fresh weights: its accuracy is counted, not judged.
        batch: images per forward pass.

    Raises (each names the argument, what was expected and found, and the remedy):
        InputError: images of a wrong type, dtype, shape, number of channels, size or range (0..255, [-1, 1], normalised
            already, divided twice), NaN pixels, no images, labels of a wrong type, shape or range, a batch below 1.
        ModelError: training mode, weights or outputs that are not finite, outputs that are not (n, classes) logits,
            a forward pass that fails, labels in another order than the model's, another normalisation or channel order
            that would gain 5 points or more, an accuracy at chance level.

    Findings: probabilities, log-probabilities, random, batch-dependent, input-changed, buffers-changed, partly-training,
    channels, no-gradient, zero-gradient, bad-gradient, saturated.

    A model in training mode stops the check, as does any normalisation with running statistics inside that is: results
    would depend on the batch and the statistics would move. Other layers in training mode inside a model in eval mode
    (dropout as a defence) are a finding.

    How chance and the normalisation are judged: see `check_chance` and `check_normalisation`; a handful of images never
    stops anything.

    Cost, in passes of an image: n forward, 3 x 16 forward, 8 forward and 2 x 8 backward to the input; with labels and
    trained, 4 to 13 guesses at the normalisation x the wrong images, 64 at most, and 256 for each that may gain enough.
    Nothing is left behind: buffers, modes, gradients and the global random state are as they were, also after an error.

    Checked by tests/models/test_contract.py.
    """
    known = model if isinstance(model, Loaded) else None
    network = model.model if isinstance(model, Loaded) else model
    size = known.size if known is not None and size is None else size
    channels = known.spec.channels if known is not None and known.spec is not None else None
    names = known.labels if known is not None else None
    classes = len(names) if classes is None and names is not None else classes

    whole(batch, "batch", 1 << 20)
    x = check_images(x, channels=channels, size=size)
    y = None if y is None else check_labels(y, x)
    network = check_model(network, x)
    findings = _mode_findings(network) + _channel_findings(network, x)
    with untouched(network, x.device) as before:

        def forward(images: Tensor) -> Tensor:
            try:
                with torch.no_grad():
                    return network(images)
            except Exception as error:  # whatever somebody else's model raises
                raise explain(error, network, images) from error

        logits = torch.cat([check_outputs(forward(part.clone()), len(part), classes) for part in x.split(batch)])
        findings += _buffer_findings(before.changed())
        findings += output_findings(logits) + forward_findings(forward, x[:FEW].detach())
        if known is not None and not known.gradients:
            message = "this kind of model has no input gradients"
            findings.append(Finding("no-gradient", message, "Use attacks without gradients, or the original model."))
        else:
            findings += gradient_findings(network, x[:FEWER])
        accuracy = None
        if y is not None:
            check_label_range(y, logits.shape[1])
            predicted = logits.argmax(1)
            accuracy = Rate(int((predicted == y).sum()), len(y))
            if trained:
                check_order(predicted, y, names)
                check_normalisation(lambda z: torch.cat([*map(forward, z.split(batch))]), network, x, y, predicted)
                check_chance(predicted, y, logits.shape[1], names)
    return Contract(tuple(findings), accuracy, int(logits.shape[1]))


def _mode_findings(network: nn.Module) -> list[Finding]:
    names = partly_training(network)
    if not names:
        return []
    message = f"{len(names)} modules inside are in training mode: {', '.join(names[:3])}"
    return [Finding("partly-training", message, "Call model.eval(), unless this is the defence itself.")]


def _channel_findings(network: nn.Module, x: Tensor) -> list[Finding]:
    channels = model_channels(network)
    if channels is None or channels == x.shape[1]:
        return []
    message = f"the images have {x.shape[1]} channels and the first convolution takes {channels}"
    return [Finding("channels", message, "Be sure that the model converts them on purpose, not by broadcasting.")]


def _buffer_findings(names: tuple[str, ...]) -> list[Finding]:
    if not names:
        return []
    message = f"a pass in eval mode changes {len(names)} buffers: {', '.join(names[:3])}"
    return [Finding("buffers-changed", message, "Results depend on what was evaluated before; restore it every time.")]
