"""Numbers and names as they are written."""

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shaketable.report import estimate, mean_metric
from shaketable.report.wording import decimals_in, number, percent, shortened, shown, visible
from shaketable.stats import Mean, Rate, mean


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain", "plain"), ("naïve 模型 שלום", "naïve 模型 שלום"), ("a\u202eb", "a⟨U+202E⟩b"), ("\x1b[2J", "⟨U+001B⟩[2J"),
        ("a\nb\tc", "a⟨U+000A⟩b⟨U+0009⟩c"), ("a\u200bb\ufeff", "a⟨U+200B⟩b⟨U+FEFF⟩"), ("\u2066x\u2069", "⟨U+2066⟩x⟨U+2069⟩"),
        ("👩\u200d🔬", "👩\u200d🔬"), ("\U000e0041", "⟨U+E0041⟩"), ("\u2028", "⟨U+2028⟩"), ("\u3164", "⟨U+3164⟩"),
    ],
)  # fmt: skip
def test_hidden_characters_are_spelt_out(text: str, seen: str) -> None:
    assert visible(text) == seen


@given(st.text())
def test_nothing_hidden_is_left_and_doing_it_twice_changes_nothing(text: str) -> None:
    seen = visible(text)
    assert all(unicodedata.category(c) not in {"Cc", "Cf", "Zl", "Zp", "Co"} or c in "\u200c\u200d" for c in seen)
    assert visible(seen) == seen


@given(st.text(), st.integers(3, 40))
def test_a_shortened_text_keeps_its_limit_and_its_ends(text: str, limit: int) -> None:
    short = shortened(text, limit)
    assert len(short) <= limit
    assert short == text or ("…" in short and text.startswith(short.split("…")[0]))


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "\u2013"), (math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "-∞"), (0.0, "0"), (206_922, "206,922"),
        (1.51042, "1.51"), (12345.6, "12,346"), (1e-9, "1.000e-09"), (3e12, "3.000e+12"), (-0.25, "-0.25"),
    ],
)  # fmt: skip
def test_a_number_is_short_and_exact_enough(value: float | None, written: str) -> None:
    assert number(value) == written


def test_zero_has_no_sign() -> None:
    assert (number(-0.0), number(-0.001, 2), number(-0.01, 2), percent(-0.0001)) == ("0", "0.00", "-0.01", "0.0\u202f%")


def test_a_rate_is_written_as_its_own_str_says() -> None:
    for rate in (Rate(1100, 2000), Rate(0, 7), Rate(7, 7)):
        words = shown(estimate(rate))
        assert f"{words.line} ({words.count})".replace("\u202f", " ") == str(rate)
    assert shown(estimate(Rate(0, 0))).line == "NaN [0.0, 100.0]"
    assert percent(0.5505) == "55.0\u202f%"


@pytest.mark.parametrize(
    ("low", "high", "line"),
    [
        (1.06, 1.22, "1.140 [1.060, 1.220]"), (0.9, 1.38, "1.14 [0.90, 1.38]"), (-20.0, 22.28, "1 [-20, 22]"),
        (1.138, 1.142, "1.1400 [1.1380, 1.1420]"), (1.14, 1.14, "1.14 [1.14, 1.14]"),
        (-math.inf, math.inf, "1.14 [-∞, ∞]"),
    ],
)  # fmt: skip
def test_a_mean_has_the_decimals_that_its_interval_supports(low: float, high: float, line: str) -> None:
    assert shown(estimate(Mean(1.14, low, high, 9, 1.0))).line == line


def test_a_unit_stands_between_value_and_interval() -> None:
    metric = mean_metric("a", mean([1.0, 2.0, 3.0]), unit="nats")
    assert shown(metric, metric.unit).line == "2.0 nats [-0.5, 4.5]"


@pytest.mark.parametrize(
    ("values", "decimals"),
    [([1.51042, 0.2], 3), ([88.25, 4.0], 2), ([1e-5, 1.0], None), ([], None), ([0.0, 12345.0], 0)],
)
def test_a_column_shares_its_decimals(values: list, decimals: int | None) -> None:
    assert decimals_in(values) == decimals
