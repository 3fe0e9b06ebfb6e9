"""Rows of padded batches, taken out and put back: FlashAttention 2's ``flash_attn.bert_padding``."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["index_first_axis", "index_first_axis_residual", "index_put_first_axis", "pad_input", "unpad_input", "unpad_input_for_concatenated_sequences"]


def index_first_axis(input: Tensor, indices: Tensor) -> Tensor:
    """Rows ``(len(indices), ...)`` of a tensor ``(rows, ...)``."""
    return input[indices]


def index_first_axis_residual(input: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """The same, and the tensor itself, without a gradient."""
    return index_first_axis(input, indices), input.detach()


def index_put_first_axis(values: Tensor, indices: Tensor, first_axis_dim: int) -> Tensor:
    """A tensor ``(first_axis_dim, ...)`` with the given rows, and zeros elsewhere."""
    indices = indices if indices.dtype == torch.bool else indices.long()
    return values.new_zeros((first_axis_dim, *values.shape[1:])).index_put((indices,), values)


def _starts(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))


def unpad_input(
    hidden_states: Tensor, attention_mask: Tensor, unused_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """The rows of ``(b, s, ...)`` whose tokens a mask ``(b, s)`` has, one behind the other.

    Args:
        unused_mask: Rows that are taken besides, and not counted in the last result.

    Returns:
        The rows ``(total, ...)``, their places in ``(b * s)``, the starts ``(b + 1,)`` int32, the most rows of a sequence, and how many
        rows of each are in ``attention_mask`` ``(b,)`` int32.
    """
    taken = attention_mask if unused_mask is None else attention_mask + unused_mask
    lengths = taken.sum(-1, dtype=torch.int32)
    indices = taken.flatten().nonzero().flatten()
    most = int(lengths.max()) if len(lengths) else 0
    return (
        index_first_axis(hidden_states.flatten(0, 1), indices), indices, _starts(lengths), most,
        attention_mask.sum(-1, dtype=torch.int32))


def unpad_input_for_concatenated_sequences(
    hidden_states: Tensor, attention_mask_in_length: Tensor
) -> tuple[Tensor, Tensor, Tensor, int]:
    """The same where a row of the batch is several sequences, of ``(b, s)`` the lengths, and then zeros.

    Returns:
        The rows, their places, the starts of the sequences, and the most rows of one.
    """
    lengths = attention_mask_in_length.flatten()
    lengths = lengths[lengths > 0].to(torch.int32)
    tokens = attention_mask_in_length.sum(-1, keepdim=True)
    places = torch.arange(attention_mask_in_length.shape[1], device=tokens.device)
    indices = (places < tokens).flatten().nonzero().flatten()
    most = int(lengths.max()) if len(lengths) else 0
    return index_first_axis(hidden_states.flatten(0, 1), indices), indices, _starts(lengths), most


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """Rows ``(total, ...)`` at their places in ``(batch, seqlen, ...)``, and zeros elsewhere."""
    rows: Tensor = index_put_first_axis(hidden_states, indices, batch * seqlen).unflatten(0, (batch, seqlen))
    return rows
