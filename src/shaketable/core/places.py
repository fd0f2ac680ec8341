"""Places: an origin, and a function of the perturbed point.

Inputs need no help: the origin is x. For weights, `weights` gives the origin and `at` the function; for activations,
`activation` gives the origin and `from_activation` the function. `perturbed` is the one in-place swap.

A model may be wrapped, by `DistributedDataParallel`, `DataParallel` or `torch.compile`, in any order: every function here
looks through, and all names are those of the module itself (see `bare`).
"""

import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call  # pyright: ignore[reportPrivateImportUsage]

from .errors import InputError
from .seeds import own_random_state
from .tree import ordinary, require_alike

Select = Literal["matrices", "all"] | Callable[[str, Tensor], bool]


def bare(model: nn.Module) -> nn.Module:
    """The module itself, out of `DistributedDataParallel`, `DataParallel` and `torch.compile`, in any order.

    A perturbation must not pass through `DistributedDataParallel`: a gradient by the inputs alone leaves its reducer waiting,
    so that the next backward pass under `no_sync` is averaged over the processes all the same. Wrappers deeper inside (of
    a submodule) stay, and so does `SyncBatchNorm`, which in train mode asks the other processes at every pass: with it
    all of them must take the same number of passes.

    Checked by tests/core/test_parallel_wrappers.py, also with two processes.
    """
    return _unwrapped(model)[0]


def _unwrapped(model: nn.Module) -> tuple[nn.Module, nn.Module, str]:
    """The bare module, what to call for it (it, compiled where no parallel wrapper is in between), and that one's prefix."""
    called, prefix = model, ""
    compiled = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", ())  # its import is slow
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = called = model.module
            prefix = ""
        elif isinstance(model, compiled):
            model, prefix = model.get_submodule("_orig_mod"), f"{prefix}_orig_mod."
        else:
            return model, called, prefix


def weights(model: nn.Module, select: Select = "matrices") -> dict[str, Tensor]:
    """The weights of a model as an origin: name -> the live parameter, detached. Tied weights appear once.

    Args:
        select: "matrices", those of more than one dimension: convolution and linear weights, the last layer's included,
            no biases, no normalisation layers (what AWP perturbs); "all"; or a function of (name, tensor).

    Raises:
        InputError: nothing was selected.

    Checked by tests/core/test_places.py.
    """
    if isinstance(select, str) and select not in ("matrices", "all"):
        raise InputError("select", "'matrices', 'all' or a function", repr(select), "Choose one of them.")
    model = bare(model)
    layers = (m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.RMSNorm))
    apart = {id(p) for layer in layers for p in layer.parameters()}  # of images, these have more than one dimension

    def wanted(name: str, parameter: Tensor) -> bool:
        if select == "matrices":
            return parameter.dim() > 1 and id(parameter) not in apart
        return parameter.is_floating_point() if select == "all" else select(name, parameter)

    chosen = {name: p.detach() for name, p in model.named_parameters() if wanted(name, p)}
    if not chosen:
        names = [name for name, _ in model.named_parameters()][:5]
        raise InputError(
            "select", "at least one parameter of the model", f"none of {names}", "Select others, or 'all'."
        )
    return chosen


def at(model: Any, tensors: Mapping[str, Tensor] | None = None) -> Callable[..., Any]:
    """The model as a function, with some of its tensors replaced, that leaves the model as it is.

    Buffers are cloned at each call, so that a train-mode BatchNorm uses the batch's statistics and records nothing. Where
    no tensor is replaced, a model in eval mode or without buffers is called directly, and so is any callable that is no
    `nn.Module`. A module that writes into its inputs is given copies of them; so is any at its first call, which tells.
    Of a `DistributedDataParallel` or `DataParallel` it is always the module inside that is called (see `bare`), on the
    device of the inputs; a compiled model stays compiled.

    Args:
        tensors: name -> tensor, instead of the parameters (or buffers) of that name.
    """
    if not isinstance(model, nn.Module):
        return model
    own, called, prefix = _unwrapped(model)
    if tensors:
        named = (own.named_parameters(remove_duplicate=False), own.named_buffers(remove_duplicate=False))
        known = {name for part in named for name, _ in part}
        if unknown := sorted(set(tensors) - known):
            remedy = "Make them from st.weights(model)."
            raise InputError("tensors", "names of the model's parameters or buffers", f"{unknown[:3]}", remedy)

    modules, writes = list(own.modules()), True  # until its first call has shown that it does not

    def call(*inputs: Any) -> Any:
        nonlocal writes
        given = [i.clone() if writes and isinstance(i, Tensor) else i for i in inputs]
        found = run(*given)
        writes = writes and any(isinstance(i, Tensor) and (i.is_inference() or i._version > 0) for i in given)
        return found

    def run(*inputs: Any) -> Any:
        training = any(module.training for module in modules)
        buffers = {name: b.clone() for name, b in own.named_buffers()} if training else {}
        replaced = {prefix + name: tensor for name, tensor in {**buffers, **(tensors or {})}.items()}
        return functional_call(called, replaced, inputs) if replaced else called(*inputs)

    return call


def activation(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """The output of a layer for inputs x: an origin for `perturb`. One forward pass, no gradient.

    Args:
        layer: the name of a module, as in `model.named_modules()`; it must return one tensor and be called once.
    """
    model = bare(model)  # a compiled one would not see the hook
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen.append(output.clone() if isinstance(output, Tensor) else output)  # an in-place layer may follow

    hook = _module(model, layer).register_forward_hook(keep)
    try:
        with torch.inference_mode(False), torch.no_grad(), own_random_state([x]):
            at(model)(x)
    finally:
        hook.remove()
    if len(seen) != 1 or not isinstance(seen[0], Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        found = f"{len(seen)} calls of it" if len(seen) != 1 else type(seen[0]).__name__
        raise InputError("layer", "a module that returns one tensor in one call", found, "Choose another layer.")
    return seen[0].detach()


def from_activation(model: nn.Module, layer: str, x: Tensor) -> Callable[[Tensor, Tensor | None], Any]:
    """The rest of the model, as a function of (a layer's output, rows).

    The layers before it are run as well, without a gradient through the replaced output, so a call costs one forward pass
    of the whole model and a backward pass of what follows the layer.

    Args:
        layer: the name of a module.
        x: the inputs whose activations are perturbed; `rows` says which of them the point holds.
    """
    model, x = bare(model), ordinary(x)
    module = _module(model, layer)

    def rest(point: Tensor, rows: Tensor | None = None) -> Any:
        calls: list[str] = []

        def swap(_module: nn.Module, _inputs: Any, output: Any) -> Tensor:
            calls.append(layer)
            if not isinstance(output, Tensor):
                raise InputError("layer", "a module that returns one tensor", type(output).__name__, "Choose another.")
            require_alike("point", point, output)
            return point.clone()  # an in-place layer may follow

        hook = module.register_forward_hook(swap)
        try:
            result = at(model)(x if rows is None else x[rows])
        finally:
            hook.remove()
        if len(calls) != 1:
            found = f"{len(calls)} calls of it"
            raise InputError("layer", "a module that is called once", found, "Choose another layer.")
        return result

    return rest


@contextmanager
def perturbed(model: nn.Module, delta: Mapping[str, Tensor]) -> Generator[nn.Module]:
    """The model with delta added to its weights, in place, and taken off again on leaving, also after an exception.

    A weight that nothing changed inside gets its old value back bit for bit. One that an optimiser stepped keeps the
    step: w <- w_saved + (w_after - w_perturbed), which is AWP's w + v - lr * gradient - v without the drift of adding and
    subtracting. Under autocast use `at`: autocast caches cast weights and would not see the swap.

    Args:
        delta: parameter name -> perturbation, as `Perturbation.delta` of a place made by `weights`.

    Cost: no pass; one copy of the perturbed weights. Checked by tests/core/test_perturbed.py.
    """
    own = dict(bare(model).named_parameters())
    for name, v in delta.items():
        if name not in own or own[name].shape != v.shape:
            found = f"{name!r} of shape {tuple(v.shape)}"
            raise InputError(
                "delta", "names and shapes of the model's parameters", found, "Make it from st.weights(model)."
            )
    saved: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, v in delta.items():
                old = own[name].detach().clone()
                own[name].add_(v.to(old))
                saved[name] = old  # only what was swapped is given back, should the next one fail
        yield model
    finally:
        with torch.no_grad():
            for name, old in saved.items():
                after = own[name].detach()
                drift = (old + delta[name].to(old)).sub_(after)  # 0 where nothing stepped; NaN where both are infinite
                if bool(drift.sum().isnan()):
                    drift = torch.where(after == old + delta[name].to(old), 0.0, drift)
                torch.sub(old, drift, out=after)


def _module(model: nn.Module, layer: str) -> nn.Module:
    modules = dict(model.named_modules())
    if layer not in modules or not layer:
        import difflib

        near = difflib.get_close_matches(layer, [name for name in modules if name], 3, 0.4) or list(modules)[1:4]
        raise InputError("layer", "the name of a module", repr(layer), f"Did you mean one of {near}?")
    return modules[layer]
