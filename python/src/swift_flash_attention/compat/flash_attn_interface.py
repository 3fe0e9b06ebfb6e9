"""FlashAttention 3's ``flash_attn_interface``: the same names, arguments, defaults and results.

``num_splits`` of ``flash_attn_with_kvcache`` divides the keys of each sequence as it says. Of the other functions it is a hint, as
``pack_gqa``, ``sm_margin``, ``deterministic`` and ``scheduler_metadata`` are: taken and not needed. How work is divided is then the
library's choice, which may depend on the batch and changes last bits alone. What is not supported raises ``NotImplementedError`` and
names the argument. Lists of numbers are int32 tensors on the device of ``q``; others of whole numbers (int64, NumPy's, Python's) are converted at every call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias, overload

import torch
from torch import Tensor

from swift_flash_attention import _arguments as given
from swift_flash_attention import gradient_order
from swift_flash_attention._forward import forward
from swift_flash_attention._gradients import backward
from swift_flash_attention._numbers import flag, whole
from swift_flash_attention._operators import (
    KVCACHE, VARLEN, forward_op, in_autocast_type, is_autocast, needs_operator, packed_op, packs_gradients, varlen_op, wants_gradients)
from swift_flash_attention._sequences import sequences
from swift_flash_attention._torch import fits, is_unlike, ranges_fit, unit_stride
from swift_flash_attention.compat._arguments_of_3 import (
    PACKED, UNLIMITED, WHOLE, are_plain, dense, equal_lengths, factors, most, over_cache, refuse, score_options,
    sinks_given, sinks_quickly, starts, whole_numbers)
from swift_flash_attention.compat._decoding import flash_attn_combine, flash_attn_with_kvcache, get_scheduler_metadata

if TYPE_CHECKING:
    from swift_flash_attention._types import WholeNumbers

__all__ = [
    "flash_attn_combine", "flash_attn_func", "flash_attn_qkvpacked_func", "flash_attn_varlen_func",
    "flash_attn_with_kvcache", "get_scheduler_metadata"]

# As backward takes them: cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q and max_seqlen_k.
_Lists: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, int | None, int | None]


def _fixed_if_asked(deterministic: bool, *tensors: Tensor | None) -> None:
    """Refuses what cannot be had at once: gradients of the same bits in every run, while any order was asked for.

    Args:
        tensors: Of which some may want gradients; none where they are computed now.
    """
    if flag("deterministic", deterministic) and gradient_order() == "any" and (not tensors or wants_gradients(*tensors)):
        raise ValueError(
            "deterministic=True asks for gradients of the same bits in every run, and set_gradient_order('any') gave that up; call "
            "set_gradient_order('fixed').")


@overload
def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = ..., causal: bool = ..., qv: Tensor | None = ...,
    q_descale: Tensor | None = ..., k_descale: Tensor | None = ..., v_descale: Tensor | None = ...,
    window_size: tuple[int, int] = ..., attention_chunk: int = ..., softcap: float = ..., num_splits: int = ...,
    pack_gqa: bool | None = ..., deterministic: bool = ..., sm_margin: int = ..., return_attn_probs: Literal[False] = ...,
    learnable_sink: Tensor | None = ..., s_aux: Tensor | None = ..., key_ranges: WholeNumbers | None = ...,
    prefix: WholeNumbers | None = ..., first_keys: int | None = ...,
) -> Tensor: ...
@overload
def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = ..., causal: bool = ..., qv: Tensor | None = ...,
    q_descale: Tensor | None = ..., k_descale: Tensor | None = ..., v_descale: Tensor | None = ...,
    window_size: tuple[int, int] = ..., attention_chunk: int = ..., softcap: float = ..., num_splits: int = ...,
    pack_gqa: bool | None = ..., deterministic: bool = ..., sm_margin: int = ..., *, return_attn_probs: Literal[True],
    learnable_sink: Tensor | None = ..., s_aux: Tensor | None = ..., key_ranges: WholeNumbers | None = ...,
    prefix: WholeNumbers | None = ..., first_keys: int | None = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = ..., causal: bool = ..., qv: Tensor | None = ...,
    q_descale: Tensor | None = ..., k_descale: Tensor | None = ..., v_descale: Tensor | None = ...,
    window_size: tuple[int, int] = ..., attention_chunk: int = ..., softcap: float = ..., num_splits: int = ...,
    pack_gqa: bool | None = ..., deterministic: bool = ..., sm_margin: int = ..., return_attn_probs: bool = ...,
    learnable_sink: Tensor | None = ..., s_aux: Tensor | None = ..., key_ranges: WholeNumbers | None = ...,
    prefix: WholeNumbers | None = ..., first_keys: int | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None, causal: bool = False, qv: Tensor | None = None,
    q_descale: Tensor | None = None, k_descale: Tensor | None = None, v_descale: Tensor | None = None,
    window_size: tuple[int, int] = UNLIMITED, attention_chunk: int = 0, softcap: float = 0.0, num_splits: int = 1,
    pack_gqa: bool | None = None, deterministic: bool = False, sm_margin: int = 0, return_attn_probs: bool = False,
    learnable_sink: Tensor | None = None, s_aux: Tensor | None = None, key_ranges: WholeNumbers | None = None,
    prefix: WholeNumbers | None = None, first_keys: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """q ``(b, s_q, h, d)``, k ``(b, s_k, h_k, d)``, v ``(b, s_k, h_k, dv)``. Returns out, or (out, lse ``(b, h, s_q)``).

    ``learnable_sink``, or ``s_aux``, as others call it: a logit ``(h,)`` of each query head that is in the softmax's denominator, and in
    lse, and has no value. ``key_ranges`` ``(b or 1, s_q, 1 or 2, 2)``, ``prefix`` ``(b,)`` and ``first_keys`` are keys that queries see
    by ranges, as of ``swift_flash_attention.attention``.
    """
    if (
        qv is q_descale is k_descale is v_descale is key_ranges is prefix is None and first_keys is None
        and are_plain(window_size, return_attn_probs)
    ):
        known = None
        try:
            sinks, is_known = sinks_quickly(learnable_sink, s_aux, q)
            if is_known and not (needs_operator(q, k, v, sinks) or is_autocast()):
                known = forward(
                    q, k, v, causal, *window_size, attention_chunk, softcap, softmax_scale, return_attn_probs, None, True, sinks)
        except (AttributeError, TypeError, RuntimeError) as error:
            if not is_unlike(error, q, k, v):
                raise
        if known is not None:
            return known if return_attn_probs else known[0]
    refuse(qv=qv)
    q, k, v = in_autocast_type(*dense("qkv", (q, k, v), 4, WHOLE))
    options = score_options(softmax_scale, causal, window_size, attention_chunk, softcap)
    wants_lse = flag("return_attn_probs", return_attn_probs)
    sinks = sinks_given(learnable_sink, s_aux, q)
    ranges = ranges_fit(key_ranges, prefix, first_keys, q, q.shape[0])
    _fixed_if_asked(deterministic, q, k, v, sinks)
    if q.dtype == torch.float8_e4m3fn or k.dtype == torch.float8_e4m3fn:
        lengths = equal_lengths(k.shape[1], q.shape[0], q.device)
        scales = factors(q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
        out, lse = over_cache(
            q, unit_stride(k), unit_stride(v), None, None, None, None, lengths, None, None, None, None, None, None, None,
            *(*scales, sinks, True, *options), wants_lse, words=_E4M3, ranges=ranges)
        return (out, lse) if wants_lse else out
    for name, value in (("q_descale", q_descale), ("k_descale", k_descale), ("v_descale", v_descale)):
        if value is not None:
            raise ValueError(f"{name} is a factor of float8_e4m3fn numbers, and there are none; leave it out.")
    if needs_operator(q, k, v, sinks):
        out, lse = forward_op(q, k, v, sinks, *options, *ranges)
    else:
        out, lse = forward(q, k, v, *options, wants_lse, None, False, sinks, *ranges)
    return (out, lse) if wants_lse else out


_E4M3 = KVCACHE._replace(names={**KVCACHE.names, "k": "k", "v": "v"})


@overload
def flash_attn_qkvpacked_func(
    qkv: Tensor, softmax_scale: float | None = ..., causal: bool = ..., q_descale: Tensor | None = ...,
    k_descale: Tensor | None = ..., v_descale: Tensor | None = ..., window_size: tuple[int, int] = ..., attention_chunk: int = ...,
    softcap: float = ..., deterministic: bool = ..., num_heads_q: int | None = ..., sm_margin: int = ...,
    return_attn_probs: Literal[False] = ...,
) -> Tensor: ...
@overload
def flash_attn_qkvpacked_func(
    qkv: Tensor, softmax_scale: float | None = ..., causal: bool = ..., q_descale: Tensor | None = ...,
    k_descale: Tensor | None = ..., v_descale: Tensor | None = ..., window_size: tuple[int, int] = ..., attention_chunk: int = ...,
    softcap: float = ..., deterministic: bool = ..., num_heads_q: int | None = ..., sm_margin: int = ..., *,
    return_attn_probs: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def flash_attn_qkvpacked_func(
    qkv: Tensor, softmax_scale: float | None = ..., causal: bool = ..., q_descale: Tensor | None = ...,
    k_descale: Tensor | None = ..., v_descale: Tensor | None = ..., window_size: tuple[int, int] = ..., attention_chunk: int = ...,
    softcap: float = ..., deterministic: bool = ..., num_heads_q: int | None = ..., sm_margin: int = ...,
    return_attn_probs: bool = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
def flash_attn_qkvpacked_func(
    qkv: Tensor, softmax_scale: float | None = None, causal: bool = False, q_descale: Tensor | None = None,
    k_descale: Tensor | None = None, v_descale: Tensor | None = None, window_size: tuple[int, int] = UNLIMITED,
    attention_chunk: int = 0, softcap: float = 0.0, deterministic: bool = False, num_heads_q: int | None = None, sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """qkv ``(b, s, 3, h, d)``, or ``(b, s, h_q + 2 h_k, d)`` with ``num_heads_q``."""
    qkv = given.tensor("qkv", qkv)
    if qkv.dim() == 5:
        if qkv.shape[2] != 3:
            raise ValueError(f"qkv has the shape {tuple(qkv.shape)}; with five axes it must be [batch, tokens, 3, heads, dimension].")
        if num_heads_q is not None:
            raise ValueError("num_heads_q is for a qkv of four axes; leave it out.")
        q, k, v = qkv.unbind(dim=-3)
    elif qkv.dim() == 4:
        if num_heads_q is None:
            raise ValueError("qkv of four axes needs num_heads_q, the number of query heads among its heads.")
        num_heads_q = whole("num_heads_q", num_heads_q)
        heads, rest = divmod(qkv.shape[2] - num_heads_q, 2)
        if rest or heads < 1 or num_heads_q < 1:
            raise ValueError(
                f"num_heads_q is {num_heads_q}, and qkv has {qkv.shape[2]} heads; what remains must be as many keys as values.")
        q, k, v = qkv.split([num_heads_q, heads, heads], dim=-2)
    else:
        raise ValueError(f"qkv has the shape {tuple(qkv.shape)}; it must have four or five axes.")
    # Whose gradient is one tensor, too.
    if packs_gradients(qkv) and qkv.dtype != torch.float8_e4m3fn and q_descale is k_descale is v_descale is None:
        (qkv,) = in_autocast_type(qkv)
        options = score_options(softmax_scale, causal, window_size, attention_chunk, softcap)
        _fixed_if_asked(deterministic, qkv)
        needs_operator(qkv)
        out, lse = packed_op(qkv, 0 if num_heads_q is None else num_heads_q, *options)
        return (out, lse) if flag("return_attn_probs", return_attn_probs) else out
    try:
        return flash_attn_func(
            q, k, v, softmax_scale=softmax_scale, causal=causal, q_descale=q_descale, k_descale=k_descale,
            v_descale=v_descale, window_size=window_size, attention_chunk=attention_chunk, softcap=softcap,
            deterministic=deterministic, sm_margin=sm_margin, return_attn_probs=return_attn_probs)
    except (TypeError, ValueError) as error:
        raise type(error)(f"Of qkv, split into q, k and v: {error}") from None


@overload
def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: WholeNumbers, cu_seqlens_k: WholeNumbers, max_seqlen_q: int, max_seqlen_k: int,
    seqused_q: WholeNumbers | None = ..., seqused_k: WholeNumbers | None = ..., softmax_scale: float | None = ...,
    causal: bool = ..., qv: Tensor | None = ..., q_descale: Tensor | None = ..., k_descale: Tensor | None = ...,
    v_descale: Tensor | None = ..., window_size: tuple[int, int] = ..., attention_chunk: int = ..., softcap: float = ...,
    num_splits: int = ..., pack_gqa: bool | None = ..., deterministic: bool = ..., sm_margin: int = ...,
    return_attn_probs: Literal[False] = ..., learnable_sink: Tensor | None = ..., s_aux: Tensor | None = ...,
    key_ranges: WholeNumbers | None = ..., prefix: WholeNumbers | None = ..., first_keys: int | None = ...,
) -> Tensor: ...
@overload
def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: WholeNumbers, cu_seqlens_k: WholeNumbers, max_seqlen_q: int, max_seqlen_k: int,
    seqused_q: WholeNumbers | None = ..., seqused_k: WholeNumbers | None = ..., softmax_scale: float | None = ...,
    causal: bool = ..., qv: Tensor | None = ..., q_descale: Tensor | None = ..., k_descale: Tensor | None = ...,
    v_descale: Tensor | None = ..., window_size: tuple[int, int] = ..., attention_chunk: int = ..., softcap: float = ...,
    num_splits: int = ..., pack_gqa: bool | None = ..., deterministic: bool = ..., sm_margin: int = ..., *,
    return_attn_probs: Literal[True], learnable_sink: Tensor | None = ..., s_aux: Tensor | None = ...,
    key_ranges: WholeNumbers | None = ..., prefix: WholeNumbers | None = ..., first_keys: int | None = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: WholeNumbers, cu_seqlens_k: WholeNumbers, max_seqlen_q: int, max_seqlen_k: int,
    seqused_q: WholeNumbers | None = ..., seqused_k: WholeNumbers | None = ..., softmax_scale: float | None = ...,
    causal: bool = ..., qv: Tensor | None = ..., q_descale: Tensor | None = ..., k_descale: Tensor | None = ...,
    v_descale: Tensor | None = ..., window_size: tuple[int, int] = ..., attention_chunk: int = ..., softcap: float = ...,
    num_splits: int = ..., pack_gqa: bool | None = ..., deterministic: bool = ..., sm_margin: int = ...,
    return_attn_probs: bool = ..., learnable_sink: Tensor | None = ..., s_aux: Tensor | None = ...,
    key_ranges: WholeNumbers | None = ..., prefix: WholeNumbers | None = ..., first_keys: int | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
def flash_attn_varlen_func(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: WholeNumbers, cu_seqlens_k: WholeNumbers, max_seqlen_q: int, max_seqlen_k: int,
    seqused_q: WholeNumbers | None = None, seqused_k: WholeNumbers | None = None, softmax_scale: float | None = None,
    causal: bool = False, qv: Tensor | None = None, q_descale: Tensor | None = None, k_descale: Tensor | None = None,
    v_descale: Tensor | None = None, window_size: tuple[int, int] = UNLIMITED, attention_chunk: int = 0, softcap: float = 0.0,
    num_splits: int = 1, pack_gqa: bool | None = None, deterministic: bool = False, sm_margin: int = 0,
    return_attn_probs: bool = False, learnable_sink: Tensor | None = None, s_aux: Tensor | None = None,
    key_ranges: WholeNumbers | None = None, prefix: WholeNumbers | None = None, first_keys: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """q ``(total_q, h, d)``, k ``(total_k, h_k, d)``, v ``(total_k, h_k, dv)``. Returns out, or (out, lse ``(h, total_q)``).

    Rows that ``seqused_q`` or ``cu_seqlens_q`` leave out are not written: they may be anything. Of ranges of keys, ``key_ranges`` is
    ``(total_q, 1 or 2, 2)`` here, counted from each sequence's first key.
    """
    refuse(qv=qv)
    q, k, v = in_autocast_type(*dense("qkv", (q, k, v), 3, PACKED))
    options = score_options(softmax_scale, causal, window_size, attention_chunk, softcap)
    wants_lse = flag("return_attn_probs", return_attn_probs)
    cu_seqlens_q = starts("cu_seqlens_q", cu_seqlens_q, q)
    batch = cu_seqlens_q.shape[0] - 1
    cu_seqlens_k = given.int32("cu_seqlens_k", cu_seqlens_k, q, (batch + 1,), ", as cu_seqlens_q has it")
    seqused_q, seqused_k = whole_numbers("seqused_q", seqused_q, q, (batch,)), whole_numbers("seqused_k", seqused_k, q, (batch,))
    longest = most("max_seqlen_q", max_seqlen_q), most("max_seqlen_k", max_seqlen_k)
    scales = factors(q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    sinks = sinks_given(learnable_sink, s_aux, q)
    ranges = ranges_fit(key_ranges, prefix, first_keys, q, batch)
    _fixed_if_asked(deterministic, q, k, v, sinks)
    if needs_operator(q, k, v, *scales, sinks):
        out, lse = varlen_op(
            q, k, v, cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, *(*longest, *scales, sinks, *options), *ranges)
    else:
        causal, left, right, chunk, softcap, scale = options
        out, lse = sequences(
            q, unit_stride(k), unit_stride(v), lengths=seqused_k, query_starts=cu_seqlens_q, query_counts=seqused_q,
            longest_query=longest[0], key_starts=cu_seqlens_k, longest_key=longest[1], query_scales=scales[0],
            key_scales=scales[1], value_scales=scales[2], scale=scale, causal=causal, left=left, right=right, chunk=chunk,
            softcap=softcap, wants_lse=wants_lse, words=VARLEN, sinks=sinks, ranges=ranges[0], first_keys=ranges[1])
    return (out, lse) if wants_lse else out


def _flash_attn_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, softmax_lse: Tensor, cu_seqlens_q: WholeNumbers | None = None,
    cu_seqlens_k: WholeNumbers | None = None, sequed_q: WholeNumbers | None = None, sequed_k: WholeNumbers | None = None,
    max_seqlen_q: int | None = None, max_seqlen_k: int | None = None, dq: Tensor | None = None, dk: Tensor | None = None,
    dv: Tensor | None = None, softmax_scale: float | None = None, is_causal: bool = False, window_size_left: int = -1,
    window_size_right: int = -1, softcap: float = 0.0, deterministic: bool = False, sm_margin: int = 0,
) -> Tensor:
    """Writes the gradients to ``dq``, ``dk`` and ``dv``, those that are given; in one order unless ``set_gradient_order`` says otherwise.

    Returns softmax_d: the sums of ``dout * out`` over each row, float32, of ``softmax_lse``'s shape (FlashAttention 3 rounds the last
    axis up).
    """
    _fixed_if_asked(deterministic)
    axes, shape = (4, WHOLE) if cu_seqlens_q is None else (3, PACKED)
    dout, q, k, v, out = dense(("dout", "q", "k", "v", "out"), (dout, q, k, v, out), axes, shape)
    softmax_lse = given.tensor("softmax_lse", softmax_lse, axes - 1, "[batch, heads, tokens], packed [heads, total]")
    lists: _Lists = (None, None, None, None, None, None)
    if cu_seqlens_q is None:
        for name, value in (
            ("cu_seqlens_k", cu_seqlens_k), ("sequed_q", sequed_q), ("sequed_k", sequed_k), ("max_seqlen_q", max_seqlen_q),
            ("max_seqlen_k", max_seqlen_k),
        ):
            if value is not None:
                raise ValueError(f"{name} is of packed sequences: give cu_seqlens_q with it, or leave it out.")
    else:
        cu_seqlens_q = starts("cu_seqlens_q", cu_seqlens_q, q)
        batch = cu_seqlens_q.shape[0] - 1
        lists = (
            cu_seqlens_q, given.int32("cu_seqlens_k", cu_seqlens_k, q, (batch + 1,), ", as cu_seqlens_q has it"),
            whole_numbers("sequed_q", sequed_q, q, (batch,)), whole_numbers("sequed_k", sequed_k, q, (batch,)), most("max_seqlen_q", max_seqlen_q),
            most("max_seqlen_k", max_seqlen_k))
        for name, x in zip(("cu_seqlens_q", "cu_seqlens_k", "sequed_q", "sequed_k"), lists[:4]):
            if x is not None and x.device != q.device:
                raise ValueError(f"{name} is on {x.device}, and q is on {q.device}; all tensors must be on one device.")
    rows, width = q.shape[:-1], v.shape[-1]
    fits("k", k, (*k.shape[:-1], q.shape[-1]), q, q.dtype)
    fits("v", v, (*k.shape[:-1], width), q, q.dtype)
    fits("out", out, (*rows, width), q, q.dtype)
    fits("dout", dout, (*rows, width), q, q.dtype)
    fits("softmax_lse", softmax_lse, (*rows[:-2], rows[-1], rows[-2]), q, torch.float32)
    if dq is dk is dv is None:
        raise ValueError("Gradients are written to dq, dk and dv; give at least one of them.")
    for name, own, like in (("dq", dq, q), ("dk", dk, k), ("dv", dv, v)):
        if own is not None:
            own = given.tensor(name, own, axes, shape)
            fits(name, own, like.shape, q, q.dtype)
            if own.is_neg():
                raise ValueError(f"{name} is a lazily negated view; give a tensor whose memory holds its numbers.")
            if own.shape[-1] > 1 and own.stride(-1) != 1:
                raise ValueError(f"{name}: elements must lie side by side along the last axis; its stride is {own.stride(-1)}.")
    causal, left, right, chunk, softcap, scale = score_options(
        softmax_scale, is_causal, (window_size_left, window_size_right), 0, softcap)
    with torch.no_grad():
        backward(dout, None, q, k, v, out, softmax_lse, causal, left, right, chunk, softcap, scale, dq, dk, dv, *lists)
        return (dout.float() * out.float()).sum(-1).transpose(-1, -2).contiguous()
