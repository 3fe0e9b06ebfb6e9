"""The call on sequences of torch tensors, over caches, pages or packed keys: a struct that is filled once for a shape, and workspaces."""

from __future__ import annotations

import ctypes
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from . import _library as c
from ._torch import (
    _TYPES, SCORES, Words, _device, _elsewhere, _preparing, _prepares, _remembered, _set_scores, _strides, _type, fits, is_elsewhere,
    unit_stride)

if TYPE_CHECKING:
    from ._types import Known

_WORDS = Words({"new_k": "k", "new_v": "v"}, SCORES)


def _workspace(byte_count: int, device: torch.device, stream: int, is_shared: bool) -> Tensor:
    """Memory whose counters are zero between calls: one for all calls of a thread in a stream, or one of its own. (Calls of two
    threads may come between each other's launches.)"""
    workspaces: dict[Hashable, Tensor] = _remembered("workspaces")
    key = (device, stream, None if is_shared else byte_count)
    memory = workspaces.get(key)
    if memory is None or memory.numel() < byte_count:
        memory = torch.zeros(max(byte_count, 16 << 20) if is_shared else byte_count, dtype=torch.uint8, device=device)
        workspaces[key] = memory
    return memory


def is_captured(ordinal: int | None) -> bool:
    """Whether what is put into the current stream of a GPU goes into a graph; None for the current one."""
    if ordinal is None or ordinal == _cuda_device():
        return _cuda_is_capturing()
    before = torch._C._cuda_exchangeDevice(ordinal)
    try:
        return _cuda_is_capturing()
    finally:
        torch._C._cuda_maybeExchangeDevice(before)


# Looked up once: every call asks them. (A build of torch without CUDA has none of them, and never asks.)
if TYPE_CHECKING:
    from torch._C import _cuda_getCurrentRawStream as _cuda_stream, _cuda_getDevice as _cuda_device
    from torch._C import _cuda_isCurrentStreamCapturing as _cuda_is_capturing
else:
    _cuda_is_capturing, _cuda_device, _cuda_stream = (
        getattr(torch._C, name, None) for name in ("_cuda_isCurrentStreamCapturing", "_cuda_getDevice", "_cuda_getCurrentRawStream"))


def _recorded_workspace(
    call: c.SequencesParams, byte_count: int, device: torch.device, stream: int, size: int
) -> Tensor:
    """Memory for a call that somebody records or captures, and who owns it; the counters are the library's, which has some for each
    graph, so that nothing need be zeroed when it is replayed."""
    memory = torch.empty(byte_count, dtype=torch.uint8, device=device)
    counters = ctypes.c_void_p()
    c.check(c.library.fa_counters(device.index, stream, size, counters))
    call.counters, call.counters_size = counters, size
    return memory


_Lists: TypeAlias = "tuple[Known, ...]"
# See _sequences_call.
_SequencesCall: TypeAlias = tuple[
    c.SequencesParams, c.Tensor, c.Tensor, c.Tensor, c.Tensor, list[tuple[str, int, torch.dtype]], int, int, bool,
    tuple[int, ...] | None, torch.dtype]
_LISTS = (
    "lengths", "batch_index", "left_padding", "page_table", "query_starts", "query_counts", "key_starts", "new_key_starts",
    "positions")
_SCALES = ("query_scales", "key_scales", "value_scales")


def sequences(
    q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None = None, batch_index: Tensor | None = None,
    left_padding: Tensor | None = None, page_table: Tensor | None = None, query_starts: Tensor | None = None,
    query_counts: Tensor | None = None, longest_query: int | None = None, key_starts: Tensor | None = None,
    longest_key: int | None = None, new_k: Tensor | None = None, new_v: Known = None,
    new_key_starts: Tensor | None = None, cosines: Tensor | None = None, sines: Known = None, interleaved: bool = True,
    positions: Tensor | None = None, query_scales: Tensor | None = None, key_scales: Tensor | None = None,
    value_scales: Tensor | None = None, scale: float | None = None, causal: bool = False, left: int = -1, right: int = -1,
    chunk: int = 0, softcap: float = 0.0, keys_per_split: int = 0, wants_lse: bool = False, is_recorded: bool = False,
    words: Words = _WORDS, only_known: bool = False, sinks: Tensor | None = None, ranges: Tensor | None = None,
    first_keys: int = 0
) -> tuple[Tensor, Known] | Any:
    """``fa_sequences``: queries ``[B, s, H, D]`` or packed ``[total, H, D]``, over ``[B, S, H_kv, D]``, pages, or packed keys.

    Args:
        is_recorded: Whether the call may be a part of a graph that owns its memory.
        words: How the caller speaks of what it was given.
        only_known: Whether to return None unless there was such a call before: its arguments were looked at then. (Numbers in
            tensors are never found, since none is remembered.)
    """
    q = unit_stride(q)
    lists: _Lists = (
        lengths, batch_index, left_padding, page_table, query_starts, query_counts, key_starts, new_key_starts, positions)
    scales: _Lists = (query_scales, key_scales, value_scales)
    # All that the struct is made from but addresses.
    key = (
        q.shape, q.stride(), q.dtype, q.device, k.shape, k.stride(), k.dtype, v.shape, v.stride(), v.dtype,
        lengths is None or lengths.shape, batch_index is None or batch_index.shape,
        left_padding is None or left_padding.shape, page_table is None or page_table.shape,
        query_starts is None or query_starts.shape, query_counts is None or query_counts.shape,
        key_starts is None or key_starts.shape, new_key_starts is None or new_key_starts.shape,
        positions is None or positions.shape, query_scales is None or query_scales.shape,
        key_scales is None or key_scales.shape, value_scales is None or value_scales.shape, longest_query, longest_key,
        new_k is None or (new_k.shape, new_k.stride(), new_v.shape, new_v.stride(), new_k.dtype, new_v.dtype),
        cosines is None or (cosines.shape, sines.shape, cosines.dtype, sines.dtype, interleaved), scale, causal, left,
        right, chunk, softcap, keys_per_split, None if sinks is None else sinks.dtype, None if ranges is None else ranges.shape, first_keys)
    is_cuda = q.is_cuda
    # Each call, as another GPU's memory would look the same to all that is remembered.
    ordinal = q.get_device()
    if k.get_device() != ordinal or v.get_device() != ordinal or ordinal < 0 and not (k.is_cpu and v.is_cpu):
        name, x = ("k", k) if is_elsewhere(k, ordinal) else ("v", v)
        raise _elsewhere(words.of(name), x, q)
    calls: dict[Hashable, _SequencesCall] = _remembered("sequences")
    found = calls.get(key)
    if only_known and (found is None or q.is_neg() or k.is_neg() or v.is_neg()):
        return None
    if found is None:
        found = calls[key] = _sequences_call(
            q, k, v, lists, scales, longest_query, longest_key, new_k, new_v, cosines, sines, interleaved, scale, causal,
            left, right, chunk, softcap, keys_per_split, words, sinks, ranges, first_keys)
    call, q_place, k_place, v_place, o_place, given, workspace_size, counters_size, is_shared, out_shape, out_dtype = found
    # What is like q costs half as much to make.
    out = torch.empty(out_shape, dtype=out_dtype, device=q.device) if out_shape is not None else torch.empty_like(
        q, memory_format=torch.contiguous_format)
    q_place.data, k_place.data, v_place.data, o_place.data = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
    lse = None
    if wants_lse:
        shape = (q.shape[1], q.shape[0]) if query_starts is not None else (q.shape[0], q.shape[2], q.shape[1])
        lse = torch.empty(shape, dtype=torch.float32, device=q.device)
        call.log_sum_exp = lse.data_ptr()
    else:
        call.log_sum_exp = None
    for name, index, dtype in given:
        value = lists[index] if index < len(lists) else scales[index - len(lists)]
        if value.dtype is not dtype or not value.is_contiguous() or value.is_neg():
            if only_known:
                return None
            raise ValueError(
                f"{words.of(name)} must be contiguous {dtype}; it is {value.dtype} with strides {value.stride()}.")
        if value.get_device() != ordinal or ordinal < 0 and not value.is_cpu:
            raise _elsewhere(words.of(name), value, q)
        if type(value) is not torch.Tensor:
            raise TypeError(f"{words.of(name)} is a {type(value).__name__}, and the queries are none; give a torch.Tensor.")
        setattr(call, name, value.data_ptr())
    if sinks is not None:
        call.scores.sinks = sinks.data_ptr()
    if ranges is not None:
        call.scores.key_ranges = ranges.data_ptr()
    if new_k is not None:
        for name, new in (("new_k", new_k), ("new_v", new_v), ("cosines", cosines), ("sines", sines)):
            if new is not None and is_elsewhere(new, ordinal):
                raise _elsewhere(words.of(name), new, q)
        if k_place.data == v_place.data and k.numel():
            raise ValueError(f"{words.of('k')} and {words.of('v')} are one memory, to which keys and values cannot both be appended.")
        call.new_k.data, call.new_v.data = new_k.data_ptr(), new_v.data_ptr()
        if cosines is not None:
            if not (cosines.is_contiguous() and sines.is_contiguous()):
                raise ValueError(f"{words.of('cosines')} and {words.of('sines')} must be contiguous.")
            call.cosines, call.sines = cosines.data_ptr(), sines.data_ptr()
    if is_cuda:
        stream = _cuda_stream(ordinal)
        call.stream = stream
        if workspace_size > 0:
            if is_recorded or (_cuda_is_capturing() if _cuda_device() == ordinal else is_captured(ordinal)):
                memory = _recorded_workspace(call, workspace_size, q.device, stream, counters_size)
            else:
                memory = _workspace(workspace_size, q.device, stream, is_shared)
                call.counters, call.counters_size = None, 0
            call.workspace, call.workspace_size = memory.data_ptr(), memory.numel()
    else:
        c.limit_threads(torch.get_num_threads())
    status = c.library.fa_sequences_prepare(call) if _preparing and _prepares() else c.library.fa_sequences(call)
    if status:
        c.check(status, words.phrases)
    return out, lse


def _sequences_call(
    q: Tensor, k: Tensor, v: Tensor, in_order: _Lists, scales: _Lists, longest_query: int | None,
    longest_key: int | None, new_k: Tensor | None, new_v: Known, cosines: Tensor | None, sines: Known,
    interleaved: bool, scale: float | None, causal: bool, left: int, right: int, chunk: int, softcap: float, keys_per_split: int,
    words: Words, sinks: Tensor | None, ranges: Tensor | None, first_keys: int
) -> _SequencesCall:
    """The struct of a shape and its tensors, which lists it has, its workspace and counters, and its output."""
    lists = dict(zip(_LISTS, in_order))
    packed_queries, packed_keys = lists["query_starts"] is not None, lists["key_starts"] is not None
    paged, packed_new = lists["page_table"] is not None, lists["new_key_starts"] is not None
    device, ordinal = _device(words.of("q"), q)
    if packed_queries:
        (total, h, d), batch = q.shape, lists["query_starts"].shape[0] - 1
        if longest_query is None:
            raise ValueError(f"Packed queries need {words.of('longest_query')}, the most queries of a sequence.")
    else:
        batch, longest_query, h, d = q.shape
        total = 0
    if k.dtype != v.dtype:
        raise ValueError(
            f"{words.of('k')} is {k.dtype} and {words.of('v')} is {v.dtype}; keys and values must have one type.")
    is_e4m3 = q.dtype == torch.float8_e4m3fn
    out_dtype = (new_k.dtype if new_k is not None else torch.bfloat16) if is_e4m3 else q.dtype
    heads = k.shape[-2]
    if not (is_e4m3 or k.dtype in (q.dtype, torch.float8_e4m3fn)):
        raise ValueError(f"{words.of('k')} is {k.dtype}, and {words.of('q')} is {q.dtype}; they must have one type.")
    fits(words.of("v"), v, (*k.shape[:-1], v.shape[-1]), q)
    if k.shape[-1] != d:
        raise ValueError(f"{words.of('k')} has the head dimension {k.shape[-1]}, and {words.of('q')} {d}.")
    call = c.SequencesParams(
        size=ctypes.sizeof(c.SequencesParams), device=device, ordinal=ordinal, type=_TYPES[out_dtype],
        query_type=_type(words.of("q"), q), cache_type=_type(words.of("k"), k), batch=batch, queries=longest_query, total_queries=total,
        query_heads=h, key_value_heads=heads, dimension=d, value_dimension=v.shape[-1], keys_per_split=keys_per_split)
    if packed_keys:
        call.cache, call.cache_tokens, call.longest = c.PACKED, k.shape[0], longest_key
    else:
        call.cache, call.cache_batch, call.cache_tokens = c.PAGED if paged else c.CONTIGUOUS, k.shape[0], k.shape[1]
        if paged:
            call.pages_per_sequence = lists["page_table"].shape[1]
    for name, extent in (
        ("lengths", batch), ("batch_index", batch), ("left_padding", batch), ("query_counts", batch),
        ("key_starts", batch + 1), ("new_key_starts", batch + 1), ("positions", batch),
    ):
        if lists[name] is not None:
            fits(words.of(name), lists[name], (extent,), q, torch.int32)
    if paged:
        fits(words.of("page_table"), lists["page_table"], (batch, lists["page_table"].shape[1]), q, torch.int32)
    for name, value in zip(_SCALES, scales):
        if value is not None:
            fits(words.of(name), value, (batch, heads), q, torch.float32)
            if (q if name == "query_scales" else k).dtype != torch.float8_e4m3fn:
                raise ValueError(f"{words.of(name)} is a factor of float8_e4m3fn numbers, and there are none; leave it out.")
    _set_scores(call.scores, causal, left, right, chunk, softcap, scale, sinks, ranges, first_keys)
    _strides(call.q, q, packed_queries)
    _strides(call.k, k, packed_keys)
    _strides(call.v, v, packed_keys)
    dv = v.shape[-1]
    call.o.batch_stride, call.o.token_stride, call.o.head_stride = longest_query * h * dv, h * dv, dv
    if new_k is not None:
        if new_k.dtype != out_dtype:
            raise ValueError(f"{words.of('new_k')} is {new_k.dtype}; new keys and values must be {out_dtype} here.")
        lead = (new_k.shape[0],) if packed_new else (batch, new_k.shape[1])
        fits(words.of("new_k"), new_k, (*lead, heads, d), q)
        fits(words.of("new_v"), new_v, (*lead, heads, dv), q, out_dtype)
        capacity = k.shape[1] * (lists["page_table"].shape[1] if paged else 1)
        call.new_keys = min(new_k.shape[0], capacity) if packed_new else new_k.shape[1]
        call.total_new_keys = new_k.shape[0] if packed_new else 0
        _strides(call.new_k, new_k, packed_new)
        _strides(call.new_v, new_v, packed_new)
        call.new_k.data, call.new_v.data = new_k.data_ptr(), new_v.data_ptr()
    if cosines is not None:
        if new_k is None:
            raise ValueError(
                f"{words.of('cosines')} turns new keys and the queries: give {words.of('new_k')} and {words.of('new_v')} with it.")
        if cosines.dim() != 2:
            raise ValueError(
                f"{words.of('cosines')} has the shape {tuple(cosines.shape)}; it must be [positions, rotary dimension / 2].")
        fits(words.of("cosines"), cosines, cosines.shape, q, out_dtype)
        fits(words.of("sines"), sines, cosines.shape, q, out_dtype)
        call.rotary_dimension, call.rotary_positions = 2 * cosines.shape[1], cosines.shape[0]
        call.rotary_interleaved = int(interleaved)
    # What is given decides the plan; the addresses are those of this call.
    for name, value in (*lists.items(), *zip(_SCALES, scales)):
        if value is not None:
            setattr(call, name, value.data_ptr())
    size, counters_size, is_shared = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_int32()
    c.check(c.library.fa_sequences_workspace(call, size), words.phrases)
    c.check(c.library.fa_sequences_counters(call, counters_size, is_shared), words.phrases)
    given = [
        (name, index, torch.float32 if name in _SCALES else torch.int32)
        for index, name in enumerate((*_LISTS, *_SCALES))
        if {**lists, **dict(zip(_SCALES, scales))}[name] is not None
    ]
    # Views of the struct's parts are made once: making one takes as long as an assignment.
    out_shape = None if dv == d and out_dtype == q.dtype and q.is_contiguous() else (*q.shape[:-1], dv)
    return call, call.q, call.k, call.v, call.o, given, size.value, counters_size.value, is_shared.value == 1, out_shape, out_dtype
