"""The calls on torch tensors: structs that are filled once for a shape, workspaces, and operators for ``torch.compile``."""

import ctypes
import threading

import torch

from . import _library as c

_TYPES = {torch.float32: c.F32, torch.float16: c.F16, torch.bfloat16: c.BF16, torch.float8_e4m3fn: c.E4M3}
_local = threading.local()
# Shapes that a thread remembers; one that has more begins again.
_LIMIT = 1024


def _remembered(name):
    memory = getattr(_local, name, None)
    if memory is None or len(memory) > _LIMIT:
        memory = {}
        setattr(_local, name, memory)
    return memory


def _type(name, tensor):
    code = _TYPES.get(tensor.dtype)
    if code is None:
        raise TypeError(f"{name} is {tensor.dtype}; supported are float32 (on the CPU), float16, bfloat16 and float8_e4m3fn.")
    return code


def _device(tensor):
    if tensor.device.type == "cuda":
        return c.GPU, tensor.device.index or 0
    if tensor.device.type == "cpu":
        return c.CPU, 0
    raise TypeError(f"The tensors are on {tensor.device}; supported are the CPU and CUDA devices.")


def unit_stride(tensor):
    """The tensor with elements side by side along its last axis."""
    return tensor if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


def _strides(params, tensor, is_packed=False):
    """Strides of ``[B, N, H, D]``, or of ``[total, H, D]``."""
    strides = (0, *tensor.stride()) if is_packed else tensor.stride()
    params.batch_stride, params.token_stride, params.head_stride = strides[:3]


def _set_scores(scores, causal, left, right, chunk, softcap, scale):
    """Below 0, a side of the window is unlimited."""
    if causal:
        right = 0
    if left < 0 and right < 0:
        scores.mask = c.MASK_NONE
    elif left < 0 and right == 0:
        scores.mask = c.MASK_CAUSAL
    else:
        scores.mask, scores.window_left, scores.window_right = c.MASK_WINDOW, left, right
    scores.chunk, scores.softcap = chunk, softcap
    if scale is not None:
        scores.scale_is_given, scores.scale = 1, scale


def _fits(name, tensor, shape, like, dtype=None):
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; {tuple(shape)} is needed.")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}, and the queries are on {like.device}.")
    if dtype is not None and tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}; {dtype} is needed.")


# MARK: - Whole tensors


def forward(q, k, v, causal, left, right, chunk, softcap, scale, wants_lse):
    """``[B, N, H, D]`` tensors of one type; returns the output and the log-sum-exp, or None."""
    key = (
        q.shape, q.stride(), q.dtype, q.device, k.shape, k.stride(), k.dtype, k.device, v.shape, v.stride(), v.dtype,
        v.device, causal, left, right, chunk, softcap, scale)
    calls = _remembered("forward")
    call = calls.get(key)
    if call is None:
        b, n, h, d = q.shape
        _fits("k", k, (b, k.shape[1], k.shape[2], d), q, q.dtype)
        _fits("v", v, (b, k.shape[1], k.shape[2], v.shape[-1]), q, q.dtype)
        device, ordinal = _device(q)
        call = c.ForwardParams(
            size=ctypes.sizeof(c.ForwardParams), device=device, ordinal=ordinal, type=_type("q", q), batch=b, queries=n,
            keys=k.shape[1], query_heads=h, key_value_heads=k.shape[2], dimension=d, value_dimension=v.shape[-1])
        _set_scores(call.scores, causal, left, right, chunk, softcap, scale)
        for params, tensor in ((call.q, q), (call.k, k), (call.v, v)):
            _strides(params, tensor)
        dv = v.shape[-1]
        call.o.batch_stride, call.o.token_stride, call.o.head_stride = n * h * dv, h * dv, dv
        calls[key] = call
    out = q.new_empty((*q.shape[:3], call.value_dimension))
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32) if wants_lse else None
    call.q.data, call.k.data, call.v.data = q.data_ptr(), k.data_ptr(), v.data_ptr()
    call.o.data = out.data_ptr()
    call.log_sum_exp = lse.data_ptr() if wants_lse else None
    if q.is_cuda:
        call.stream = torch._C._cuda_getCurrentRawStream(q.device.index)
    c.check(c.library.fa_forward(call))
    return out, lse


# MARK: - Sequences

# Bytes at a workspace's beginning that must be zero, of plans that may share one: a counter for each unit.
_SHARED_UNITS = 65536


def _workspace(byte_count, device, stream, is_shared):
    """Memory whose counters are zero between calls: one for all calls of a thread in a stream, or one of its own. (Calls of two
    threads may come between each other's launches.)"""
    workspaces = _remembered("workspaces")
    key = (device, stream, None if is_shared else byte_count)
    memory = workspaces.get(key)
    if memory is None or memory.numel() < byte_count:
        memory = torch.zeros(max(byte_count, 16 << 20) if is_shared else byte_count, dtype=torch.uint8, device=device)
        workspaces[key] = memory
    return memory


def _fresh_workspace(byte_count, device, is_shared):
    """Memory for one call, which belongs to whoever records or captures it: zeroing the counters is a part of the call."""
    memory = torch.empty(byte_count, dtype=torch.uint8, device=device)
    (memory[: 4 * _SHARED_UNITS] if is_shared else memory).zero_()
    return memory


_LISTS = (
    "lengths", "batch_index", "left_padding", "page_table", "query_starts", "query_counts", "key_starts", "new_key_starts",
    "positions")
_SCALES = ("query_scales", "key_scales", "value_scales")


def sequences(
    q, k, v, lengths=None, batch_index=None, left_padding=None, page_table=None, query_starts=None, query_counts=None,
    longest_query=None, key_starts=None, longest_key=None, new_k=None, new_v=None, new_key_starts=None, cosines=None,
    sines=None, interleaved=True, positions=None, query_scales=None, key_scales=None, value_scales=None, scale=None,
    causal=False, left=-1, right=-1, chunk=0, softcap=0.0, keys_per_split=0, wants_lse=False, is_recorded=False
):
    """``fa_sequences``: queries ``[B, s, H, D]`` or packed ``[total, H, D]``, over ``[B, S, H_kv, D]``, pages, or packed keys.

    Args:
        is_recorded: Whether the call may be a part of a graph that owns its memory.
    """
    lists = (
        lengths, batch_index, left_padding, page_table, query_starts, query_counts, key_starts, new_key_starts, positions)
    scales = (query_scales, key_scales, value_scales)
    # All that the struct is made from but addresses.
    key = (
        q.shape, q.stride(), q.dtype, q.device, k.shape, k.stride(), k.dtype, v.shape, v.stride(), v.dtype,
        lengths is None or lengths.shape, batch_index is None or batch_index.shape,
        left_padding is None or left_padding.shape, page_table is None or page_table.shape,
        query_starts is None or query_starts.shape, query_counts is None or query_counts.shape,
        key_starts is None or key_starts.shape, new_key_starts is None or new_key_starts.shape,
        positions is None or positions.shape, query_scales is None or query_scales.shape,
        key_scales is None or key_scales.shape, value_scales is None or value_scales.shape, longest_query, longest_key,
        new_k is None or (new_k.shape, new_k.stride(), new_v.shape, new_v.stride(), new_k.dtype, new_v.dtype),
        cosines is None or (cosines.shape, sines.shape, cosines.dtype, sines.dtype, interleaved), scale, causal, left,
        right, chunk, softcap, keys_per_split)
    is_cuda = q.is_cuda
    for x in (k, v, new_k, new_v, cosines, sines):
        if x is not None and x.is_cuda != is_cuda:
            raise ValueError(f"All tensors must be on one device; there are {q.device} and {x.device}.")
    calls = _remembered("sequences")
    found = calls.get(key)
    if found is None:
        found = calls[key] = _sequences_call(
            q, k, v, lists, scales, longest_query, longest_key, new_k, new_v, cosines, sines, interleaved, scale, causal,
            left, right, chunk, softcap, keys_per_split)
    call, q_place, k_place, v_place, o_place, given, workspace_size, is_shared, out_shape, out_dtype = found
    # What is like q costs half as much to make.
    out = torch.empty(out_shape, dtype=out_dtype, device=q.device) if out_shape is not None else torch.empty_like(q)
    q_place.data, k_place.data, v_place.data, o_place.data = q.data_ptr(), k.data_ptr(), v.data_ptr(), out.data_ptr()
    lse = None
    if wants_lse:
        shape = (q.shape[1], q.shape[0]) if query_starts is not None else (q.shape[0], q.shape[2], q.shape[1])
        lse = torch.empty(shape, dtype=torch.float32, device=q.device)
        call.log_sum_exp = lse.data_ptr()
    else:
        call.log_sum_exp = None
    for name, index, dtype in given:
        value = lists[index] if index < len(lists) else scales[index - len(lists)]
        if value.dtype is not dtype or not value.is_contiguous():
            raise ValueError(f"{name} must be contiguous {dtype}; it is {value.dtype} with strides {value.stride()}.")
        if value.is_cuda != is_cuda:
            raise ValueError(f"{name} is on {value.device}, and the queries are on {q.device}.")
        setattr(call, name, value.data_ptr())
    if new_k is not None:
        call.new_k.data, call.new_v.data = new_k.data_ptr(), new_v.data_ptr()
        if cosines is not None:
            if not (cosines.is_contiguous() and sines.is_contiguous()):
                raise ValueError("rotary_cos and rotary_sin must be contiguous.")
            call.cosines, call.sines = cosines.data_ptr(), sines.data_ptr()
    if is_cuda:
        stream = torch._C._cuda_getCurrentRawStream(q.device.index)
        call.stream = stream
        if workspace_size > 0:
            if is_recorded or torch._C._cuda_isCurrentStreamCapturing():
                memory = _fresh_workspace(workspace_size, q.device, is_shared)
            else:
                memory = _workspace(workspace_size, q.device, stream, is_shared)
            call.workspace, call.workspace_size = memory.data_ptr(), memory.numel()
    status = c.library.fa_sequences(call)
    if status:
        c.check(status)
    return out, lse


def _sequences_call(
    q, k, v, lists, scales, longest_query, longest_key, new_k, new_v, cosines, sines, interleaved, scale, causal, left,
    right, chunk, softcap, keys_per_split
):
    """The struct of a shape and its tensors, which lists it has, its workspace and whether that may be shared, and its output."""
    lists = dict(zip(_LISTS, lists))
    packed_queries, packed_keys = lists["query_starts"] is not None, lists["key_starts"] is not None
    paged, packed_new = lists["page_table"] is not None, lists["new_key_starts"] is not None
    device, ordinal = _device(q)
    if packed_queries:
        (total, h, d), batch = q.shape, lists["query_starts"].shape[0] - 1
        if longest_query is None:
            raise ValueError("Packed queries need max_seqlen_q, the most queries of a sequence.")
    else:
        batch, longest_query, h, d = q.shape
        total = 0
    if k.dtype != v.dtype:
        raise ValueError(f"The cached keys are {k.dtype} and the values {v.dtype}; one type is needed.")
    is_e4m3 = q.dtype == torch.float8_e4m3fn
    out_dtype = (new_k.dtype if new_k is not None else torch.bfloat16) if is_e4m3 else q.dtype
    heads = k.shape[-2]
    _fits("v", v, (*k.shape[:-1], v.shape[-1]), q)
    if k.shape[-1] != d:
        raise ValueError(f"The keys have the head dimension {k.shape[-1]}, and the queries {d}.")
    call = c.SequencesParams(
        size=ctypes.sizeof(c.SequencesParams), device=device, ordinal=ordinal, type=_TYPES[out_dtype],
        query_type=_type("q", q), cache_type=_type("k", k), batch=batch, queries=longest_query, total_queries=total,
        query_heads=h, key_value_heads=heads, dimension=d, value_dimension=v.shape[-1], keys_per_split=keys_per_split)
    if packed_keys:
        call.cache, call.cache_tokens, call.longest = c.PACKED, k.shape[0], longest_key
    else:
        call.cache, call.cache_batch, call.cache_tokens = c.PAGED if paged else c.CONTIGUOUS, k.shape[0], k.shape[1]
        if paged:
            call.pages_per_sequence = lists["page_table"].shape[1]
    for name, extent in (
        ("lengths", batch), ("batch_index", batch), ("left_padding", batch), ("query_counts", batch),
        ("key_starts", batch + 1), ("new_key_starts", batch + 1), ("positions", batch),
    ):
        if lists[name] is not None:
            _fits(name, lists[name], (extent,), q, torch.int32)
    if paged:
        _fits("page_table", lists["page_table"], (batch, lists["page_table"].shape[1]), q, torch.int32)
    for name, value in zip(_SCALES, scales):
        if value is not None:
            _fits(name, value, (batch, heads), q, torch.float32)
    _set_scores(call.scores, causal, left, right, chunk, softcap, scale)
    _strides(call.q, q, packed_queries)
    _strides(call.k, k, packed_keys)
    _strides(call.v, v, packed_keys)
    dv = v.shape[-1]
    call.o.batch_stride, call.o.token_stride, call.o.head_stride = longest_query * h * dv, h * dv, dv
    if new_k is not None:
        if new_k.dtype != out_dtype:
            raise NotImplementedError(f"k: new keys must be {out_dtype} here; they are {new_k.dtype}.")
        lead = (new_k.shape[0],) if packed_new else (batch, new_k.shape[1])
        _fits("k", new_k, (*lead, heads, d), q)
        _fits("v", new_v, (*lead, heads, dv), q, out_dtype)
        capacity = k.shape[1] * (lists["page_table"].shape[1] if paged else 1)
        call.new_keys = min(new_k.shape[0], capacity) if packed_new else new_k.shape[1]
        call.total_new_keys = new_k.shape[0] if packed_new else 0
        _strides(call.new_k, new_k, packed_new)
        _strides(call.new_v, new_v, packed_new)
        call.new_k.data, call.new_v.data = new_k.data_ptr(), new_v.data_ptr()
    if cosines is not None:
        if new_k is None:
            raise ValueError("A rotary embedding turns new keys and the queries: give k and v with it.")
        _fits("rotary_cos", cosines, cosines.shape, q, out_dtype)
        _fits("rotary_sin", sines, cosines.shape, q, out_dtype)
        call.rotary_dimension, call.rotary_positions = 2 * cosines.shape[1], cosines.shape[0]
        call.rotary_interleaved = int(interleaved)
    # What is given decides the plan; the addresses are those of this call.
    for name, value in (*lists.items(), *zip(_SCALES, scales)):
        if value is not None:
            setattr(call, name, value.data_ptr())
    size = ctypes.c_size_t()
    c.check(c.library.fa_sequences_workspace(call, size))
    units = batch * heads * (longest_query * (h // max(heads, 1)) // 16 + 1)
    given = [
        (name, index, torch.float32 if name in _SCALES else torch.int32)
        for index, name in enumerate((*_LISTS, *_SCALES))
        if {**lists, **dict(zip(_SCALES, scales))}[name] is not None
    ]
    # Views of the struct's parts are made once: making one takes as long as an assignment.
    out_shape = None if dv == d and out_dtype == q.dtype and q.is_contiguous() else (*q.shape[:-1], dv)
    return call, call.q, call.k, call.v, call.o, given, size.value, units <= _SHARED_UNITS, out_shape, out_dtype


# MARK: - Operators, which torch.compile and autograd know


def _no_backward(name):
    def backward(ctx, *gradients):
        raise NotImplementedError(f"{name} has no backward pass; compute gradients with another attention function.")

    return backward


@torch.library.custom_op("swift_flash_attention::forward", mutates_args=())
def forward_op(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, left: int, right: int, chunk: int, softcap: float,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return forward(unit_stride(q), unit_stride(k), unit_stride(v), causal, left, right, chunk, softcap, scale, True)


@forward_op.register_fake
def _(q, k, v, causal, left, right, chunk, softcap, scale):
    return (
        q.new_empty((*q.shape[:3], v.shape[-1])), q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32))


forward_op.register_autograd(_no_backward("swift_flash_attention's attention"))


def _fake_sequences(q, v, query_starts, new_k):
    dtype = q.dtype if q.dtype != torch.float8_e4m3fn else new_k.dtype if new_k is not None else torch.bfloat16
    shape = (q.shape[1], q.shape[0]) if query_starts is not None else (q.shape[0], q.shape[2], q.shape[1])
    return q.new_empty((*q.shape[:-1], v.shape[-1]), dtype=dtype), q.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("swift_flash_attention::varlen", mutates_args=())
def varlen_op(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, query_starts: torch.Tensor, key_starts: torch.Tensor,
    query_counts: torch.Tensor | None, key_counts: torch.Tensor | None, longest_query: int, longest_key: int,
    query_scales: torch.Tensor | None, key_scales: torch.Tensor | None, value_scales: torch.Tensor | None, causal: bool,
    left: int, right: int, chunk: int, softcap: float, scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return sequences(
        unit_stride(q), unit_stride(k), unit_stride(v), lengths=key_counts, query_starts=query_starts,
        query_counts=query_counts, longest_query=longest_query, key_starts=key_starts, longest_key=longest_key,
        query_scales=query_scales, key_scales=key_scales, value_scales=value_scales, scale=scale, causal=causal, left=left,
        right=right, chunk=chunk, softcap=softcap, wants_lse=True, is_recorded=True)


@varlen_op.register_fake
def _(q, k, v, query_starts, *rest):
    return _fake_sequences(q, v, query_starts, None)


varlen_op.register_autograd(_no_backward("swift_flash_attention's attention"))


@torch.library.custom_op("swift_flash_attention::with_kvcache", mutates_args=("k_cache", "v_cache"))
def kvcache_op(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None,
    cosines: torch.Tensor | None, sines: torch.Tensor | None, lengths: torch.Tensor, batch_index: torch.Tensor | None,
    left_padding: torch.Tensor | None, page_table: torch.Tensor | None, query_starts: torch.Tensor | None,
    new_key_starts: torch.Tensor | None, longest_query: int | None, positions: torch.Tensor | None,
    query_scales: torch.Tensor | None, key_scales: torch.Tensor | None, value_scales: torch.Tensor | None,
    interleaved: bool, causal: bool, left: int, right: int, chunk: int, softcap: float, scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    return sequences(
        unit_stride(q), k_cache, v_cache, lengths=lengths, batch_index=batch_index, left_padding=left_padding,
        page_table=page_table, query_starts=query_starts, longest_query=longest_query, new_k=unit_stride(k),
        new_v=unit_stride(v), new_key_starts=new_key_starts, cosines=cosines, sines=sines, interleaved=interleaved,
        positions=positions, query_scales=query_scales, key_scales=key_scales, value_scales=value_scales, scale=scale,
        causal=causal, left=left, right=right, chunk=chunk, softcap=softcap, wants_lse=True, is_recorded=True)


@kvcache_op.register_fake
def _(q, k_cache, v_cache, k, v, cosines, sines, lengths, batch_index, left_padding, page_table, query_starts, *rest):
    return _fake_sequences(q, v_cache, query_starts, k)


def needs_operator(*tensors):
    """Whether somebody traces, or wants gradients of what is computed."""
    if torch.compiler.is_compiling():
        return True
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return False
