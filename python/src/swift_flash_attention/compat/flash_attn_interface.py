"""FlashAttention 3's ``flash_attn_interface``: the same names, arguments, defaults and results.

``num_splits``, ``pack_gqa``, ``sm_margin``, ``deterministic`` and ``scheduler_metadata`` are hints that change no result; they are
taken and not needed. What is not supported raises ``NotImplementedError`` and names the argument.
"""

import ctypes

import torch

from swift_flash_attention import _library as c
from swift_flash_attention._torch import (
    forward, forward_op, kvcache_op, needs_operator, sequences, unit_stride, varlen_op)

__all__ = [
    "flash_attn_combine", "flash_attn_func", "flash_attn_qkvpacked_func", "flash_attn_varlen_func",
    "flash_attn_with_kvcache", "get_scheduler_metadata"]


def _refuse(**arguments):
    for name, value in arguments.items():
        if value is not None:
            raise NotImplementedError(f"{name} is not supported by swift_flash_attention.")


def _side(value):
    """A side of a window; an integer or a tensor of one element."""
    return int(value) if value is not None else -1


def _scales(scales):
    """Scales ``[b, h_k]``, which may be expanded, as they are needed."""
    return None if scales is None else scales.contiguous()


def _lengths(value, batch, device):
    """The same number for all sequences. (Not kept: a graph may come to own it, and another stream must not see it unfilled.)"""
    return torch.full((batch,), value, dtype=torch.int32, device=device)


def flash_attn_func(
    q, k, v, softmax_scale=None, causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None,
    window_size=(-1, -1), attention_chunk=0, softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0,
    return_attn_probs=False,
):
    """q ``(b, s_q, h, d)``, k ``(b, s_k, h_k, d)``, v ``(b, s_k, h_k, dv)``. Returns out, or (out, lse ``(b, h, s_q)``)."""
    _refuse(qv=qv)
    left, right = _side(window_size[0]), _side(window_size[1])
    if q.dtype == torch.float8_e4m3fn or k.dtype == torch.float8_e4m3fn:
        arguments = (None,) * 4 + (_lengths(k.shape[1], q.shape[0], q.device),) + (None,) * 7
        out, lse = _kvcache(
            q, unit_stride(k), unit_stride(v), *arguments, q_descale, k_descale, v_descale, True, causal, left, right,
            attention_chunk, softcap, softmax_scale, return_attn_probs)
        return (out, lse) if return_attn_probs else out
    arguments = (causal, left, right, attention_chunk, softcap, softmax_scale)
    if needs_operator(q, k, v):
        out, lse = forward_op(q, k, v, *arguments)
    else:
        out, lse = forward(unit_stride(q), unit_stride(k), unit_stride(v), *arguments, return_attn_probs)
    return (out, lse) if return_attn_probs else out


def flash_attn_qkvpacked_func(
    qkv, softmax_scale=None, causal=False, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1),
    attention_chunk=0, softcap=0.0, deterministic=False, num_heads_q=None, sm_margin=0, return_attn_probs=False,
):
    """qkv ``(b, s, 3, h, d)``, or ``(b, s, h_q + 2 h_k, d)`` with ``num_heads_q``."""
    if qkv.dim() == 5:
        q, k, v = qkv.unbind(dim=-3)
    else:
        if num_heads_q is None:
            raise ValueError("qkv of four axes needs num_heads_q, the number of query heads among its heads.")
        heads = (qkv.shape[2] - num_heads_q) // 2
        q, k, v = qkv.split([num_heads_q, heads, heads], dim=-2)
    return flash_attn_func(
        q, k, v, softmax_scale=softmax_scale, causal=causal, q_descale=q_descale, k_descale=k_descale, v_descale=v_descale,
        window_size=window_size, attention_chunk=attention_chunk, softcap=softcap, deterministic=deterministic,
        sm_margin=sm_margin, return_attn_probs=return_attn_probs)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None, softmax_scale=None,
    causal=False, qv=None, q_descale=None, k_descale=None, v_descale=None, window_size=(-1, -1), attention_chunk=0,
    softcap=0.0, num_splits=1, pack_gqa=None, deterministic=False, sm_margin=0, return_attn_probs=False,
):
    """q ``(total_q, h, d)``, k ``(total_k, h_k, d)``, v ``(total_k, h_k, dv)``. Returns out, or (out, lse ``(h, total_q)``).

    Rows that ``seqused_q`` leaves out are not written: they may be anything.
    """
    _refuse(qv=qv)
    left, right = _side(window_size[0]), _side(window_size[1])
    scales = [_scales(x) for x in (q_descale, k_descale, v_descale)]
    if needs_operator(q, k, v):
        out, lse = varlen_op(
            q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q, max_seqlen_k, *scales, causal, left,
            right, attention_chunk, softcap, softmax_scale)
    else:
        out, lse = sequences(
            unit_stride(q), unit_stride(k), unit_stride(v), lengths=seqused_k, query_starts=cu_seqlens_q,
            query_counts=seqused_q, longest_query=max_seqlen_q, key_starts=cu_seqlens_k, longest_key=max_seqlen_k,
            query_scales=scales[0], key_scales=scales[1], value_scales=scales[2], scale=softmax_scale, causal=causal,
            left=left, right=right, chunk=attention_chunk, softcap=softcap, wants_lse=return_attn_probs)
    return (out, lse) if return_attn_probs else out


def _kvcache(
    q, k_cache, v_cache, k, v, cosines, sines, lengths, batch_index, left_padding, page_table, query_starts,
    new_key_starts, longest_query, positions, q_descale, k_descale, v_descale, interleaved, causal, left, right, chunk,
    softcap, scale, wants_lse,
):
    if q_descale is not None or k_descale is not None or v_descale is not None:
        q_descale, k_descale, v_descale = _scales(q_descale), _scales(k_descale), _scales(v_descale)
    if needs_operator(q, k, v):
        return kvcache_op(
            q, k_cache, v_cache, k, v, cosines, sines, lengths, batch_index, left_padding, page_table, query_starts,
            new_key_starts, longest_query, positions, q_descale, k_descale, v_descale, interleaved, causal, left, right, chunk, softcap, scale)
    # By place: names cost a call that takes microseconds a tenth more.
    return sequences(
        unit_stride(q), k_cache, v_cache, lengths, batch_index, left_padding, page_table, query_starts, None, longest_query,
        None, None, k if k is None else unit_stride(k), v if v is None else unit_stride(v), new_key_starts, cosines, sines,
        interleaved, positions, q_descale, k_descale, v_descale, scale, causal, left, right, chunk, softcap, 0, wants_lse)


def flash_attn_with_kvcache(
    q, k_cache, v_cache, k=None, v=None, qv=None, rotary_cos=None, rotary_sin=None, cache_seqlens=None,
    cache_batch_idx=None, cache_leftpad=None, page_table=None, cu_seqlens_q=None, cu_seqlens_k_new=None,
    max_seqlen_q=None, rotary_seqlens=None, q_descale=None, k_descale=None, v_descale=None, softmax_scale=None,
    causal=False, window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True, scheduler_metadata=None,
    num_splits=0, pack_gqa=None, sm_margin=0, return_softmax_lse=False,
):
    """q ``(b, s_q, h, d)`` or packed; caches ``(b_cache, s_cache, h_k, d)`` or pages; k and v are appended in place first.

    Returns out, or (out, lse, out_accum, lse_accum), of which the last two are empty: parts are put together within the call.
    """
    if qv is not None:
        _refuse(qv=qv)
    if k_cache.stride(-1) != 1 or v_cache.stride(-1) != 1:
        raise ValueError("k_cache and v_cache must have elements side by side along the last axis.")
    if (k is None) != (v is None):
        raise ValueError("New keys come with new values: give both k and v, or neither.")
    if k is not None and cache_seqlens is None:
        raise ValueError("New keys are appended behind those that the cache has: give cache_seqlens with k and v.")
    batch = q.shape[0] if cu_seqlens_q is None else cu_seqlens_q.shape[0] - 1
    if cache_seqlens is None:
        cache_seqlens = k_cache.shape[1] * (1 if page_table is None else page_table.shape[1])
    if isinstance(cache_seqlens, int):
        cache_seqlens = _lengths(cache_seqlens, batch, q.device)
    if page_table is not None:
        if cache_batch_idx is not None:
            page_table, cache_batch_idx = page_table.index_select(0, cache_batch_idx), None
        page_table = page_table.contiguous()
    out, lse = _kvcache(
        q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx, cache_leftpad, page_table,
        cu_seqlens_q, cu_seqlens_k_new, max_seqlen_q, rotary_seqlens, q_descale, k_descale, v_descale, rotary_interleaved,
        causal, *((-1, -1) if window_size == (-1, -1) else (_side(window_size[0]), _side(window_size[1]))),
        attention_chunk, softcap, softmax_scale, return_softmax_lse)
    if not return_softmax_lse:
        return out
    nothing = torch.empty(0, dtype=torch.float32, device=q.device)
    return out, lse, nothing, nothing


def flash_attn_combine(out_partial, lse_partial, out=None, out_dtype=None):
    """out_partial ``(S, b, s, h, d)`` float32, lse_partial ``(S, b, s, h)``. Returns out ``(b, s, h, d)`` and lse ``(b, s, h)``."""
    parts, batch, queries, heads, dimension = out_partial.shape
    if out_partial.dtype != torch.float32 or lse_partial.dtype != torch.float32:
        raise ValueError("out_partial and lse_partial must be float32.")
    if tuple(lse_partial.shape) != (parts, batch, queries, heads):
        raise ValueError(f"lse_partial has the shape {tuple(lse_partial.shape)}; {(parts, batch, queries, heads)} is needed.")
    if lse_partial.device != out_partial.device:
        raise ValueError(f"lse_partial is on {lse_partial.device}, and out_partial on {out_partial.device}.")
    if out is not None:
        if tuple(out.shape) != (batch, queries, heads, dimension) or out.device != out_partial.device:
            raise ValueError(f"out must have the shape {(batch, queries, heads, dimension)} and be on {out_partial.device}.")
        if out_dtype is not None and out.dtype != out_dtype:
            raise ValueError(f"out is {out.dtype}, and out_dtype {out_dtype}; give one of them.")
    out_partial = unit_stride(out_partial)
    result = out if out is not None else torch.empty(
        (batch, queries, heads, dimension), dtype=out_dtype or torch.float32, device=out_partial.device)
    # The kernel wants rows of whole 16 bytes; others are padded.
    padded = result
    if dimension % 8:
        out_partial = torch.nn.functional.pad(out_partial, (0, -dimension % 8))
    if dimension % 8 or result.stride(-1) != 1:
        padded = torch.empty((batch, queries, heads, out_partial.shape[-1]), dtype=result.dtype, device=result.device)
    own = lse_partial.transpose(-1, -2).contiguous()
    lse = torch.empty((batch, heads, queries), dtype=torch.float32, device=result.device)
    on_gpu = result.is_cuda
    types = {torch.float32: c.F32, torch.float16: c.F16, torch.bfloat16: c.BF16}
    params = c.CombineParams(
        size=ctypes.sizeof(c.CombineParams), device=c.GPU if on_gpu else c.CPU,
        ordinal=result.device.index or 0 if on_gpu else 0, type=types[result.dtype], parts=parts, batch=batch,
        queries=queries, heads=heads, dimension=padded.shape[-1], part_stride=out_partial.stride(0),
        log_sum_exps=own.data_ptr(), log_sum_exp=lse.data_ptr())
    params.partials = c.Tensor(out_partial.data_ptr(), *out_partial.stride()[1:4])
    params.o = c.Tensor(padded.data_ptr(), *padded.stride()[:3])
    if on_gpu:
        params.stream = torch.cuda.current_stream(result.device).cuda_stream
    c.check(c.library.fa_combine(params))
    if padded is not result:
        result.copy_(padded[..., :dimension])
    return result, lse.transpose(-1, -2)


def get_scheduler_metadata(
    batch_size, max_seqlen_q, max_seqlen_k, num_heads_q, num_heads_kv, headdim, cache_seqlens, qkv_dtype=torch.bfloat16,
    headdim_v=None, cu_seqlens_q=None, cu_seqlens_k_new=None, cache_leftpad=None, page_size=None, max_seqlen_k_new=0,
    causal=False, window_size=(-1, -1), attention_chunk=0, has_softcap=False, num_splits=0, pack_gqa=None, sm_margin=0,
):
    """A tensor to hand to ``scheduler_metadata``. Work is shared out on the GPU itself, so that there is nothing in it."""
    return torch.zeros(1, dtype=torch.int32, device=cache_seqlens.device)
