"""FlashAttention 3's ``flash_attn_interface``: the same names, arguments, defaults and results.

``num_splits`` of ``flash_attn_with_kvcache`` divides the keys of each sequence as it says. Of the other functions it is a hint, as
``pack_gqa``, ``sm_margin``, ``deterministic`` and ``scheduler_metadata`` are: taken and not needed. How work is divided is then the
library's choice, which may depend on the batch and changes last bits alone. What is not supported raises ``NotImplementedError`` and
names the argument. Lists of numbers are int32 tensors on the device of ``q``; others of whole numbers (int64, NumPy's, Python's) are converted at every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, overload

import torch
from torch import Tensor

from swift_flash_attention import _arguments as given
from swift_flash_attention import gradient_order
from swift_flash_attention._gradients import backward
from swift_flash_attention._library import ALL_KEYS
from swift_flash_attention._numbers import flag, number, whole, window
from swift_flash_attention._operators import (
    KVCACHE, VARLEN, combine_op, forward_op, in_autocast_type, is_autocast, kvcache_op, needs_operator, packed_op, packs_gradients,
    varlen_op, wants_gradients)
from swift_flash_attention._overlap import overlaps_itself
from swift_flash_attention._torch import (
    Words, fits, forward, is_unlike, need_no_look, output_fits_parts, ranges_fit, sequences, sinks_fit, unit_stride)

if TYPE_CHECKING:
    from swift_flash_attention._types import KeyRanges, Known, Options, WholeNumbers

__all__ = [
    "flash_attn_combine", "flash_attn_func", "flash_attn_qkvpacked_func", "flash_attn_varlen_func",
    "flash_attn_with_kvcache", "get_scheduler_metadata"]

# As backward takes them: cu_seqlens_q, cu_seqlens_k, seqused_q, seqused_k, max_seqlen_q and max_seqlen_k.
_Lists: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, int | None, int | None]
# The default of window_size.
_UNLIMITED = (-1, -1)
_WHOLE = "[batch, tokens, heads, dimension]"
_PACKED = "[total, heads, dimension]"


def _refuse(**arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise NotImplementedError(f"{name} is not supported by swift_flash_attention.")


def _tensors(names: Sequence[str], tensors: Sequence[Tensor], axes: int, shape: str) -> Sequence[Tensor]:
    """Tensors as they are in memory; all must have as many axes."""
    is_compiling = torch.compiler.is_compiling()
    for x in tensors:
        # Most calls have nothing to look at closely.
        if type(x) is not torch.Tensor or x.layout is not torch.strided or x.dim() != axes or not is_compiling and x.is_neg():
            return [given.tensor(name, x, axes, shape) for name, x in zip(names, tensors)]
    return tensors


def _options(
    softmax_scale: float | None, causal: bool, window_size: tuple[int, int], attention_chunk: int, softcap: float
) -> Options:
    """Numbers as numbers: nothing else may be remembered of a call."""
    if (
        (softmax_scale is None or type(softmax_scale) is float) and type(causal) is bool and window_size is _UNLIMITED
        and type(attention_chunk) is int and attention_chunk == 0 and type(softcap) is float
    ):
        return causal, -1, -1, attention_chunk, softcap, softmax_scale
    left, right = window("window_size", window_size)
    return (
        flag("causal", causal), left, right, whole("attention_chunk", attention_chunk),
        number("softcap", softcap), None if softmax_scale is None else number("softmax_scale", softmax_scale))


def _scales(**scales: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Three scales ``[b, h_k]``, which may be expanded, as they are needed."""
    q, k, v = (None if x is None else given.tensor(name, x).contiguous() for name, x in scales.items())
    return q, k, v


def _sinks(learnable_sink: Tensor | None, s_aux: Tensor | None, q: Tensor) -> Tensor | None:
    """Attention sinks, by one of their two names."""
    if learnable_sink is not None and s_aux is not None:
        raise ValueError("learnable_sink and s_aux are two names of one argument; give one of them.")
    name, sinks = ("learnable_sink", learnable_sink) if s_aux is None else ("s_aux", s_aux)
    return sinks_fit(name, sinks, q.shape[-2], q)


def _quickly(learnable_sink: Tensor | None, s_aux: Tensor | None, q: Tensor) -> tuple[Tensor | None, bool]:
    """Sinks by one of their names, and whether nothing must be looked at closely."""
    if learnable_sink is s_aux is None:
        return None, True
    sinks = learnable_sink if s_aux is None else s_aux
    return sinks, (learnable_sink is None or s_aux is None) and need_no_look(sinks, q)


def _fixed_if_asked(deterministic: bool, *tensors: Tensor | None) -> None:
    """Refuses what cannot be had at once: gradients of the same bits in every run, while any order was asked for.

    Args:
        tensors: Of which some may want gradients; none where they are computed now.
    """
    if flag("deterministic", deterministic) and gradient_order() == "any" and (not tensors or wants_gradients(*tensors)):
        raise ValueError(
            "deterministic=True asks for gradients of the same bits in every run, and set_gradient_order('any') gave that up; call "
            "set_gradient_order('fixed').")


def _lengths(value: int, batch: int, device: torch.device) -> Tensor:
    """The same number for all sequences. (Not kept: a graph may come to own it, and another stream must not see it unfilled.)"""
    return torch.full((batch,), value, dtype=torch.int32, device=device)


def _list(name: str, value: object, like: Tensor, shape: Sequence[int] | None = None, words: str = "") -> Tensor | None:
    return None if value is None else given.int32(name, value, like, shape, words)


def _are_plain(window: object, flag: object) -> bool:
    """Whether a window is two sides and a flag True or False, so that a call like one before can be found by them: nothing must then
    be looked at but what may be different, which costs a third."""
    return type(window) is tuple and len(window) == 2 and (flag is True or flag is False)


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
    window_size: tuple[int, int] = _UNLIMITED, attention_chunk: int = 0, softcap: float = 0.0, num_splits: int = 1,
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
        and _are_plain(window_size, return_attn_probs)
    ):
        known = None
        try:
            sinks, is_known = _quickly(learnable_sink, s_aux, q)
            if is_known and not (needs_operator(q, k, v, sinks) or is_autocast()):
                known = forward(
                    q, k, v, causal, *window_size, attention_chunk, softcap, softmax_scale, return_attn_probs, None, True, sinks)
        except (AttributeError, TypeError, RuntimeError) as error:
            if not is_unlike(error, q, k, v):
                raise
        if known is not None:
            return known if return_attn_probs else known[0]
    _refuse(qv=qv)
    q, k, v = in_autocast_type(*_tensors("qkv", (q, k, v), 4, _WHOLE))
    options = _options(softmax_scale, causal, window_size, attention_chunk, softcap)
    wants_lse = flag("return_attn_probs", return_attn_probs)
    sinks = _sinks(learnable_sink, s_aux, q)
    ranges = ranges_fit(key_ranges, prefix, first_keys, q, q.shape[0])
    _fixed_if_asked(deterministic, q, k, v, sinks)
    if q.dtype == torch.float8_e4m3fn or k.dtype == torch.float8_e4m3fn:
        lengths = _lengths(k.shape[1], q.shape[0], q.device)
        scales = _scales(q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
        out, lse = _kvcache(
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
    k_descale: Tensor | None = None, v_descale: Tensor | None = None, window_size: tuple[int, int] = _UNLIMITED,
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
        options = _options(softmax_scale, causal, window_size, attention_chunk, softcap)
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
    v_descale: Tensor | None = None, window_size: tuple[int, int] = _UNLIMITED, attention_chunk: int = 0, softcap: float = 0.0,
    num_splits: int = 1, pack_gqa: bool | None = None, deterministic: bool = False, sm_margin: int = 0,
    return_attn_probs: bool = False, learnable_sink: Tensor | None = None, s_aux: Tensor | None = None,
    key_ranges: WholeNumbers | None = None, prefix: WholeNumbers | None = None, first_keys: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """q ``(total_q, h, d)``, k ``(total_k, h_k, d)``, v ``(total_k, h_k, dv)``. Returns out, or (out, lse ``(h, total_q)``).

    Rows that ``seqused_q`` or ``cu_seqlens_q`` leave out are not written: they may be anything. Of ranges of keys, ``key_ranges`` is
    ``(total_q, 1 or 2, 2)`` here, counted from each sequence's first key.
    """
    _refuse(qv=qv)
    q, k, v = in_autocast_type(*_tensors("qkv", (q, k, v), 3, _PACKED))
    options = _options(softmax_scale, causal, window_size, attention_chunk, softcap)
    wants_lse = flag("return_attn_probs", return_attn_probs)
    cu_seqlens_q = _starts("cu_seqlens_q", cu_seqlens_q, q)
    batch = cu_seqlens_q.shape[0] - 1
    cu_seqlens_k = given.int32("cu_seqlens_k", cu_seqlens_k, q, (batch + 1,), ", as cu_seqlens_q has it")
    seqused_q, seqused_k = _list("seqused_q", seqused_q, q, (batch,)), _list("seqused_k", seqused_k, q, (batch,))
    longest = _most("max_seqlen_q", max_seqlen_q), _most("max_seqlen_k", max_seqlen_k)
    scales = _scales(q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    sinks = _sinks(learnable_sink, s_aux, q)
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


def _most(name: str, value: object) -> int:
    number = whole(name, value)
    if type(number) is int and number < 0:
        raise ValueError(f"{name} is {number}; it must be 0 or more.")
    return number


def _starts(name: str, value: object, like: Tensor) -> Tensor:
    starts = given.int32(name, value, like)
    if starts.dim() != 1 or starts.shape[0] < 1:
        raise ValueError(f"{name} has the shape {tuple(starts.shape)}; it must be [batch + 1].")
    return starts


def _kvcache(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor | None, v: Known, cosines: Tensor | None, sines: Known,
    lengths: Tensor | None, batch_index: Tensor | None, leftpad: Tensor | None, page_table: Tensor | None,
    query_starts: Tensor | None, new_key_starts: Tensor | None, longest_query: int | None, positions: Tensor | None,
    q_descale: Tensor | None, k_descale: Tensor | None, v_descale: Tensor | None, sinks: Tensor | None, interleaved: bool,
    causal: bool, left: int, right: int, chunk: int, softcap: float, scale: float | None, wants_lse: bool, keys_per_split: int = 0,
    words: Words = KVCACHE, ranges: KeyRanges = (None, 0),
) -> tuple[Tensor, Known]:
    if needs_operator(q, k_cache, v_cache, k, v, q_descale, k_descale, v_descale, cosines, sines, sinks):
        return kvcache_op(
            q, k_cache, v_cache, k, v, cosines, sines, lengths, batch_index, leftpad, page_table, query_starts,
            new_key_starts, longest_query, positions, q_descale, k_descale, v_descale, sinks, interleaved, causal, left, right,
            chunk, softcap, scale, keys_per_split, *ranges)
    # By place: names cost a call that takes microseconds a tenth more.
    return sequences(
        q, k_cache, v_cache, lengths, batch_index, leftpad, page_table, query_starts, None, longest_query, None, None,
        k if k is None else unit_stride(k), v if v is None else unit_stride(v), new_key_starts, cosines, sines, interleaved,
        positions, q_descale, k_descale, v_descale, scale, causal, left, right, chunk, softcap, keys_per_split, wants_lse, False, words,
        False, sinks, *ranges)


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
    window_size: tuple[int, int] = _UNLIMITED, attention_chunk: int = 0, softcap: float = 0.0, rotary_interleaved: bool = True,
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
    is_plain = type(num_splits) is int and num_splits == 0 and _are_plain(window_size, return_softmax_lse)
    if is_plain and qv is key_ranges is prefix is None and first_keys is None and (k is None) == (v is None):
        known = None
        try:
            tensors: tuple[Tensor | None, ...] = (q, k_cache, v_cache)
            if not (k is q_descale is k_descale is v_descale is rotary_cos is rotary_sin is None):
                tensors = (*tensors, k, v, q_descale, k_descale, v_descale, rotary_cos, rotary_sin)
            sinks, is_known = _quickly(learnable_sink, s_aux, q)
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
        _refuse(qv=qv)
    if k is not None:
        for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
            if isinstance(x, torch.Tensor) and given.is_lazy(x):
                raise ValueError(f"{name} is a lazily negated view, to which new keys cannot be appended; give the tensor itself.")
    if cu_seqlens_q is None:
        q, k_cache, v_cache = _tensors(("q", "k_cache", "v_cache"), (q, k_cache, v_cache), 4, _WHOLE)
        batch = q.shape[0]
        if max_seqlen_q is not None and whole("max_seqlen_q", max_seqlen_q) < q.shape[1]:
            raise ValueError(f"max_seqlen_q is {max_seqlen_q}, and q has {q.shape[1]} tokens; leave it out.")
        max_seqlen_q = None
    else:
        (q,) = _tensors("q", (q,), 3, _PACKED)
        k_cache, v_cache = _tensors(("k_cache", "v_cache"), (k_cache, v_cache), 4, _WHOLE)
        cu_seqlens_q = _starts("cu_seqlens_q", cu_seqlens_q, q)
        batch = cu_seqlens_q.shape[0] - 1
        if max_seqlen_q is not None:
            max_seqlen_q = _most("max_seqlen_q", max_seqlen_q)
    options = _options(softmax_scale, causal, window_size, attention_chunk, softcap)
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
        cu_seqlens_k_new = _list("cu_seqlens_k_new", cu_seqlens_k_new, q, (batch + 1,))
    else:
        for name, value in (
            ("rotary_cos", rotary_cos), ("rotary_sin", rotary_sin), ("cu_seqlens_k_new", cu_seqlens_k_new)
        ):
            if value is not None:
                raise ValueError(f"{name} is for new keys: give k and v with it.")
        rotary_seqlens = cu_seqlens_k_new = None
    if cache_seqlens is None:
        cache_seqlens = _lengths(capacity, batch, q.device)
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
        q_descale, k_descale, v_descale = _scales(q_descale=q_descale, k_descale=k_descale, v_descale=v_descale)
    out, lse = _kvcache(
        q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, cache_seqlens, cache_batch_idx, cache_leftpad, page_table,
        cu_seqlens_q, cu_seqlens_k_new, max_seqlen_q, rotary_seqlens, q_descale, k_descale, v_descale,
        _sinks(learnable_sink, s_aux, q), flag("rotary_interleaved", rotary_interleaved), *options, wants_lse, _keys_per_split(num_splits, capacity),
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
    return _lengths(length, batch, q.device)


def _new_keys(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, k: Tensor, v: Known, rotary_cos: Tensor | None, rotary_sin: Known,
    rotary_seqlens: WholeNumbers | None, cache_seqlens: int | WholeNumbers | None, cu_seqlens_k_new: WholeNumbers | None,
    batch: int, paged_capacity: int | None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """New keys and values, tables and positions as the call needs them.

    Args:
        paged_capacity: The most keys of a sequence where they are on pages; else None.
    """
    axes, shape = (4, _WHOLE) if cu_seqlens_k_new is None else (3, _PACKED)
    k, v = _tensors("kv", (k, v), axes, shape)
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
        rotary_cos, rotary_sin = _tensors(
            ("rotary_cos", "rotary_sin"), (rotary_cos, rotary_sin), 2, "[positions, rotary dimension / 2]")
        # As in FlashAttention 3, whatever the lengths are: those on a GPU are not known here.
        if paged_capacity is not None and rotary_cos.shape[0] < paged_capacity:
            raise ValueError(
                f"rotary_cos has {rotary_cos.shape[0]} rows; with page_table, sequences can have {paged_capacity} keys, and each "
                "position needs a row.")
        rotary_seqlens = _list("rotary_seqlens", rotary_seqlens, q, (batch,))
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
    sinks = _sinks(learnable_sink, s_aux, out_partial)
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
    axes, shape = (4, _WHOLE) if cu_seqlens_q is None else (3, _PACKED)
    dout, q, k, v, out = _tensors(("dout", "q", "k", "v", "out"), (dout, q, k, v, out), axes, shape)
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
        cu_seqlens_q = _starts("cu_seqlens_q", cu_seqlens_q, q)
        batch = cu_seqlens_q.shape[0] - 1
        lists = (
            cu_seqlens_q, given.int32("cu_seqlens_k", cu_seqlens_k, q, (batch + 1,), ", as cu_seqlens_q has it"),
            _list("sequed_q", sequed_q, q, (batch,)), _list("sequed_k", sequed_k, q, (batch,)), _most("max_seqlen_q", max_seqlen_q),
            _most("max_seqlen_k", max_seqlen_k))
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
    causal, left, right, chunk, softcap, scale = _options(
        softmax_scale, is_causal, (window_size_left, window_size_right), 0, softcap)
    with torch.no_grad():
        backward(dout, None, q, k, v, out, softmax_lse, causal, left, right, chunk, softcap, scale, dq, dk, dv, *lists)
        return (dout.float() * out.float()).sum(-1).transpose(-1, -2).contiguous()


def get_scheduler_metadata(
    batch_size: int, max_seqlen_q: int, max_seqlen_k: int, num_heads_q: int, num_heads_kv: int, headdim: int,
    cache_seqlens: WholeNumbers, qkv_dtype: torch.dtype = torch.bfloat16, headdim_v: int | None = None,
    cu_seqlens_q: WholeNumbers | None = None, cu_seqlens_k_new: WholeNumbers | None = None,
    cache_leftpad: WholeNumbers | None = None, page_size: int | None = None, max_seqlen_k_new: int = 0, causal: bool = False,
    window_size: tuple[int, int] = _UNLIMITED, attention_chunk: int = 0, has_softcap: bool = False, num_splits: int = 0,
    pack_gqa: bool | None = None, sm_margin: int = 0,
) -> Tensor:
    """A tensor to hand to ``scheduler_metadata``. Work is shared out on the GPU itself, so that there is nothing in it."""
    device = cache_seqlens.device if isinstance(cache_seqlens, torch.Tensor) else None
    return torch.zeros(1, dtype=torch.int32, device=device)
