"""What `shaketable transfer` says: errors of its cells, and rates and ratios whose interval is Wilson's or unknown."""

import math
from typing import Any, cast

import pytest

from shaketable.core import ConfigError, GradientError
from shaketable.jobs.transfer import _require_done
from shaketable.jobs.transfer_report import _headline
from shaketable.jobs.transfer_words import _percent, _times
from shaketable.runs import Cell, Outcome, Task
from shaketable.stats import Mean, Rate

TASK = Task(Cell("0" * 64, "0" * 64, "transfer", 1, {}, 0), "a:b", {}, cost=1.0)


def test_an_error_of_a_cell_ends_in_one_full_stop() -> None:
    error = str(GradientError("model", "a gradient", "none", "Use an attack without gradients."))
    failed, done = Outcome(TASK, error=error), Outcome(TASK, {})
    _require_done({("a", "whole"): done})
    with pytest.raises(ConfigError) as caught:
        _require_done({("a", "whole"): done, ("b", "whole"): failed})
    assert "b, whole: model: expected a gradient, found none. " in str(caught.value)
    assert str(caught.value).endswith("Use an attack without gradients. Correct it; what was done is kept.")
    with pytest.raises(ConfigError, match=r"without gradients \(1 more\)\. Correct it"):
        _require_done({("a", "whole"): failed, ("b", "whole"): failed})


class Found:
    """As much of a matrix as the headline asks for."""

    def __init__(self, means: dict[str, Mean]) -> None:
        self.means, self.regions, self.pairs = means, tuple(means), (("a", "b"), ("b", "a"))

    def mean(self, name: str) -> Mean:
        return self.means[name]


def test_the_headline_says_where_its_interval_is_wilsons() -> None:
    low, high = Rate(0, 12).interval
    means = {
        "zero": Mean(0.0, low, high, 12, 0.0, "bootstrap"),
        "some": Mean(0.5, 0.4, 0.6, 12, 0.1, "bootstrap"),
        "none": Mean(math.nan, math.nan, math.nan, 0, math.nan, "bootstrap"),
    }
    made = _headline(cast(Any, Found(means)))
    assert [m.name for m in made] == ["Transfer, zero", "Transfer, some"]
    assert [m.note for m in made] == ["mean of 2 pairs, Wilson interval of 12 images", "mean of 2 pairs"]
    assert made[0].interval == (low, high)


def test_an_unknown_interval_is_called_unknown() -> None:
    assert _percent(Mean(0.5, 0.25, 0.75, 9, 0.1)) == "50.0 % [25.0, 75.0]"
    assert _percent(Mean(0.5, -math.inf, math.inf, 1, math.nan)) == "50.0 % (interval unknown)"
    assert "no image that both get right" in _percent(Mean(math.nan, math.nan, math.nan, 0, math.nan))
    assert _times(Mean(0.5, 0.0, math.inf, 1, math.nan)) == "0.50 (interval unknown)"
    assert _times(Mean(0.5, 0.25, 0.75, 9, 0.1)) == "0.50 [0.25, 0.75]"
