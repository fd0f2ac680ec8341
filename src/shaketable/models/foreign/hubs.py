"""Models of other libraries by their identifier: `timm:NAME` and `hf:ORGANISATION/NAME` (or `hf:FOLDER`).

Naming an identifier is asking for it: weights that are not in the library's cache are downloaded by the library.
HF_HUB_OFFLINE=1 keeps it to the cache. Both libraries are extras and imported here only.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from shaketable.core.errors import ModelError
from shaketable.models.layers import normalised
from shaketable.models.spec import Loaded
from shaketable.plugins import extra, nearest

from .exported import logits_of


class Logits(nn.Module):
    """A model whose output carries its logits under that name, as one that returns them.

    Args:
        network: called with pixel_values, as Hugging Face's image classifiers are.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.network(pixel_values=x))


def load_timm(source: str, *, pretrained: bool = True) -> Loaded:
    """A model of timm: `timm:resnet18`, `timm:resnet18.a1_in1k`.

    Args:
        source: the identifier with its prefix.
        pretrained: False: fresh weights; nothing is downloaded.

    Its `pretrained_cfg` gives the normalisation (mean, std) and the image size (input_size).

    Raises:
        ModelError: timm is missing, or knows no such model (the nearest names are suggested).

    Checked by tests/models/foreign/test_hubs.py.
    """
    timm = extra("timm", "timm", source, error=ModelError)
    name = source.removeprefix("timm:")
    bare = name.partition(".")[0]
    if not timm.is_model(bare):
        remedy = nearest(bare, timm.list_models(), "See timm.list_models().")
        raise ModelError(source, "a model of timm", f"{name!r}", remedy)
    try:
        network = timm.create_model(name, pretrained=pretrained)
    except Exception as error:
        raise _unavailable(source, error) from error
    config = dict(getattr(network, "pretrained_cfg", None) or {})
    mean, std = tuple(config.get("mean", ())), tuple(config.get("std", ()))
    size = tuple(config["input_size"][1:]) if config.get("input_size") else None
    names = config.get("label_names")
    labels = tuple(names) if names and len(names) == config.get("num_classes") else None
    notes = [f"timm {timm.__version__}, {name}: mean {mean}, std {std} from its pretrained_cfg."]
    model = normalised(network, mean, std).eval()
    return Loaded(model, None, bare, source, size=size, labels=labels, notes=tuple(notes))


def load_huggingface(source: str, *, trust: bool = False) -> Loaded:
    """An image classifier of Hugging Face: `hf:google/vit-base-patch16-224`, or `hf:` and a folder.

    Args:
        source: the identifier with its prefix.
        trust: also take weights that are pickles and models that bring their own code, which is run.

    The class names come from `id2label`, the logits from `.logits`, and mean, std and size from the folder's
    preprocessor_config.json. Without trust only safetensors are read.

    Raises:
        ModelError: transformers is missing, there is no such model, or it is no image classifier.

    Checked by tests/models/foreign/test_hubs.py.
    """
    transformers = extra("transformers", "huggingface", source, error=ModelError)
    name = source.removeprefix("hf:")
    options: dict[str, Any] = {"trust_remote_code": trust} | ({} if trust else {"use_safetensors": True})
    try:
        network = transformers.AutoModelForImageClassification.from_pretrained(name, **options)
    except Exception as error:
        raise _unavailable(source, error) from error
    notes = [f"transformers {transformers.__version__}, {name}."]
    try:
        processor, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    except Exception as error:
        processor = {}
        notes.append(f"It has no image processor ({type(error).__name__}): give --mean, --std and --size.")
    mean, std = _statistics(processor, notes)
    labels = _labels(network.config)
    model = normalised(Logits(network), mean, std).eval()
    return Loaded(
        model,
        None,
        name.rstrip("/").rpartition("/")[2],
        source,
        size=_size(processor),
        labels=labels,
        notes=tuple(notes),
    )


def _statistics(processor: Mapping[str, Any], notes: list[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The normalisation of images in [0, 1] that a preprocessor's configuration means."""
    if not processor.get("do_normalize", bool(processor.get("image_mean"))):
        return (), ()
    means, stds = processor.get("image_mean") or (), processor.get("image_std") or ()
    # the processor's chain is 255 x, times rescale_factor (1/255, as a rule), less mean, over std
    scale = 255 * processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 255.0
    mean, std = tuple(float(v) / scale for v in means), tuple(float(v) / scale for v in stds)
    notes.append(f"Normalised with mean {mean} and std {std}, as its image processor does.")
    return mean, std


def _size(processor: Mapping[str, Any]) -> tuple[int, int] | None:
    """The size of the images after the processor: the crop's, if it crops, or the resized one."""
    size = processor.get("crop_size") if processor.get("do_center_crop") else processor.get("size")
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and {"height", "width"} <= set(size):
        return int(size["height"]), int(size["width"])
    return None


def _labels(config: Any) -> tuple[str, ...] | None:
    names = getattr(config, "id2label", None) or {}
    try:
        return tuple(str(names[index]) for index in range(len(names))) or None
    except KeyError:
        return None


def _unavailable(source: str, error: Exception) -> ModelError:
    first = (str(error).strip().splitlines() or [""])[0][:300]
    remedy = (
        "Check the name and the connection; a pickle or code of its own needs --trust; offline, give a local folder."
    )
    return ModelError(source, "a model of that name", f"{type(error).__name__}: {first}", remedy)
