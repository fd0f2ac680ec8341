"""The contract: what stops a job, what is reported, what is neither; and that nothing is left behind."""

import dataclasses
import math
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from shaketable import models
from shaketable.core.errors import InputError, ModelError, ShaketableError
from shaketable.models.normalisations import KNOWN, Normalisation, candidates, present_in
from shaketable.models.untouched import snapshot, untouched

IMAGENET, CIFAR10, SVHN = KNOWN["ImageNet"], KNOWN["CIFAR-10"], KNOWN["SVHN"]
HALVES, EIGHT_BIT, PLAIN = ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1 / 255,) * 3), ((0.0,) * 3, (1.0,) * 3)


class Of(nn.Module):
    """A module that computes a function of the image and a linear layer's logits."""

    def __init__(self, function, features: int = 12, classes: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(features, classes)
        self.function = function
        self.register_buffer("count", torch.zeros(()))
        self.eval()

    def forward(self, x):
        return self.function(self, x)


@pytest.fixture(autouse=True)
def _keep_seed():
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def images(n: int = 6, c: int = 3, h: int = 2, w: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed))


def plain(m: Of, x: torch.Tensor) -> torch.Tensor:
    return m.fc(x.flatten(1))


def codes(model: nn.Module | models.Loaded, x: torch.Tensor | None = None, **given) -> list[str]:
    return [finding.code for finding in models.check(model, images() if x is None else x, **given).findings]


def poisoned(value: float) -> torch.Tensor:
    x = images()
    x[3, 1, 0, 1] = value
    return x


# ------------------------------------------------------------------ what stops: images and labels

BAD_IMAGES = [
    (lambda: images().numpy(), "torch.from_numpy"),
    (lambda: images()[0], "4 dimensions"),
    (lambda: images()[:, 0], "x.unsqueeze(1)"),
    (lambda: images()[:0], "at least one image"),
    (lambda: (images() * 255).to(torch.uint8), "torch.uint8"),
    (lambda: images() * 255, "0..255"),
    (lambda: images() * 65535, "more than 8 bits"),
    (lambda: images() * 2 - 1, "[-1, 1]"),
    (lambda: (images() - 0.45) / 0.22, "normalised already"),
    (lambda: poisoned(1.0004), "x.clamp(0, 1)"),
    (lambda: images() / 255, "divided by 255 twice"),
    (lambda: poisoned(math.nan), "first in image 3"),
    (lambda: poisoned(math.inf), "first in image 3"),
    (lambda: images().double(), "torch.float32"),
    (lambda: images().half(), "torch.float32"),
    (lambda: images(c=8, w=3), "x.permute(0, 3, 1, 2)"),
    (lambda: images(h=3), "at shape"),
]


@pytest.mark.parametrize(("make", "text"), BAD_IMAGES)
def test_bad_images_are_refused(make, text):
    with pytest.raises(InputError) as caught:
        models.check(Of(plain), make())
    assert caught.value.argument == "x"
    assert caught.value.remedy
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("channels", "given", "text"), [(3, 1, "grey"), (1, 3, "colour"), (3, 4, "alpha"), (3, 2, "other")]
)
@pytest.mark.parametrize("kind", ["bare", "normalised", "broadcast", "loaded"])
def test_images_of_other_channels(channels, given, text, kind):
    spec = models.ModelSpec("small_cnn", 3, channels, (8, 8), {"width": 2, "hidden": 4})
    with_mean = dataclasses.replace(spec, mean=(0.5,) * channels, std=(0.5,) * channels)
    x = images(c=given, h=8, w=8)
    if (
        kind == "broadcast"
    ):  # a normalisation by hand makes three channels of one without a word; it runs, so it is told
        if (channels, given) != (3, 1):
            return
        mean = torch.full((3, 1, 1), 0.5)
        model = nn.Sequential(Of(lambda m, z: z - mean), models.build(spec, 0)).eval()
        assert "channels" in codes(model, x)
        return
    model = models.build(with_mean if kind == "normalised" else spec, 0).eval()
    loaded = models.Loaded(model, with_mean, "m", "m")
    with pytest.raises(InputError) as caught:
        models.check(loaded if kind == "loaded" else model, x)
    assert caught.value.argument == "x"
    assert text in str(caught.value) or kind == "normalised"
    assert f"{channels} channel" in str(caught.value)


def test_images_of_another_size_than_the_loaded_model():
    spec = models.ModelSpec("resnet18", 3, 3, (8, 8), {"width": 1})
    loaded = models.Loaded(models.build(spec, 0).eval(), spec, "m", "m", size=(8, 8))
    models.check(loaded.model, images(h=9, w=9))  # a fully convolutional net takes any
    with pytest.raises(InputError, match="expected images of 8 x 8 pixels, found 9 x 9"):
        models.check(loaded, images(h=9, w=9))
    models.check(loaded, images(h=9, w=9), size=(9, 9))


BAD_LABELS = [
    (lambda: [0, 1, 2, 0, 1, 2], "torch.as_tensor"),
    (lambda: torch.tensor([0.0, 1, 2, 0, 1, 2]), "y.long()"),
    (lambda: torch.tensor([0, 1, 2, 0, 1, 2], dtype=torch.uint8), "y.long()"),
    (lambda: torch.tensor([True] * 6), "torch.int64"),
    (lambda: torch.tensor([0, 1]), "one label for each"),
    (lambda: torch.eye(3).repeat(2, 1), "y.argmax(1)"),
    (lambda: torch.tensor([1, 2, 3, 1, 2, 3]), "y - 1"),
    (lambda: torch.tensor([0, 1, 2, 0, 1, 7]), "0 to 7"),
    (lambda: torch.tensor([0, 1, 2, 0, 1, -1]), "negative"),
]


@pytest.mark.parametrize(("make", "text"), BAD_LABELS)
def test_bad_labels_are_refused(make, text):
    with pytest.raises(InputError) as caught:
        models.check(Of(plain), images(), make())
    assert caught.value.argument == "y"
    assert text in str(caught.value)


# ------------------------------------------------------------------ what stops: models


def broken(value: float) -> nn.Module:
    model = Of(plain)
    with torch.no_grad():
        model.fc.weight[1, 2] = value
    return model


def bad_statistics() -> nn.Module:
    model = nn.Sequential(nn.BatchNorm2d(3), Of(plain)).eval()
    model[0].running_mean[1] = math.nan
    return model


BAD_MODELS = [
    (lambda: plain, "Module"),
    (lambda: Of(plain).train(), "model.eval()"),
    (lambda: nn.Sequential(nn.Sequential(nn.BatchNorm2d(3)).train(), Of(plain)).eval().requires_grad_(True), None),
    (lambda: broken(math.nan), "'fc.weight'"),
    (lambda: broken(-math.inf), "1 of 36 values of 'fc.weight'"),
    (bad_statistics, "'0.running_mean'"),
    (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)).eval(), "not initialised"),
    (lambda: Of(lambda m, x: plain(m, x).log()), "NaN or infinite outputs"),
    (lambda: Of(lambda m, x: (plain(m, x), x)), "tuple"),
    (lambda: Of(lambda m, x: {"logits": plain(m, x)}), "dict"),
    (lambda: Of(lambda m, x: plain(m, x)[:, 0]), "shape (6,)"),
    (lambda: Of(lambda m, x: plain(m, x)[:, :1]), "shape (6, 1)"),
    (lambda: Of(lambda m, x: x), "shape (6, 3, 2, 2)"),
    (lambda: Of(lambda m, x: plain(m, x)[:3]), "shape (3, 3)"),
    (lambda: Of(lambda m, x: plain(m, x).argmax(1)), "shape (6,)"),
    (lambda: Of(lambda m, x: plain(m, x).round().long()), "torch.int64"),
    (lambda: Of(lambda m, x: 1 // 0), "ZeroDivisionError"),
    (lambda: Of(lambda m, x: m.no_such_thing), "AttributeError"),
]


@pytest.mark.parametrize(("make", "text"), BAD_MODELS)
def test_bad_models_are_refused(make, text):
    if text is None:  # eval() reaches everything, so this one is in order
        models.check(make(), images())
        return
    with pytest.raises(ModelError) as caught:
        models.check(make(), images())
    assert caught.value.argument == "model"
    assert text in str(caught.value)


def test_modes_inside():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5), Of(plain)).eval()
    assert codes(model) == []
    model[1].train()
    with pytest.raises(ModelError, match="training mode in 1"):
        models.check(model, images())
    model[1].eval()
    model[2].train()
    assert codes(model) == ["partly-training", "random"]
    model[2].p = 0.0
    assert codes(model) == ["partly-training"]


def test_another_number_of_classes():
    with pytest.raises(ModelError, match="expected 10 classes, found 3 logits"):
        models.check(Of(plain), images(), classes=10)
    loaded = models.Loaded(Of(plain), None, "m", "m", labels=("a", "b"))
    with pytest.raises(ModelError, match="expected 2 classes, found 3 logits"):
        models.check(loaded, images())
    assert models.check(Of(plain), images(), classes=3).classes == 3


def test_a_batch_size_that_cannot_be_or_that_the_model_refuses():
    with pytest.raises(InputError, match="batch"):
        models.check(Of(plain), images(), batch=0)

    def fixed(m: Of, x: torch.Tensor) -> torch.Tensor:
        assert len(x) == 32, "Guard failed: x.size()[0] == 32"
        return plain(m, x)

    with pytest.raises(InputError, match=r"at shape \(16, 3, 2, 2\): Guard failed"):
        models.check(Of(fixed), images(64), batch=32)


# ------------------------------------------------------------------ what is reported


def test_an_ordinary_model_has_no_findings():
    assert models.check(Of(plain), images()) == models.Contract((), None, 3)
    assert codes(Of(plain), images(n=1)) == []
    assert codes(Of(plain).double(), images().double()) == []


def counted(m: Of, x: torch.Tensor) -> torch.Tensor:
    m.count += 1
    return plain(m, x)


def replaced(m: Of, x: torch.Tensor) -> torch.Tensor:
    m.count = m.count + 1
    return plain(m, x)


def noisy(source):
    return lambda m, x: plain(m, x + 0.1 * source(x))


def detached(m: Of, x: torch.Tensor) -> torch.Tensor:
    return plain(m, x.detach())


def without(m: Of, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return plain(m, x)


FINDINGS = [
    (lambda m, x: plain(m, x).softmax(1), ["probabilities"]),
    (lambda m, x: plain(m, x).log_softmax(1), ["log-probabilities"]),
    (noisy(torch.randn_like), ["random"]),
    (noisy(lambda x: torch.from_numpy(np.random.rand(*x.shape)).float()), ["random"]),
    (noisy(lambda x: random.random()), ["random"]),
    (lambda m, x: plain(m, x - x.mean(0)), ["batch-dependent"]),
    (lambda m, x: plain(m, nn.functional.batch_norm(x, None, None, training=True)), ["batch-dependent"]),
    (counted, ["buffers-changed"]),
    (replaced, ["buffers-changed"]),
    (lambda m, x: plain(m, x.mul_(2)), ["input-changed"]),
    (detached, ["no-gradient"]),
    (without, ["no-gradient"]),
    (lambda m, x: torch.from_numpy(plain(m, x).detach().numpy()), ["no-gradient"]),
    (lambda m, x: plain(m, (x * 255).round() / 255), ["zero-gradient"]),
    (lambda m, x: plain(m, x) * 1e4, ["saturated"]),
    (lambda m, x: plain(m, (x - x).sqrt() + x), ["bad-gradient"]),
]


@pytest.mark.parametrize(("function", "expected"), FINDINGS)
def test_findings(function, expected):
    x = images()
    kept = x.clone()
    contract = models.check(Of(function), x)
    assert [finding.code for finding in contract.findings] == expected
    assert all(f.message and f.remedy and f.level == "finding" for f in contract.findings)
    assert torch.equal(x, kept)


def test_batch_statistics_of_a_real_layer_are_found():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), Of(plain)).eval()
    assert codes(model) == ["batch-dependent"]


def test_a_model_that_is_declared_without_gradients_is_not_asked_for_them():
    asked = []
    model = Of(lambda m, x: (asked.append(x.requires_grad), plain(m, x))[1])
    assert codes(models.Loaded(model, None, "m", "m", gradients=False)) == ["no-gradient"]
    assert not any(asked)


def test_probabilities_are_told_from_logits_that_resemble_them():
    x = images(n=200)
    assert codes(Of(lambda m, x: plain(m, x).softmax(1) * 1.01), x) == []
    assert codes(Of(lambda m, x: plain(m, x).sigmoid()), x) == []
    assert codes(Of(lambda m, x: plain(m, x) - plain(m, x).logsumexp(1, keepdim=True) + 0.1), x) == []


# ------------------------------------------------------------------ accuracy and normalisation


@pytest.mark.parametrize("true", [IMAGENET, HALVES, EIGHT_BIT, PLAIN, SVHN])
@pytest.mark.parametrize("present", ["layer", "foreign layer", "none"])
def test_the_right_normalisation_passes(colours, true, present):
    data = colours(3, *true)
    model = data.network if true is PLAIN and present == "none" else models.normalised(data.network, *true).eval()
    if present == "foreign layer":
        model = nn.Sequential(ByHand(*true), data.network).eval()
    contract = models.check(model, data.x, data.y)
    assert contract.findings == ()
    assert contract.accuracy is not None
    assert contract.accuracy.value > 0.95


class ByHand(nn.Module):
    """Somebody else's normalisation, with names of its own."""

    def __init__(self, mean, std) -> None:
        super().__init__()
        self.register_buffer("mu", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("sigma", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x):
        return (x - self.mu) / self.sigma


WRONG = [
    (IMAGENET, None, "ImageNet"),
    (IMAGENET, HALVES, "ImageNet"),
    (IMAGENET, EIGHT_BIT, "ImageNet"),
    (HALVES, None, "[-1, 1]"),
    (HALVES, IMAGENET, "[-1, 1]"),
    (HALVES, PLAIN, "[-1, 1]"),
    (EIGHT_BIT, None, "0..255"),
    (EIGHT_BIT, IMAGENET, "0..255"),
    (PLAIN, IMAGENET, "none"),
    (PLAIN, HALVES, "none"),
    (PLAIN, EIGHT_BIT, "none"),
    (SVHN, HALVES, "SVHN"),
]


@pytest.mark.parametrize(("true", "present", "name"), WRONG)
@pytest.mark.parametrize("foreign", [False, True])
def test_the_wrong_normalisation_is_named(colours, true, present, name, foreign):
    data = colours(3, *true)
    model = data.network
    if present is not None:
        model = nn.Sequential(ByHand(*present), model).eval() if foreign else models.normalised(model, *present).eval()
    with pytest.raises(ModelError) as caught:
        models.check(model, data.x, data.y)
    assert caught.value.argument == "mean, std"
    assert f": {name} would give" in caught.value.expected
    flags = " ".join(f"{v:.6g}" for v in true[0]), " ".join(f"{v:.6g}" for v in true[1])
    assert f"--mean {flags[0]} --std {flags[1]}" in caught.value.remedy
    right = models.normalised(data.network, *true).eval()
    assert models.check(right, data.x, data.y).findings == ()


def test_channels_in_another_order_are_named(colours):
    data = colours(3, *IMAGENET)
    with pytest.raises(ModelError, match=r"BGR order.*x\.flip\(1\)"):
        models.check(models.normalised(data.network, *IMAGENET).eval(), data.x.flip(1), data.y)
    assert models.check(models.normalised(data.network, *IMAGENET).eval(), data.x, data.y).findings == ()


def test_the_guess_is_what_the_network_would_see():
    x = images()
    for present in (None, Normalisation("p", *CIFAR10)):
        layer = (lambda z: z) if present is None else models.Normalise(*CIFAR10)
        for guess in candidates(3, present):
            seen = layer(guess.apply(x, present))
            wanted = Normalisation("w", guess.mean, guess.std, guess.reverse).apply(x, None)
            assert torch.allclose(seen, wanted, rtol=1e-4, atol=1e-4), guess.name


def test_a_hidden_normalisation_too_many(colours):
    """The model normalises where nobody can look, and its network was trained without."""
    data = colours(3, *PLAIN)
    m, s = (torch.tensor(v).view(-1, 1, 1) for v in IMAGENET)
    with pytest.raises(ModelError, match="the model applies ImageNet's by itself"):
        models.check(nn.Sequential(Of(lambda _, z: (z - m) / s), data.network).eval(), data.x, data.y)


def test_grey_images(colours):
    data = colours(1, *KNOWN["MNIST"])
    assert models.check(models.normalised(data.network, *KNOWN["MNIST"]).eval(), data.x, data.y).findings == ()
    with pytest.raises(ModelError, match=": MNIST would give"):
        models.check(data.network, data.x, data.y)


def test_the_present_normalisation_is_believed_only_if_it_does_what_it_says():
    class Scaled(ByHand):
        def forward(self, x):
            return (x - self.mu) / self.sigma * 2

    found = present_in(nn.Sequential(ByHand(*SVHN)), images())
    assert found is not None
    assert found.mean == pytest.approx(SVHN[0])
    assert present_in(nn.Sequential(Scaled(*SVHN)), images()) is None
    assert present_in(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()), images()) is None


def test_a_mediocre_model_with_the_right_normalisation_passes(colours):
    """Noise in the images makes many errors, which no other normalisation mends."""
    for channels, stats in ((3, IMAGENET), (3, CIFAR10), (1, KNOWN["Fashion-MNIST"])):
        data = colours(channels, *stats, n=500, noise=0.6)
        contract = models.check(models.normalised(data.network, *stats).eval(), data.x, data.y)
        assert contract.accuracy is not None
        assert 0.2 < contract.accuracy.value < 0.8


def test_a_gain_that_chance_explains_does_not_stop(colours):
    """Four images are too few for any verdict, whatever they say."""
    data = colours(3, *IMAGENET, n=4)
    contract = models.check(data.network, data.x, data.y)
    assert contract.accuracy is not None
    assert contract.accuracy.n == 4


def test_permuted_labels(colours):
    data = colours(3, *IMAGENET)
    model = models.normalised(data.network, *IMAGENET).eval()
    with pytest.raises(ModelError) as caught:
        models.check(model, data.x, (data.y + 1) % 10)
    assert caught.value.argument == "y"
    assert caught.value.found == "0.0 % as they are and 100.0 % renumbered: class 0 as 9, class 1 as 0, class 2 as 1, …"
    names = tuple("abcdefghij")
    with pytest.raises(ModelError, match=r"class 0 \('a'\)"):
        models.check(models.Loaded(model, None, "m", "m", labels=names), data.x, (data.y + 1) % 10)


def test_shuffled_labels_and_constant_predictors_are_at_chance(colours):
    data = colours(3, *IMAGENET, n=500)
    model = models.normalised(data.network, *IMAGENET).eval()
    shuffled = data.y[torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    with pytest.raises(ModelError, match="above chance, 10"):
        models.check(model, data.x, shuffled)
    constant = Of(lambda m, x: plain(m, x) * 1e-3 + torch.tensor([0.0, 5, 0]), features=108)
    mostly = torch.tensor([1, 1, 1, 1, 0]).repeat(100)  # a constant answer is right for 80 %, and still worth nothing
    with pytest.raises(ModelError, match=r"class 1 is predicted for 100 % of the images"):
        models.check(constant, data.x, mostly)
    assert models.check(constant, data.x, mostly, trained=False).accuracy.hits == 400
    assert models.check(constant, data.x, torch.ones(500, dtype=torch.long)).accuracy.value == 1


def test_fresh_weights_stop_only_as_a_trained_model(small_spec):
    model = models.build(small_spec, 0).eval()
    x, y = images(200, 1, 6, 6), torch.arange(200) % 3
    with pytest.raises(ModelError, match="trained=False"):
        models.check(model, x, y)
    assert models.check(model, x, y, trained=False).accuracy.n == 200


def test_few_images_stop_nothing(small_spec):
    model = models.build(small_spec, 0).eval()
    for n in range(1, 7):
        assert models.check(model, images(n, 1, 6, 6), torch.arange(n) % 3).classes == 3


# ------------------------------------------------------------------ nothing is left behind


def trace(model: nn.Module) -> tuple:
    return (
        models.fingerprint(model),
        tuple(module.training for module in model.modules()),
        tuple((p.requires_grad, p.grad, p._version, id(p)) for p in model.parameters()),
        tuple(id(b) for b in model.buffers()),
        torch.get_rng_state().tolist(),
        random.getstate(),
        str(np.random.get_state()),
    )


def meddling(m: Of, x: torch.Tensor) -> torch.Tensor:
    m.count += 1
    m.register_buffer("new", x.detach().clone())
    m.fc.train()
    return plain(m, x + 0.1 * torch.rand_like(x) * random.random() * float(np.random.rand()))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    calls = []

    def function(m: Of, x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if fails and len(calls) == 3:
            return plain(m, x) * math.nan
        return meddling(m, x)

    model = Of(function)
    model.fc.bias.requires_grad_(False)
    x, y = images(n=20), torch.arange(20) % 3
    before = trace(model), x.clone(), y.clone()
    if fails:
        with pytest.raises(ModelError, match="NaN"):
            models.check(model, x, y, trained=False, batch=4)
    else:
        found = [f.code for f in models.check(model, x, y, trained=False).findings]
        assert found == ["buffers-changed", "random"]
    assert trace(model) == before[0]
    assert "new" not in dict(model.named_buffers())
    assert torch.equal(x, before[1])
    assert torch.equal(y, before[2])


def test_random_models_are_judged_the_same_every_time():
    model = Of(noisy(torch.randn_like))
    x, y = images(100), torch.arange(100) % 3
    first = models.check(model, x, y, trained=False)
    torch.manual_seed(9)
    assert models.check(model, x, y, trained=False) == first


def test_buffers_come_back_to_the_bit():
    model = Of(plain)
    model.register_buffer("odd", torch.tensor([math.nan, -0.0, 1.0]))
    kept = snapshot(model)
    assert kept.changed() == ()

    def meddle() -> None:
        with untouched(model, torch.device("cpu")) as before:
            model.odd[1] = 0.0
            model.count = torch.ones(())
            assert before.changed() == ("count", "odd")
            raise KeyError

    with pytest.raises(KeyError):
        meddle()
    assert kept.changed() == ()
    assert math.copysign(1, float(model.odd[1])) == -1


def test_it_runs_under_any_gradient_mode():
    model = Of(plain)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            assert codes(model) == []


def test_the_cost_is_the_stated_one(colours):
    data = colours(3, *IMAGENET)
    passes = []
    model = models.normalised(data.network, *IMAGENET).eval()
    handle = model.register_forward_hook(lambda m, args, out: passes.append((len(args[0]), torch.is_grad_enabled())))
    models.check(model, data.x)
    assert sum(n for n, gradient in passes if not gradient) == 300 + 3 * 16
    assert sum(n for n, gradient in passes if gradient) == 8
    passes.clear()
    models.check(model, data.x, data.y)
    handle.remove()
    guesses = len(candidates(3, Normalisation("p", *IMAGENET)))
    assert [len(candidates(3, p)) for p in (None, Normalisation("p", *CIFAR10))] == [13, 8]
    assert 4 <= guesses <= 13
    tried = sum(n for n, gradient in passes if not gradient) - 300 - 3 * 16
    assert tried == 0  # nothing is wrong, so there is nothing to gain
    y, wrong = data.y.clone(), torch.linspace(0, 299, 60).long()
    y[wrong] = (y[wrong] + 1) % 3
    passes.clear()
    handle = model.register_forward_hook(lambda m, args, out: passes.append((len(args[0]), torch.is_grad_enabled())))
    models.check(model, data.x, y)
    handle.remove()
    many = torch.linspace(0, 299, 256, dtype=torch.float64).round().long()
    few = min(64, int((model(data.x[many]).argmax(1) != y[many]).sum()))
    tried = sum(n for n, gradient in passes if not gradient) - 300 - 3 * 16
    assert few * guesses <= tried <= (few + 256) * guesses
    assert (tried - few * guesses) % 256 == 0


def test_the_layers():
    x = images(2, 3, 4, 4)
    with pytest.raises(InputError, match="3 channels"):
        models.Normalise(*IMAGENET)(images(2, 1, 4, 4))
    assert models.Normalise(*IMAGENET)(x.double()).dtype == torch.float64
    assert torch.equal(models.Resize((4, 4))(x), x)
    smaller = models.Resize((2, 2))(x.requires_grad_())
    assert smaller.shape == (2, 3, 2, 2)
    assert torch.autograd.grad(smaller.sum(), x)[0].abs().min() > 0
    assert torch.allclose(models.Resize((7, 5))(torch.full((1, 1, 4, 4), 0.3)), torch.tensor(0.3))
    for training in (True, False):
        wrapped = models.normalised(nn.Flatten().train(training), *IMAGENET, resize=(2, 2))
        assert {module.training for module in wrapped.modules()} == {training}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "mean=(0.485, 0.456, 0.406)" in repr(models.Normalise(*IMAGENET))
    for arguments in (((), ()), ((0.5,), ()), ((0.5,), (-1.0,)), ((math.inf,), (1.0,)), ("x", (1.0,))):
        with pytest.raises(InputError, match="mean, std"):
            models.Normalise(*arguments)
    with pytest.raises(ShaketableError, match="size"):
        models.Resize((0, 3))
