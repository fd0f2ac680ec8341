"""The mistakes that people make most, each through the command line: what is said names the argument and the remedy."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shaketable import data, flatness, models
from shaketable.cli import main
from shaketable.core import ShaketableError


def _npz(path: Path, images: np.ndarray, labels: np.ndarray) -> list[str]:
    np.savez(path / "bad.npz", images=images, labels=labels)
    return ["--data", str(path / "bad.npz")]


def _some(run: Path, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    batch = data.open_dataset("fashion-mnist", split="test").batch(range(n))
    return batch.x.numpy(), batch.y.numpy()


def colour_images(run: Path, tmp: Path) -> list[str]:
    x, y = _some(run)
    return [str(run), *_npz(tmp, np.repeat(x, 3, 1), y)]


def labels_out_of_range(run: Path, tmp: Path) -> list[str]:
    x, y = _some(run)
    return [str(run), *_npz(tmp, x, y + 5)]


def nan_pixels(run: Path, tmp: Path) -> list[str]:
    x, y = _some(run)
    x[3, 0, 5, 5] = np.nan
    return [str(run), *_npz(tmp, x, y)]


def pixels_to_255(run: Path, tmp: Path) -> list[str]:
    x, y = _some(run)
    return [str(run), *_npz(tmp, x * 255, y)]


def normalised_pixels(run: Path, tmp: Path) -> list[str]:
    x, y = _some(run)
    return [str(run), *_npz(tmp, (x - 0.286) / 0.353, y)]


def other_size(run: Path, tmp: Path) -> list[str]:
    x, y = _some(run)
    return [str(run), *_npz(tmp, x[..., :24, :24], y)]


def empty_data(run: Path, tmp: Path) -> list[str]:
    return [str(run), *_npz(tmp, np.zeros((0, 1, 28, 28), np.float32), np.zeros(0, np.int64))]


def empty_folder(run: Path, tmp: Path) -> list[str]:
    (tmp / "images").mkdir()
    return [str(run), "--data", str(tmp / "images")]


def permuted_labels(run: Path, tmp: Path) -> list[str]:
    x, y = _some(run, 400)
    return [str(run), *_npz(tmp, x, (y + 1) % 10)]


def truncated(run: Path, tmp: Path) -> list[str]:
    content = (run / "best.safetensors").read_bytes()
    (tmp / "cut.safetensors").write_bytes(content[: len(content) // 2])
    return [str(tmp / "cut.safetensors")]


def flipped(run: Path, tmp: Path) -> list[str]:
    content = bytearray((run / "best.safetensors").read_bytes())
    content[len(content) // 2] ^= 4
    (tmp / "flipped.safetensors").write_bytes(bytes(content))
    return [str(tmp / "flipped.safetensors")]


class _Runs:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (self.canary, "w")


def hostile_pickle(run: Path, tmp: Path) -> list[str]:
    torch.save({"state_dict": _Runs(str(tmp / "canary"))}, tmp / "evil.pt")
    return [str(tmp / "evil.pt"), "--architecture", "small_cnn"]


def hostile_program(run: Path, tmp: Path) -> list[str]:
    program = torch.export.export(nn.Linear(3, 2), (torch.zeros(1, 3),))
    torch.export.save(program, tmp / "good.pt2")
    payload = io.BytesIO()
    pickle.dump(_Runs(str(tmp / "canary")), payload)
    with zipfile.ZipFile(tmp / "good.pt2") as good, zipfile.ZipFile(tmp / "evil.pt2", "w") as evil:
        for entry in good.infolist():
            content = good.read(entry)
            if entry.filename.endswith(("constants/constant_0", ".pt")) or "sample_inputs" in entry.filename:
                content = payload.getvalue()
            evil.writestr(entry, content)
        evil.writestr(f"{good.infolist()[0].filename.split('/')[0]}/data/constants/custom_obj_0", payload.getvalue())
    return [str(tmp / "evil.pt2")]


def web_page(run: Path, tmp: Path) -> list[str]:
    (tmp / "weights.pt").write_text("<!DOCTYPE html><html><body>Quota exceeded</body></html>")
    return [str(tmp / "weights.pt"), "--architecture", "small_cnn"]


def other_normalisation(run: Path, tmp: Path) -> list[str]:
    from safetensors.torch import load_file

    torch.save(dict(load_file(str(run / "best.safetensors"))), tmp / "w.pt")
    given = ["--mean", "0.9", "--std", "0.05"]  # far from what it was trained with
    return [str(tmp / "w.pt"), "--architecture", "small_cnn", *given]


CASES: dict[Callable[[Path, Path], list[str]], tuple[str, ...]] = {
    colour_images: ("channel",),
    labels_out_of_range: ("label",),
    nan_pixels: ("NaN",),
    pixels_to_255: ("255",),
    normalised_pixels: ("normalis",),
    other_size: ("28",),
    empty_data: ("at least one image",),
    empty_folder: ("images",),
    permuted_labels: ("label",),
    truncated: ("cut.safetensors",),
    flipped: ("flipped.safetensors",),
    hostile_pickle: ("evil.pt", "open"),
    hostile_program: ("evil.pt2",),
    web_page: ("HTML",),
    other_normalisation: ("normalis",),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_mistake_is_a_typed_error_that_names_it_and_nothing_is_written(
    case: Callable[[Path, Path], list[str]], run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["evaluate", *case(run_folder, tmp_path), "--eps", "0.1", "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "This is a defect" not in said
    for words in CASES[case]:
        assert words.lower() in said.lower()
    with pytest.raises(ShaketableError) as raised:
        main([*arguments, "--debug"])
    error = raised.value
    assert all((error.argument, error.expected, error.found, error.remedy))
    assert error.remedy in said
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "out").exists()


def test_a_right_model_on_right_data_passes(run_folder: Path, tmp_path: Path):
    x, y = _some(run_folder)
    arguments = [str(run_folder), *_npz(tmp_path, x, y), "--eps", "0.1", "--out", str(tmp_path / "out")]
    assert main(["evaluate", *arguments]) == 0
    assert models.load(run_folder).spec is not None


def test_a_train_mode_model_stops_every_job(run_folder: Path):
    model = models.load(run_folder).model.train()
    batch = data.open_dataset("fashion-mnist", split="test").batch(range(60))
    with pytest.raises(ShaketableError, match=r"eval\(\)"):
        models.check(model, batch.x, batch.y)
    with pytest.raises(ShaketableError, match=r"eval\(\)"):
        flatness.average(model, batch.x, batch.y, seed=0)
