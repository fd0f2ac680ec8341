"""Our checkpoints: exact round trips, and no damaged, foreign or hostile file that is believed."""

import dataclasses
import hashlib
import json
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from shaketable import models
from shaketable.core.errors import (
    CheckpointError,
    InputError,
    ModelError,
    ShaketableError,
    StorageError,
    UnsafeFileError,
)
from shaketable.models import checkpoint


def rewritten(path: Path, change) -> Path:
    """The same file with another manifest, whose hash is right again: an edit on purpose."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["shaketable"])
    change(manifest)
    manifest["sha256"] = "0" * 64
    header["__metadata__"]["shaketable"] = json.dumps(manifest, separators=(",", ":"))
    new = json.dumps(header, separators=(",", ":")).encode()
    blank = struct.pack("<Q", len(new)) + new + content[8 + length :]
    digest = hashlib.sha256(blank).hexdigest().encode()
    path.write_bytes(blank.replace(b"0" * 64, digest, 1))
    return path


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("small_cnn", {"width": 3, "norm": "batch"}),
        ("mlp", {"width": 3, "depth": 0}),
        ("preact_resnet18", {"width": 2}),
        ("wide_resnet", {"depth": 10, "widen": 1}),
        ("resnet18", {"width": 2}),
        ("vit", {"dim": 6, "depth": 1}),
    ],
)
def test_round_trip(name, arguments, tmp_path):
    spec = models.ModelSpec(name, 4, 3, (8, 8), arguments, (0.4,) * 3, (0.2,) * 3, ("a", "b", "ü", '"\\'))
    model = models.build(spec, 5)
    model(torch.rand(4, 3, 8, 8))  # BatchNorm's statistics and its counter move
    digest = models.save(tmp_path / "sub" / "m.safetensors", model, spec, facts={"epochs": 3, "loss": float("nan")})
    loaded = models.load(tmp_path / "sub" / "m.safetensors")
    assert models.fingerprint(loaded.model) == models.fingerprint(model)
    assert loaded.spec == spec
    assert (loaded.name, loaded.size, loaded.labels, loaded.gradients) == ("m", (8, 8), spec.labels, True)
    assert loaded.sha256 == digest == hashlib.sha256((tmp_path / "sub" / "m.safetensors").read_bytes()).hexdigest()
    assert not any(module.training for module in loaded.model.modules())
    assert all(p.requires_grad for p in loaded.model.parameters())
    x = torch.rand(3, 3, 8, 8)
    assert torch.equal(loaded.model(x), model.eval()(x))
    manifest = models.read_manifest(tmp_path / "sub" / "m.safetensors")
    assert manifest.facts["epochs"] == 3
    assert manifest.facts["loss"] != manifest.facts["loss"]


def test_the_same_model_gives_the_same_bytes_in_another_process(saved, small_spec, tmp_path):
    code = (
        "import sys, json; from shaketable import models;"
        "spec = models.ModelSpec.from_json(json.loads(sys.argv[1]));"
        "models.save(sys.argv[2], models.build(spec, 1), spec, facts={'epochs': 3})"
    )
    again = tmp_path / "again.safetensors"
    subprocess.run([sys.executable, "-c", code, json.dumps(small_spec.to_json()), str(again)], check=True)
    assert again.read_bytes() == saved.read_bytes()


def test_any_safetensors_reader_gets_the_weights(saved, small_spec):
    state = models.build(small_spec, 1).state_dict()
    read = safetensors.torch.load_file(saved)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_saving_and_loading_touch_neither_model_nor_randomness(small_spec, tmp_path):
    model = models.build(small_spec, 0)
    before, state = models.fingerprint(model), torch.get_rng_state()
    models.save(tmp_path / "m.safetensors", model, small_spec)
    models.load(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert models.fingerprint(model) == before
    assert model.training


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_kept(dtype, small_spec, tmp_path):
    model = models.build(small_spec, 0).to(dtype)
    models.save(tmp_path / "m.safetensors", model, small_spec)
    loaded = models.load(tmp_path / "m.safetensors").model
    assert models.fingerprint(loaded) == models.fingerprint(model)
    assert loaded(torch.rand(1, 1, 6, 6, dtype=dtype)).dtype == dtype


def test_channels_last_weights_are_the_same_weights(small_spec, tmp_path):
    plain, other = models.build(small_spec, 0), models.build(small_spec, 0).to(memory_format=torch.channels_last)
    assert models.fingerprint(plain) == models.fingerprint(other)
    a, b = (models.save(tmp_path / f"{i}.safetensors", m, small_spec) for i, m in enumerate((plain, other)))
    assert a == b


TIED = """
from torch import nn
class Tied(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.head = nn.Linear(4, classes)
        self.register_buffer("view", self.head.weight.detach()[:2])
        self.register_buffer("across", self.head.weight.detach().t())
    def forward(self, x):
        return self.head(self.b(self.a(x.flatten(1))))
"""


def test_tied_weights_and_views(tmp_path):
    (tmp_path / "tied.py").write_text(TIED)
    spec = models.ModelSpec(f"{tmp_path / 'tied.py'}:Tied", classes=3, channels=1, size=(2, 2))
    model = models.build(spec, 0)
    path = tmp_path / "m.safetensors"
    models.save(path, model, spec)
    assert models.read_manifest(path).tied == {"network.b.weight": "network.a.weight"}
    assert "network.b.weight" not in safetensors.torch.load_file(path)
    with pytest.raises(UnsafeFileError, match="--trust"):
        models.load(path)
    loaded = models.load(path, trust=True)
    assert models.fingerprint(loaded.model) == models.fingerprint(model)
    assert loaded.model.network.b.weight is loaded.model.network.a.weight
    assert "run on trust" in loaded.notes[0]


def test_a_checkpoint_cannot_run_code(saved, tmp_path):
    """An architecture is a name in a file: one of the standard library's must not be called."""
    witness = tmp_path / "witness"
    for name, arguments in [("os:system", {"command": f"touch {witness}"}), (f"{tmp_path / 'evil.py'}:f", {})]:
        (tmp_path / "evil.py").write_text(f"open({str(witness)!r}, 'w')")
        rewritten(saved, lambda m, n=name, a=arguments: m["spec"].update(architecture=n, arguments=a))
        with pytest.raises(UnsafeFileError):
            models.load(saved)
        models.read_manifest(saved)
    assert not witness.exists()


def refused(path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        models.load(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


def test_every_byte_of_the_header_matters(saved):
    content = saved.read_bytes()
    length = 8 + struct.unpack("<Q", content[:8])[0]
    assert length > 500
    draw = random.Random(0)
    for position in range(length):
        damaged = bytearray(content)
        damaged[position] ^= 1 << draw.randrange(8)
        saved.write_bytes(damaged)
        refused(saved)


@pytest.mark.full
def test_every_bit_of_the_file_matters(saved):
    content = saved.read_bytes()
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        saved.write_bytes(damaged)
        refused(saved)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_flipped_bits_anywhere_are_found(saved, data):
    whole = saved.with_name("whole")
    if not whole.exists():
        shutil.copy(saved, whole)
    damaged = bytearray(whole.read_bytes())
    for bit in data.draw(st.sets(st.integers(0, 8 * len(damaged) - 1), min_size=1, max_size=3)):
        damaged[bit // 8] ^= 1 << bit % 8
    saved.write_bytes(damaged)
    refused(saved)


def test_truncated_and_lengthened_files_are_found(saved):
    content = saved.read_bytes()
    lengths = [*range(0, len(content), max(1, len(content) // 300)), len(content) - 1]
    for length in lengths:
        saved.write_bytes(content[:length])
        refused(saved)
    saved.write_bytes(content + b"\0")
    refused(saved)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html>" + b" " * 500, "HTML"),
        (b"PK\x03\x04" + b"\0" * 500, "zip"),
        (b"\x80\x02}q\x00." + b"\0" * 500, "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "LFS"),
        (struct.pack("<Q", 1 << 62) + b"{}", "fewer than its header"),
        (struct.pack("<Q", 2) + b"{}", "manifest"),
        (struct.pack("<Q", 4) + b'{"":', "manifest"),
        (struct.pack("<Q", 100_000) + b"[" * 100_000, "manifest"),
        (safetensors.torch.save({"a": torch.ones(2)}), "another program"),
        (safetensors.torch.save({"a": torch.ones(2)}, {"format": "pt"}), "another program"),
        (safetensors.torch.save({"a": torch.ones(2)}, {"shaketable": "[]"}), "manifest"),
        (safetensors.torch.save({"a": torch.ones(2)}, {"shaketable": '{"sha256":"","version":1}'}), "manifest"),
    ],
)
def test_other_files_are_named_as_what_they_are(content, text, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        models.load(path)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(version=2),
        lambda m: m.update(version=True),
        lambda m: m.pop("version"),
        lambda m: m.pop("spec"),
        lambda m: m.pop("facts"),
        lambda m: m.update(spec=None),
        lambda m: m["spec"].update(architecture="no_such_net"),
        lambda m: m["spec"].update(architecture=["mlp"]),
        lambda m: m["spec"].update(architecture="mlp"),
        lambda m: m["spec"]["arguments"].update(width=4),
        lambda m: m["spec"]["arguments"].update(width=4096, hidden=1 << 16),
        lambda m: m["spec"]["arguments"].update(norm="none"),
        lambda m: m["spec"]["arguments"].update(wings=2),
        lambda m: m["spec"].update(size=[1 << 16, 1 << 16], channels=1 << 16, mean=[], std=[]),
        lambda m: m["spec"].update(
            architecture="mlp", size=[1 << 16, 1 << 16], channels=1 << 16, mean=[], std=[], arguments={"width": 1 << 16}
        ),
        lambda m: m["spec"].update(classes=7, labels=None),
        lambda m: m["spec"].update(std=[0.0]),
        lambda m: m["spec"].update(mean=["x"]),
        lambda m: m.update(tied={"network.x": "network.conv1.weight"}),
        lambda m: m.update(tied={"network.x": "nowhere"}),
        lambda m: m.update(tied=[1]),
        lambda m: m.update(tied={"network.conv1.bias": []}),
    ],
)
def test_manifests_that_do_not_fit_are_refused(change, saved):
    """With a hash that is right: nothing absurd is allocated, nothing is half believed."""
    refused(rewritten(saved, change))


def test_the_rewriting_used_above_is_sound(saved):
    models.load(rewritten(saved, lambda m: m["facts"].update(note="edited")))


def test_what_cannot_be_loaded_again_is_not_saved(small_spec, tmp_path):
    path = tmp_path / "m.safetensors"
    wider = dataclasses.replace(small_spec, arguments={**small_spec.arguments, "width": 3})
    with pytest.raises(ModelError, match=r"of shape \(3, 1, 3, 3\), found \(2, 1, 3, 3\)"):
        models.save(path, models.build(small_spec, 0), wider)
    plain = dataclasses.replace(small_spec, arguments={"width": 2, "hidden": 3})
    with pytest.raises(ModelError, match=r"found 'network\.norm1\.weight', which that has not"):
        models.save(path, models.build(small_spec, 0), plain)
    with pytest.raises(ModelError, match=r"found no 'network\.norm1\.weight'"):
        models.save(path, models.build(plain, 0), small_spec)
    with pytest.raises(ModelError, match="normalisation"):
        models.save(path, models.build(small_spec, 0), dataclasses.replace(small_spec, mean=(0.1,)))
    with pytest.raises(ModelError, match="normalised"):
        models.save(path, models.build(small_spec, 0).network, small_spec)
    resized = models.normalised(models.build(small_spec, 0).network, (0.2860,), (0.3530,), resize=(6, 6))
    with pytest.raises(ModelError, match="resizing"):
        models.save(path, resized, small_spec)
    mixed = models.build(small_spec, 0)
    mixed.network.fc2.half()
    with pytest.raises(ModelError, match="one floating dtype"):
        models.save(path, mixed, small_spec)
    with pytest.raises(InputError, match="facts"):
        models.save(path, models.build(small_spec, 0), small_spec, facts={"f": print})
    assert not path.exists()


def test_a_failed_save_leaves_the_old_file(saved, small_spec, monkeypatch):
    before = saved.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(StorageError, match="No space"):
        models.save(saved, models.build(small_spec, 2), small_spec)
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_a_fingerprint_sees_every_part_of_the_state():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    seen = {models.fingerprint(model)}
    model[1].num_batches_tracked += 1
    seen.add(models.fingerprint(model))
    model[1].running_var[1] = -0.0
    seen.add(models.fingerprint(model))
    model[1].running_var[1] = 0.0
    seen.add(models.fingerprint(model))
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = torch.nextafter(model[0].weight[0, 0, 0, 0], torch.tensor(9.0))
    seen.add(models.fingerprint(model))
    seen.add(models.fingerprint(nn.Sequential(*model, nn.PReLU())))
    assert len(seen) == 6
    with pytest.raises(ModelError, match="meta"):
        models.fingerprint(nn.Linear(1, 1, device="meta"))


def test_run_folders(saved, small_spec):
    folder = saved.parent
    assert models.load(folder).name == "model"
    models.save(folder / "last.safetensors", models.build(small_spec, 2), small_spec)
    assert models.load(str(folder)).name == "last"
    models.save(folder / "best.safetensors", models.build(small_spec, 3), small_spec)
    assert models.load(folder).name == "best"
    (folder / "best.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"best\.safetensors"):
        models.load(folder)


def test_weights_of_others_go_to_the_foreign_loaders(small_spec, tmp_path):
    model = models.build(small_spec, 4)
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file(model.network.state_dict(), path)
    with pytest.raises(CheckpointError, match="another program"):
        models.load(path)
    loaded = models.load(path, spec=small_spec)
    assert models.fingerprint(loaded.model) == models.fingerprint(model)
    with pytest.raises(ModelError, match="no_such_model"):
        models.load("no_such_model")


def test_missing_files_suggest_the_nearest(saved):
    with pytest.raises(InputError, match=r"Did you mean '.*/model\.safetensors'"):
        models.load(saved.with_name("modle.safetensors"))
    with pytest.raises(InputError, match="no folder"):
        models.load(saved.parent / "nowhere" / "m.pt")
    (saved.parent / "empty").mkdir()
    with pytest.raises(ModelError, match="nothing in it"):
        models.load(saved.parent / "empty")
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.load(saved.parent / "m.safetensors")


def test_what_the_caller_adds(saved, small_spec, tmp_path):
    names = tmp_path / "classes.json"
    names.write_text('["x", "y", "z"]')
    loaded = models.load(saved, mean=(0.2860,), size=(12, 12), labels=names)
    assert (loaded.size, loaded.labels) == ((12, 12), ("x", "y", "z"))
    assert "resized" in loaded.notes[0]
    x = torch.rand(2, 1, 12, 12)
    small = nn.functional.interpolate(x, (6, 6), mode="bilinear", antialias=True)
    assert torch.equal(loaded.model(x), models.load(saved).model(small))
    assert not any(module.training for module in loaded.model.modules())
    with pytest.raises(InputError, match="own"):
        models.load(saved, mean=(0.5,))
    names.write_text('["x", "y"]')
    with pytest.raises(InputError, match="3 names"):
        models.load(saved, labels=names)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('["b", "a"]', ("b", "a")),
        ('{"1": "a", "0": "b"}', ("b", "a")),
        ('{"0": ["n01", "b"], "1": ["n02", "a"]}', ("b", "a")),
        ('{"a": 1, "b": 0}', ("b", "a")),
        ('["crane", "crane"]', ("crane", "crane")),
        ("[]", None),
        ("{}", None),
        ("3", None),
        ('{"0": "a", "2": "b"}', None),
        ('{"a": 0, "b": 0}', None),
        ('{"a": "x"}', None),
        ("[1, 2]", None),
        ("[[]]", None),
        ("{", None),
        ("[" * 100_000, None),
        ("\udcff", None),
    ],
)
def test_labels(content, expected, tmp_path):
    path = tmp_path / "classes.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    if expected is not None:
        assert models.read_labels(path) == expected
        return
    with pytest.raises(InputError, match="labels"):
        models.read_labels(path)


def test_missing_labels(tmp_path):
    with pytest.raises(ShaketableError, match="labels"):
        models.read_labels(tmp_path / "none.json")
