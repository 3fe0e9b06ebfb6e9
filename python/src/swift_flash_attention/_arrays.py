"""Arrays of other libraries as addresses, extents and strides, without a copy."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _library as c
from ._overlap import Place, check_written

if TYPE_CHECKING:
    import torch
    from typing_extensions import TypeIs

# Of no tensor, but of lists.
_INT32 = -1
_SIZES = {c.F32: 4, c.F16: 2, c.BF16: 2, c.E4M3: 1, _INT32: 4}
_BY_NAME = {"float32": c.F32, "float16": c.F16, "bfloat16": c.BF16, "float8_e4m3fn": c.E4M3}


@dataclass(slots=True)
class Array:
    """What the C interface needs to know of an array; strides in elements."""

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    type: int
    device: int
    ordinal: int
    owner: object
    is_read_only: bool = False

    @property
    def place(self) -> Place:
        """Where it lies."""
        return Place(self.pointer, self.shape, tuple(self.strides), _SIZES[self.type])

    def tensor(self, name: str) -> c.Tensor:
        """``fa_tensor`` of ``[batch, tokens, heads, dimension]``."""
        if self.shape[3] > 1 and self.strides[3] != 1:
            raise ValueError(f"{name}: elements must lie side by side along the last axis; its stride is {self.strides[3]}.")
        return c.Tensor(self.pointer, self.strides[0], self.strides[1], self.strides[2])


def _type(name: str, dtype: object, types: Mapping[str, int], needed: str) -> int:
    code = types.get(str(dtype).removeprefix("torch."))
    if code is None:
        raise TypeError(f"{name} is {dtype}; {needed}.")
    return code


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def is_torch(value: object) -> TypeIs[torch.Tensor]:
    """Whether it is a tensor of torch, of whatever class."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _is_masked(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ma.MaskedArray)


def array(name: str, value: object) -> Array:
    """An array of torch, numpy, cupy, jax or anything else that speaks DLPack."""
    return _array(name, value, _BY_NAME, "supported are float32 (on the CPU), float16 and bfloat16")


def _array(name: str, value: Any, types: Mapping[str, int], needed: str) -> Array:
    if _is_masked(value):
        raise TypeError(f"{name} is a masked array, whose mask nothing here would look at; give its data, with the values you mean.")
    if is_torch(value):
        device = value.device
        if device.type not in ("cpu", "cuda"):
            raise TypeError(f"{name} is on {device}; supported are the CPU and CUDA devices.")
        on_gpu = device.type == "cuda"
        return Array(
            value.data_ptr(), tuple(value.shape), value.stride(), _type(name, value.dtype, types, needed), c.GPU if on_gpu else c.CPU,
            device.index or 0 if on_gpu else 0, value)
    interface = getattr(value, "__cuda_array_interface__", None)
    on_gpu = interface is not None
    if interface is None:
        interface = getattr(value, "__array_interface__", None)
    # Their type strings have no bfloat16; the array's own name of its type has.
    if interface is not None and hasattr(value, "dtype"):
        code, shape = _type(name, value.dtype, types, needed), tuple(interface["shape"])
        size = value.dtype.itemsize
        strides = interface.get("strides")
        if strides is not None and any(stride % size for stride, extent in zip(strides, shape) if extent > 1):
            raise ValueError(f"{name} has strides of {strides} bytes, which are not whole elements of {size} bytes; give a copy.")
        steps = _contiguous(shape) if strides is None else tuple(stride // size for stride in strides)
        ordinal = _ordinal(name, value) if on_gpu else 0
        return Array(interface["data"][0], shape, steps, code, c.GPU if on_gpu else c.CPU, ordinal, value)
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(name, value, types)
    raise TypeError(f"{name} is a {type(value).__name__}; give an array of torch, numpy, cupy, jax or any with DLPack.")


def numbers(name: str, value: object) -> Array:
    """A list of whole numbers: a contiguous array of int32."""
    own = _array(name, value, {"int32": _INT32}, "int32 is needed")
    if any(extent > 1 and step != right for extent, step, right in zip(own.shape, own.strides, _contiguous(own.shape))):
        raise ValueError(f"{name} must be contiguous; its strides are {tuple(own.strides)} elements.")
    return own


def _ordinal(name: str, value: Any) -> int:
    """The number of the GPU that an array is on."""
    number = getattr(getattr(value, "device", None), "id", None)
    if number is None and hasattr(value, "__dlpack_device__"):
        number = value.__dlpack_device__()[1]
    if number is None:
        raise TypeError(f"{name} is a {type(value).__name__}, which does not say on which GPU it is; give an array with DLPack.")
    return int(number)


def writable(name: str, value: object, own: Array, others: Mapping[str, Array]) -> None:
    """Whether results may be written to an array: it may be changed, and each element has memory of its own, also apart from inputs.

    Args:
        own: Its ``Array``.
        others: The inputs' by their names.

    Raises:
        ValueError: Why not.
    """
    interface = getattr(value, "__cuda_array_interface__", None) or getattr(value, "__array_interface__", None)
    is_fixed = type(value).__module__.partition(".")[0] in ("jax", "jaxlib") or interface is not None and interface["data"][1]
    if is_fixed or own.is_read_only:
        raise ValueError(f"{name} is read-only; give an array that may be changed.")
    check_written(name, own.place, [(other, x.place) for other, x in others.items()])


class _DLTensor(ctypes.Structure):
    """``DLTensor`` of DLPack 0.x, as the capsules named "dltensor" hold it."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _DLVersioned(ctypes.Structure):
    """``DLManagedTensorVersioned`` of DLPack 1.x, as the capsules named "dltensor_versioned" hold it. Bit 0 of the flags: read-only."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    ]


_capsule_name = ctypes.pythonapi.PyCapsule_GetName
_capsule_name.argtypes, _capsule_name.restype = [ctypes.py_object], ctypes.c_char_p
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.argtypes, _get_pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
# (code, bits): floats are code 2, bfloat code 4.
_DL_TYPES = {(2, 32): c.F32, (2, 16): c.F16, (4, 16): c.BF16, (0, 32): _INT32}
_DL_DEVICES = {1: c.CPU, 2: c.GPU, 3: c.CPU, 13: c.GPU}


def _from_dlpack(name: str, value: Any, types: Mapping[str, int]) -> Array:
    # The capsule is not consumed, so that it frees itself; the value keeps the memory.
    is_read_only = False
    try:
        capsule = value.__dlpack__(max_version=(1, 0))
    except TypeError:
        capsule = value.__dlpack__()
    if _capsule_name(capsule) == b"dltensor_versioned":
        versioned = _DLVersioned.from_address(_get_pointer(capsule, b"dltensor_versioned"))
        tensor, is_read_only = versioned.tensor, bool(versioned.flags & 1)
    else:
        tensor = _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
    code = _DL_TYPES.get((tensor.code, tensor.bits))
    code = code if code in types.values() else None
    device = _DL_DEVICES.get(tensor.device_type)
    if code is None or tensor.lanes != 1:
        raise TypeError(f"{name} has an element type (DLPack {tensor.code}, {tensor.bits} bits) that is not supported.")
    if device is None:
        raise TypeError(f"{name} is on a device (DLPack {tensor.device_type}) that is not supported.")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _contiguous(shape)
    return Array(
        # An array without elements may have no address.
        (tensor.data or 0) + tensor.byte_offset, shape, strides, code, device, tensor.device_id, (value, capsule), is_read_only)


def empty(like: Any, shape: tuple[int, ...], dtype: str | None = None) -> Any:
    """A new array of the library that ``like`` is of, and how it is handed out in the end."""
    module = type(like).__module__.partition(".")[0]
    if module in ("jax", "jaxlib"):
        # Arrays of jax cannot be written; numpy's can, and become jax's without a copy.
        if array("q", like).device != c.CPU:
            raise NotImplementedError("Arrays of jax on a GPU are read but cannot be written; give out=.")
        import numpy

        return numpy.empty(shape, dtype=dtype or like.dtype)
    import importlib

    # Of cupy, a device is a context; others have none to choose.
    with like.device if module == "cupy" else contextlib.nullcontext():
        return importlib.import_module(module).empty(shape, dtype=dtype or like.dtype)


def finished(like: object, value: Any) -> Any:
    """The result in the form of the library that ``like`` is of."""
    if type(like).__module__.partition(".")[0] in ("jax", "jaxlib"):
        import jax

        return jax.numpy.asarray(value)
    return value


def stream(like: Any, device: int) -> int | None:
    """The stream that the library of ``like`` works in."""
    if device == c.CPU:
        return None
    module = type(like).__module__.partition(".")[0]
    if module == "cupy":
        import cupy

        with like.device:
            pointer: int = cupy.cuda.get_current_stream().ptr
            return pointer
    return None
