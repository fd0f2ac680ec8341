"""Reading a table of models: which columns are what, what is refused by name, and what becomes of it."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from shaketable.core import ConfigError
from shaketable.flatness.groups import BOUNDS
from shaketable.jobs.flatness_study.analysis import Analysis, analyse
from shaketable.jobs.flatness_study.record import write_table
from shaketable.jobs.flatness_study.sheet import read_sheet
from shaketable.jobs.flatness_study.table import Choices, Table, family_of, table_of

PAPERS = "model,TE,RTE_PGD,RTE_AA,avgCE,worstCE,avgRLoss,worstRLoss,RLoss,trRLoss\n"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(text, encoding="utf-8")
    return path


def papers(rows: int = 9) -> str:
    """A table with the published one's columns, its numbers made up."""
    draw = random.Random(0)
    lines = [
        f'"Batch size {2**k}",{20 + k},{55 + k},{55 + k},{draw.random()},{draw.random()},{k + draw.random()},{draw.random()},'
        f"{k + 1},{1 / (k + 1)}"
        for k in range(rows)
    ]
    return PAPERS + "\n".join(lines) + "\n"


def table(tmp_path: Path, text: str, choices: Choices | None = None) -> Table:
    return table_of(read_sheet(written(tmp_path, text)), choices or Choices())


def test_the_published_tables_columns_are_recognised(tmp_path: Path):
    found = table(tmp_path, papers())
    assert found.flatness == ("avgRLoss", "worstRLoss", "avgCE", "worstCE")
    assert found.targets == ("RLoss", "RTE_AA", "RLoss - trRLoss")
    assert found.given == ("log trRLoss",)
    assert (found.by, found.percent) == ("RTE_AA", True)
    assert set(found.models.families) == {"Batch size"}
    assert found.models.columns["log trRLoss"] == pytest.approx([-math.log(k + 1) for k in range(9)])
    assert found.models.columns["RLoss - trRLoss"][1] == pytest.approx(1.5)


def test_options_name_other_columns(tmp_path: Path):
    text = "net,sharp,loss,train,kind,flag\n" + "".join(f"n{k},{k},{k * k},{k + 1},{k % 2},0\n" for k in range(5))
    choices = Choices(
        flatness=["sharp"],
        target=["loss", "loss-train"],
        given=["train"],
        log=[],
        family="kind",
        constant="flag",
        by="loss",
    )
    found = table(tmp_path, text, choices)
    assert (found.flatness, found.targets, found.given) == (("sharp",), ("loss", "loss - train"), ("train",))
    assert (found.by, found.percent) == ("loss", False)
    assert found.models.families == ("0", "1", "0", "1", "0")
    assert found.models.constant == (False,) * 5
    logged = table(tmp_path, text, Choices(flatness=["sharp"], target=["loss"], given=["train"], log=["train"]))
    assert logged.given == ("log train",)
    assert table(tmp_path, text, Choices(target=["loss"])).flatness == ("sharp",)


@pytest.mark.parametrize(
    ("text", "choices", "says"),
    [
        (papers().replace("avgRLoss", "avgRLos"), Choices(flatness=["avgRLoss"]), "Did you mean 'avgRLos'"),
        (papers(), Choices(target=["RLos"]), "Did you mean 'RLoss'"),
        (papers(), Choices(family="kind"), "kind: expected a column of families"),
        (papers(), Choices(constant="flat"), "flat: expected a column of the table"),
        (
            papers().replace(",55,55,", ",55,abc,"),
            Choices(),
            r"column RTE_AA, row 1 \(Batch size 1\): expected a number",
        ),
        (
            papers().replace(",1.0\n", ",-1\n"),
            Choices(),
            "log of trRLoss: expected numbers > 0, found -1 of Batch size 1",
        ),
        (PAPERS, Choices(), "a header and a row for each model"),
        ("", Choices(), "a header and a row for each model"),
        ("model,a\nx,1,2\n", Choices(), "row 1: expected 2 cells"),
        ("model,a,a\nx,1,2\n", Choices(), "a: expected each column once"),
        ("model,a\nx,1\nx,2\n", Choices(), "each model once, found 'x' twice"),
        ("model,a\n,1\n", Choices(), "a name for each"),
        ("model,a\nx,1\n", Choices(), "flatness: expected a column that is recognised"),
        ("model,avgRLoss\nx,1\n", Choices(), "target: expected a column that is recognised"),
        ("model,avgRLoss,RLoss,constant\nx,1,2,perhaps\n", Choices(), "true or false, found 'perhaps'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, text: str, choices: Choices, says: str):
    with pytest.raises(ConfigError, match=says):
        table(tmp_path, text, choices)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="a CSV file that can be read"):
        read_sheet(tmp_path / "none.csv")
    path = tmp_path / "binary.csv"
    path.write_bytes(b"\xff\xfe\x00model,a\n")
    with pytest.raises(ConfigError, match="a CSV file that can be read"):
        read_sheet(path)


def test_empty_cells_are_missing_values_and_quotes_a_mark_and_blank_lines_are_read(tmp_path: Path):
    text = '\ufeffmodel,avgRLoss,RLoss\n"a, b",,1\n\nc,nan,2\nd,1.5,3\n'
    found = table(tmp_path, text)
    assert found.models.names == ("a, b", "c", "d")
    assert [math.isnan(v) for v in found.models.columns["avgRLoss"]] == [True, True, False]


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("Batch size 8", "Batch size"), ("AT-AWP xi=0.01", "AT-AWP"), ("PGD-7-3", "PGD"), ("Cyclic times2", "Cyclic"),
        ("Entropy-SGD (L=2)", "Entropy-SGD"), ("AT (baseline)", "AT (baseline)"), ("3", "3"), ("Cyclic", "Cyclic"),
        ("Weight averaging (tau=0.98)", "Weight averaging"),
    ],
)  # fmt: skip
def test_families_are_names_up_to_their_settings(name: str, family: str):
    assert family_of(name) == family


def analysis(tmp_path: Path, text: str, bounds: Sequence[float] | None = None) -> Analysis:
    return analyse(table(tmp_path, text), seed=0, resamples=100, bounds=bounds)


def test_groups_are_the_papers_for_its_columns_and_thirds_for_others(tmp_path: Path):
    found = analysis(tmp_path, papers())
    assert found.groups is not None
    assert (found.groups.by, found.groups.bounds, found.groups.published) == ("RTE_AA", BOUNDS, True)
    assert [len(g.models) for g in found.groups.found.values()] == [2, 3, 4]
    assert found.groups.of("Batch size 1") == "good"
    other = analysis(tmp_path, papers().replace("RTE_AA", "robust_error"))
    assert other.groups is not None
    assert [len(g.models) for g in other.groups.found.values()] == [3, 3, 3]
    given = analysis(tmp_path, papers(), (56, 62.5))
    assert given.groups is not None
    assert [len(g.models) for g in given.groups.found.values()] == [1, 7, 1]
    with pytest.raises(ConfigError, match="two rising numbers"):
        analysis(tmp_path, papers(), (60, 57))


def test_a_table_that_was_written_is_read_back_to_the_bit(tmp_path: Path):
    columns = {
        "model": ["a", "b, c", "d"], "family": ["x", "x", "y"], "constant": [False, True, False],
        "robust_loss": [1 / 3, 2.0, math.nan], "average(xi=0.5)": [0.1 + 0.2, 1e-17, 3.0],
        "average(xi=0.5) low": [0.1, 0.0, -math.inf], "average(xi=0.5) high": [0.5, 1.0, math.inf],
    }  # fmt: skip
    write_table(tmp_path, columns)
    found = table_of(read_sheet(tmp_path / "table.csv"), Choices())
    assert found.flatness == ("average(xi=0.5)",)
    assert found.models.columns["average(xi=0.5)"] == tuple(columns["average(xi=0.5)"])
    assert found.models.columns["robust_loss"][:2] == (1 / 3, 2.0)
    assert math.isnan(found.models.columns["robust_loss"][2])
    assert found.models.constant == (False, True, False)
    assert found.bounds["average(xi=0.5)"][0][0] == 0.1
    assert (found.models.families, found.families) == (("x", "x", "y"), "column family")
