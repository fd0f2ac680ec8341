"""The embedded set: what it holds, where it comes from, and that damage is found."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shaketable.core.errors import DataError
from shaketable.data import Split, fashion_mnist, open_dataset, open_parts
from shaketable.data.idx import FASHION_MNIST, read_idx
from shaketable.data.npz import arrays_in

MANIFEST = json.loads((fashion_mnist.FOLDER / "manifest.json").read_text("utf-8"))
ARRAYS = fashion_mnist.FOLDER / MANIFEST["file"]["name"]


def test_counts_shape_and_names():
    parts = open_parts("fashion-mnist")
    assert parts.train.counts == (500,) * 10
    assert parts.test is not None
    assert parts.test.counts == (200,) * 10
    assert parts.train.pixels.shape == (1, 28, 28)
    assert parts.train.classes == FASHION_MNIST
    assert (parts.train.name, parts.test.name) == ("fashion-mnist train", "fashion-mnist test")
    assert len(open_dataset("fashion-mnist", split="all")) == 7000
    assert open_dataset("fashion-mnist", size=16, channels=3).pixels.shape == (3, 16, 16)


def test_the_images_never_change():
    """Whoever changes the embedded images changes every number that was measured on them."""
    assert open_dataset("fashion-mnist", split="train").fingerprint == TRAIN
    assert open_dataset("fashion-mnist", split="test").fingerprint == TEST


TRAIN = "1c18f3c090b76fc11c0d66b54ebf4170c139e614ad821bb5a87aeae42957d68b"
TEST = "915306899d9cbc9330bf1c30e9645359f95c0fab3ca5274af210146a6a15cab3"


def test_the_manifest_tells_the_truth():
    assert hashlib.sha256(ARRAYS.read_bytes()).hexdigest() == MANIFEST["file"]["sha256"]
    assert ARRAYS.stat().st_size == MANIFEST["file"]["bytes"] < 4_000_000
    arrays = arrays_in(ARRAYS, tuple(MANIFEST["arrays_sha256"]))
    for name, digest in MANIFEST["arrays_sha256"].items():
        assert hashlib.sha256(arrays[name].tobytes()).hexdigest() == digest
    for part, count in MANIFEST["counts"].items():
        indices = arrays[f"{part}_indices"]
        assert len(indices) == count == len(arrays[f"{part}_labels"])
        assert (np.diff(indices) > 0).all()
        assert hashlib.sha256(indices.astype("<i4").tobytes()).hexdigest() == MANIFEST["indices_sha256"][part]
    assert MANIFEST["licence"] == "MIT"
    licence = (fashion_mnist.FOLDER / MANIFEST["licence_file"]).read_text("utf-8")
    assert licence.startswith("The MIT License (MIT) Copyright © 2017 Zalando SE, https://tech.zalando.com")


def test_the_images_are_those_of_the_source(fashion: Path):
    for name, digest in MANIFEST["source_sha256"].items():
        assert hashlib.sha256((fashion / name).read_bytes()).hexdigest() == digest
    sources: list[tuple[Split, str]] = [("train", "train"), ("test", "t10k")]
    for part, prefix in sources:
        data = open_dataset("fashion-mnist", split=part)
        rows = torch.from_numpy(arrays_in(ARRAYS, (f"{part}_indices",))[f"{part}_indices"]).long()
        assert torch.equal(data.labels, read_idx(fashion / f"{prefix}-labels-idx1-ubyte.gz", 1)[rows].long())
        images = read_idx(fashion / f"{prefix}-images-idx3-ubyte.gz", 3)[rows].unsqueeze(1)
        assert torch.equal(data.pixels.read(torch.arange(len(data))), images)


@pytest.mark.full
def test_the_tool_makes_it_again(fashion: Path):
    tool = Path(__file__).parents[2] / "tools" / "embed_fashion_mnist.py"
    made = subprocess.run(
        [sys.executable, tool, "--source", fashion, "--check"], capture_output=True, text=True, timeout=120
    )
    assert (made.returncode, made.stdout.strip()) == (0, "the embedded arrays are the same"), made.stderr


@pytest.mark.parametrize(
    "case", ["flipped bit", "cut", "missing", "no manifest", "manifest cut", "manifest of another"]
)
def test_damage_is_found(tmp_path: Path, monkeypatch, case):
    content, manifest = bytearray(ARRAYS.read_bytes()), json.dumps(MANIFEST)
    content[1_000_000] ^= 1 if case == "flipped bit" else 0
    if case != "missing":
        (tmp_path / ARRAYS.name).write_bytes(content[: 1000 if case == "cut" else None])
    if case != "no manifest":
        text = {"manifest cut": manifest[:50], "manifest of another": "[]"}.get(case, manifest)
        (tmp_path / "manifest.json").write_text(text)
    monkeypatch.setattr(fashion_mnist, "FOLDER", tmp_path)
    with pytest.raises(DataError, match="install shaketable again"):
        open_dataset("fashion-mnist")
