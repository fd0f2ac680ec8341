"""The table [final] of a study's recipe: the last epochs' models evaluated once more, as cells beside their trainings.

    [final]                       # options of `shaketable evaluate`
    attack = "autoattack"
    count = 200

Every training that is shown, NAME, gets a hidden cell NAME.final, which evaluates `{NAME}/last.safetensors` by the study's
seed. Data, norm, eps, device and threads are the training's unless the table gives them. Its robust accuracy is reported
among the numbers of NAME (`measured.FINAL`).
"""

from collections.abc import Collection, Mapping
from typing import Any

from ...core.errors import ConfigError
from ..config import EvaluateConfig
from ..train_config import TrainConfig
from .verbs import MACHINE

VERB = "evaluate"
_SHARED = ("data", "norm", "eps", *MACHINE)


def final_name(cell: str) -> str:
    """The name of the cell that evaluates a training."""
    return f"{cell}.final"


def final_options(name: str, training: Mapping[str, Any], final: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of the cell that evaluates the training NAME.

    Args:
        training: the options of its cell.
        final: the table.
        where: the recipe, for errors.

    Raises:
        ConfigError: the table says which model, which is the study's to say.
    """
    given = {key.replace("-", "_"): value for key, value in final.items()}
    if "model" in given:
        remedy = "Leave it out: it is the last epoch's model of each training."
        raise ConfigError(f"{where}: final.model", "an option that the study leaves to its finals", "model", remedy)
    own = {key: training.get(key, TrainConfig.model_fields[key].default) for key in _SHARED}
    return {**own, "model": f"{{{name}}}/last.safetensors", **given}


def check_final(config: EvaluateConfig) -> None:
    """Resolve the choices of a final and find its data, so that a typing error is not found after the trainings.

    Raises:
        ShaketableError: an attack or a region that is not known, several radii, data that is not there.
    """
    from ...attacks import ATTACKS
    from ...attacks.regions import region_of
    from ...data import parts_of
    from ..choices import choose

    choose(config.attack, ATTACKS, "attack")
    if len(config.eps) > 1:
        raise ConfigError("eps", "one radius", ", ".join(f"{eps:g}" for eps in config.eps), "Give one of them.")
    if config.region is not None:
        region_of(config.region)
    parts_of(config.data)


def final_words(final: Mapping[str, Any], counts: Collection[int]) -> str:
    """What was evaluated, for the report.

    Args:
        counts: how many images there were, of each evaluation that has ended.
    """
    given = {key.replace("-", "_"): value for key, value in final.items()}
    attack = given.pop("attack", EvaluateConfig.model_fields["attack"].default)
    images = {"test": "test images", "train": "training images"}.get(given.pop("split", "test"), "images")
    options = ", ".join(f"{key} {value}" for key, value in given.items() if key != "count")
    numbers = " or ".join(map(str, sorted(set(counts)))) or str(given.get("count", "all"))
    return (
        f"The last epoch's models under {attack}{options and f' ({options})'}, on {numbers} {images} of each seed, the same "
        "for all cells; norm, eps and data are those of the trainings unless the table [final] gives them."
    )
