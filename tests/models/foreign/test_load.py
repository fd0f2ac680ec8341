"""Which sources `load` knows, and what it says of the others."""

from pathlib import Path

import pytest

from shaketable.core.errors import ModelError
from shaketable.models.foreign import load


@pytest.mark.parametrize(
    ("source", "found", "remedy"),
    [
        ("nothing.pt", "no such file", "Check the path"),
        ("folder/resnet_18.pt", "no such file", "Did you mean"),
        ("folder", "a folder", "hf:FOLDER"),
        ("hub:name/of", "nothing of the kind hub:", "Check"),
        ("", "a folder", "Name a file"),
    ],
)
def test_unknown_sources(source: str, found: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "resnet18.pt").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load(source)
    assert found in caught.value.found
    assert remedy in caught.value.remedy


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ModelError, match="Permission denied"):
        load(str(path))
