"""Everything that decides a training."""

from dataclasses import dataclass
from typing import Any, Literal

from ..core import PGD, Ball, InputError
from .at import AT
from .averaging import Average
from .awp import WeightPerturbation
from .labels import Labels
from .losses import RobustLoss
from .optimisers import SGD, Optimiser
from .schedule import MultiStep, Schedule
from .update import Update


@dataclass(frozen=True)
class Plan:
    """Everything that decides a training, so that the same plan on the same data ends in the same weights.

    Args:
        loss: AT by default.
        weights: the perturbation of the weights, or None.
        within, attack: the ball and the ascent of the inputs while training.
        epochs, batch_size: a last batch of one example is left out (BatchNorm cannot use it), others are not. The batch is
            that of all processes together.
        optimiser: SGD with momentum .9; with the rate .1 and the weight decay 5e-4 on all parameters the recipe of AT and AWP.
        rate, weight_decay: of the optimiser.
        schedule: the factor of the rate; /10 at 50 % and 75 %.
        augment: a function of (x, generator), or None.
        update: how the step is made: BatchNorm policy, where weight decay acts, micro-batches, clipping, precision.
        labels: smoothing, noise, and which labels and examples are attacked.
        average: EMA or SWA of the weights, or None. What is evaluated and kept is then the averaged model, its BatchNorm
            statistics re-estimated on adversarial inputs.
        statistics_batches: training batches for that estimate.
        share: of pseudo-labelled images in each batch, if there are any; .5 as Carmon et al. 2019.
        compile: run the model through `torch.compile`.
        evaluate_every: epochs between two evaluations of the slices; the last epoch is always evaluated.
        evaluation: the ascent of those evaluations; PGD-20 as the papers test.
        select: which slice decides the best epoch: "validation"; or "test", which is the papers' and AWP's own way but picks
            the best on the data that the result is quoted on. None: the last epoch is the result.
        stop_after: evaluations without a new best after which the training ends (early stopping); None: never.
        patience: consecutive evaluations with one and the same predicted class after which the training is called
            collapsed and ends.
        seed: of the order, the attacks' starts, the augmentation and dropout. Draws depend on the seed, the epoch and the
            step alone, so a resumed training draws what an uninterrupted one does.
    """

    loss: RobustLoss = AT()
    weights: WeightPerturbation | None = None
    within: Ball = Ball("linf", 8 / 255, box=(0.0, 1.0))
    attack: Any = PGD(10)
    epochs: int = 200
    batch_size: int = 128
    optimiser: Optimiser = SGD()
    rate: float = 0.1
    weight_decay: float = 5e-4
    schedule: Schedule = MultiStep()
    augment: Any = None
    update: Update = Update()
    labels: Labels = Labels()
    average: Average | None = None
    statistics_batches: int = 32
    share: float = 0.5
    compile: bool = False
    evaluate_every: int = 1
    evaluation: PGD = PGD(20)
    select: Literal["validation", "test"] | None = "validation"
    stop_after: int | None = None
    patience: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every", "patience", "statistics_batches", "stop_after"):
            number = getattr(self, name)
            if not isinstance(number, int) or number < 1:
                if number is None and name == "stop_after":
                    continue
                raise InputError(name, "a whole number >= 1", repr(number), "Raise it, or round it.")
        if not (self.rate > 0 and self.weight_decay >= 0):
            found = f"rate {self.rate}, weight_decay {self.weight_decay}"
            raise InputError("rate", "rate > 0, weight_decay >= 0", found, "Use .1 and 5e-4.")
        if not 0 < self.share < 1:
            raise InputError("share", "a share between 0 and 1", repr(self.share), "Use .5, half of each batch.")
        if self.stop_after is not None and self.select is None:
            remedy = 'Select on "validation", or leave stop_after out.'
            raise InputError("stop_after", "a slice to select on", "select None", remedy)

    def batches(self, labelled: int, unlabelled: int | None) -> "Batches":
        """How an epoch over so many images is cut into batches."""
        if unlabelled is None:
            return Batches(self.batch_size, 0, steps_of(labelled, self.batch_size))
        extra = round(self.batch_size * self.share)
        if not 0 < extra < self.batch_size:
            found = f"{extra} of {self.batch_size}"
            remedy = "Raise the batch size, or choose another share."
            raise InputError("share", "labelled and pseudo-labelled images in each batch", found, remedy)
        return Batches(self.batch_size - extra, extra, steps_of(labelled, self.batch_size))


@dataclass(frozen=True)
class Batches:
    """How many labelled and how many pseudo-labelled images a batch has, and how many steps an epoch."""

    labelled: int
    extra: int
    steps: int


def steps_of(count: int, batch_size: int) -> int:
    """Steps an epoch: a last batch of a single example is left out."""
    full, rest = divmod(count, batch_size)
    return full + (rest > 1 or (rest == 1 and full == 0))
