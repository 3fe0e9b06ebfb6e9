"""Attention for Hugging Face models: ``attn_implementation="swift_attention"`` after this module was imported.

Padding to the left or right of a batch is taken into account; masks with holes are refused.
"""

import torch
from transformers import AttentionInterface

from ._torch import forward, forward_op, kvcache_op, needs_operator, sequences, unit_stride

try:
    from transformers import AttentionMaskInterface
except ImportError:
    from transformers.masking_utils import AttentionMaskInterface

__all__ = ["NAME", "attention", "mask"]
# Transformers takes a name with "flash" in it for a package that it must import.
NAME = "swift_attention"


def mask(
    batch_size, cache_position=None, kv_length=None, q_length=None, q_offset=0, kv_offset=0, attention_mask=None,
    device=None, **kwargs
):
    """What attention must know of where a batch's keys are: None where all are there, else int32 ``[1, 1, 3, batch]``: where each
    sequence's keys end for a causal mask, where they end without one, and where they begin. (Masks of four axes pass through
    ``generate`` and models as they are.)"""
    # Transformers 4 says where the queries stand, 5 how many there are behind how many.
    if cache_position is not None:
        q_length, last, device = cache_position.shape[0], cache_position[-1] + 1, cache_position.device
    else:
        last = q_offset + (kv_length if q_length is None else q_length)
    if attention_mask is not None:
        batch_size, device = attention_mask.shape[0], attention_mask.device
    # A cache may have room for more keys than there are. (Nobody waits for the number: it stays where it is.)
    steps = q_length is not None and q_length != kv_length
    if attention_mask is None and not steps:
        return None
    # A cache of a sliding window begins at a later key; all numbers count from its first.
    last = torch.as_tensor(last - kv_offset, dtype=torch.int32, device=device).reshape(-1)[:1].expand(batch_size)
    if attention_mask is None:
        return torch.stack([last, torch.full_like(last, kv_length), torch.zeros_like(last)])[None, None]
    real = attention_mask.to(torch.bool)
    if kv_length is not None:
        real = real[:, kv_offset : kv_offset + kv_length]
    if not steps and real.device.type == "cpu" and bool(real.all()):
        return None
    positions = torch.arange(real.shape[1], device=real.device, dtype=torch.int32)
    end = torch.where(real, positions + 1, 0).amax(dim=1).to(torch.int32)
    begin = torch.where(real, positions, real.shape[1]).amin(dim=1).to(torch.int32).minimum(end)
    is_whole = (real.sum(dim=1) == end - begin).all()
    if real.device.type == "cpu":
        if not bool(is_whole):
            raise NotImplementedError("attention_mask has holes; only padding to the left and right is supported.")
    else:
        torch._assert_async(is_whole)
    return torch.stack([last, end, begin])[None, None]


def attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, sliding_window=None, softcap=None,
              is_causal=None, **kwargs):
    """query ``[B, H, N, D]``, key and value ``[B, H_kv, S, D]``; returns ``[B, N, H, D]`` and no weights."""
    if dropout:
        raise NotImplementedError("dropout is not supported; set attention_dropout to 0.")
    if kwargs.get("s_aux") is not None:
        raise NotImplementedError("s_aux (attention sinks) is not supported.")
    q, k, v = (unit_stride(x.transpose(1, 2)) for x in (query, key, value))
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    # A window of n keys is the query's own and n - 1 before it.
    left = sliding_window - 1 if sliding_window is not None else -1
    softcap = softcap or 0.0
    if attention_mask is None:
        arguments = (causal, left, -1, 0, softcap, scaling)
        run = forward_op if needs_operator(q, k, v) else None
        return (run(q, k, v, *arguments)[0] if run else forward(q, k, v, *arguments, False)[0]), None
    if attention_mask.dtype != torch.int32 or attention_mask.dim() != 4:
        raise NotImplementedError("Only masks of padding are supported, as AttentionMaskInterface makes them.")
    # Under a causal mask, keys behind the last real one are seen by none but padding; and where they ended earlier, the
    # queries would stand on other keys.
    numbers = attention_mask[0, 0]
    lengths, padding = numbers[0 if causal else 1].contiguous(), numbers[2].contiguous()
    if needs_operator(q, k, v):
        out, _ = kvcache_op(
            q, k, v, None, None, None, None, lengths, None, padding, None, None, None, None, None, None, None, None, True,
            causal, left, -1, 0, softcap, scaling)
    else:
        out, _ = sequences(
            q, k, v, lengths=lengths, left_padding=padding, scale=scaling, causal=causal, left=left, softcap=softcap)
    return out, None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
