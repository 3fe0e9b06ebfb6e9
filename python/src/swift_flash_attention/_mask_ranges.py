"""Masks given key by key, as ranges of keys that the kernels take.

Any mask in which each query sees no more than two unbroken ranges of keys is one call: padding, packed documents, prefixes, blocks of
images. Where more are broken by keys that nobody sees (padding in the middle, here and there), these go to the end first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ._mask_rules import Rule


@dataclass(frozen=True)
class Ranges:
    """What to compute for a mask ``[batch or 1, queries, keys]``."""

    # int32 [batch or 1, queries, 1 or 2, 2].
    numbers: torch.Tensor
    # [batch or 1, keys], where keys must change places.
    order: torch.Tensor | None = None

    def ordered(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[B, S, H, D]`` as the ranges count them."""
        if self.order is None:
            return k, v
        order = self.order.to(k.device)[:, :, None, None]
        k, v = (x.gather(1, order.expand(x.shape[0], -1, *x.shape[2:])) for x in (k, v))
        return k, v

    def rule(self, keys: int) -> Rule | None:
        """The rule of the whole, where it is one, of queries that are as many as the keys; else None."""
        if self.order is not None or self.numbers.shape[1:3] != (keys, 1) or keys == 0:
            return None
        begin, end = self.numbers[:, :, 0].unbind(-1)
        left = int((end - begin).max()) - 1
        for rule in (Rule(), Rule(right=0), Rule(left=left, right=0)):
            own = ranges_of_rule(rule, torch.tensor([[keys], [keys], [0]], device=begin.device), keys)
            if left >= 0 and bool((own[..., 0, :] == self.numbers[:, :, 0]).all()):
                return rule
        return None

    def stay_within(self, starts: torch.Tensor) -> bool:
        """Whether no query of one row sees keys of another document than its own.

        Args:
            starts: Where documents begin, and perhaps the end of the last.
        """
        if self.order is not None or self.numbers.shape[0] != 1:
            return False
        count, device = self.numbers.shape[1], self.numbers.device
        starts = starts.to(device).long().contiguous()
        document = torch.searchsorted(starts, torch.arange(count, device=device), right=True)
        edges = torch.cat([starts.new_zeros(1), starts, starts.new_full((1,), count)])
        low, high = edges[document][None, :, None], edges[document + 1].clamp(max=count)[None, :, None]
        begin, end = self.numbers.long().unbind(-1)
        return bool(((begin >= end) | (begin >= low) & (end <= high)).all())


def boolean(mask: torch.Tensor, name: str = "attention_mask") -> torch.Tensor:
    """A mask ``[B or 1, H or 1, N, S]`` of booleans, or of numbers that are added to scores, as ``[B or 1, N, S]`` of booleans.

    Raises:
        NotImplementedError: It says more than who sees whom, or does so for each head.
    """
    if mask.dim() != 4 or not (mask.dtype == torch.bool or mask.dtype.is_floating_point):
        raise NotImplementedError(
            f"{name} has {mask.dim()} axes of {mask.dtype}; masks are [batch, 1, queries, keys] of bool or of numbers that are "
            "added to the scores.")
    if mask.shape[1] > 1 and bool((mask != mask[:, :1]).any()):
        raise NotImplementedError(
            f"{name} differs between heads, which is not supported; use attn_implementation='sdpa' for this model.")
    mask = mask[:, 0]
    if mask.dtype != torch.bool:
        seen = mask == 0
        # Some models' lowest number is -10000, behind which no exponential is left either.
        if not bool((seen | (mask <= -10000)).all()):
            raise NotImplementedError(
                f"{name} holds numbers other than 0 and the lowest one, a bias that is added to scores, which is not supported; use "
                "attn_implementation='sdpa' for this model.")
        mask = seen
    return mask


def ranges_of_rule(rule: Rule, numbers: torch.Tensor, queries: int) -> torch.Tensor:
    """The keys that each query sees by a rule, int32 ``[batch, queries, 1, 2]``. (No GPU is waited for.)

    Args:
        numbers: ``[3, batch]``: the key behind which the last query stands, where the keys end, and where they begin.
    """
    last, end, begin = (x[:, None].long() for x in numbers)
    place = last - queries + torch.arange(queries, device=numbers.device)
    lower, upper = begin.expand_as(place), end.expand_as(place)
    if rule.left >= 0:
        lower = torch.maximum(lower, place - rule.left)
    if rule.right >= 0:
        upper = torch.minimum(upper, place + rule.right + 1)
    if rule.chunk:
        start = begin + torch.div(place - begin, rule.chunk, rounding_mode="floor") * rule.chunk
        lower, upper = torch.maximum(lower, start), torch.minimum(upper, start + rule.chunk)
    return torch.stack([lower, upper], -1).to(torch.int32)[:, :, None].contiguous()


def ranges_of_mask(mask: torch.Tensor, name: str = "attention_mask") -> Ranges:
    """``Ranges`` of a mask ``[batch or 1, queries, keys]`` of booleans. On a GPU this waits for it, once or twice.

    Raises:
        NotImplementedError: A query sees keys in more than two pieces.
    """
    numbers, pieces = _edges(mask)
    if pieces <= 2:
        return Ranges(numbers)
    order = torch.argsort((~mask.any(1)).to(torch.uint8), dim=-1, stable=True)
    numbers, pieces = _edges(mask.gather(2, order[:, None].expand_as(mask)))
    if pieces > 2:
        raise NotImplementedError(
            f"{name} has queries that see keys in {pieces} pieces, with keys between that they do not see; two are supported. Use "
            "attn_implementation='sdpa' for this model.")
    return Ranges(numbers, order)


def _edges(mask: torch.Tensor) -> tuple[torch.Tensor, int]:
    """The first piece of the keys that each query sees, and, where one sees two, the last; and the most pieces that one sees."""
    keys = mask.shape[-1]
    if mask.numel() == 0:
        return torch.zeros((*mask.shape[:2], 1, 2), dtype=torch.int32, device=mask.device), 0
    before = torch.nn.functional.pad(mask, (1, 0))[..., :-1]
    behind = torch.nn.functional.pad(mask, (0, 1))[..., 1:]
    begins, ends = ((mask & ~x).to(torch.uint8) for x in (before, behind))
    count = begins.sum(-1, dtype=torch.int32)
    pieces = int(count.max())

    def first(x: torch.Tensor) -> torch.Tensor:
        return x.argmax(-1)

    def last(x: torch.Tensor) -> torch.Tensor:
        return keys - 1 - x.flip(-1).argmax(-1)

    both = [torch.stack([first(begins), first(ends) + 1], -1), torch.stack([last(begins), last(ends) + 1], -1)]
    own = [x.masked_fill((count <= number)[..., None], 0) for number, x in enumerate(both)]
    return torch.stack(own[: max(1, min(pieces, 2))], 2).to(torch.int32).contiguous(), pieces
