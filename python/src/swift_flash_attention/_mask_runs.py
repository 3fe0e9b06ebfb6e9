"""Masks given key by key, as calls of the kernels.

Any mask in which each query sees an unbroken range of keys is exact work for the kernels: neighbouring queries that see the same
keys are one sequence without a mask, and such that each see one key more than the one before are one causal sequence (with a window,
where the first key moves too). Padding, packed documents, prefixes and blocks of images are such masks. Where a range is broken by
keys that nobody sees (padding in the middle), these go to the end first.
"""

from dataclasses import dataclass

import torch

from ._mask_rules import Rule
from ._torch import forward, sequences


@dataclass(frozen=True)
class _Group:
    """Runs of queries that one call computes; numbers of runs are int32, on the host."""

    causal: bool
    left: int
    # Of the queries of all sequences, one behind the other: which ones, or None for all.
    rows: torch.Tensor | None
    starts: torch.Tensor
    sequence: torch.Tensor
    begin: torch.Tensor
    end: torch.Tensor
    longest: int


@dataclass(frozen=True)
class Runs:
    """What to compute for a mask ``[batch, queries, keys]``."""

    groups: tuple
    # [batch, keys], where keys must change places.
    order: torch.Tensor | None

    def apply(self, q, k, v, scale, softcap, sinks=None):
        """q ``[B, N, H, D]``, k and v ``[B, S, H_k, D]``; returns ``[B, N, H, Dv]``."""
        if self.order is not None:
            order = self.order.to(k.device)[:, :, None, None]
            k, v = (x.gather(1, order.expand(-1, -1, *x.shape[2:])) for x in (k, v))
        batch, count, heads, dimension = q.shape
        rule = self.rule(batch, k.shape[1])
        if rule is not None:
            return forward(q, k, v, rule.right == 0, rule.left, rule.right, 0, softcap, scale, False, sinks=sinks)[0]
        flat = q.reshape(batch * count, heads, dimension)
        results = []
        for group in self.groups:
            begin = group.begin.to(q.device) if bool((group.begin > 0).any()) else None
            rows = None if group.rows is None else group.rows.to(q.device)
            out, _ = sequences(
                flat if rows is None else flat.index_select(0, rows), k, v, lengths=group.end.to(q.device),
                batch_index=group.sequence.to(q.device), left_padding=begin, query_starts=group.starts.to(q.device),
                longest_query=group.longest, scale=scale, causal=group.causal, left=group.left, softcap=softcap, sinks=sinks)
            results.append((rows, out))
        if len(results) == 1 and results[0][0] is None:
            return results[0][1].view(batch, count, heads, v.shape[-1])
        whole = q.new_zeros((batch * count, heads, v.shape[-1]))
        for rows, out in results:
            whole.index_copy_(0, rows, out)
        return whole.view(batch, count, heads, v.shape[-1])

    def rule(self, batch, keys):
        """The rule of the whole, where all queries of each sequence are one run that ends with the last key; else None."""
        if len(self.groups) != 1 or self.order is not None or len(self.groups[0].sequence) != batch:
            return None
        group = self.groups[0]
        if not bool((group.begin == 0).all() and (group.end == keys).all()):
            return None
        return Rule(left=group.left, right=0 if group.causal else -1)


def _ranges(mask):
    """The first key that each query sees, the one behind the last, and whether it sees all between."""
    keys = mask.shape[-1]
    count = mask.sum(-1)
    if keys == 0:
        return count, count, True
    numbers = mask.to(torch.uint8)
    first = numbers.argmax(-1)
    end = keys - numbers.flip(-1).argmax(-1)
    empty = count == 0
    first, end = first.masked_fill(empty, 0), end.masked_fill(empty, 0)
    return first, end, bool((end - first == count).all())


def boolean(mask, name="attention_mask"):
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


def ranges_of(rule, numbers, queries):
    """The first key that each query sees by a rule, and the one behind the last, ``[batch, queries]``.

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
    empty = lower >= upper
    return lower.masked_fill(empty, 0), upper.masked_fill(empty, 0)


def runs(mask, name="attention_mask"):
    """``Runs`` of a mask ``[batch, queries, keys]`` of booleans. On a GPU this waits for it, once.

    Raises:
        NotImplementedError: A query sees keys with others between that it does not see.
    """
    first, end, is_whole = _ranges(mask)
    order = None
    if not is_whole:
        order = torch.argsort((~mask.any(1)).to(torch.uint8), dim=-1, stable=True)
        first, end, is_whole = _ranges(mask.gather(2, order[:, None].expand_as(mask)))
        if not is_whole:
            raise NotImplementedError(
                f"{name} has queries that see keys on both sides of some that they do not see, which is not supported; use "
                "attn_implementation='sdpa' for this model.")
    return runs_of_ranges(first, end, order)


def runs_of_ranges(first, end, order=None):
    """``Runs`` of ranges of keys ``[batch, queries]``."""
    first, end = torch.stack([first, end]).cpu()
    batch, count = first.shape
    if batch * count == 0:
        return Runs((), None)
    # How each query's range follows from the one before it.
    steps_first, steps_end = first[:, 1:] - first[:, :-1], end[:, 1:] - end[:, :-1]
    moving = (steps_first == 1) & (steps_end == 1)
    widths = (end - first)[:, 1:][moving]
    window = int(widths.max()) if widths.numel() else None
    fits = torch.ones_like(first, dtype=torch.bool) if window is None else end - first <= window
    same = (steps_first == 0) & (steps_end == 0)
    lowest = first[:, :-1] if window is None else torch.maximum(first[:, :-1], end[:, 1:] - window)
    grows = (steps_end == 1) & (first[:, 1:] == lowest) & fits[:, 1:] & fits[:, :-1]
    # 0: begins anew, 1: the same keys, 2: one more.
    relation = torch.zeros_like(first)
    relation[:, 1:] = same.long() + 2 * grows.long()
    begins, kinds = _cut(relation.flatten())
    ends = torch.cat([begins[1:], torch.tensor([batch * count])])
    # A single query is both; it goes where others go.
    single = (ends - begins == 1) & fits.flatten()[begins]
    kinds = torch.where(single, 2 if bool((kinds == 2).any()) else 1, kinds)
    groups = []
    for kind in (1, 2):
        chosen = (kinds == kind).nonzero()[:, 0]
        if chosen.numel() == 0:
            continue
        lengths = ends[chosen] - begins[chosen]
        rows = None
        if chosen.numel() < begins.numel():
            rows = torch.cat([torch.arange(a, b) for a, b in zip(begins[chosen].tolist(), ends[chosen].tolist())])
        starts = torch.zeros(len(chosen) + 1, dtype=torch.int32)
        starts[1:] = lengths.cumsum(0)
        groups.append(
            _Group(
                causal=kind == 2, left=window - 1 if kind == 2 and window is not None else -1, rows=rows, starts=starts,
                sequence=(begins[chosen] // count).int(), begin=first.flatten()[begins[chosen]].int(),
                end=end.flatten()[ends[chosen] - 1].int(), longest=int(lengths.max())))
    return Runs(tuple(groups), order)


def _cut(relation):
    """Where runs begin, and of which kind they are: of each query, 0 where it cannot go on with the one before it, else how."""
    changes = torch.ones_like(relation, dtype=torch.bool)
    changes[1:] = (relation[1:] != relation[:-1]) | (relation[1:] == 0)
    begins, kinds = [], []
    for place in changes.nonzero()[:, 0].tolist():
        kind = int(relation[place])
        if kind != 0 and begins[-1] == place - 1:
            # The run that began just before is of this kind.
            kinds[-1] = kind
        elif kind == 0 or kind != kinds[-1]:
            begins.append(place)
            # The relation of the next query says it, unless that one begins anew.
            following = int(relation[place + 1]) if place + 1 < len(relation) else 0
            kinds.append(following or 1)
    return torch.tensor(begins), torch.tensor(kinds)
