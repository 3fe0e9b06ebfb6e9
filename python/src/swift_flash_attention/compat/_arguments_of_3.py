"""What the functions of FlashAttention 3 make of their arguments, one way for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swift_flash_attention import _arguments as given
from swift_flash_attention._numbers import flag, number, whole, window
from swift_flash_attention._operators import KVCACHE, kvcache_op, needs_operator
from swift_flash_attention._sequences import sequences
from swift_flash_attention._torch import Words, need_no_look, sinks_fit, unit_stride

if TYPE_CHECKING:
    from swift_flash_attention._types import KeyRanges, Known, Options

# The default of window_size.
UNLIMITED = (-1, -1)
WHOLE = "[batch, tokens, heads, dimension]"
PACKED = "[total, heads, dimension]"


def refuse(**arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise NotImplementedError(f"{name} is not supported by swift_flash_attention.")


def dense(names: Sequence[str], tensors: Sequence[Tensor], axes: int, shape: str) -> Sequence[Tensor]:
    """Tensors as they are in memory; all must have as many axes."""
    is_compiling = torch.compiler.is_compiling()
    for x in tensors:
        # Most calls have nothing to look at closely.
        if type(x) is not torch.Tensor or x.layout is not torch.strided or x.dim() != axes or not is_compiling and x.is_neg():
            return [given.tensor(name, x, axes, shape) for name, x in zip(names, tensors)]
    return tensors


def score_options(
    softmax_scale: float | None, causal: bool, window_size: tuple[int, int], attention_chunk: int, softcap: float
) -> Options:
    """Numbers as numbers: nothing else may be remembered of a call."""
    if (
        (softmax_scale is None or type(softmax_scale) is float) and type(causal) is bool and window_size is UNLIMITED
        and type(attention_chunk) is int and attention_chunk == 0 and type(softcap) is float
    ):
        return causal, -1, -1, attention_chunk, softcap, softmax_scale
    left, right = window("window_size", window_size)
    return (
        flag("causal", causal), left, right, whole("attention_chunk", attention_chunk),
        number("softcap", softcap), None if softmax_scale is None else number("softmax_scale", softmax_scale))


def factors(**scales: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Three scales ``[b, h_k]``, which may be expanded, as they are needed."""
    q, k, v = (None if x is None else given.tensor(name, x).contiguous() for name, x in scales.items())
    return q, k, v


def sinks_given(learnable_sink: Tensor | None, s_aux: Tensor | None, q: Tensor) -> Tensor | None:
    """Attention sinks, by one of their two names."""
    if learnable_sink is not None and s_aux is not None:
        raise ValueError("learnable_sink and s_aux are two names of one argument; give one of them.")
    name, sinks = ("learnable_sink", learnable_sink) if s_aux is None else ("s_aux", s_aux)
    return sinks_fit(name, sinks, q.shape[-2], q)


def sinks_quickly(learnable_sink: Tensor | None, s_aux: Tensor | None, q: Tensor) -> tuple[Tensor | None, bool]:
    """Sinks by one of their names, and whether nothing must be looked at closely."""
    if learnable_sink is s_aux is None:
        return None, True
    sinks = learnable_sink if s_aux is None else s_aux
    return sinks, (learnable_sink is None or s_aux is None) and need_no_look(sinks, q)


def equal_lengths(value: int, batch: int, device: torch.device) -> Tensor:
    """The same number for all sequences. (Not kept: a graph may come to own it, and another stream must not see it unfilled.)"""
    return torch.full((batch,), value, dtype=torch.int32, device=device)


def whole_numbers(name: str, value: object, like: Tensor, shape: Sequence[int] | None = None, words: str = "") -> Tensor | None:
    return None if value is None else given.int32(name, value, like, shape, words)


def are_plain(window: object, flag: object) -> bool:
    """Whether a window is two sides and a flag True or False, so that a call like one before can be found by them: nothing must then
    be looked at but what may be different, which costs a third."""
    return type(window) is tuple and len(window) == 2 and (flag is True or flag is False)


def most(name: str, value: object) -> int:
    number = whole(name, value)
    if type(number) is int and number < 0:
        raise ValueError(f"{name} is {number}; it must be 0 or more.")
    return number


def starts(name: str, value: object, like: Tensor) -> Tensor:
    starts = given.int32(name, value, like)
    if starts.dim() != 1 or starts.shape[0] < 1:
        raise ValueError(f"{name} has the shape {tuple(starts.shape)}; it must be [batch + 1].")
    return starts


def over_cache(
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
