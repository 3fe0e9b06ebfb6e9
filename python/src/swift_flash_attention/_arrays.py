"""Arrays of other libraries as addresses, extents and strides, without a copy."""

import ctypes
from dataclasses import dataclass

from . import _library as c

_BY_NAME = {"float32": c.F32, "float16": c.F16, "bfloat16": c.BF16, "float8_e4m3fn": c.E4M3}


@dataclass(slots=True)
class Array:
    """What the C interface needs to know of an array; strides in elements."""

    pointer: int
    shape: tuple
    strides: tuple
    type: int
    device: int
    ordinal: int
    owner: object

    def tensor(self, name):
        """``fa_tensor`` of ``[batch, tokens, heads, dimension]``."""
        if self.shape[3] > 1 and self.strides[3] != 1:
            raise ValueError(f"{name}: elements must lie side by side along the last axis; its stride is {self.strides[3]}.")
        return c.Tensor(self.pointer, self.strides[0], self.strides[1], self.strides[2])


def _type(name, dtype):
    code = _BY_NAME.get(str(dtype).removeprefix("torch."))
    if code is None:
        raise TypeError(f"{name} is {dtype}; supported are float32 (on the CPU), float16 and bfloat16.")
    return code


def _contiguous(shape):
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def array(name, value):
    """An array of torch, numpy, cupy, jax or anything else that speaks DLPack."""
    module = type(value).__module__.partition(".")[0]
    if module == "torch":
        device = value.device
        if device.type not in ("cpu", "cuda"):
            raise TypeError(f"{name} is on {device}; supported are the CPU and CUDA devices.")
        on_gpu = device.type == "cuda"
        return Array(
            value.data_ptr(), tuple(value.shape), value.stride(), _type(name, value.dtype), c.GPU if on_gpu else c.CPU,
            device.index or 0 if on_gpu else 0, value)
    interface = getattr(value, "__cuda_array_interface__", None)
    on_gpu = interface is not None
    if interface is None:
        interface = getattr(value, "__array_interface__", None)
    # Their type strings have no bfloat16; the array's own name of its type has.
    if interface is not None and hasattr(value, "dtype"):
        code, shape = _type(name, value.dtype), tuple(interface["shape"])
        size = value.dtype.itemsize
        strides = interface.get("strides")
        steps = _contiguous(shape) if strides is None else tuple(stride // size for stride in strides)
        ordinal = getattr(getattr(value, "device", None), "id", 0) if on_gpu else 0
        return Array(interface["data"][0], shape, steps, code, c.GPU if on_gpu else c.CPU, ordinal, value)
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(name, value)
    raise TypeError(f"{name} is a {type(value).__name__}; give an array of torch, numpy, cupy, jax or any with DLPack.")


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


_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.argtypes, _get_pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
# (code, bits): floats are code 2, bfloat code 4.
_DL_TYPES = {(2, 32): c.F32, (2, 16): c.F16, (4, 16): c.BF16}
_DL_DEVICES = {1: c.CPU, 2: c.GPU, 3: c.CPU, 13: c.GPU}


def _from_dlpack(name, value):
    # The capsule is not consumed, so that it frees itself; the value keeps the memory.
    capsule = value.__dlpack__()
    tensor = _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
    code = _DL_TYPES.get((tensor.code, tensor.bits))
    device = _DL_DEVICES.get(tensor.device_type)
    if code is None or tensor.lanes != 1:
        raise TypeError(f"{name} has an element type (DLPack {tensor.code}, {tensor.bits} bits) that is not supported.")
    if device is None:
        raise TypeError(f"{name} is on a device (DLPack {tensor.device_type}) that is not supported.")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else _contiguous(shape)
    return Array(
        tensor.data + tensor.byte_offset, shape, strides, code, device, tensor.device_id, (value, capsule))


def empty(like, shape, dtype=None):
    """A new array of the library that ``like`` is of, and how it is handed out in the end."""
    module = type(like).__module__.partition(".")[0]
    if module == "torch":
        import torch

        return torch.empty(shape, dtype=dtype or like.dtype, device=like.device)
    if module in ("jax", "jaxlib"):
        # Arrays of jax cannot be written; numpy's can, and become jax's without a copy.
        if array("q", like).device != c.CPU:
            raise NotImplementedError("Arrays of jax on a GPU are read but cannot be written; give out=.")
        import numpy

        return numpy.empty(shape, dtype=dtype or like.dtype)
    import importlib

    return importlib.import_module(module).empty(shape, dtype=dtype or like.dtype)


def finished(like, value):
    """The result in the form of the library that ``like`` is of."""
    if type(like).__module__.partition(".")[0] in ("jax", "jaxlib"):
        import jax

        return jax.numpy.asarray(value)
    return value


def stream(like, device):
    """The stream that the library of ``like`` works in."""
    if device == c.CPU:
        return None
    module = type(like).__module__.partition(".")[0]
    if module == "torch":
        import torch

        return torch.cuda.current_stream(like.device).cuda_stream
    if module == "cupy":
        import cupy

        return cupy.cuda.get_current_stream().ptr
    return None
