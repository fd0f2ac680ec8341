"""What is said of a table whose truth is known: nothing is claimed that its intervals do not bear."""

from collections.abc import Mapping, Sequence

import numpy as np

from shaketable.flatness.models_table import Models
from shaketable.jobs.flatness_study.analysis import Analysis, analyse
from shaketable.jobs.flatness_study.report import correlation_sections, findings, headline
from shaketable.jobs.flatness_study.table import Table
from shaketable.jobs.flatness_study.text import sentences


def analysis(columns: Mapping[str, Sequence[float]], given: Sequence[str], families: Sequence[str] = ()) -> Analysis:
    count = len(columns["flat"])
    names = tuple(f"m{k}" for k in range(count))
    values = {name: tuple(map(float, column)) for name, column in columns.items()}
    models = Models(names, values, tuple(families) or names)
    table = Table(models, ("flat",), ("loss",), tuple(given), "loss", False, {}, "each its own")
    return analyse(table, seed=0, resamples=300, bounds=None)


def draws(count: int = 60) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, count))


def test_flatness_that_only_stands_for_the_confounder_is_said_to_have_nothing_left():
    cause, a, b, _ = draws()
    found = analysis({"flat": cause + a, "loss": cause + b, "cause": cause}, ["cause"])
    text = " ".join(sentences(found))
    assert "flat goes with loss" in text
    assert "Given cause, nothing of flat is shown to be left for loss" in text
    assert "more closely than flat" in text
    assert "The other way round, given flat, cause keeps" in text


def test_flatness_that_is_the_cause_keeps_a_partial_correlation_and_goes_closer():
    flat, a, b, _ = draws()
    found = analysis({"flat": flat, "loss": flat + 0.5 * a, "proxy": flat + 2 * b}, ["proxy"])
    text = " ".join(sentences(found))
    assert "Given proxy, flat keeps a partial correlation" in text
    assert "less closely than flat" in text
    assert "The other way round, given flat, proxy is not shown to keep any" in text


def test_what_is_alike_is_not_told_apart_and_what_is_not_there_is_not_claimed():
    cause, a, b, noise = draws()
    text = " ".join(sentences(analysis({"flat": cause + a, "loss": cause, "other": cause + b}, ["other"])))
    assert "do not tell the two apart" in text
    text = " ".join(sentences(analysis({"flat": noise, "loss": cause}, [])))
    assert "flat is not shown to go with loss" in text
    assert "No confounder was given" in text


def test_the_caution_is_always_there_and_the_report_is_made_of_few_families_too():
    cause, a, b, _ = draws(12)
    found = analysis(
        {"flat": cause + a, "loss": cause + b, "cause": cause}, ["cause"], [f"f{k // 3}" for k in range(12)]
    )
    assert "does not say that flatness makes nets robust" in sentences(found)[-1]
    assert {f.code for f in findings(found)} == {"few-families"}
    assert len(headline(found.correlations)) == 4
    titles = [section.title for section in correlation_sections(found)]
    assert titles == [
        "What goes with loss", "What is left when confounders are given", "Good, average and poor models",
        "Without one family", "The models",
    ]  # fmt: skip
