"""What each verb is told: frozen configs, the same from the command line, from a file and from Python."""

from typing import Annotated, Any, ClassVar, Literal

import tyro
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from ..core.errors import ConfigError


def number(text: Any) -> float:
    """A number, also as a fraction: "8/255"."""
    if not isinstance(text, str):
        return text
    try:
        above, _, below = text.partition("/")
        return float(above) / float(below) if below else float(above)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError("number", "a number or a fraction such as 8/255", repr(text), "Write it so.") from error


Fraction = Annotated[
    float, BeforeValidator(number), tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="FLOAT|FRACTION", instance_from_str=lambda texts: number(texts[0]),
        is_instance=lambda value: isinstance(value, int | float), str_from_instance=lambda value: [f"{value:g}"],
    )
]  # fmt: skip
"""A float that may be written as a fraction."""


def numbers(value: Any) -> tuple[float, ...]:
    """Numbers, also as one text with commas: "0,2/255,4/255"."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    if not parts:
        raise ConfigError("numbers", "one number at least", "none", "Write 8/255, or several with commas between them.")
    return tuple(float(number(part)) for part in parts)


def listed(values: tuple[float, ...]) -> float | str:
    """The same as one text, or as the number that it is."""
    return values[0] if len(values) == 1 else ",".join(f"{value:.17g}" for value in values)


Fractions = Annotated[
    tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...], BeforeValidator(numbers),
    PlainSerializer(listed), tyro.constructors.PrimitiveConstructorSpec(
        nargs=1, metavar="FLOAT|FRACTION[,...]", instance_from_str=lambda texts: numbers(texts[0]),
        is_instance=lambda value: isinstance(value, tuple | int | float),
        str_from_instance=lambda value: [str(listed(numbers(value)))],
    )
]  # fmt: skip
"""Floats >= 0 with commas between them, each of which may be a fraction."""

Norm = Literal["linf", "l2", "l1", "l0"]


class Settings(BaseModel):
    """What all verbs take."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    seed: int = 0
    """Of everything that is drawn."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps, or auto: the first accelerator there is, else cpu."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; numbers are bit-identical only with equal threads. Default: PyTorch's choice."""
