"""Attention under the masks of models: what ``transformers`` asks for, by operators where somebody records it."""

import torch

from ._forward import forward
from ._mask_ranges import Ranges, boolean, ranges_of_mask, ranges_of_rule
from ._mask_rules import Rule
from ._operators import (
    _operator, _plain, _varlen, forward_op, is_traced, needs_operator, varlen_op, wants_gradients)
from ._sequences import is_captured, sequences

_OF_MASKS = "swift_flash_attention has no backward pass of this attention mask under torch.func; use torch.autograd."
# Of operators that look at numbers of the GPU, which nobody can while a graph is captured: torch.compile leaves them between graphs.
_WAITS = [torch.Tag.cudagraph_unsafe] if hasattr(torch.Tag, "cudagraph_unsafe") else []


def _refuse_capture(tensor: torch.Tensor) -> None:
    if tensor.is_cuda and is_captured(tensor.get_device()):
        raise NotImplementedError(
            "A mask of padding that is not to the left, of documents or of blocks cannot be looked into while a CUDA graph is captured; "
            "let the model make its mask before the capture, or leave it out.")


def whole(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None, rule: Rule, softcap: float, scale: float | None,
    numbers: torch.Tensor | None = None
) -> torch.Tensor:
    """Queries of which the last stands on the last key; ``numbers`` are ranges of keys beside the rule, or None."""
    arguments = (rule.right == 0, rule.left, rule.right, rule.chunk, softcap, scale)
    if needs_operator(q, k, v, sinks):
        return forward_op(q, k, v, sinks, *arguments, numbers)[0]
    return forward(_plain(q), _plain(k), _plain(v), *arguments, False, sinks=sinks, ranges=numbers)[0]


def by_ranges(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None, ranges: Ranges, softcap: float,
    scale: float | None
) -> torch.Tensor:
    """Queries that see what ``Ranges`` say."""
    return whole(q, *ranges.ordered(k, v), sinks, Rule(), softcap, scale, ranges.numbers.to(q.device))


def _padded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None, numbers: torch.Tensor, overhangs: bool, left: int, right: int,
    chunk: int, softcap: float, scale: float | None,
) -> torch.Tensor:
    q, k, v, rule = _plain(q), _plain(k), _plain(v), Rule(left, right, chunk)
    numbers = numbers.expand(3, q.shape[0])
    if overhangs:
        return by_ranges(q, k, v, sinks, Ranges(ranges_of_rule(rule, numbers, q.shape[1])), softcap, scale)
    last, end, begin = numbers.unbind(0)
    ends = last if rule.is_aligned else end
    return sequences(
        q, k, v, lengths=ends.contiguous(), left_padding=begin.contiguous(), scale=scale, causal=right == 0, left=left, right=right,
        chunk=chunk, softcap=softcap, is_recorded=True, sinks=sinks)[0]


def _padded_as_found(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None, numbers: torch.Tensor, overhangs: torch.Tensor, left: int, right: int,
    chunk: int, softcap: float, scale: float | None,
) -> torch.Tensor:
    return _padded(q, k, v, sinks, numbers, bool(overhangs), left, right, chunk, softcap, scale)


def _fake_output(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: object) -> torch.Tensor:
    return q.new_empty((*q.shape[:3], v.shape[-1]))


padded_op = _operator("padded", _padded, _fake_output, gradients=_OF_MASKS)
padded_as_found_op = _operator("padded_as_found", _padded_as_found, _fake_output, tags=_WAITS, gradients=_OF_MASKS)


def padded(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None, numbers: torch.Tensor,
    overhangs: bool | torch.Tensor, rule: Rule, softcap: float, scale: float | None
) -> torch.Tensor:
    """Sequences whose keys begin and end somewhere.

    Args:
        numbers: int32 ``[3, B]``: the key behind which the last query stands, where the keys end, and where they begin.
        overhangs: Whether it makes a difference that keys end elsewhere than the queries; a tensor on the host where only the trace
            will know.
    """
    if wants_gradients(q, k, v, sinks):
        return by_ranges(
            q, k, v, sinks, Ranges(ranges_of_rule(rule, numbers.expand(3, q.shape[0]), q.shape[1])), softcap, scale)
    run = padded_op if needs_operator(q, k, v, sinks) else _padded
    options = (rule.left, rule.right, rule.chunk, softcap, scale)
    if isinstance(overhangs, torch.Tensor):
        return padded_as_found_op(q, k, v, sinks, numbers, overhangs, *options)
    return run(q, k, v, sinks, numbers, overhangs, *options)


def overhang(rule: Rule, numbers: torch.Tensor) -> bool:
    """Whether a sequence's keys end elsewhere than its queries, and the kernels' masks, which count from one end, do not have it so."""
    last, end, _ = numbers
    return rule.is_aligned and bool(((end < last) if rule.right == 0 else (end != last)).any())


def _masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None, mask: torch.Tensor, softcap: float,
    scale: float | None,
) -> torch.Tensor:
    _refuse_capture(q)
    return by_ranges(_plain(q), _plain(k), _plain(v), sinks, ranges_of_mask(boolean(mask)), softcap, scale)


masked_op = _operator("masked", _masked, _fake_output, tags=_WAITS, gradients=_OF_MASKS)


def _ranges_of_mask(mask: torch.Tensor) -> torch.Tensor:
    _refuse_capture(mask)
    ranges = ranges_of_mask(boolean(mask))
    if ranges.order is not None:
        raise NotImplementedError(
            "attention_mask has queries that see keys in more than two pieces, of which a compiled model has no gradients; do not compile, "
            "or pad to the left or the right.")
    numbers = ranges.numbers
    return torch.nn.functional.pad(numbers, (0, 0, 0, 2 - numbers.shape[2])).contiguous()


ranges_of_mask_op = _operator(
    "ranges_of_mask", _ranges_of_mask, lambda mask: mask.new_empty((mask.shape[0], mask.shape[2], 2, 2), dtype=torch.int32), tags=_WAITS)


def masked(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None, mask: torch.Tensor, softcap: float,
    scale: float | None
) -> torch.Tensor:
    """A mask ``[B or 1, H or 1, N, S]`` of booleans, or of numbers that are added to scores."""
    if wants_gradients(q, k, v, sinks):
        if is_traced():
            return by_ranges(q, k, v, sinks, Ranges(ranges_of_mask_op(mask)), softcap, scale)
        _refuse_capture(q)
        return by_ranges(q, k, v, sinks, ranges_of_mask(boolean(mask)), softcap, scale)
    return (masked_op if needs_operator(q, k, v, sinks) else _masked)(q, k, v, sinks, mask, softcap, scale)


def documents(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor | None, query_starts: torch.Tensor,
    key_starts: torch.Tensor, longest_query: int | torch.Tensor, longest_key: int | torch.Tensor, rule: Rule, softcap: float,
    scale: float | None
) -> torch.Tensor:
    """Documents of one row, one behind the other."""
    options = (rule.right == 0, rule.left, rule.right, rule.chunk, softcap, scale)
    lists = (query_starts.to(torch.int32), key_starts.to(torch.int32), None, None, int(longest_query), int(longest_key))
    run = varlen_op if needs_operator(q, k, v, sinks) else _varlen
    return run(q[0], k[0], v[0], *lists, None, None, None, sinks, *options)[0][None]


def _check_padding(
    numbers: torch.Tensor, fits: torch.Tensor, left: int, right: int, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    _refuse_capture(numbers)
    if not bool(fits.all()):
        raise NotImplementedError(
            "attention_mask has holes, which a compiled model cannot look for; pad to the left or the right, or do not compile.")
    return numbers.clone(), torch.tensor(overhang(Rule(left, right, chunk), numbers))


check_padding_op = _operator(
    "check_padding", _check_padding,
    lambda numbers, fits, *rule: (torch.empty_like(numbers), numbers.new_empty((), dtype=torch.bool, device="cpu")), tags=_WAITS,
    gradients=_OF_MASKS)


def checked_padding(numbers: torch.Tensor, fits: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of sequences, and ``overhang``, when the trace runs; raises then where they do not say all."""
    return check_padding_op(numbers, fits, *rule)
