"""What a pickle would do, found out without doing it.

A pickle is a small program: it may name any function and call it. `read` interprets one symbolically. Nothing is imported,
called or allocated; functions outside a short list (`pickle_calls.CALLED`) are refused by name, and every storage and
tensor that the pickle declares is measured, so that absurd sizes are refused before memory is asked for.
`torch.load(weights_only=True)` remains the gate that really loads; this one runs before it, says what is wrong, and knows
the sizes.
"""

import pickletools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from mmap import mmap
from typing import Any, BinaryIO, NoReturn, cast

from shaketable.core.errors import ModelError, UnsafeFileError

from .pickle_calls import CALLED, DTYPES, STORAGES, TYPES, Name, RefusedError, Storage, call, may_set_state, pairs_into

MAX_OPCODES = 5_000_000


@dataclass(frozen=True)
class Contents:
    """What a pickle would build.

    Args:
        value: the object, with `pickle_calls.TensorEntry` in place of tensors.
        storages: the declared storages by their key.
    """

    value: Any
    storages: Mapping[str, Storage]


def read(stream: BinaryIO | mmap, *, argument: str, limit: int) -> Contents:
    """Interpret one pickle symbolically, from the stream's position to its end marker.

    Args:
        stream: a seekable binary stream; an mmap or BytesIO, which clip reads to what is there.
        argument: how errors name the file.
        limit: the most bytes that the tensors may declare, each and together.

    Raises:
        UnsafeFileError: it names a function outside the list, or declares absurd sizes.
        ModelError: it is damaged.

    Checked by tests/models/foreign/test_hostile.py.
    """
    machine = _Machine(limit)
    try:
        _interpret(machine, stream)
        total = sum(storage.nbytes for storage in machine.storages.values())
        if total > limit:
            raise RefusedError(f"tensors that declare {total} bytes, above the limit of {limit}")
        (value,) = machine.stack
    except RefusedError as refusal:
        _unsafe(argument, str(refusal))
    except _BREAKS as error:
        remedy = "Fetch or copy the file again and compare its size and SHA-256 with the source's."
        found = f"a pickle that breaks off or makes no sense ({type(error).__name__})"
        raise ModelError(argument, "a whole weights file", found, remedy) from error
    return Contents(value, machine.storages)


def _interpret(machine: "_Machine", stream: BinaryIO | mmap) -> None:
    """Run the pickle's instructions on the symbolic machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # an odd escape in a damaged text
        for count, (opcode, value, _) in enumerate(pickletools.genops(cast(BinaryIO, stream))):
            if count > MAX_OPCODES:
                raise RefusedError(f"a pickle of more than {MAX_OPCODES} instructions")
            machine.step(opcode.name, value)


def _unsafe(argument: str, found: str) -> NoReturn:
    remedy = (
        "Do not load it. If you know where it comes from, save its state dict alone with "
        "torch.save(model.state_dict(), ...), or lift this check with --trust, which runs the file's code."
    )
    raise UnsafeFileError(argument, "weights only: tensors, numbers and text", found, remedy)


_BREAKS = (ValueError, IndexError, KeyError, TypeError, AttributeError, ArithmeticError, MemoryError, RecursionError)
_MARK = object()
_PUSHED = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}
_CONSTANTS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_CONSTANTS |= {f"{size}{kind}" for size in ("", "SHORT_") for kind in ("BINSTRING", "BINUNICODE", "BINBYTES")}
_CONSTANTS |= {"BINUNICODE8", "BINBYTES8", "STRING", "UNICODE"}
_IGNORED = {"PROTO", "FRAME", "STOP"}


@dataclass
class _Machine:
    """The pickle machine with inert values: a stack, a memo and the storages seen."""

    limit: int
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, Storage] = field(default_factory=dict)

    def step(self, opcode: str, value: Any) -> None:
        """One instruction: those that push, remember or name; the rest is `fill`'s."""
        stack = self.stack
        if opcode in _IGNORED:
            return
        if opcode in _CONSTANTS:
            stack.append(value)
        elif opcode in _PUSHED:
            stack.append(_PUSHED[opcode])
        elif opcode in _EMPTY:
            stack.append(_EMPTY[opcode]())
        elif opcode == "MARK":
            stack.append(_MARK)
        elif opcode in ("BINGET", "GET", "LONG_BINGET"):
            stack.append(self.memo[int(value)])
        elif opcode in ("BINPUT", "PUT", "LONG_BINPUT"):
            self.memo[int(value)] = stack[-1]
        elif opcode == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif opcode == "GLOBAL":
            stack.append(_name(value.replace(" ", ".", 1)))
        elif opcode == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_name(".".join((module, attribute))))
        elif opcode in ("BINPERSID", "PERSID"):
            stack.append(self.storage(stack.pop() if opcode == "BINPERSID" else value))
        elif opcode == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(call(function, arguments, self.limit))
        else:
            self.fill(opcode)

    def fill(self, opcode: str) -> None:
        """The instructions that fill a container; whatever else there is makes objects and is refused."""
        stack = self.stack
        if opcode in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [stack.pop() for _ in range(int(opcode[-1]))]
            stack.append(tuple(reversed(items)))
        elif opcode in ("TUPLE", "LIST", "FROZENSET"):
            items = self.popped()
            stack.append(tuple(items) if opcode == "TUPLE" else items)
        elif opcode in ("APPENDS", "ADDITEMS"):
            items = self.popped()
            stack[-1].extend(items)
        elif opcode == "APPEND":
            item = stack.pop()
            stack[-1].append(item)
        elif opcode in ("SETITEMS", "DICT"):
            items = self.popped()
            if opcode == "DICT":
                stack.append({})
            pairs_into(stack[-1], zip(items[::2], items[1::2], strict=True))
        elif opcode == "SETITEM":
            value, key = stack.pop(), stack.pop()
            pairs_into(stack[-1], [(key, value)])
        elif opcode == "BUILD":
            state = stack.pop()
            if not may_set_state(stack[-1], state):
                raise RefusedError("attributes set on an object that is no plain dictionary")
        elif opcode == "POP":
            stack.pop()
        elif opcode == "POP_MARK":
            self.popped()
        else:
            raise RefusedError(f"the pickle instruction {opcode}, which builds objects of any class")

    def popped(self) -> list[Any]:
        """What lies above the last mark, taken off with the mark."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def storage(self, identity: Any) -> Storage:
        """The storage that a persistent identifier declares."""
        match identity:
            case ("storage", Name(kind), str(key), str(), int(numel), *_) if kind in STORAGES and numel >= 0:
                found = Storage(key, numel, STORAGES[kind])
            case _:
                raise RefusedError("a reference to something that is no storage of numbers")
        if found.nbytes > self.limit:
            raise RefusedError(f"a storage that declares {found.nbytes} bytes, above the limit of {self.limit}")
        if self.storages.setdefault(found.key, found).nbytes != found.nbytes:
            raise RefusedError(f"a storage that is declared with {found.nbytes} bytes and with another number")
        return found


def _name(name: str) -> Name:
    name = name.replace("__builtin__.", "builtins.", 1) if name.startswith("__builtin__.") else name
    if name not in CALLED | TYPES and name not in STORAGES and name not in DTYPES:
        raise RefusedError(f"a pickle that names {name}")
    return Name(name)
