"""The weights of a training at every so many epochs: checkpoints to measure along a run, in its folder `epochs`."""

import copy
from pathlib import Path

from ..core import ConfigError
from ..models import ModelSpec
from ..models import save as save_model
from ..training import Epoch, State
from .train_config import TrainConfig

FOLDER = "epochs"


def require(config: TrainConfig) -> None:
    """Raise a ConfigError for epochs at which there is no averaged model to keep."""
    if config.keep_every and config.average != "none" and config.keep_every % config.evaluate_every:
        expected = f"a multiple of --evaluate-every, {config.evaluate_every}, where weights are averaged"
        remedy = "The average gets its BatchNorm statistics when it is evaluated."
        raise ConfigError("keep_every", expected, str(config.keep_every), remedy)


def keep(config: TrainConfig, state: State, spec: ModelSpec, event: Epoch) -> None:
    """Write RUN/epochs/000010.safetensors at the end of epoch 10, if it is due: the model that the run would end with there.

    A run that is resumed writes the same files again, byte for byte; nothing of the training depends on them.

    Checked by tests/jobs/test_kept_epochs.py.
    """
    if not config.keep_every or event.epoch % config.keep_every:
        return
    model = copy.deepcopy(state.plain).eval()
    if state.last:
        model.load_state_dict(state.last)
    facts = {"epoch": event.epoch, "which": "epoch"}
    save_model(config.out / FOLDER / f"{event.epoch:06d}.safetensors", model, spec, facts=facts)


def kept(folder: Path) -> list[Path]:
    """The kept checkpoints of a run, by epoch."""
    return sorted((folder / FOLDER).glob("*.safetensors"))
