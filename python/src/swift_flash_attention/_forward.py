"""The call on whole torch tensors: a struct that is filled once for a shape."""

from __future__ import annotations

import ctypes
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from . import _library as c
from ._torch import SCORES, _device, _preparing, _prepares, _remembered, _set_scores, _strides, _type, fits, unit_stride

if TYPE_CHECKING:
    from ._types import Known


def forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, left: int, right: int, chunk: int, softcap: float, scale: float | None,
    wants_lse: bool, out: Tensor | None = None, only_known: bool = False, sinks: Tensor | None = None,
    ranges: Tensor | None = None, first_keys: int = 0
) -> tuple[Tensor, Known] | Any:
    """``[B, N, H, D]`` tensors of one type; returns the output and the log-sum-exp, or None.

    Args:
        only_known: Whether to return None unless there was such a call before: its arguments were looked at then. (Elements that lie
            apart are never found, since they are copied first.)
    """
    if not only_known:
        # What is remembered lies so.
        q, k, v = unit_stride(q), unit_stride(k), unit_stride(v)
    key = (
        q.shape, q.stride(), q.dtype, q.device, k.shape, k.stride(), k.dtype, k.device, v.shape, v.stride(), v.dtype,
        v.device, causal, left, right, chunk, softcap, scale, None if sinks is None else sinks.dtype, None if ranges is None else ranges.shape,
        first_keys, None if out is None else out.stride())
    calls: dict[Hashable, _ForwardCall] = _remembered("forward")
    found = calls.get(key)
    if only_known and (found is None or q.is_neg() or k.is_neg() or v.is_neg()):
        return None
    if found is None:
        found = calls[key] = _forward_call(q, k, v, out, causal, left, right, chunk, softcap, scale, sinks, ranges, first_keys)
    call, q_place, k_place, v_place, o_place, out_shape = found
    if out is None:
        # What is like q costs half as much to make.
        out = (
            torch.empty_like(q, memory_format=torch.contiguous_format) if out_shape is None
            else torch.empty(out_shape, dtype=q.dtype, device=q.device))
    lse: Known = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32) if wants_lse else None
    q_place.data, k_place.data, v_place.data, o_place.data = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
    if sinks is not None:
        call.scores.sinks = sinks.data_ptr()
    if ranges is not None:
        call.scores.key_ranges = ranges.data_ptr()
    call.log_sum_exp = lse.data_ptr() if wants_lse else None
    if q.is_cuda:
        call.stream = torch._C._cuda_getCurrentRawStream(q.device.index)
    else:
        c.limit_threads(torch.get_num_threads())
    status = c.library.fa_forward_prepare(call) if _preparing and _prepares() else c.library.fa_forward(call)
    if status:
        c.check(status, SCORES)
    return out, lse


# A struct, the places in it of q, k, v and the output, whose views are made once (making one takes as long as an assignment), and the
# output's shape, or None where it is like q.
_ForwardCall: TypeAlias = tuple[c.ForwardParams, c.Tensor, c.Tensor, c.Tensor, c.Tensor, tuple[int, ...] | None]


def _forward_call(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor | None, causal: bool, left: int, right: int, chunk: int, softcap: float,
    scale: float | None, sinks: Tensor | None, ranges: Tensor | None, first_keys: int
) -> _ForwardCall:
    """The struct of a shape, and what is remembered with it."""
    b, n, h, d = q.shape
    _whole_shapes(q, k, v)
    device, ordinal = _device("q", q)
    dv = v.shape[-1]
    call = c.ForwardParams(
        size=ctypes.sizeof(c.ForwardParams), device=device, ordinal=ordinal, type=_type("q", q), batch=b, queries=n,
        keys=k.shape[1], query_heads=h, key_value_heads=k.shape[2], dimension=d, value_dimension=dv)
    _set_scores(call.scores, causal, left, right, chunk, softcap, scale, sinks, ranges, first_keys)
    for params, tensor in ((call.q, q), (call.k, k), (call.v, v)):
        _strides(params, tensor)
    if out is None:
        call.o.batch_stride, call.o.token_stride, call.o.head_stride = n * h * dv, h * dv, dv
    else:
        _strides(call.o, out)
    return call, call.q, call.k, call.v, call.o, None if dv == d and q.is_contiguous() else (b, n, h, dv)


def _whole_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"{name} has the shape {tuple(x.shape)}; it must be [batch, tokens, heads, dimension].")
    b, _, _, d = q.shape
    fits("k", k, (b, k.shape[1], k.shape[2], d), q, q.dtype)
    fits("v", v, (b, k.shape[1], k.shape[2], v.shape[-1]), q, q.dtype)
