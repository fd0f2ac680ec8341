"""Fine-tuning: a model that begins with another one's weights (Hendrycks et al. 2019, pre-training)."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..core import ModelError
from ..models import ModelSpec, is_checkpoint, load, read_manifest, run_file
from ..models.foreign.state_dict import shapes_of


@dataclass(frozen=True)
class Begun:
    """What was taken over.

    Args:
        source: where from.
        sha256: of the file.
        copied: how many tensors.
        new: those that keep their own beginning, since the other model has none of their shape: its head, usually.
    """

    source: str
    sha256: str
    copied: int
    new: tuple[str, ...]


def begin_from(source: str, model: nn.Module, spec: ModelSpec, *, trust: bool) -> Begun:
    """Copy another model's weights into this one, in place; a head for other classes stays as it was drawn.

    Args:
        source: what `models.load` takes; a bare state dict is taken to be of this architecture.
        trust: see `models.load`.

    Raises:
        ModelError: more than one layer does not fit.

    Checked by tests/jobs/test_fine_tune.py.
    """
    path = Path(source)
    bare = path.is_file() and path.suffix in (".pt", ".pth", ".safetensors") and not is_checkpoint(path)
    loaded = load(source, spec=_with_their_classes(path, model, spec) if bare else None, trust=trust)
    theirs, own = _unprefixed(loaded.model), model.state_dict()
    names = {name.removeprefix("network."): name for name in own}
    fits = {
        name: theirs[short]
        for short, name in names.items()
        if short in theirs and theirs[short].shape == own[name].shape
    }
    new = tuple(name for name in own if name not in fits)
    if len({name.rpartition(".")[0] for name in new}) > 1 or not fits:
        found = f"no fitting {', '.join(new[:3])}{' ...' if len(new) > 3 else ''} in {source}"
        remedy = f"Give a model of the same architecture, {spec.architecture}; only its last layer may differ."
        raise ModelError("init", "the weights of all layers but the last", found, remedy)
    with torch.no_grad():
        model.load_state_dict({name: t.to(own[name]) for name, t in fits.items()}, strict=False)
    return Begun(source, loaded.sha256 or "", len(fits), new)


def statistics_of(source: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The normalisation that a checkpoint of ours states; None for another file, or one without."""
    path = Path(source)
    file = run_file(path) if path.is_dir() else path
    if not file.is_file() or not is_checkpoint(file):
        return None
    spec = read_manifest(file).spec
    return (spec.mean, spec.std) if spec.mean else None


def _with_their_classes(path: Path, model: nn.Module, spec: ModelSpec) -> ModelSpec:
    """The spec with as many classes as the head in a file of bare weights has, if that is plain to see."""
    last = next((m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)), None)
    if last is None:
        return spec
    heads = {shape[0] for shape in shapes_of(path).values() if len(shape) == 2 and shape[1] == last.in_features}
    other = heads - {layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)}
    return replace(spec, classes=other.pop(), labels=None) if len(other) == 1 else spec


def _unprefixed(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name.removeprefix("network."): t for name, t in model.state_dict().items()}
