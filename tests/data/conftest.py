"""Writers of small files in the real formats, and where the whole data sets are, if they are here."""

import gzip
import io
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FASHION = Path("/usr/share/datasets/fashion-mnist")


class Writers:
    """One method for each format; arrays are uint8 and drawn from a seed."""

    @staticmethod
    def images(*shape: int, seed: int = 0) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    @staticmethod
    def idx(path: Path, array: np.ndarray, *, magic: int | None = None) -> Path:
        head = struct.pack(f">{array.ndim + 1}I", 0x0800 + array.ndim if magic is None else magic, *array.shape)
        content = head + array.tobytes()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        return path

    def idx_folder(self, folder: Path, *, end: str = ".gz", train: int = 20, test: int = 10) -> Path:
        for prefix, count in (("train", train), ("t10k", test)):
            self.idx(folder / f"{prefix}-images-idx3-ubyte{end}", self.images(count, 6, 5, seed=count))
            self.idx(folder / f"{prefix}-labels-idx1-ubyte{end}", (np.arange(count) % 10).astype(np.uint8))
        return folder

    def cifar10_binary(self, folder: Path, *, count: int = 3) -> Path:
        folder.mkdir(parents=True)
        for i, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
            records = np.concatenate([np.full((count, 1), i, np.uint8), self.images(count, 3072, seed=i)], 1)
            (folder / name).write_bytes(records.tobytes())
        return folder

    def cifar10_python(self, folder: Path, *, count: int = 3, keys: type = bytes, protocol: int = 2) -> Path:
        def key(text: str) -> object:
            return text.encode() if keys is bytes else text

        folder.mkdir(parents=True)
        for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
            batch = {
                key("batch_label"): key("a batch"),
                key("labels"): [i] * count,
                key("data"): self.images(count, 3072, seed=i),
                key("filenames"): [key(f"{j}.png") for j in range(count)],
            }
            (folder / name).write_bytes(pickle.dumps(batch, protocol))
        names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
        meta = {key("label_names"): [key(name) for name in names], key("num_vis"): 3072}
        (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))
        return folder

    @staticmethod
    def encoded(array: np.ndarray, kind: str = "png") -> bytes:
        buffer = io.BytesIO()
        options = {"quality": 95} if kind in ("jpg", "jpeg") else {"lossless": True} if kind == "webp" else {}
        Image.fromarray(array).save(buffer, {"jpg": "jpeg"}.get(kind, kind), **options)
        return buffer.getvalue()

    def image_files(self, names: list[str], *, shape: tuple[int, ...] = (8, 8, 3)) -> dict[str, bytes]:
        """Content by name: image i is drawn from the seed i, and encoded as its suffix says."""
        return {
            name: self.encoded(self.images(*shape, seed=i), name.rpartition(".")[2].lower())
            for i, name in enumerate(names)
        }

    @staticmethod
    def folder(root: Path, files: dict[str, bytes]) -> Path:
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        return root

    @staticmethod
    def zip(path: Path, files: dict[str, bytes], *, packed: bool = True) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
            for name, content in files.items():
                archive.writestr(zipfile.ZipInfo(name), content)
        return path


@pytest.fixture(scope="session")
def write() -> Writers:
    return Writers()


@pytest.fixture(scope="session")
def fashion() -> Path:
    """The folder of the whole Fashion-MNIST."""
    if not (FASHION / "train-images-idx3-ubyte.gz").exists():
        pytest.skip(f"needs Debian's package dataset-fashion-mnist ({FASHION})")
    return FASHION


@pytest.fixture(scope="session")
def extra() -> Callable[[str], Path]:
    """A file of the folder that SHAKETABLE_SHARED names."""

    def find(name: str) -> Path:
        root = os.environ.get("SHAKETABLE_SHARED")
        if not root or not (Path(root) / "data" / name).exists():
            pytest.skip(f"needs data/{name} in the folder that SHAKETABLE_SHARED names")
        return Path(root) / "data" / name

    return find
