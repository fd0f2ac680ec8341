"""Facts about RobustBench's model zoo that its files do not hold.

RobustBench keeps a model at `models/<data set>/<threat>/<Name>.pt`, and its code, not the file, often says how the images
are normalised and what the network is. The names and numbers below are those of its model definitions for CIFAR-10, of the
entries whose network is one of ours (WideResNet, ResNet-18, PreAct ResNet-18 with a last BatchNorm).
"""

from dataclasses import dataclass
from pathlib import Path

THREATS = ("Linf", "L2", "corruptions")
DATASETS = ("cifar10", "cifar100", "imagenet")

_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
_AUGUSTIN = (
    (0.4913997551666284, 0.48215855929893703, 0.4465309133731618),
    (0.24703225141799082, 0.24348516474564, 0.26158783926049628),
)
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "Rice2020Overfitting": _CIFAR,
    "Chen2020Efficient": _CIFAR,
    "Kireev2021Effectiveness_Gauss50percent": _CIFAR,
    "Kireev2021Effectiveness_AugMixNoJSD": _CIFAR,
    "Kireev2021Effectiveness_RLAT": _CIFAR,
    "Kireev2021Effectiveness_RLATAugMixNoJSD": _CIFAR,
    "Kireev2021Effectiveness_RLATAugMix": _CIFAR,
    "Rony2019Decoupling": ((0.491, 0.482, 0.447), (0.247, 0.243, 0.262)),
    "Augustin2020Adversarial_34_10": _AUGUSTIN,
    "Augustin2020Adversarial_34_10_extra": _AUGUSTIN,
    "Hendrycks2019Using": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "Hendrycks2020AugMix_WRN": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and std of entries of CIFAR-10 that normalise in code. Entries not named here take images in [0, 1] as they are."""

OTHER_NETWORKS: dict[str, str] = {
    "Ding2020MMA": "every image is standardised by its own mean and deviation",
    "Pang2020Boosting": "features and weights of the last layer are normalised",
    "Dai2021Parameterizing": "its activation is a parametric SiLU",
    "Andriushchenko2020Understanding": "its shortcuts leave out the activation and it has no last BatchNorm",
    "Wong2020Fast": "its shortcuts leave out the activation and it has no last BatchNorm",
}
"""Entries whose weights would fit one of our networks, or nearly, while the network is another."""


@dataclass(frozen=True)
class Entry:
    """A file at a place of RobustBench's layout.

    Args:
        name: of the entry, for example "Wu2020Adversarial".
        dataset, threat: the folders that it lies in.
        normalisation: (mean, std) that its code applies, or None.
        other: why it is not one of our networks, or None.
    """

    name: str
    dataset: str
    threat: str
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
    other: str | None


def entry_of(path: Path) -> Entry | None:
    """The entry that a path names by RobustBench's layout, or None. Checked by tests/models/foreign/test_state_dict.py."""
    parts = path.absolute().parts
    if len(parts) < 3 or parts[-2] not in THREATS or parts[-3] not in DATASETS or path.suffix != ".pt":
        return None
    name, dataset = path.stem, parts[-3]
    known = dataset == "cifar10"
    return Entry(
        name,
        dataset,
        parts[-2],
        NORMALISATIONS.get(name) if known else None,
        OTHER_NETWORKS.get(name) if known else None,
    )
