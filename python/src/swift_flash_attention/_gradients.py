"""``fa_backward`` on torch tensors: structs that are filled once for a shape."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Hashable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from . import _library as c
from ._torch import SCORES, _device, _preparing, _prepares, _remembered, _set_scores, _strides, _type, unit_stride

if TYPE_CHECKING:
    from ._types import Phrases

# q, k, v, out and dout; dq, dk and dv.
_Tensors: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]
# Of _set_scores.
_Scores: TypeAlias = tuple[bool, int, int, int, float, float | None, Tensor | None, Tensor | None, int]

# How sentences speak of what the library calls otherwise.
_PHRASES: Phrases = (
    ("the gradient of the output", "the gradient of out"), ("the gradient of the queries", "the gradient of q"),
    ("the gradient of the keys", "the gradient of k"), ("the gradient of the values", "the gradient of v"),
    *SCORES)


def backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    causal: bool, left: int, right: int, chunk: int, softcap: float, scale: float | None, dq: Tensor | None,
    dk: Tensor | None, dv: Tensor | None, query_starts: Tensor | None = None, key_starts: Tensor | None = None,
    query_counts: Tensor | None = None, key_counts: Tensor | None = None, longest_query: int | None = None,
    longest_key: int | None = None, sinks: Tensor | None = None, dsinks: Tensor | None = None,
    ranges: Tensor | None = None, first_keys: int = 0
) -> None:
    """Writes the gradients of ``[B, N, H, D]`` tensors, or of packed ``[total, H, D]`` ones, to ``dq``, ``dk`` and ``dv``.

    Args:
        dout: Of the output; copied where its elements do not lie side by side along the last axis, or, on a GPU, its rows do not begin
            at multiples of 16 bytes.
        dlse: Of the log-sum-exp; None for zeros.
        dq, dk, dv: None for those that nobody wants.
        dsinks: float32 ``[H]``; None where nobody wants it, or there are no sinks.
    """
    q, k, v, out = unit_stride(q), unit_stride(k), unit_stride(v), unit_stride(out)
    dout = _readable(dout.resolve_neg())
    tensors = (q, k, v, out, dout, dq, dk, dv)
    order = _order(q.is_cuda)
    key = (
        order,
        tuple(None if x is None else (x.shape, x.stride(), x.dtype, x.device) for x in tensors), causal, left, right, chunk, softcap,
        scale, None if query_starts is None else (query_starts.shape[0], longest_query, longest_key), query_counts is None,
        key_counts is None, None if sinks is None else sinks.dtype, None if ranges is None else ranges.shape, first_keys)
    calls: dict[Hashable, tuple[c.BackwardParams, list[c.Tensor], int]] = _remembered("backward")
    found = calls.get(key)
    if found is None:
        found = calls[key] = _call(
            tensors, order, (causal, left, right, chunk, softcap, scale, sinks, ranges, first_keys), query_starts, key_starts, query_counts, key_counts,
            longest_query, longest_key)
    call, places, size = found
    for place, x in zip(places, tensors):
        place.data = None if x is None else x.data_ptr()
    if sinks is not None:
        call.scores.sinks = sinks.data_ptr()
    if ranges is not None:
        call.scores.key_ranges = ranges.data_ptr()
    call.d_sinks = None if dsinks is None else dsinks.data_ptr()
    lse = lse.contiguous()
    call.log_sum_exp = lse.data_ptr()
    if dlse is not None:
        dlse = dlse.resolve_neg().contiguous()
    call.d_log_sum_exp = None if dlse is None else dlse.data_ptr()
    for name, x in (
        ("query_starts", query_starts), ("key_starts", key_starts), ("query_counts", query_counts), ("key_counts", key_counts)
    ):
        setattr(call, name, None if x is None else x.data_ptr())
    if q.is_cuda:
        call.stream = torch._C._cuda_getCurrentRawStream(q.device.index)
        # A graph that is captured owns its memory.
        workspace = torch.empty(size, dtype=torch.uint8, device=q.device)
        call.workspace, call.workspace_size = workspace.data_ptr(), size
    else:
        c.limit_threads(torch.get_num_threads())
    status = c.library.fa_backward_prepare(call) if _preparing and _prepares() else c.library.fa_backward(call)
    c.check(status, _PHRASES)


def _order(is_cuda: bool) -> int:
    """The order in which gradients may be added up. (On the CPU it is always one.)

    Raises:
        RuntimeError: any will do, and PyTorch was told to be deterministic.
    """
    if is_cuda and c.gradient_order == "any" and torch.are_deterministic_algorithms_enabled():
        message = (
            "set_gradient_order('any') lets gradients be added up in no fixed order, and torch.use_deterministic_algorithms(True) forbids "
            "that; call set_gradient_order('fixed').")
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(message)
        warnings.warn(message)
    return c.ORDERS[c.gradient_order]


def _readable(x: Tensor) -> Tensor:
    """A tensor that the library can read: elements side by side, rows at multiples of 16 bytes; otherwise a copy."""
    bytes_of = x.element_size()
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        return x.contiguous()
    if x.is_cuda and (x.data_ptr() % 16 or any(s * bytes_of % 16 for s, n in zip(x.stride()[:-1], x.shape) if n > 1)):
        return x.contiguous()
    return x


def _call(
    tensors: _Tensors, order: int, scores: _Scores, query_starts: Tensor | None, key_starts: Tensor | None,
    query_counts: Tensor | None, key_counts: Tensor | None, longest_query: int | None, longest_key: int | None
) -> tuple[c.BackwardParams, list[c.Tensor], int]:
    q, k, v = tensors[:3]
    is_packed = query_starts is not None
    device, ordinal = _device("q", q)
    batch = q.shape[0] if query_starts is None else query_starts.shape[0] - 1
    call = c.BackwardParams(
        size=ctypes.sizeof(c.BackwardParams), device=device, ordinal=ordinal, type=_type("q", q), order=order, batch=batch,
        queries=longest_query if is_packed else q.shape[1], keys=longest_key if is_packed else k.shape[1],
        total_queries=q.shape[0] if is_packed else 0, total_keys=k.shape[0] if is_packed else 0, query_heads=q.shape[-2],
        key_value_heads=k.shape[-2], dimension=q.shape[-1], value_dimension=v.shape[-1])
    _set_scores(call.scores, *scores)
    places = [getattr(call, name) for name in ("q", "k", "v", "o", "d_o", "dq", "dk", "dv")]
    for place, x in zip(places, tensors):
        if x is not None:
            _strides(place, x, is_packed)
    # What is given decides the plan; the addresses are those of a call.
    for name, x in (
        ("query_starts", query_starts), ("key_starts", key_starts), ("query_counts", query_counts), ("key_counts", key_counts)
    ):
        setattr(call, name, None if x is None else x.data_ptr())
    size = ctypes.c_size_t()
    if device == c.GPU:
        c.check(c.library.fa_backward_workspace(call, size), _PHRASES)
    return call, places, size.value
