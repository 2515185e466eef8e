"""Reads a pickle without executing it: a machine for the few opcodes and names that a file of tensors needs.

`pickletools` decodes the opcodes and runs nothing; what they mean is done here, with descriptions in place of tensors.
A pickle names functions to be called. Those that torch writes for tensors are known and answered by a description; any
other is refused by its name, and so is every opcode that is not needed. (Python `pickletools`, torch `serialization.py`.)
"""

from __future__ import annotations

import io
import pickletools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_STEPS = 1_000_000
"""Opcodes of one pickle; a tensor takes about forty, so this is tens of thousands of tensors."""

_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64",
    "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL",
    "UntypedStorage": "",
}  # fmt: skip
"""torch's storage class to safetensors' dtype; "": the tensor says."""

_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16",
    "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "uint16": "U16",
    "uint32": "U32", "uint64": "U64",
}  # fmt: skip


_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
}  # fmt: skip
"""The opcodes whose argument is the value."""


class Refused(ValueError):
    """A step that is no part of a file of tensors; the text says which."""


@dataclass(frozen=True)
class Global:
    """A name that the pickle asks for; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:120]


@dataclass(frozen=True)
class Storage:
    """Where a tensor's numbers lie: a key of the file, the numbers' dtype ("" for bytes), how many, and from which on."""

    key: str
    dtype: str
    n: int
    first: int = 0


@dataclass(frozen=True)
class Stored:
    """A tensor as its file describes it; strides count numbers, not bytes."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class Module:
    """A `torch.nn.ParameterDict`: its parameters by name."""

    parameters: Mapping[Any, Any] = field(default_factory=dict)


def load(file: io.BytesIO, storages: dict[str, Storage] | None = None) -> Any:
    """What the pickle at the file's position describes: containers, strings, numbers, `Stored`, `Module`, `Global`.

    The position is after it then. Work and memory are bounded by the number of steps: nothing is walked, copied,
    compared, hashed or shown whose size a few steps can blow up.

    Args:
        file: the pickle's bytes, in memory.
        storages: gets every storage that is referred to, by key.

    Raises:
        Refused: it asks for something that is no part of a file of tensors; nothing has been executed.
        ValueError: it is no whole pickle.
    """
    machine = _Machine({} if storages is None else storages)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # pickletools' own, of escapes in protocol 0's strings
            return _followed(machine, file)
    except Refused:
        raise
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, ValueError) as error:
        raise ValueError(f"its steps do not fit together: {str(error)[:100]!r}") from error


def _followed(machine: _Machine, file: io.BytesIO) -> Any:
    for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        if count >= MAX_STEPS:
            raise Refused(f"it has more than {MAX_STEPS:,} steps")
        if opcode.name == "STOP":
            return machine.pop()
        machine.step(opcode.name, arg)
    raise ValueError("it does not end")


class _Machine:
    """Stack, marks and memo of a pickle, as `pickletools` documents them."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self.storages = storages
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, arg: Any) -> None:
        """Does one opcode; those that are not here are refused."""
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marked.append(self.stack)
                self.stack = []
            case "POP":
                self.pop()
            case "POP_MARK":
                self.since_mark()
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "SETITEM":
                self.put_items(self.last(2))
            case "SETITEMS":
                self.put_items(self.since_mark())
            case "APPEND":
                self.put_more(self.last(1))
            case "APPENDS":
                self.put_more(self.since_mark())
            case "BUILD":
                self.build(self.pop())
            case _:
                self.push(self.made(name, arg))

    def made(self, name: str, arg: Any) -> Any:
        """The value that an opcode makes."""
        match name:
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                return {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name]
            case "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_TUPLE":
                return {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}[name]()
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                return tuple(self.last(int(name[-1])))
            case "TUPLE":
                return tuple(self.since_mark())
            case "LIST":
                return self.since_mark()
            case "GET" | "BINGET" | "LONG_BINGET":
                return self.memo[arg]
            case "GLOBAL":
                return _asked(*arg.split(" ", 1))
            case "STACK_GLOBAL":
                return _asked(*self.last(2))
            case "REDUCE" | "NEWOBJ":
                return _called(*self.last(2))
            case "BINPERSID":
                return self.referred(self.pop())
            case _ if name in _LITERALS:
                if isinstance(arg, int) and arg.bit_length() > 128:
                    raise Refused("it has a number of more than 128 bits")
                return arg
            case _:
                raise Refused(f"it has the step {name}")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def last(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise ValueError("it takes more than there is")
        found = self.stack[-n:]
        del self.stack[-n:]
        return found

    def pop(self) -> Any:
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.marked.pop()
        return found

    def put_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("it sets items of no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):  # a deep tuple as a key would take forever to hash
                raise Refused(f"it has a {type(key).__name__} as a key")
            target[key] = value

    def put_more(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("it appends to no list")
        self.stack[-1].extend(items)

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, Module):
            if not isinstance(state, dict) or not isinstance(state.get("_parameters"), dict):
                raise ValueError("a ParameterDict has no parameters")
            target.parameters = state["_parameters"]
        elif not isinstance(target, dict):  # torch's state dicts carry a `_metadata`, which says nothing here
            raise Refused("it sets the state of an object")

    def referred(self, what: Any) -> Storage | Global:
        """What a persistent id refers to: a storage, or in torch's older form a class with its source text."""
        match what:
            case ("storage", Global(module="torch" | "torch.storage", name=kind), str(key), _, int(n), *view) if (
                kind in _STORAGES
            ):
                first = 0
                match view:  # the older form: the key and the length of a view, and where it begins
                    case [(_, int(offset), _)]:
                        first = offset
                self.storages[key] = Storage(key, _STORAGES[kind], n)
                return Storage(key, _STORAGES[kind], n, first)
            case ("module", Global() as kind, *_):  # only the class is looked at
                return kind
            case _:
                raise Refused("it refers to something that is no storage")


def _asked(module: Any, name: Any) -> Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise Refused("it asks for something that is no name")
    found = Global(module, name)
    if str(found) not in _CALLS and str(found) not in _INERT:
        raise Refused(f"it asks for {str(found)!r}")
    return found


def _called(what: Any, args: Any) -> Any:
    if not isinstance(what, Global) or not isinstance(args, tuple) or str(what) not in _CALLS:
        raise Refused(f"it calls {what if isinstance(what, Global) else 'something that is no name'}")
    return _CALLS[str(what)](*args)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> Stored:
    if not isinstance(storage, Storage):
        raise Refused("a tensor has no storage")
    dtype = storage.dtype
    if not dtype:  # torch's third version names the type; the others do not know untyped storages
        kinds = [_DTYPES[kind.name] for kind in rest if isinstance(kind, Global) and kind.name in _DTYPES]
        if not kinds:
            raise Refused("a tensor is of no type that a LoRA has")
        dtype = kinds[0]
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or not len(shape) == len(strides) <= 8:
        raise Refused("a tensor has an impossible shape")
    numbers = (offset, storage.first, *shape, *strides)
    if any(type(n) is not int or not 0 <= n < 2**48 for n in numbers):
        raise Refused("a tensor has an impossible shape")
    return Stored(storage, dtype, storage.first + offset, shape, strides)


def _again(function: Any, _kind: Any, args: Any, *_state: Any) -> Any:
    if isinstance(function, Global) and _CALLS.get(str(function)) is _again:
        raise Refused("it calls a call")
    return _called(function, args)


def _ordered() -> dict[Any, Any]:
    return {}


def _size(numbers: Any) -> tuple[Any, ...]:
    if not isinstance(numbers, tuple) or len(numbers) > 8:
        raise Refused("a tensor has an impossible shape")
    return numbers


def _parameter(data: Any, *_rest: Any) -> Any:
    return data


def _new_module() -> Module:
    return Module()


def _nothing(_values: Any = ()) -> None:
    """A set: a ParameterDict's state has empty ones, and nobody asks what is in them."""


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _again,
    "torch.Size": _size,
    "torch.nn.modules.container.ParameterDict": _new_module,
    "__builtin__.set": _nothing,
    "builtins.set": _nothing,
}
"""What a pickle may call, answered by functions of this module; torch's own are neither imported nor run."""

_INERT = {
    "torch.Tensor", "torch.nn.parameter.Parameter", *(f"torch.{name}" for name in (*_STORAGES, *_DTYPES)),
    *(f"torch.storage.{name}" for name in _STORAGES),
}  # fmt: skip
"""Names that only stand in arguments."""
