"""Models in DistributedDataParallel, DataParallel and torch.compile: perturbed as the module inside is, to the bit."""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from shaketable import core as st
from shaketable.core.measure import measure
from shaketable.core.places import bare

Make = Callable[..., Any]
BALL = st.Ball("linf", 0.1, box=(0.0, 1.0))
FILE = Path(__file__).with_name("ddp_attack.py")
pytestmark = [  # PyTorch's own, where it compiles DistributedDataParallel itself, and hooks
    pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace the builtin:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.fixture
def _one_process() -> Iterator[None]:
    """A process group of this process alone, without which there is no DistributedDataParallel."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


Parallel, Distributed = nn.DataParallel, nn.parallel.DistributedDataParallel
WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": Parallel,
    "DistributedDataParallel": Distributed,
    "compiled": compiled,
    "both parallel": lambda m: Parallel(Distributed(m)),
    "compiled, distributed": lambda m: Distributed(compiled(m)),
    "distributed, compiled": lambda m: compiled(Distributed(m)),
}
"""The last named is the outermost."""


@pytest.fixture(params=list(WRAPPERS))
def wrap(request: pytest.FixtureRequest, _one_process: None, _fresh_compiler: None) -> Callable[[nn.Module], Any]:
    return WRAPPERS[request.param]


def same_state(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def calls_of(model: nn.Module) -> list[str]:
    """Writes down each call of a parallel wrapper among the modules."""
    seen: list[str] = []
    for module in model.modules():
        if isinstance(module, Parallel | Distributed):
            module.register_forward_pre_hook(lambda m, _: seen.append(type(m).__name__))
    return seen


def test_the_bare_module_is_found_and_its_names_are_used(wrap: Make, network: Make) -> None:
    model = network()
    wrapped = wrap(model)
    assert bare(wrapped) is model
    assert bare(model) is model
    assert list(st.weights(wrapped)) == ["0.weight", "4.weight", "7.weight"]
    assert st.weights(wrapped)["0.weight"].data_ptr() == model[0].weight.data_ptr()
    assert list(st.weights(wrapped, "all")) == [name for name, _ in model.named_parameters()]
    with pytest.raises(st.InputError, match="tensors: expected names of the model's parameters"):
        st.at(wrapped, {"module.0.weight": model[0].weight})


@pytest.mark.usefixtures("_one_process", "_fresh_compiler")
def test_wrappers_in_wrappers_are_looked_through(network: Make, images: Make) -> None:
    model, x = network(), images()
    wrapped: Any = compiled(Parallel(Distributed(compiled(model))))
    assert bare(wrapped) is model
    w = st.weights(wrapped)
    assert torch.equal(st.at(wrapped, w)(x), model(x))


@pytest.mark.parametrize("train", [False, True])
def test_at_is_that_of_the_bare_module(wrap: Make, network: Make, images: Make, labels: Make, train: bool) -> None:
    """Values and gradients, by inputs and by weights; nothing is recorded, and no parallel wrapper is called."""
    model, x, y = network().train(train), images().requires_grad_(), labels()
    twin, before, wrapped = copy.deepcopy(model), copy.deepcopy(model.state_dict()), wrap(model)
    seen = calls_of(wrapped)
    for w in (None, {name: (p.detach() + 0.1).requires_grad_() for name, p in model.named_parameters()}):
        by = [x] if w is None else [x, *w.values()]
        loss, wanted = (F.cross_entropy(st.at(m, w)(x), y) for m in (wrapped, twin))
        assert torch.equal(loss, wanted)
        assert all(map(torch.equal, torch.autograd.grad(loss, by), torch.autograd.grad(wanted, by)))
    assert same_state(model, before)
    assert seen == []
    with torch.no_grad():
        wrapped(x)
    assert bool(seen) == any(isinstance(m, Parallel | Distributed) for m in wrapped.modules())


def test_everything_that_perturbs_gives_what_it_gives_for_the_bare_module(
    wrap: Make, network: Make, images: Make, labels: Make
) -> None:
    model, x, y = network().train(), images(), labels()
    twin, before, wrapped = copy.deepcopy(model), copy.deepcopy(model.state_dict()), wrap(model)
    seen = calls_of(wrapped)

    def found(m: nn.Module) -> list[Tensor]:
        by_x = st.perturb(st.ce(m, y), x, BALL, by=st.PGD(3), start="sample", generator=st.generator(0)).point
        by_kl = st.perturb(st.kl(m, x), x, BALL, by=st.PGD(2), generator=st.generator(0)).point
        worst = measure(m, x, y, BALL, by=st.PGD(2), generator=st.generator(0), batch_size=4).robust_loss
        loss = st.scalar(lambda w: F.cross_entropy(st.at(m, w)(by_x), y))
        by_w = st.perturb(loss, st.weights(m), st.Ball("l2", 0.1, per="tensor", relative=True), by=st.PGD(2)).delta
        return [by_x, by_kl, worst, *by_w.values()]

    assert all(map(torch.equal, found(wrapped), found(twin)))
    assert same_state(model, before)
    assert seen == []


def test_activations_are_those_of_the_bare_module(wrap: Make, network: Make, images: Make) -> None:
    model, x = network(), images()
    twin, wrapped = copy.deepcopy(model), wrap(model)
    seen = calls_of(wrapped)
    with torch.no_grad():
        wrapped(x)  # compiled before the hook is there
    seen.clear()
    for shift in (0.0, 1.0):
        a = st.activation(wrapped, "3", x)
        assert torch.equal(a, st.activation(twin, "3", x))
        assert torch.equal(st.from_activation(wrapped, "3", x)(a + shift, None), twin[4:](a + shift))
    assert seen == []
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(st.InputError, match="layer: expected the name of a module"):
        st.activation(wrapped, "module.3", x)


def test_perturbed_swaps_the_weights_of_the_bare_module(wrap: Make, network: Make, images: Make) -> None:
    model, x = network(), images()
    before, wrapped = copy.deepcopy(model.state_dict()), wrap(model)
    v = {name: torch.full_like(w, 0.1) for name, w in st.weights(wrapped).items()}
    with torch.no_grad(), st.perturbed(wrapped, v) as inside:
        assert inside is wrapped
        assert torch.equal(wrapped(x), st.at(model, {name: before[name] + d for name, d in v.items()})(x))
    assert same_state(model, before)


@pytest.mark.usefixtures("_one_process", "_fresh_compiler")
@pytest.mark.parametrize("around", ["nothing", "DistributedDataParallel"])
def test_a_compiled_model_stays_compiled(network: Make, images: Make, around: str) -> None:
    """Also with other weights at each call, which must not compile it anew."""
    graphs, runs = list[Any](), list[int]()

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)

        def run(*inputs: Any) -> Any:
            runs.append(1)
            return graph(*inputs)

        return run

    model, x = network().train(), images()
    wrapped = torch.compile(model, backend=backend)
    wrapped = Distributed(wrapped) if around != "nothing" else wrapped
    for k in range(4):
        w = {name: p.detach() + k for name, p in model.named_parameters()}
        assert torch.equal(st.at(wrapped, w)(x), st.at(model, w)(x))
    assert len(runs) == 4
    assert len(graphs) == 1


@pytest.mark.usefixtures("_fresh_compiler")
def test_tied_weights_of_a_compiled_model_move_together() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False)).eval()
    model[2].weight = model[0].weight
    x, w = torch.rand(2, 3), {"0.weight": torch.eye(3)}
    assert torch.equal(st.at(compiled(model), w)(x), torch.tanh(x))


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_model_compiled_in_place_is_a_place(network: Make, images: Make) -> None:
    """`model.compile()` adds no wrapper; hooks and replaced weights are seen all the same."""
    model, x = network(), images()
    twin = copy.deepcopy(model)
    model.compile(backend="eager")
    with torch.no_grad():
        model(x)
    for shift in (0.0, 1.0):
        a = st.activation(model, "3", x)
        assert torch.equal(st.from_activation(model, "3", x)(a + shift, None), twin[4:](a + shift))
        w = {name: p + shift for name, p in st.weights(model).items()}
        assert torch.equal(st.at(model, w)(x), st.at(twin, w)(x))
        assert torch.equal(model(x), twin(x))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes that torchrun started found in `ddp_attack.py`."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(FILE)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([*command, str(folder)], env=environment, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_average_their_gradients_unless_told_not_to(two: list[dict[str, Any]]) -> None:
    """What the next two tests stand on: the two gradients differ, their mean is another, and calls are counted."""
    for said in two:
        assert said["a pass"] > 0
        assert said["sync"] != said["alone"]
        assert said["no_sync"][0] == said["alone"][0]
        assert said["no_sync"][1] == said["sync"][1]
    assert two[0]["alone"] != two[1]["alone"]
    assert two[0]["sync"] == two[1]["sync"]


@pytest.mark.parametrize("attack", ["inputs", "weights", "activations", "divergence", "measured", "in eval mode"])
def test_an_attack_asks_no_other_process_and_leaves_the_synchronisation_as_it_was(
    two: list[dict[str, Any]], attack: str
) -> None:
    for said in two:
        found = said["attacks"][attack]
        assert found["collectives"] == 0
        assert found["untouched"]
        assert found["as bare"]
        assert found["sync"] == said["sync"]
        assert found["no_sync"] == said["no_sync"]


def test_a_gradient_through_the_wrapper_would_be_noticed(two: list[dict[str, Any]]) -> None:
    """The control: buffers are broadcast and updated, and what no_sync should keep local is averaged."""
    for said in two:
        found = said["attacks"]["through the wrapper"]
        assert found["collectives"] > 0
        assert not found["untouched"]
        assert found["no_sync"] != said["no_sync"]
