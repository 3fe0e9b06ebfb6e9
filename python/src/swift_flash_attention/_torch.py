"""What calls on torch tensors have in common: what is remembered of them, how structs are filled, what must fit.

What is remembered of a call is what its tensors are (extents, strides, types, devices) and numbers, never a tensor or what was in it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from . import _library as c
from ._arguments import int32
from ._numbers import whole
from ._overlap import Place, check_written

c.use_threads_of_openmp()

if TYPE_CHECKING:
    from ._types import KeyRanges, Known, Phrases, WholeNumbers

_TYPES = {torch.float32: c.F32, torch.float16: c.F16, torch.bfloat16: c.BF16, torch.float8_e4m3fn: c.E4M3}
_local = threading.local()
# Shapes that a thread remembers; one that has more begins again.
_LIMIT = 1024


def _remembered(name: str) -> dict[Hashable, Any]:
    memory: dict[Hashable, Any] | None = getattr(_local, name, None)
    if memory is None or len(memory) > _LIMIT:
        memory = {}
        setattr(_local, name, memory)
    return memory


def _type(name: str, tensor: Tensor) -> int:
    code = _TYPES.get(tensor.dtype)
    if code is None:
        raise TypeError(f"{name} is {tensor.dtype}; supported are float32 (on the CPU), float16, bfloat16 and float8_e4m3fn.")
    return code


def _device(name: str, tensor: Tensor) -> tuple[int, int]:
    if tensor.device.type == "cuda":
        return c.GPU, tensor.device.index or 0
    if tensor.device.type == "cpu":
        return c.CPU, 0
    raise TypeError(f"{name} is on {tensor.device}; supported are the CPU and CUDA devices.")


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor with elements side by side along its last axis."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


@contextlib.contextmanager
def preparing() -> Iterator[None]:
    """Calls of this thread compile and load what they need, and compute nothing."""
    _preparing.add(threading.get_ident())
    try:
        yield
    finally:
        _preparing.discard(threading.get_ident())


# The threads that do.
_preparing: set[int] = set()


def _prepares() -> bool:
    return threading.get_ident() in _preparing


def _strides(params: c.Tensor, tensor: Tensor, is_packed: bool = False) -> None:
    """Strides of ``[B, N, H, D]``, or of ``[total, H, D]``."""
    strides = (0, *tensor.stride()) if is_packed else tensor.stride()
    params.batch_stride, params.token_stride, params.head_stride = strides[:3]


def _set_scores(
    scores: c.Scores, causal: bool, left: int, right: int, chunk: int, softcap: float, scale: float | None,
    sinks: Tensor | None = None, ranges: Tensor | None = None, first_keys: int = 0
) -> None:
    """Below 0, a side of the window is unlimited. Ranges are those of queries, ``[B or 1, N, count, 2]``, or prefixes ``[B]``."""
    if ranges is not None:
        scores.key_ranges = ranges.data_ptr()
        scores.ranges = c.RANGES_PREFIX if ranges.dim() == 1 else c.RANGES_GIVEN
        if ranges.dim() > 1:
            scores.ranges_of_query, scores.ranges_are_shared = ranges.shape[2], int(ranges.shape[0] == 1)
    elif first_keys:
        scores.ranges, scores.first_keys = c.RANGES_FIRST_KEYS, first_keys
    if sinks is not None:
        # That there are some decides the plan; the address is that of a call.
        scores.sinks, scores.sink_type = sinks.data_ptr(), _TYPES[sinks.dtype]
    if causal:
        right = 0
    if left < 0 and right < 0:
        scores.mask = c.MASK_NONE
    elif left < 0 and right == 0:
        scores.mask = c.MASK_CAUSAL
    else:
        scores.mask, scores.window_left, scores.window_right = c.MASK_WINDOW, left, right
    scores.chunk, scores.softcap = chunk, softcap
    if scale is not None:
        scores.scale_is_given, scores.scale = 1, scale


def sinks_fit(name: str, sinks: object, heads: int, like: Tensor) -> Tensor | None:
    """Attention sinks, a logit of each query head, side by side in memory.

    Raises:
        ValueError, TypeError: Why they are none.
    """
    if sinks is None:
        return None
    if not isinstance(sinks, torch.Tensor):
        raise TypeError(f"{name} is a {type(sinks).__name__}; it must be a torch.Tensor.")
    if sinks.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{name} is {sinks.dtype}; it must be float32, float16 or bfloat16.")
    fits(name, sinks, (heads,), like)
    return sinks.resolve_neg().contiguous()


def ranges_fit(
    key_ranges: WholeNumbers | None, prefix: WholeNumbers | None, first_keys: int | None, q: Tensor, batch: int
) -> KeyRanges:
    """Ranges of keys that queries see, of one of three kinds: a tensor, ``[B or 1, N, count, 2]`` or of prefixes ``[B]``, or None; and
    a number of first keys, or 0.

    Args:
        q: ``[B, N, H, D]``; packed ``[total, H, D]``, where ``key_ranges`` is ``[total, count, 2]``.

    Raises:
        ValueError, TypeError: Why they are none.
    """
    if key_ranges is None and prefix is None and first_keys is None:
        return None, 0
    if sum(x is not None for x in (key_ranges, prefix, first_keys)) > 1:
        raise ValueError("Give one of key_ranges, prefix and first_keys; they are three ways of saying which keys queries see.")
    if first_keys is not None:
        count = whole("first_keys", first_keys)
        if count < 0:
            raise ValueError(f"first_keys is {count}; it must be a number of keys from 0 on.")
        return None, count
    if prefix is not None:
        prefix = int32("prefix", prefix, q, (batch,))
        return None if batch == 0 else prefix, 0
    ranges = int32("key_ranges", key_ranges, q)
    is_packed = q.dim() == 3
    own = tuple(ranges.shape)
    if len(own) != (3 if is_packed else 4) or own[-1] != 2 or own[-2] not in (1, 2):
        raise ValueError(
            f"key_ranges has the shape {own}; it must be {'[total' if is_packed else '[batch or 1, queries'}, 1 or 2, 2].")
    if is_packed and own[0] != q.shape[0] or not is_packed and (own[0] not in (1, batch) or own[1] != q.shape[1]):
        needed = (q.shape[0], own[1], 2) if is_packed else (batch, q.shape[1], own[2], 2)
        raise ValueError(f"key_ranges has the shape {own}; {needed} is needed{'' if is_packed else ', or 1 for the batch'}.")
    if ranges.device != q.device:
        raise _elsewhere("key_ranges", ranges, q)
    # Without queries there is nothing to see.
    return None if ranges.numel() == 0 else ranges[None] if is_packed else ranges, 0


def is_unlike(error: Exception, *tensors: object) -> bool:
    """Whether a call could not even be looked up, because something that it was given is not what it should be."""
    return not isinstance(error, RuntimeError) or any(
        x is not None and (not isinstance(x, torch.Tensor) or x.layout is not torch.strided or x.is_nested) for x in tensors)


def need_no_look(sinks: Known, q: Tensor) -> bool:
    """Whether sinks are what a call can take as they are: nothing must then be looked at but whether there was such a call before."""
    return (
        type(sinks) in (torch.Tensor, torch.nn.Parameter) and sinks.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and sinks.dim() == 1 and sinks.shape[0] == q.shape[-2] and sinks.device == q.device and sinks.is_contiguous()
        and not sinks.is_neg())


def fits(
    name: str, tensor: Tensor, shape: Sequence[int], like: Tensor, dtype: torch.dtype | None = None
) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; {tuple(shape)} is needed.")
    if tensor.device != like.device:
        raise _elsewhere(name, tensor, like)
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}; {dtype} is needed.")


def is_elsewhere(tensor: Tensor, ordinal: int) -> bool:
    """Whether a tensor is not on a GPU, or not on the CPU where the number is -1. (That of other devices without memory is -1, too.)"""
    return tensor.get_device() != ordinal or ordinal < 0 and not tensor.is_cpu


def _elsewhere(name: str, tensor: Tensor, like: Tensor) -> ValueError:
    return ValueError(f"{name} is on {tensor.device}, and the queries are on {like.device}; all tensors must be on one device.")


class Words(NamedTuple):
    """A caller's names of what is handed over, and how its sentences speak of what the library calls otherwise."""

    names: dict[str, str] = {}
    phrases: Phrases = ()

    def of(self, name: str) -> str:
        return self.names.get(name, name)


# What all functions call something else than the library.
SCORES: Phrases = (
    ("The scale is", "The scale (softmax_scale) is"), ("The window reaches", "The window (window_size) reaches"),
    ("The chunk size of the mask", "The chunk size of the mask (attention_chunk)"),
    ("query heads cannot share", "query heads (of q) cannot share"), ("key/value heads evenly", "key/value heads (of k and v) evenly"),
    ("of queries and keys is", "of q and k is"), ("of queries is", "of q is"), ("of keys is", "of k is"), ("of values is", "of v is"),
    ("of output is", "of out is"), ("has no kernel for", "has no kernel for q of"))


def output_fits(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None = None,
    ranges: Tensor | None = None
) -> None:
    """Whether results may be written to ``out``: it is what they are, and each of its elements has memory of its own.

    Raises:
        ValueError: Why not.
    """
    fits("out", out, (*q.shape[:3], v.shape[-1]), q, q.dtype)
    _is_writable(out, (("q", q), ("k", k), ("v", v), *(() if sinks is None else (("sinks", sinks),)),
                       *(() if ranges is None else (("key_ranges", ranges),))))
    if out.shape[-1] > 1 and out.stride(-1) != 1:
        raise ValueError(f"out: elements must lie side by side along the last axis; its stride is {out.stride(-1)}.")


def output_fits_parts(out: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """The same of results over parts of the keys, of any type.

    Raises:
        ValueError: Why not.
    """
    if tuple(out.shape) != shape or out.device != like.device:
        raise ValueError(f"out must have the shape {shape} and be on {like.device}; it is {tuple(out.shape)} on {out.device}.")
    _is_writable(out)


def _is_writable(out: Tensor, others: Iterable[tuple[str, Tensor]] = ()) -> None:
    if out.is_neg():
        raise ValueError("out is a lazily negated view; give a tensor whose memory holds its numbers.")
    check_written("out", _place(out), [(name, _place(x)) for name, x in others])


def _place(x: Tensor) -> Place:
    return Place(x.data_ptr(), tuple(x.shape), x.stride(), x.element_size())
