"""How numbers and names are written, the same in the page and on the terminal.

A name may come from a checkpoint or a data set that nobody vouches for. `visible` makes what could reorder, hide or
blank out text readable as its code point; escaping for HTML is the template engine's work, not this module's.
"""

import math
import unicodedata
from dataclasses import dataclass

from .values import Estimate

PERCENT = "\u202f%"  # a narrow no-break space, so that a number is never parted from its unit
NOTHING = "\u2013"  # an en dash: not measured
_KEPT = {"\u200c", "\u200d"}  # the joiners that Persian, Indic scripts and emoji are written with


def visible(text: str) -> str:
    """A text in which every control, bidirectional or invisible character is shown as ⟨U+XXXX⟩.

    Right-to-left scripts stay as they are; only the characters that reorder or hide their neighbours are spelt out.

    Checked by tests/report/test_wording.py.
    """
    return "".join(f"⟨U+{ord(c):04X}⟩" if _hidden(c) else c for c in text)


def shortened(text: str, limit: int = 24) -> str:
    """The text, its middle replaced by an ellipsis where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = (limit - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def number(value: float | None, decimals: int | None = None) -> str:
    """A number in at most four significant digits, or with `decimals`; an en dash for None, "NaN", "∞", "-∞".

    Zero, and what is rounded to it, has no sign.

    Checked by tests/report/test_wording.py.
    """
    if value is None:
        return NOTHING
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if isinstance(value, int):
        return f"{value:,}"
    if decimals is not None:
        return f"{value:z,.{decimals}f}"
    size = abs(value)
    if size and not 1e-4 <= size < 1e7:
        return f"{value:.3e}"
    return f"{value:z,.0f}" if size >= 1000 else f"{value:z.4g}"


def percent(value: float | None, decimals: int = 1) -> str:
    """A fraction as a percentage with its sign: .5505 is "55.0 %"; an en dash for None, "NaN" and infinities as `number`."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{100 * value:z.{decimals}f}{PERCENT}"


@dataclass(frozen=True)
class Shown:
    """An estimate in words: its value, its unit, "[low, high]" in the same unit, and its count."""

    value: str
    interval: str
    count: str
    unit: str = ""

    @property
    def line(self) -> str:
        """For example "55.0 % [52.8, 57.2]"."""
        return " ".join(word for word in (self.value, self.unit, self.interval) if word)


def shown(estimate: Estimate, unit: str = "") -> Shown:
    """An estimate in words; a mean gets as many decimals as show two digits of its interval's half width.

    Checked by tests/report/test_wording.py.
    """
    count = "" if estimate.n is None else number(estimate.n)
    if estimate.kind == "rate":
        count = f"{estimate.hits}/{estimate.n}"
        low, high = estimate.interval or (math.nan, math.nan)
        return Shown(percent(estimate.value), f"[{100 * low:z.1f}, {100 * high:z.1f}]", count)
    decimals = decimals_for(estimate)
    written = number(estimate.value, decimals)
    if estimate.interval is None:
        whole = estimate.value is not None and estimate.value.is_integer() and abs(estimate.value) < 1e15
        return Shown(number(int(estimate.value)) if whole and estimate.value is not None else written, "", count, unit)
    low, high = (number(end, decimals) for end in estimate.interval)
    return Shown(written, f"[{low}, {high}]", count, unit)


def decimals_for(estimate: Estimate) -> int | None:
    """How many decimals show two significant digits of the interval's half width; None without a finite interval."""
    if estimate.interval is None or not all(map(math.isfinite, estimate.interval)):
        return None
    low, high = estimate.interval
    return decimals_of((high - low) / 2) if max(abs(low), abs(high)) < 1e7 else None


def decimals_of(size: float) -> int | None:
    """How many decimals show two significant digits of a size; None for one that is too small or too large for them."""
    if not 1e-6 <= size < 1e7:
        return None
    return max(0, 1 - math.floor(math.log10(size)))


def decimals_in(values: list[float]) -> int | None:
    """How many decimals a column of numbers shares: three below 10, fewer above; None where some are too small for it."""
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    if not sizes or min(sizes) < 0.01 or max(sizes) >= 1e7:
        return None
    return max(0, 3 - max(0, math.floor(math.log10(max(sizes)))))


def _hidden(character: str) -> bool:
    if character in _KEPT:
        return False
    return unicodedata.category(character) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} or character in "\u115f\u1160\u3164"
