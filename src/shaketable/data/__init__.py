"""Data sets: embedded, on disk, and from other libraries.

Images are float32 in [0, 1] of shape (n, c, h, w) when a batch is read, and labels int64; what is kept is uint8 in
memory, or files that are decoded when they are read. `open_dataset` opens any source; `split` draws training,
validation and test sets from it; `CropFlip`, `Cutout` and `AutoAugment` augment. Nothing is downloaded, and nothing that
a file contains is run.

A new format is one module with the three functions of `opening.Loader`, and one line here.
"""

from . import (
    carmon_pickle,
    cifar_binary,
    cifar_python,
    fashion_mnist,
    huggingface,
    idx,
    image_folder,
    image_zip,
    npz,
    svhn,
    torchvision,
)
from .arrays import from_arrays as from_arrays
from .augment import Augment as Augment
from .augment import Chain as Chain
from .augment import CropFlip as CropFlip
from .augment import Cutout as Cutout
from .autoaugment import AutoAugment as AutoAugment
from .dataset import Batch as Batch
from .dataset import Dataset as Dataset
from .fit import Fit as Fit
from .huggingface import from_huggingface as from_huggingface
from .opening import Loader as Loader
from .opening import Parts as Parts
from .opening import Split as Split
from .opening import open_dataset as open_dataset
from .opening import open_parts as open_parts
from .opening import parts_of as parts_of
from .pseudolabelled import PseudoLabelled as PseudoLabelled
from .pseudolabelled import read_pseudolabelled as read_pseudolabelled
from .pseudolabelled import write_pseudolabelled as write_pseudolabelled
from .splits import Splits as Splits
from .splits import overlaps as overlaps
from .splits import split as split
from .torchvision import from_torchvision as from_torchvision
from .unlabelled import UNLABELLED as UNLABELLED
from .unlabelled import open_unlabelled as open_unlabelled

LOADERS: dict[str, Loader] = {  # in the order in which they are asked whether a source is theirs
    "fashion-mnist": fashion_mnist,
    "torchvision": torchvision,
    "huggingface": huggingface,
    "idx": idx,
    "cifar-binary": cifar_binary,
    "cifar-python": cifar_python,
    "svhn": svhn,
    "carmon-pickle": carmon_pickle,
    "npz": npz,
    "image-zip": image_zip,
    "image-folder": image_folder,
}
EMBEDDED: tuple[str, ...] = ("fashion-mnist",)
