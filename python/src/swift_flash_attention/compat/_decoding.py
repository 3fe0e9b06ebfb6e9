"""FlashAttention 3's decoding: attention over a cache, what puts parts together, and what a scheduler would be told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from swift_flash_attention import _arguments as given
from swift_flash_attention._library import ALL_KEYS
from swift_flash_attention._numbers import flag, whole
from swift_flash_attention._operators import KVCACHE, combine_op, needs_operator
from swift_flash_attention._overlap import overlaps_itself
from swift_flash_attention._sequences import sequences
from swift_flash_attention._torch import is_unlike, output_fits_parts, ranges_fit
from swift_flash_attention.compat._arguments_of_3 import (
    PACKED, UNLIMITED, WHOLE, are_plain, dense, equal_lengths, factors, most, over_cache, refuse, score_options,
    sinks_given, sinks_quickly, starts, whole_numbers)

if TYPE_CHECKING:
    from swift_flash_attention._types import Known, WholeNumbers


@overload
def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = ..., v: Tensor | None = ..., qv: Tensor | None = ...,
    rotary_cos: Tensor | None = ..., rotary_sin: Tensor | None = ..., cache_seqlens: int | WholeNumbers | None = ...,
    cache_batch_idx: WholeNumbers | None = ..., cache_leftpad: WholeNumbers | None = ..., page_table: WholeNumbers | None = ...,
    cu_seqlens_q: WholeNumbers | None = ..., cu_seqlens_k_new: WholeNumbers | None = ..., max_seqlen_q: int | None = ...,
    rotary_seqlens: WholeNumbers | None = ..., q_descale: Tensor | None = ..., k_descale: Tensor | None = ...,
    v_descale: Tensor | None = ..., softmax_scale: float | None = ..., causal: bool = ..., window_size: tuple[int, int] = ...,
    attention_chunk: int = ..., softcap: float = ..., rotary_interleaved: bool = ..., scheduler_metadata: Tensor | None = ...,
    num_splits: int = ..., pack_gqa: bool | None = ..., sm_margin: int = ..., return_softmax_lse: Literal[False] = ...,
    learnable_sink: Tensor | None = ..., s_aux: Tensor | None = ..., key_ranges: WholeNumbers | None = ...,
    prefix: WholeNumbers | None = ..., first_keys: int | None = ...,
) -> Tensor: ...
@overload
def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = ..., v: Tensor | None = ..., qv: Tensor | None = ...,
    rotary_cos: Tensor | None = ..., rotary_sin: Tensor | None = ..., cache_seqlens: int | WholeNumbers | None = ...,
    cache_batch_idx: WholeNumbers | None = ..., cache_leftpad: WholeNumbers | None = ..., page_table: WholeNumbers | None = ...,
    cu_seqlens_q: WholeNumbers | None = ..., cu_seqlens_k_new: WholeNumbers | None = ..., max_seqlen_q: int | None = ...,
    rotary_seqlens: WholeNumbers | None = ..., q_descale: Tensor | None = ..., k_descale: Tensor | None = ...,
    v_descale: Tensor | None = ..., softmax_scale: float | None = ..., causal: bool = ..., window_size: tuple[int, int] = ...,
    attention_chunk: int = ..., softcap: float = ..., rotary_interleaved: bool = ..., scheduler_metadata: Tensor | None = ...,
    num_splits: int = ..., pack_gqa: bool | None = ..., sm_margin: int = ..., *, return_softmax_lse: Literal[True],
    learnable_sink: Tensor | None = ..., s_aux: Tensor | None = ..., key_ranges: WholeNumbers | None = ...,
    prefix: WholeNumbers | None = ..., first_keys: int | None = ...,
) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...
@overload
def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = ..., v: Tensor | None = ..., qv: Tensor | None = ...,
    rotary_cos: Tensor | None = ..., rotary_sin: Tensor | None = ..., cache_seqlens: int | WholeNumbers | None = ...,
    cache_batch_idx: WholeNumbers | None = ..., cache_leftpad: WholeNumbers | None = ..., page_table: WholeNumbers | None = ...,
    cu_seqlens_q: WholeNumbers | None = ..., cu_seqlens_k_new: WholeNumbers | None = ..., max_seqlen_q: int | None = ...,
    rotary_seqlens: WholeNumbers | None = ..., q_descale: Tensor | None = ..., k_descale: Tensor | None = ...,
    v_descale: Tensor | None = ..., softmax_scale: float | None = ..., causal: bool = ..., window_size: tuple[int, int] = ...,
    attention_chunk: int = ..., softcap: float = ..., rotary_interleaved: bool = ..., scheduler_metadata: Tensor | None = ...,
    num_splits: int = ..., pack_gqa: bool | None = ..., sm_margin: int = ..., return_softmax_lse: bool = ...,
    learnable_sink: Tensor | None = ..., s_aux: Tensor | None = ..., key_ranges: WholeNumbers | None = ...,
    prefix: WholeNumbers | None = ..., first_keys: int | None = ...,
) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]: ...
def flash_attn_with_kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None = None, v: Tensor | None = None, qv: Tensor | None = None,
    rotary_cos: Tensor | None = None, rotary_sin: Tensor | None = None, cache_seqlens: int | WholeNumbers | None = None,
    cache_batch_idx: WholeNumbers | None = None, cache_leftpad: WholeNumbers | None = None, page_table: WholeNumbers | None = None,
    cu_seqlens_q: WholeNumbers | None = None, cu_seqlens_k_new: WholeNumbers | None = None, max_seqlen_q: int | None = None,
    rotary_seqlens: WholeNumbers | None = None, q_descale: Tensor | None = None, k_descale: Tensor | None = None,
    v_descale: Tensor | None = None, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = UNLIMITED, attention_chunk: int = 0, softcap: float = 0.0, rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None, num_splits: int = 0, pack_gqa: bool | None = None, sm_margin: int = 0,
    return_softmax_lse: bool = False, learnable_sink: Tensor | None = None, s_aux: Tensor | None = None,
    key_ranges: WholeNumbers | None = None, prefix: WholeNumbers | None = None, first_keys: int | None = None,
) -> Tensor | tuple[Tensor, Tensor, Tensor, Tensor]:
    """q ``(b, s_q, h, d)`` or packed; caches ``(b_cache, s_cache, h_k, d)`` or pages; k and v are appended in place first.

    With ``num_splits`` 0, work is divided as is fast. With 1, each sequence's keys are computed in one part, and with n in up to n
    parts of as many keys each, counted over all that the cache can hold (FlashAttention 3 counts over each length); the bits of a
    result then do not depend on the rest of its batch, but for ``max_seqlen_q``. (On the CPU they never do; they may
    with the number of threads, which divide long sequences.)

    Positions are those of ``cache_seqlens``, or of ``rotary_seqlens``, which means nothing without ``rotary_cos``, as in FlashAttention
    3. Ranges of keys are counted from a sequence's first, new keys included. Returns out, or (out, lse, out_accum, lse_accum), of which the last two are empty: parts are put together within the call.
    """
    is_plain = type(num_splits) is int and num_splits == 0 and are_plain(window_size, return_softmax_lse)
    if is_plain and qv is key_ranges is prefix is None and first_keys is None and (k is None) == (v is None):
        known = None
        try:
            tensors: tuple[Tensor | None, ...] = (q, k_cache, v_cache)
            if not (k is q_descale is k_descale is v_descale is rotary_cos is rotary_sin is None):
                tensors = (*tensors, k, v, q_descale, k_descale, v_descale, rotary_cos, rotary_sin)
            sinks, is_known = sinks_quickly(learnable_sink, s_aux, q)
            if is_known and not needs_operator(*tensors, sinks):
                # Lists that are no tensors raise here, or are not found, and are looked at below.
                known = sequences(
                    q, k_cache, v_cache, cache_seqlens, cache_batch_idx, cache_leftpad, page_table,  # type: ignore[arg-type]
                    cu_seqlens_q, None, max_seqlen_q, None, None, k, v, cu_seqlens_k_new, rotary_cos,  # type: ignore[arg-type]
                    rotary_sin, rotary_interleaved, rotary_seqlens, q_descale, k_descale, v_descale,  # type: ignore[arg-type]
                    softmax_scale, causal, *window_size, attention_chunk, softcap, 0, return_softmax_lse, False, KVCACHE, True,
                    sinks)
        except (AttributeError, TypeError, RuntimeError) as error:
            if not is_unlike(error, q, k_cache, v_cache, k, v):
                raise
        if known is not None:
            return (*known, *_no_parts(q)) if return_softmax_lse else known[0]
    if qv is not None:
        refuse(qv=qv)
    if k is not None:
        for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
            if isinstance(x, torch.Tensor) and given.is_lazy(x):
                raise ValueError(f"{name} is a lazily negated view, to which new keys cannot be appended; give the tensor itself.")
    if cu_seqlens_q is None:
        q, k_cache, v_cache = dense(("q", "k_cache", "v_cache"), (q, k_cache, v_cache), 4, WHOLE)
        batch = q.shape[0]
        if max_seqlen_q is not None and whole("max_seqlen_q", max_seqlen_q) < q.shape[1]:
            raise ValueError(f"max_seqlen_q is {max_seqlen_q}, and q has {q.shape[1]} tokens; leave it out.")
        max_seqlen_q = None
    else:
        (q,) = dense("q", (q,), 3, PACKED)
        k_cache, v_cache = dense(("k_cache", "v_cache"), (k_cache, v_cache), 4, WHOLE)
        cu_seqlens_q = starts("cu_seqlens_q", cu_seqlens_q, q)
        batch = cu_seqlens_q.shape[0] - 1
        if max_seqlen_q is not None:
            max_seqlen_q = most("max_seqlen_q", max_seqlen_q)
    options = score_options(softmax_scale, causal, window_size, attention_chunk, softcap)
    wants_lse = flag("return_softmax_lse", return_softmax_lse)
    if k_cache.stride(-1) != 1 or v_cache.stride(-1) != 1:
        raise ValueError("k_cache and v_cache must have elements side by side along the last axis.")
    capacity = k_cache.shape[1]
    if page_table is not None:
        page_table = given.int32("page_table", page_table, q)
        if page_table.dim() != 2:
            raise ValueError(f"page_table has the shape {tuple(page_table.shape)}; it must be [batch, pages of a sequence].")
        capacity *= page_table.shape[1]
    if (k is None) != (v is None):
        raise ValueError("New keys come with new values: give both k and v, or neither.")
    if k is not None:
        k, v, rotary_cos, rotary_sin, rotary_seqlens = _new_keys(
            q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, rotary_seqlens, cache_seqlens, cu_seqlens_k_new, batch,
            None if page_table is None else capacity)
        cu_seqlens_k_new = whole_numbers("cu_seqlens_k_new", cu_seqlens_k_new, q, (batch + 1,))
    else:
        for name, value in (
            ("rotary_cos", rotary_cos), ("rotary_sin", rotary_sin), ("cu_seqlens_k_new", cu_seqlens_k_new)
        ):
            if value is not None:
                raise ValueError(f"{name} is for new keys: give k and v with it.")
        rotary_seqlens = cu_seqlens_k_new = None
    if cache_seqlens is None:
        cache_seqlens = equal_lengths(capacity, batch, q.device)
    elif isinstance(cache_seqlens, int) or getattr(cache_seqlens, "ndim", None) == 0 or type(cache_seqlens).__name__ == "SymInt":
        cache_seqlens = _one_length(cache_seqlens, batch, capacity, q)
    else:
        cache_seqlens = given.int32("cache_seqlens", cache_seqlens, q, (batch,))
    if cache_batch_idx is not None:
        cache_batch_idx = given.int32("cache_batch_idx", cache_batch_idx, q)
        if page_table is not None:
            page_table, cache_batch_idx = _tables_of(page_table, cache_batch_idx, batch), None
    if cache_leftpad is not None:
        cache_leftpad = given.int32("cache_leftpad", cache_leftpad, q)
    if q_descale is not None or k_descale is not None or v_descale is not None:
        q_descale, k_descale, v_descale = factors(q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    out, lse = over_cache(
        q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx, cache_leftpad, page_table,
        cu_seqlens_q, cu_seqlens_k_new, max_seqlen_q, rotary_seqlens, q_descale, k_descale, v_descale,
        sinks_given(learnable_sink, s_aux, q), flag("rotary_interleaved", rotary_interleaved), *options, wants_lse, _keys_per_split(num_splits, capacity),
        ranges=ranges_fit(key_ranges, prefix, first_keys, q, batch))
    if not wants_lse:
        return out
    return out, lse, *_no_parts(q)


def _keys_per_split(num_splits: int, capacity: int) -> int:
    """The keys of each part, of as many as are wished; 0 for what is fast."""
    num_splits = whole("num_splits", num_splits)
    if type(num_splits) is int and num_splits < 0:
        raise ValueError(f"num_splits is {num_splits}; it must be 0, for what is fast, or more.")
    if num_splits == 0:
        return 0
    return ALL_KEYS if num_splits == 1 else max(-(-capacity // num_splits), 1)


def _no_parts(q: Tensor) -> tuple[Tensor, Tensor]:
    nothing = torch.empty(0, dtype=torch.float32, device=q.device)
    return nothing, nothing


def _tables_of(page_table: Tensor, index: Tensor, batch: int) -> Tensor:
    """The rows of a page table that belong to a call's sequences. (Numbers on a GPU are nobody's to look at: one that no row has gets
    pages that do not exist.)"""
    if index.shape != (batch,):
        raise ValueError(f"cache_batch_idx has the shape {tuple(index.shape)}; {(batch,)} is needed.")
    rows = page_table.shape[0]
    if not index.is_cuda and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < rows:
        raise ValueError(f"cache_batch_idx is {index.tolist()}; with page_table, it must be from 0 to {rows - 1}.")
    tables = page_table.index_select(0, index.clamp(0, max(rows - 1, 0)))
    return tables.masked_fill(((index < 0) | (index >= rows)).unsqueeze(1), -1) if index.is_cuda else tables


def _one_length(value: object, batch: int, capacity: int, q: Tensor) -> Tensor:
    """``cache_seqlens`` that is one number for all sequences."""
    length = whole("cache_seqlens", value)
    if type(length) is int and not 0 <= length <= capacity:
        raise ValueError(f"cache_seqlens is {length}; it must be from 0 to {capacity}, what the cache can hold.")
    return equal_lengths(length, batch, q.device)


def _new_keys(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Known, rotary_cos: Tensor | None, rotary_sin: Known,
    rotary_seqlens: WholeNumbers | None, cache_seqlens: int | WholeNumbers | None, cu_seqlens_k_new: WholeNumbers | None,
    batch: int, paged_capacity: int | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """New keys and values, tables and positions as the call needs them.

    Args:
        paged_capacity: The most keys of a sequence where they are on pages; else None.
    """
    axes, shape = (4, WHOLE) if cu_seqlens_k_new is None else (3, PACKED)
    k, v = dense("kv", (k, v), axes, shape)
    if cache_seqlens is None:
        raise ValueError("New keys are appended behind those that the cache has: give cache_seqlens with k and v.")
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        if x.numel() and overlaps_itself(x.shape, x.stride()):
            raise ValueError(f"{name} has the strides {x.stride()}, so that its elements share memory; new keys cannot be appended to it.")
    if (rotary_cos is None) != (rotary_sin is None):
        raise ValueError("A rotary embedding has two tables: give both rotary_cos and rotary_sin, or neither.")
    if rotary_cos is None:
        rotary_seqlens = None
    else:
        rotary_cos, rotary_sin = dense(
            ("rotary_cos", "rotary_sin"), (rotary_cos, rotary_sin), 2, "[positions, rotary dimension / 2]")
        # As in FlashAttention 3, whatever the lengths are: those on a GPU are not known here.
        if paged_capacity is not None and rotary_cos.shape[0] < paged_capacity:
            raise ValueError(
                f"rotary_cos has {rotary_cos.shape[0]} rows; with page_table, sequences can have {paged_capacity} keys, and each "
                "position needs a row.")
        rotary_seqlens = whole_numbers("rotary_seqlens", rotary_seqlens, q, (batch,))
    if k.dtype == v.dtype == torch.float8_e4m3fn == k_cache.dtype:
        # Every e4m3 number is a bf16 number too, and comes back as it was.
        k, v = k.to(torch.bfloat16), v.to(torch.bfloat16)
        if rotary_cos is not None and rotary_cos.dtype == torch.float8_e4m3fn:
            rotary_cos, rotary_sin = rotary_cos.to(torch.bfloat16), rotary_sin.to(torch.bfloat16)
    return k, v, rotary_cos, rotary_sin, rotary_seqlens


def flash_attn_combine(
    out_partial: Tensor, lse_partial: Tensor, out: Tensor | None = None, out_dtype: torch.dtype | None = None,
    learnable_sink: Tensor | None = None, s_aux: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """out_partial ``(S, b, s, h, d)`` float32, lse_partial ``(S, b, s, h)``, -inf (or +inf, as FlashAttention 2 has it) where a part has
    no keys for a query. Returns out ``(b, s, h, d)`` and lse ``(b, s, h)``.

    Sinks (``learnable_sink`` or ``s_aux``, ``(h,)``) belong here, once, and not into what makes the parts."""
    out_partial = given.tensor("out_partial", out_partial, 5, "[parts, batch, tokens, heads, dimension]")
    lse_partial = given.tensor("lse_partial", lse_partial, 4, "[parts, batch, tokens, heads]")
    shape = tuple(out_partial.shape[1:])
    for name, x in (("out_partial", out_partial), ("lse_partial", lse_partial)):
        if x.dtype != torch.float32:
            raise ValueError(f"{name} is {x.dtype}; it must be torch.float32.")
    if lse_partial.shape != out_partial.shape[:4]:
        raise ValueError(f"lse_partial has the shape {tuple(lse_partial.shape)}; {tuple(out_partial.shape[:4])} is needed.")
    if lse_partial.device != out_partial.device:
        raise ValueError(f"lse_partial is on {lse_partial.device}, and out_partial on {out_partial.device}.")
    sinks = sinks_given(learnable_sink, s_aux, out_partial)
    if out is not None:
        output_fits_parts(given.tensor("out", out), shape, out_partial)
        if out_dtype is not None and out.dtype != out_dtype:
            raise ValueError(f"out is {out.dtype}, and out_dtype {out_dtype}; give one of them.")
        if torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in (out_partial, lse_partial, out, sinks)
        ):
            raise NotImplementedError("out cannot be given where gradients are wanted; leave it out, or call under torch.no_grad().")
    dtype = out.dtype if out is not None else out_dtype or torch.float32
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"{'out' if out is not None else 'out_dtype'} is {dtype}; it must be float32, float16 or bfloat16.")
    needs_operator(out_partial, sinks)
    result, lse = combine_op(out_partial, lse_partial, dtype, sinks)
    return (result if out is None else out.copy_(result)), lse


def get_scheduler_metadata(
    batch_size: int, max_seqlen_q: int, max_seqlen_k: int, num_heads_q: int, num_heads_kv: int, headdim: int,
    cache_seqlens: WholeNumbers, qkv_dtype: torch.dtype = torch.bfloat16, headdim_v: int | None = None,
    cu_seqlens_q: WholeNumbers | None = None, cu_seqlens_k_new: WholeNumbers | None = None,
    cache_leftpad: WholeNumbers | None = None, page_size: int | None = None, max_seqlen_k_new: int = 0, causal: bool = False,
    window_size: tuple[int, int] = UNLIMITED, attention_chunk: int = 0, has_softcap: bool = False, num_splits: int = 0,
    pack_gqa: bool | None = None, sm_margin: int = 0,
) -> Tensor:
    """A tensor to hand to ``scheduler_metadata``. Work is shared out on the GPU itself, so that there is nothing in it."""
    device = cache_seqlens.device if isinstance(cache_seqlens, torch.Tensor) else None
    return torch.zeros(1, dtype=torch.int32, device=device)
