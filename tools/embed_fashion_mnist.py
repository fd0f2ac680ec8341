"""Make the embedded subset of Fashion-MNIST again, from the idx files of the whole set.

    python tools/embed_fashion_mnist.py [--source FOLDER] [--check]

FOLDER holds the four ``*-ubyte.gz`` files (Debian's package dataset-fashion-mnist puts them in
/usr/share/datasets/fashion-mnist). The draw depends on nothing but the seed: of each class's images, in the order of the
source, the first 500 (training) or 200 (test) of a permutation by ``generator(0, "embed", part, class)``; then all of
them in the source's order. ``--check`` writes nothing and compares the arrays with the embedded ones; exit code 1 if
they differ. (The compressed bytes may differ between versions of zlib; the arrays may not.)
"""

import argparse
import hashlib
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

from shaketable.core.seeds import generator
from shaketable.data.fashion_mnist import FOLDER
from shaketable.data.idx import FASHION_MNIST, read_idx
from shaketable.data.npz import arrays_in
from shaketable.files import sha256_of, write_atomically

SEED = 0
PARTS = {"train": ("train", 500), "test": ("t10k", 200)}
FILE = "fashion-mnist-5000-2000.npz"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    arrays = drawn(asked.source)
    if asked.check:
        embedded = arrays_in(FOLDER / FILE, tuple(arrays))
        differing = [name for name, array in arrays.items() if not np.array_equal(array, embedded[name])]
        print(f"differing arrays: {', '.join(differing)}" if differing else "the embedded arrays are the same")
        return 1 if differing else 0
    content = packed(arrays)
    write_atomically(FOLDER / FILE, content)
    text = json.dumps(manifest(asked.source, arrays, content), indent=2, ensure_ascii=False)
    write_atomically(FOLDER / "manifest.json", f"{text}\n".encode())
    print(f"{FOLDER / FILE}: {len(content)} bytes")
    return 0


def drawn(source: Path) -> dict[str, np.ndarray]:
    """The arrays of the subset: images, labels, and the images' indices in the source."""
    arrays = {}
    for part, (prefix, count) in PARTS.items():
        images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz", 3)
        labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz", 1)
        chosen = []
        for label in range(len(FASHION_MNIST)):
            of_class = (labels == label).nonzero()[:, 0]
            order = torch.randperm(len(of_class), generator=generator(SEED, "embed", part, label))
            chosen.append(of_class[order[:count]])
        rows = torch.cat(chosen).sort().values
        arrays[f"{part}_images"] = images[rows].numpy()
        arrays[f"{part}_labels"] = labels[rows].numpy()
        arrays[f"{part}_indices"] = rows.to(torch.int32).numpy()
    return arrays


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """The arrays as the bytes of an .npz, the same at every run: fixed dates, deflate at level 9."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            inner = io.BytesIO()
            np.lib.format.write_array(inner, array, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(entry, inner.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def manifest(source: Path, arrays: dict[str, np.ndarray], content: bytes) -> dict[str, object]:
    """Where the subset comes from, what it holds, and the hashes that tell it."""
    return {
        "name": "fashion-mnist",
        "version": 1,
        "description": "A fixed, class-balanced subset of Fashion-MNIST: 28 x 28 grey images of 10 kinds of clothing.",
        "file": {"name": FILE, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "counts": {part: len(arrays[f"{part}_labels"]) for part in PARTS},
        "classes": list(FASHION_MNIST),
        "licence": "MIT",
        "licence_file": "FASHION-MNIST-LICENSE",
        "copyright": "Copyright © 2017 Zalando SE, https://tech.zalando.com",
        "citation": "Xiao, Rasul, Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning "
        "Algorithms. arXiv:1708.07747, 2017",
        "source": "https://github.com/zalandoresearch/fashion-mnist",
        "source_sha256": {
            f"{prefix}-{what}-ubyte.gz": sha256_of(source / f"{prefix}-{what}-ubyte.gz")
            for prefix, _ in PARTS.values()
            for what in ("images-idx3", "labels-idx1")
        },
        "seed": SEED,
        "indices_sha256": {
            part: hashlib.sha256(arrays[f"{part}_indices"].astype("<i4").tobytes()).hexdigest() for part in PARTS
        },
        "arrays_sha256": {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()},
        "made_by": "tools/embed_fashion_mnist.py",
    }


if __name__ == "__main__":
    sys.exit(main())
