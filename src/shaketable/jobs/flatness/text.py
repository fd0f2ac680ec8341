"""What the report of `shaketable flatness` says in words: names of measures, sentences, how it was measured."""

from collections.abc import Iterator, Sequence
from typing import Any

from ...flatness.presets import PRESETS
from ...flatness.result import Flatness
from ...stats import Mean
from .run import Job, Measured

_TITLES = {
    "average": "Average case", "worst": "Worst case", "sam": "SAM sharpness",
    "hessian": "Largest eigenvalue", "adaptive worst": "Adaptive, worst case",
    "adaptive average": "Adaptive, average case", "filter average": "Filter by filter, average case",
    "filter worst": "Filter by filter, worst case",
}  # fmt: skip
_LAWS = {
    "ball": "uniformly from the volume of each layer's ball",
    "sphere": "uniformly from the surface of each layer's ball",
    "radius": "in a uniform direction with a uniform length, which is about half as far",
}
_NUS = {"all": "One nu holds for all images.", "batch": "Each batch of images has a nu of its own."}


def title_of(found: Flatness) -> str:
    """What a measure is called: "Average case", "Worst case, clean loss"."""
    loss, _, what = found.name.partition(" ")
    if loss not in ("robust", "clean"):
        loss, what = "robust", found.name
    return f"{_TITLES.get(what, what.capitalize())}{', clean loss' if loss == 'clean' else ''}"


def is_curvature(found: Flatness) -> bool:
    """Whether a value is the largest eigenvalue of the Hessian, and no rise of the loss."""
    return "lambda_max" in found.facts


def radius_of(found: Flatness) -> float | None:
    """The radius that a result is of."""
    return found.facts.get("xi")


def sized(found: Flatness) -> str:
    """What a measure is called, with its radius."""
    radius = radius_of(found)
    return title_of(found) if radius is None else f"{title_of(found)}, radius {radius:g}"


def name_of(one: Measured) -> str:
    """A measurement without its model: "Average case, radius 0.5, test images"."""
    assert one.found is not None
    return f"{sized(one.found)}, {one.measurement.images.part} images"


def over(found: Flatness) -> str:
    """What a value's interval is over."""
    n = found.value.n
    if "asked" in found.facts:
        return f"{n} draws"
    if n == len(found.draws) and n != found.examples:
        return f"{n} draws"
    return f"{n} pairs of draws" if 2 * n == len(found.draws) else f"{n} images"


def words(value: Mean, sign: str = "") -> str:
    """A mean and its interval: ".35 [.30, .40]" in so many digits as the interval is worth."""
    digits = 3 if max(abs(value.value), abs(value.high - value.low)) < 1 else 2
    ends = "" if value.n < 2 else f" [{value.low:{sign}z.{digits}f}, {value.high:{sign}z.{digits}f}]"
    return f"{value.value:{sign}z.{digits}f}{ends}"


def sentences(job: Job, measured: Sequence[Measured]) -> tuple[str, ...]:
    """What a stranger should take away."""
    known = [one for one in measured if one.found is not None]
    if len(job.subjects) == 1:
        lines = [_sentence(one) for one in known]
        last = (
            "Larger is sharper. By itself a number says little: give several models to compare them on the same images."
        )
    else:
        say = _along if is_run(known) else _ranking
        lines = [line for group in _groups(known) if (line := say(group))]
        last = "Larger is sharper. Whether a difference is more than chance is in the table of differences."
    return (*lines[:6], last)


def _sentence(one: Measured) -> str:
    found = one.found
    assert found is not None
    loss, images, radius = (
        "clean" if found.name.startswith("clean") else "robust",
        one.measurement.images,
        radius_of(found),
    )
    where = f"on {found.examples} {images.part} images"
    if is_curvature(found):
        value = words(found.value)
        return f"The largest eigenvalue of the {loss} loss's Hessian {where} is {value}; the loss is {found.reference:.3f}."
    far = "" if radius is None else f", {_reach(found).format(radius=f'{radius:g}')},"
    how = f"moved at random{far}" if "average" in found.name else f"moved{far} to the worst point that was found"
    change = f"raise the {loss} loss by {words(found.value)}" if found.value.value >= 0 else (
        f"change the {loss} loss by {words(found.value)}"
    )  # fmt: skip
    return f"{title_of(found)}: weights {how} {change}, from {found.reference:.3f} {where}."


def _reach(found: Flatness) -> str:
    if "adaptive" in found.name:
        return "each by up to {radius} of itself"
    if "sam" in found.name:
        return "all together by up to {radius}"
    return f"each {'filter' if 'filter' in found.name else 'layer'} by up to {{radius}} of its norm"


def _groups(known: Sequence[Measured]) -> Iterator[list[Measured]]:
    """The measurements of one measure on one split, of all models."""
    keys = list(dict.fromkeys(group_of(one) for one in known))
    for key in keys:
        yield [one for one in known if group_of(one) == key]


def group_of(one: Measured) -> tuple[str, str]:
    """What the measurements of several models have in common."""
    return one.measurement.chosen.text, one.measurement.images.part


def is_run(known: Sequence[Measured]) -> bool:
    """Whether these are checkpoints of several epochs of one training."""
    sources = [one.measurement.subject.source for one in known]
    epochs, runs = {source.epoch for source in sources}, {str(source.run) for source in sources}
    return None not in epochs and len(epochs) > 1 and len(runs) == 1 and sources[0].run is not None


def _along(group: Sequence[Measured]) -> str | None:
    points = sorted((one.measurement.subject.source.epoch or 0, one.found.value.value) for one in group if one.found)
    (first, begin), (last, end) = points[0], points[-1]
    low, high = (pick(points, key=lambda point: point[1])[0] for pick in (min, max))
    found = group[0].found
    what = "an eigenvalue" if found is not None and is_curvature(found) else "a rise"
    return (
        f"{name_of(group[0])}: {what} of {begin:.3g} at epoch {first} and of {end:.3g} at epoch {last}; "
        f"lowest at epoch {low}, highest at epoch {high}."
    )


def _ranking(group: Sequence[Measured]) -> str | None:
    ranked = [(one.found.value.value, one) for one in group if one.found is not None and not one.found.constant]
    if len(ranked) < 2:
        return None
    ranked.sort(key=lambda pair: pair[0])
    parts = [f"{one.measurement.subject.source.name} {value:.3f}" for value, one in ranked]
    shown = [*parts[:3], f"… and {parts[-1]}"] if len(parts) > 4 else parts
    return f"{name_of(group[0])}, from the flattest: {', '.join(shown)}."


def how(job: Job, measured: Sequence[Measured]) -> str:
    """How it was measured: what moved, by which law, against what reference, on which images."""
    config = job.config
    lines = [
        "A measure says how much the mean cross-entropy of these images rises when the weights move from w to w + nu. The "
        "weights and the biases of every layer but normalisation layers move, each tensor by itself, up to the radius "
        "times its own norm (Stutz, Hein and Schiele 2021); tied tensors count once. The exceptions are SAM sharpness, "
        "where all parameters are one vector; adaptive sharpness, where each weight has its own radius, and the loss is "
        "that of normalised logits; and filter by filter. "
        "An eigenvalue of the Hessian is no rise, and changes when layers are rescaled without changing the function.",
        f"The robust loss is that of images attacked by {config.attack} ({config.norm}, eps {config.eps:.4g}), anew wherever "
        "the weights are moved to. The worst case climbs with the weights and all images at once, and is what this "
        "search found: the maximum may be higher.",
    ]
    options = [one.measurement.chosen.options for one in measured]
    lines += list(dict.fromkeys(line for o in options if (line := _of_preset(o))))
    notes = [(one.measurement.images.part, one.measurement.images.note) for one in measured]
    lines += [f"Images, {part}: {note}." for part, note in dict.fromkeys(notes) if note]
    return "\n\n".join(lines)


def _of_preset(options: dict[str, Any]) -> str | None:
    """What an average or worst case with a preset leaves open, as it was here."""
    if "preset" not in options:
        return None
    preset, average = PRESETS[options["preset"]], "restarts" not in options
    law, nu = options["law"] or (preset.law if average else preset.worst_law), options.get("nu") or preset.nu
    moved = 1 if average else (options["restarts"] or preset.worst_restarts)
    usual = preset.reference_restarts if average else preset.worst_reference_restarts
    restarts = usual if options["reference_restarts"] is None else options["reference_restarts"]
    what = "Average case" if average else "Worst case"
    drawn = f"nu is drawn {_LAWS[law]}" if average else f"the search starts from a nu drawn {_LAWS[law]}"
    many = "Each nu meets a few of the images." if "standard_error" in options else _NUS[nu]
    text = f"{what}, preset {options['preset']}: {drawn}. {many}"
    if options.get("loss") == "clean":
        return f"{text[:-1]}; the clean loss needs no attack."
    budget = f"the loss at w is that of {_times(restarts)}, the loss at w + nu that of {_times(moved)}"
    if restarts == moved:
        return f"{text} Equal budget: {budget}."
    lower = "lowers" if restarts > moved else "raises"
    return f"{text} Unequal budget: {budget}, which {lower} flatness; --preset equal has none of that."


def _times(restarts: int) -> str:
    return "one attack" if restarts == 1 else f"the best of {restarts} attacks"
