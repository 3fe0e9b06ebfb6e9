"""Attention for Hugging Face models: ``attn_implementation="swift_attention"`` after this module was imported.

The mask that a model asks for decides who sees whom, as with ``sdpa``; what the layer says of itself (``is_causal``,
``sliding_window``) counts only where there is no mask. Windows to both sides, chunks, padding anywhere, packed documents, prefixes
and blocks of images are computed, and sinks; biases on scores and dropout raise ``NotImplementedError`` with the model's word for it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import causal_mask_function, sdpa_mask

from . import _mask_rules, _masked, _operators
from ._mask_rules import Rule
from ._mask_ranges import Ranges, boolean, ranges_of_mask, ranges_of_rule
from ._sequences import is_captured
from ._torch import sinks_fit

if TYPE_CHECKING:
    from ._types import Known

try:
    from transformers import AttentionMaskInterface
except ImportError:
    from transformers.masking_utils import AttentionMaskInterface

__all__ = ["NAME", "attention", "mask"]
# Transformers takes a name with "flash" in it for a package that it must import.
NAME = "swift_attention"


class Mask(torch.Tensor):
    """A mask for ``attention``, which nobody else can use by mistake: models that attend by themselves and take only their mask from
    here would add it to scores, and see the future or fail in other words.

    With a rule, the tensor is int32 ``[1, 1, 3, batch]``: the key behind which each sequence's last query stands, where its keys end and
    where they begin. Without, it is the mask itself, bool ``[batch, 1, queries, keys]``.

    Attributes:
        model: The model's type, for sentences.
        shape_of: ``(batch, queries, keys)``.
        rule: A ``Rule``, or None.
        is_whole: Whether the rule is all there is to know: no padding, and the last query stands on the last key.
        overhangs: With a rule, whether keys end elsewhere than queries, and the kernels' masks do not have it so; a tensor on the host
            where only the trace will know.
        ranges: ``Ranges`` where they are needed, unless that is for the call to find out.
    """

    model: str
    shape_of: tuple[int, int, int]
    rule: Rule | None
    is_whole: bool
    overhangs: bool | Tensor
    ranges: Ranges | None

    _attributes = ("model", "shape_of", "rule", "is_whole", "overhangs", "ranges")
    _moves = (
        torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu, torch.Tensor.clone, torch.Tensor.contiguous, torch.Tensor.detach,
        torch.Tensor.pin_memory, torch.Tensor.__deepcopy__)
    _questions = (
        *(getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "layout")),
        torch.Tensor.dim, torch.Tensor.stride, torch.Tensor.numel, torch.Tensor.is_contiguous, torch.Tensor.is_floating_point,
        torch.Tensor.data_ptr, torch.Tensor.__len__)

    @staticmethod
    def _asks_torch_itself() -> bool:
        """Whether the code that uses the mask is torch's own, which looks at the inputs of what it compiles, keeps and copies them."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_globals.get("__name__") == "torch.utils._device":
            # A default device looks at every call in passing.
            frame = frame.f_back
        name: str = "" if frame is None else frame.f_globals.get("__name__", "")
        return name.startswith(("torch._", "torch.fx"))

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Sequence[type], arguments: tuple[Any, ...] = (),
        options: dict[str, Any] | None = None
    ) -> Any:
        if function in cls._questions:
            with torch._C.DisableTorchFunctionSubclass():
                return function(*arguments, **(options or {}))
        if function in cls._moves and isinstance(arguments[0], cls):
            with torch._C.DisableTorchFunctionSubclass():
                moved = function(*arguments, **(options or {}))
            if moved.dtype == arguments[0].dtype:
                moved = moved.as_subclass(cls)
                for name in cls._attributes:
                    setattr(moved, name, getattr(arguments[0], name))
                return moved
        if isinstance(function, torch._ops.OpOverload):
            # A graph that was compiled for such a mask.
            with torch._C.DisableTorchFunctionSubclass():
                plain = [x.as_subclass(torch.Tensor) if isinstance(x, cls) else x for x in arguments]
                return function(*plain, **(options or {}))
        if not torch.compiler.is_dynamo_compiling() and cls._asks_torch_itself():
            with torch._C.DisableTorchFunctionSubclass():
                return function(*arguments, **(options or {}))
        own = [x for x in arguments if isinstance(x, cls)]
        raise NotImplementedError(
            f"{own[0].model if own else 'This model'} computes with its attention mask itself instead of handing it to an attention function, "
            f"which {NAME!r} cannot follow; use attn_implementation='eager' or 'sdpa' for this model.")

    def __repr__(self, **options: object) -> str:  # type: ignore[override]  # Of such methods mypy knows no keywords.
        return f"Mask({self.model}, batch, queries, keys {tuple(self.shape_of)}, {self.rule or 'key by key'})"


def _mask(
    data: Tensor, model: str, shape: tuple[int, int, int], rule: Rule | None = None, is_whole: bool = False,
    overhangs: bool | Tensor = False, ranges: Ranges | None = None
) -> Mask:
    made: Mask = data.as_subclass(Mask)
    made.model, made.shape_of, made.rule = model, shape, rule
    made.is_whole, made.overhangs, made.ranges = is_whole, overhangs, ranges
    return made


def mask(
    batch_size: int, cache_position: Tensor | None = None, kv_length: int | None = None, q_length: int | None = None,
    q_offset: int | Tensor = 0, kv_offset: int | Tensor = 0, mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None, device: torch.device | str | None = None, config: object = None,
    **options: Any
) -> Tensor:
    """The mask of a model's layers, in the place of ``transformers.masking_utils.sdpa_mask``, with whose meaning of the arguments.

    What else transformers says (which of ``sdpa``'s shortcuts it may take, types) changes no mask.
    """
    model = getattr(config, "model_type", None) or "This model"
    # Transformers 4 says where the queries stand, 5 how many there are behind how many.
    if cache_position is not None:
        positions: dict[str, Any] = {"cache_position": cache_position}
        q_length, q_offset, device = cache_position.shape[0], cache_position[0], cache_position.device
    else:
        positions = {"q_length": q_length, "q_offset": q_offset, "device": device or "cpu"}
    if attention_mask is not None:
        device = attention_mask.device
    device = torch.device(device or "cpu")
    shape: tuple[int, int, int] = (batch_size, q_length, kv_length)  # type: ignore[assignment]  # Of which transformers gives both.
    waits = not _operators.is_traced() and not (device.type == "cuda" and is_captured(device.index))
    # Tracers that put tensors of their own in the place of ours (torch.export) have none of our class.
    is_faked = not torch.compiler.is_dynamo_compiling() and torch._C._len_torch_dispatch_stack() > 0
    found = _mask_rules.read(mask_function, batch_size) if not is_faked else None
    if found is not None:
        rule, origins = found
        made = _ruled(
            shape, rule, origins, q_offset, kv_offset, cache_position, attention_mask, device, model, waits)
        if made is not None:
            return made
    dtype = options.get("dtype", torch.float32)
    seen: Tensor = sdpa_mask(
        batch_size=batch_size, kv_length=kv_length, kv_offset=kv_offset, mask_function=mask_function,
        attention_mask=attention_mask, allow_is_causal_skip=False, allow_is_bidirectional_skip=False,
        **positions, **{name: value for name, value in options.items() if name == "use_vmap"})
    seen = seen.expand(batch_size, *seen.shape[1:])
    if is_faked:
        # What eager has for a mask, so that models that attend by themselves are right, too.
        return torch.where(seen, torch.zeros((), dtype=dtype, device=seen.device), torch.finfo(dtype).min)
    return _mask(seen, model, shape, ranges=ranges_of_mask(boolean(seen)) if waits else None)


def _ruled(
    shape: tuple[int, int, int], rule: Rule, origins: tuple[Tensor, ...], q_offset: int | Tensor,
    kv_offset: int | Tensor, cache_position: Tensor | None, attention_mask: Tensor | None, device: torch.device,
    model: str, waits: bool
) -> Mask | None:
    """The mask of a rule; None where keys are missing in between, or chunks count from elsewhere."""
    batch, queries, keys = shape
    if rule.chunk and not (isinstance(kv_offset, int) and kv_offset == 0):
        return None
    # A cache of a sliding window begins at a later key; all numbers count from its first. (A cache may have room for more keys than
    # there are.)
    last = q_offset + queries - kv_offset
    real = None if attention_mask is None else _real_keys(attention_mask, keys, kv_offset)
    if waits and real is None and isinstance(last, int) and not origins:
        # Nothing is on the GPU that must be asked for.
        if last > keys:
            return None
        numbers = torch.tensor([[last], [keys], [0]], dtype=torch.int32).expand(3, batch)
        return _mask(
            numbers.to(device)[None, None], model, shape, rule, is_whole=last == keys,
            overhangs=_masked.overhang(rule, numbers))
    last = torch.as_tensor(last, device=device).to(torch.int32).reshape(-1)[:1].expand(batch)
    if real is None:
        end, begin = torch.full_like(last, keys), torch.zeros_like(last)
        fits = torch.ones_like(last, dtype=torch.bool)
    else:
        places = torch.arange(keys, device=device, dtype=torch.int32)
        end = torch.where(real, places + 1, 0).amax(dim=1).to(torch.int32)
        begin = torch.where(real, places, keys).amin(dim=1).to(torch.int32).minimum(end)
        fits = real.sum(dim=1) == end - begin
    for origin in origins:
        fits = fits & (origin.to(device).reshape(-1).expand(batch) == begin)
    if rule.chunk and not origins:
        # The kernels count chunks from a sequence's first key.
        fits = fits & (begin == 0)
    if cache_position is not None:
        steps = torch.arange(queries, device=device, dtype=cache_position.dtype)
        fits = fits & (cache_position - cache_position[:1] == steps).all()
    numbers = torch.stack([last, end, begin])
    if not waits:
        numbers, found = _masked.checked_padding(numbers, fits, rule)
        return _mask(numbers[None, None], model, shape, rule, overhangs=found)
    host, all_fit = numbers.cpu(), fits.all().cpu()
    lasts, ends, begins = host
    if not bool(all_fit) or bool((lasts > keys).any()):
        return None
    overhangs = _masked.overhang(rule, host)
    is_whole = bool((begins == 0).all() and (lasts == keys).all() and (ends == keys).all())
    return _mask(
        numbers[None, None], model, shape, rule, is_whole=is_whole, overhangs=overhangs,
        ranges=Ranges(ranges_of_rule(rule, numbers, queries)) if overhangs else None)


def _real_keys(attention_mask: Tensor, keys: int, kv_offset: int | Tensor) -> Tensor:
    """Which keys are no padding ``[batch, keys]``."""
    real = attention_mask.to(torch.bool)
    if isinstance(kv_offset, torch.Tensor):
        places = torch.arange(keys, device=real.device) + kv_offset.to(real.device)
        inside = places < real.shape[1]
        return real.index_select(1, places.clamp(max=real.shape[1] - 1)) & inside
    real = real[:, kv_offset : kv_offset + keys]
    return torch.nn.functional.pad(real, (0, keys - real.shape[1]))


# Keywords that say nothing of what attention computes: where tokens stand (the mask and the rotary embedding have it already), and
# what models do around attention.
_WITHOUT_MEANING = frozenset(
    "position_ids cache_position num_items_in_batch use_cache output_hidden_states output_router_logits return_dict "
    "deterministic".split())
_REFUSED = {
    "position_bias": "a bias on scores (position_bias)", "head_mask": "a mask of heads (head_mask)",
    "output_attentions": "handing out attention weights (output_attentions=True)",
    "cache": "a paged cache of continuous batching (cache)",
}


def _is_nothing(value: object) -> bool:
    return value is None or value is False


def _refuse(dropout: float, others: dict[str, Any]) -> None:
    if dropout:
        raise NotImplementedError("dropout is not supported; set attention_dropout to 0, or call model.eval().")
    for name, value in others.items():
        if name in _WITHOUT_MEANING or _is_nothing(value):
            continue
        what = _REFUSED.get(name, f"the keyword {name}, which this attention does not know,")
        # Of attention weights, sdpa has none either.
        instead = "'eager'" if name == "output_attentions" else "'eager' or 'sdpa'"
        raise NotImplementedError(f"{what} is not supported by {NAME!r}; use attn_implementation={instead} for this model.")


def attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None, softcap: float | None = None,
    is_causal: bool | None = None, cu_seq_lens_q: Tensor | None = None, cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | Tensor | None = None, max_length_k: int | Tensor | None = None, seq_idx: Tensor | None = None,
    s_aux: Tensor | None = None, **others: Any
) -> tuple[Tensor, None]:
    """query ``[B, H, N, D]``, key and value ``[B, H_kv, S, D]``; returns ``[B, N, H, D]`` and no weights.

    Raises:
        NotImplementedError: What is not supported, by the model's own word for it.
    """
    _refuse(dropout, others)
    if torch.is_autocast_enabled(query.device.type):
        # As torch.nn.functional.scaled_dot_product_attention does.
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if query.shape[0] == 1 < key.shape[0]:
        query = query.expand(key.shape[0], -1, -1, -1)
    q, k, v = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    sinks = sinks_fit("s_aux", s_aux, q.shape[2], q)
    scaling = None if scaling is None else float(scaling)
    softcap = 0.0 if softcap is None else float(softcap)
    if cu_seq_lens_q is not None or cu_seq_lens_k is not None:
        return _documents(
            module, q, k, v, sinks, attention_mask, (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k), scaling, softcap,
            sliding_window, is_causal), None
    if seq_idx is not None and not _are_apart(seq_idx, attention_mask):
        raise NotImplementedError(
            "seq_idx tells documents apart, and neither the mask nor cu_seq_lens_q does; give cu_seq_lens_q with it, or position_ids and "
            "use_cache=False.")
    if attention_mask is None:
        own = _rule_without_mask(module, q.shape[1], k.shape[1], sliding_window, is_causal)
        return _masked.whole(q, k, v, sinks, own, softcap, scaling), None
    if not isinstance(attention_mask, Mask):
        # A model's own mask of four axes may be longer than the keys.
        return _masked.masked(q, k, v, sinks, _fitted(attention_mask, q, k), softcap, scaling), None
    batch, queries, keys = attention_mask.shape_of
    if (queries, keys) != (q.shape[1], k.shape[1]) or batch not in (1, q.shape[0]):
        raise NotImplementedError(
            f"{attention_mask.model} made its mask for {batch} x {queries} queries and {keys} keys, and attends with {q.shape[0]} x "
            f"{q.shape[1]} queries and {k.shape[1]} keys; use attn_implementation='eager' or 'sdpa' for this model.")
    rule = attention_mask.rule
    if rule is not None and attention_mask.is_whole:
        return _masked.whole(q, k, v, sinks, rule, softcap, scaling), None
    if attention_mask.ranges is not None and not _operators.is_traced():
        return _masked.by_ranges(q, k, v, sinks, attention_mask.ranges, softcap, scaling), None
    with torch._C.DisableTorchFunctionSubclass():
        if rule is None:
            return _masked.masked(q, k, v, sinks, attention_mask[:], softcap, scaling), None
        return _masked.padded(q, k, v, sinks, attention_mask[0, 0], attention_mask.overhangs, rule, softcap, scaling), None


def _fitted(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A model's own mask of four axes, for the queries and keys of a layer: it may be the same for all queries, and longer than the
    keys, as models' own attention has it."""
    if mask.dim() != 4:
        raise NotImplementedError(
            f"attention_mask has the shape {tuple(mask.shape)}; a mask that does not come from this module must be [batch, 1, queries, keys].")
    shape = (q.shape[0], mask.shape[1], q.shape[1], k.shape[1])
    mask = mask[..., : k.shape[1]]
    if any(own not in (1, needed) for own, needed in zip(mask.shape, shape)) or mask.shape[3] != k.shape[1]:
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)}; {q.shape[0]} x {q.shape[1]} queries and {k.shape[1]} keys need "
            f"{(q.shape[0], 1, q.shape[1], k.shape[1])}.")
    return mask.expand(shape)


def _rule_without_mask(
    module: torch.nn.Module, queries: int, keys: int, sliding_window: int | None, is_causal: bool | None
) -> Rule:
    """What a layer says of itself, where its model has no mask for it."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    # As under sdpa, a single query sees all keys.
    causal = bool(causal) and queries > 1
    if causal and queries != keys:
        raise NotImplementedError(
            f"A causal layer attends with {queries} queries and {keys} keys and has no mask that says where the queries stand; use "
            "attn_implementation='eager' or 'sdpa' for this model.")
    if sliding_window is None or sliding_window >= keys:
        return Rule(right=0 if causal else -1)
    if not causal:
        raise NotImplementedError(
            f"A layer has a window (sliding_window={sliding_window}) and no mask that says to which sides; use "
            "attn_implementation='eager' or 'sdpa' for this model.")
    # A window of n keys is the query's own and n - 1 before it.
    return Rule(left=sliding_window - 1, right=0)


def _documents(
    module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, given: Tensor | None,
    lists: tuple[Known, Known, Known, Known], scaling: float | None, softcap: float, sliding_window: int | None,
    is_causal: bool | None
) -> Tensor:
    """Packed documents by their starts, as ``DataCollatorWithFlattening`` hands them over."""
    names = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
    for name, value in zip(names, lists):
        if value is None:
            raise ValueError(f"{name} is missing; documents are told apart by {', '.join(names)} together.")
    if q.shape[0] != 1:
        raise ValueError(f"cu_seq_lens_q tells documents of one row apart; there are {q.shape[0]} rows.")
    rule = None
    if isinstance(given, Mask):
        # A mask from position_ids knows the documents already; one of padding cannot be joined with them.
        rule = given.rule if given.is_whole else None
        if given.ranges is not None:
            rule = given.ranges.rule(k.shape[1])
        if rule is None:
            if given.ranges is not None and torch.equal(*lists[:2]) and given.ranges.stay_within(lists[0]):
                return _masked.by_ranges(q, k, v, sinks, given.ranges, softcap, scaling)
            raise NotImplementedError(
                "cu_seq_lens_q is not supported together with padding in attention_mask; leave one of them out.")
    elif given is not None:
        raise NotImplementedError("cu_seq_lens_q is not supported together with an attention_mask of four axes; leave one of them out.")
    else:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if sliding_window is not None and not causal:
            raise NotImplementedError(
                f"A layer has a window (sliding_window={sliding_window}) and no mask that says to which sides; use "
                "attn_implementation='eager' or 'sdpa' for this model.")
        rule = Rule(left=-1 if sliding_window is None else sliding_window - 1, right=0 if causal else -1)
    return _masked.documents(q, k, v, sinks, *lists, rule, softcap, scaling)


def _are_apart(numbers: Tensor, given: Tensor | None) -> bool:
    """Whether a mask tells documents apart that have numbers of their own."""
    if numbers.shape[0] == 1:
        changes = (numbers[0, 1:] != numbers[0, :-1]).nonzero()[:, 0] + 1
        if changes.numel() == 0:
            return True
        starts = torch.cat([changes.new_zeros(1), changes, changes.new_full((1,), numbers.shape[1])])
        return isinstance(given, Mask) and given.ranges is not None and given.ranges.stay_within(starts)
    return False


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
