"""A user's own code by name: found, run once, and never a riddle when it fails."""

import sys
from pathlib import Path

import pytest

from shaketable.core.errors import ConfigError, DataError, ModelError
from shaketable.plugins import extra, load, names_code, nearest, nearest_file


@pytest.fixture
def code(tmp_path: Path):
    """Writes a file of code and returns its path; forgets afterwards what was imported."""
    before, paths = set(sys.modules), list(sys.path)

    def write(text: str, name: str = "mine.py") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    yield write
    assert sys.path == paths
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("module:name", True),
        ("a.b.c:name", True),
        ("file.py:name", True),
        ("../some folder/my-file.py:name", True),
        (r"C:\code\mine.py:name", True),
        ("trades", False),
        ("", False),
        (":", False),
        (":name", False),
        ("module:", False),
        ("file.py", False),
        ("file.py:", False),
        ("file.py:a.b", True),
        ("a.b.c:d.e", True),
        ("/abs/dir with space/file.py:make", True),
        ("file.py:a.", False),
        ("file.py:.a", False),
        ("model.pt", False),
        ("dir/model.pt2", False),
        ("a/b:c", False),
        ("file.txt:name", True),  # a package `file` could have a module `txt`
        ("my-module:name", False),
        ("a..b:name", False),
        ("os:system('x')", False),
        ("http://host/file", False),
    ],
)
def test_the_form_of_a_name(text: str, found: bool) -> None:
    assert names_code(text) is found
    if not found:
        with pytest.raises(ConfigError, match=r"loss: expected module:name or file\.py:name"):
            load(text, "loss")


def test_a_module_and_a_file(code) -> None:
    assert load("collections:OrderedDict", "loss").__name__ == "OrderedDict"
    path = code("from dataclasses import dataclass\n@dataclass\nclass Mine:\n    scale: float = 2.0\n")
    assert load(f"{path}:Mine", "loss")().scale == 2.0


def test_dotted_names(code) -> None:
    path = code(
        "RATE = 0.5\nclass Nets:\n    @staticmethod\n    def small(): return 3\n    @classmethod\n    def large(cls): pass\n"
    )
    assert load(f"{path}:Nets.small", "model")() == 3
    assert load("collections:OrderedDict.fromkeys", "loss")("a") == {"a": None}
    with pytest.raises(ConfigError, match=r"a name in Nets of .*mine\.py, found 'smal'\. Did you mean 'small'\?"):
        load(f"{path}:Nets.smal", "model")
    with pytest.raises(ConfigError, match="Did you mean 'large'"):
        load(f"{path}:Nets.larg", "model")
    with pytest.raises(ConfigError, match=r"a name in RATE of .*found 'x'\. There is nothing to choose from"):
        load(f"{path}:RATE.x", "model")


@pytest.mark.parametrize("name", ["mine.py:a b", "mine.py:miss", "none.py:x", "broken.py:x", "no_such_module_at_all:x"])
def test_the_caller_gives_the_class_of_the_errors(name: str, code) -> None:
    folder = Path(code("x = 1\n")).parent
    code("1 / 0\n", "broken.py")
    with pytest.raises(ModelError):
        load(str(folder / name) if ".py" in name else name, "architecture", error=ModelError)


def test_a_module_that_fails_when_asked_for_a_name(code) -> None:
    path = code("def __getattr__(name):\n    raise RuntimeError(f'no backend for {name}')\n")
    with pytest.raises(ConfigError, match="RuntimeError: no backend for mine"):
        load(f"{path}:mine", "loss")


def test_a_file_is_run_once_and_may_import_its_neighbours(code, tmp_path: Path) -> None:
    code("VALUE = 41\n", "beside_it.py")
    log = tmp_path / "log"
    path = code(
        f"from beside_it import VALUE\nwith open({str(log)!r}, 'a') as log:\n    log.write('run')\n"
        "class A: pass\nB = VALUE + 1\n"
    )
    assert load(f"{path}:B", "loss") == 42
    assert load(f"{path}:A", "loss") is load(f"{path}:A", "attack")
    assert log.read_text() == "run"


def test_two_files_of_one_name_are_two_modules(code) -> None:
    one, two = code("X = 1\nclass A: pass\n", "a/mine.py"), code("X = 2\nclass A: pass\n", "b/mine.py")
    first, second = load(f"{one}:A", "loss"), load(f"{two}:A", "loss")
    assert (load(f"{one}:X", "loss"), load(f"{two}:X", "loss")) == (1, 2)
    assert sys.modules[first.__module__].A is first  # as pickle and dataclasses look it up
    assert sys.modules[second.__module__].A is second


@pytest.mark.parametrize(
    ("text", "expected", "found"),
    [
        ("1 / 0\n", "to import", "ZeroDivisionError: division by zero"),
        ("def broken(:\n", "to import", "SyntaxError"),
        ("import no_such_module_at_all\n", "to import", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("raise SystemExit('bye')\n", "to import", "SystemExit: bye"),
        ("def mein(): pass\ndef _hidden(): pass\n", "a name in", "'mine'"),
        ("", "a name in", "'mine'"),
    ],
)
def test_errors_in_the_users_file(text: str, expected: str, found: str, code) -> None:
    path = code(text)
    for _ in range(2):  # a file that failed is not half there the second time
        with pytest.raises(ConfigError) as caught:
            load(f"{path}:mine", "loss")
        assert caught.value.argument == "loss"
        assert expected in caught.value.expected
        assert path in caught.value.expected
        assert found in caught.value.found
        assert caught.value.remedy
    if "mein" in text:
        assert caught.value.remedy == "Did you mean 'mein'?"


def test_a_file_that_was_mended_runs(code) -> None:
    path = code("1 / 0\n")
    with pytest.raises(ConfigError):
        load(f"{path}:mine", "loss")
    assert load(f"{code('mine = 3')}:mine", "loss") == 3


def test_what_is_not_there_is_named_with_the_nearest(code) -> None:
    path = code("x = 1\n", "my_losses.py")
    with pytest.raises(ConfigError, match=r"a Python file that exists.*Did you mean '.*/my_losses.py'") as caught:
        load(path.replace("my_losses", "my_loses") + ":x", "loss")
    assert "my_loses.py" in caught.value.found
    with pytest.raises(ConfigError, match="a Python file that exists"):
        load("/no/such/folder/mine.py:x", "loss")
    with pytest.raises(ConfigError, match="ModuleNotFoundError"):
        load("no_such_module_at_all:x", "loss")
    with pytest.raises(ConfigError, match="Did you mean 'OrderedDict'"):
        load("collections:OrderdDict", "loss")


def test_nearest() -> None:
    assert nearest("trade", ["at", "trades", "mart"]) == "Did you mean 'trades'?"
    assert nearest("mat", ["at", "trades", "mart"]) == "Did you mean 'mart' or 'at'?"
    assert nearest("zzz", ["at", "trades"]) == "Choose from at, trades."
    assert nearest("zzz", []) == "There is nothing to choose from."
    assert nearest("zzz", map(str, range(23))).endswith(" 18, 19 and 3 more.")
    assert nearest("zzz", ["at"], "See the list.") == "See the list."
    assert nearest("a", ["at", "at"], "See the list.") == "Did you mean 'at'?"


def test_nearest_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.pt").touch()
    (tmp_path / "zzzzzz").mkdir()
    assert nearest_file(tmp_path / "modle.pt") == f"Did you mean {str(tmp_path / 'model.pt')!r}?"
    assert nearest_file(tmp_path / "qqq") == "Check the path."
    assert nearest_file(tmp_path / "no" / "model.pt") == "Check the path."
    assert nearest_file(Path("a\0b")) == "Check the path."
    assert nearest_file(tmp_path / "fashion_mnist", ["fashion-mnist"]) == "Did you mean 'fashion-mnist'?"
    monkeypatch.chdir(tmp_path)
    assert nearest_file(Path("modl.pt")) == "Did you mean 'model.pt'?"


def test_an_optional_package() -> None:
    assert extra("collections.abc", "torchvision", "data").__name__ == "collections.abc"
    with pytest.raises(DataError, match=r"data: expected the package no_such_package.*'shaketable\[torchvision\]'"):
        extra("no_such_package", "torchvision", "data", error=DataError)
