"""The C interface by ctypes: its structs, and errors as exceptions."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterable
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Literal

OK, INVALID, UNAVAILABLE, FAILED, NO_MEMORY, LOST = range(6)
F32, F16, BF16, E4M3 = range(4)
CPU, GPU = range(2)
MASK_NONE, MASK_CAUSAL, MASK_WINDOW = range(3)
CONTIGUOUS, PAGED, PACKED = range(3)
RANGES_NONE, RANGES_GIVEN, RANGES_PREFIX, RANGES_FIRST_KEYS = range(4)
ORDERS = {"fixed": 0, "any": 1}
# What set_gradient_order said last.
gradient_order: Literal["fixed", "any"] = "fixed"
# Of keys_per_split: one part.
ALL_KEYS = 0x7FFFFFFF


# Of fields, those that Python reads have types, too.
class Tensor(ctypes.Structure):
    """``fa_tensor``"""

    data: int | None
    batch_stride: int
    token_stride: int
    head_stride: int
    _fields_ = [("data", c_void_p), ("batch_stride", c_int64), ("token_stride", c_int64), ("head_stride", c_int64)]


class Scores(ctypes.Structure):
    """``fa_scores``"""

    _fields_ = [
        ("mask", c_int32),
        ("scale_is_given", c_int32),
        ("window_left", c_int64),
        ("window_right", c_int64),
        ("chunk", c_int64),
        ("scale", c_double),
        ("softcap", c_double),
        ("sinks", c_void_p),
        ("sink_type", c_int32),
        ("ranges", c_int32),
        ("key_ranges", c_void_p),
        ("ranges_of_query", c_int32),
        ("ranges_are_shared", c_int32),
        ("first_keys", c_int64),
    ]


class ForwardParams(ctypes.Structure):
    """``fa_forward_params``"""

    device: int
    ordinal: int
    type: int
    batch: int
    queries: int
    query_heads: int
    value_dimension: int
    scores: Scores
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    _fields_ = [
        ("size", c_size_t),
        *[(name, c_int32) for name in ("device", "ordinal", "type", "reserved")],
        *[
            (name, c_int64)
            for name in ("batch", "queries", "keys", "query_heads", "key_value_heads", "dimension", "value_dimension")
        ],
        ("scores", Scores),
        *[(name, Tensor) for name in ("q", "k", "v", "o")],
        ("log_sum_exp", c_void_p),
        ("stream", c_void_p),
    ]


class SequencesParams(ctypes.Structure):
    """``fa_sequences_params``"""

    scores: Scores
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    new_k: Tensor
    new_v: Tensor
    _fields_ = [
        ("size", c_size_t),
        *[(name, c_int32) for name in ("device", "ordinal", "type", "query_type", "cache_type", "cache")],
        *[
            (name, c_int64)
            for name in (
                "batch",
                "queries",
                "total_queries",
                "query_heads",
                "key_value_heads",
                "dimension",
                "value_dimension",
                "cache_batch",
                "cache_tokens",
                "pages_per_sequence",
                "longest",
                "new_keys",
                "total_new_keys",
                "rotary_dimension",
                "rotary_positions",
            )
        ],
        ("rotary_interleaved", c_int32),
        ("leaves_parts", c_int32),
        ("keys_per_split", c_int64),
        ("scores", Scores),
        *[(name, Tensor) for name in ("q", "k", "v", "o", "new_k", "new_v")],
        *[
            (name, c_void_p)
            for name in (
                "log_sum_exp",
                "lengths",
                "batch_index",
                "left_padding",
                "page_table",
                "query_starts",
                "query_counts",
                "key_starts",
                "new_key_starts",
                "positions",
                "query_scales",
                "key_scales",
                "value_scales",
                "cosines",
                "sines",
                "workspace",
            )
        ],
        ("workspace_size", c_size_t),
        ("stream", c_void_p),
        ("counters", c_void_p),
        ("counters_size", c_size_t),
    ]


class CombineParams(ctypes.Structure):
    """``fa_combine_params``"""

    _fields_ = [
        ("size", c_size_t),
        *[(name, c_int32) for name in ("device", "ordinal", "type", "reserved")],
        *[(name, c_int64) for name in ("parts", "batch", "queries", "heads", "dimension")],
        ("partials", Tensor),
        ("part_stride", c_int64),
        ("log_sum_exps", c_void_p),
        ("o", Tensor),
        ("log_sum_exp", c_void_p),
        ("sinks", c_void_p),
        ("sink_type", c_int32),
        ("reserved_2", c_int32),
        ("stream", c_void_p),
    ]


class BackwardParams(ctypes.Structure):
    """``fa_backward_params``"""

    scores: Scores
    _fields_ = [
        ("size", c_size_t),
        *[(name, c_int32) for name in ("device", "ordinal", "type", "order")],
        *[
            (name, c_int64)
            for name in (
                "batch", "queries", "keys", "total_queries", "total_keys", "query_heads", "key_value_heads", "dimension",
                "value_dimension")
        ],
        ("scores", Scores),
        *[(name, Tensor) for name in ("q", "k", "v", "o", "d_o", "dq", "dk", "dv")],
        *[
            (name, c_void_p)
            for name in (
                "log_sum_exp", "d_log_sum_exp", "d_sinks", "query_starts", "key_starts", "query_counts", "key_counts", "workspace")
        ],
        ("workspace_size", c_size_t),
        ("stream", c_void_p),
    ]


library = ctypes.CDLL(str(Path(__file__).with_name("libflash_attention.so")))
for _name, _params in (
    ("forward", ForwardParams), ("sequences", SequencesParams), ("combine", CombineParams), ("backward", BackwardParams)
):
    _function = getattr(library, f"fa_{_name}")
    _function.argtypes, _function.restype = [POINTER(_params)], c_int32
for _name, _params in (("forward", ForwardParams), ("sequences", SequencesParams), ("backward", BackwardParams)):
    _function = getattr(library, f"fa_{_name}_describe")
    _function.argtypes, _function.restype = [POINTER(_params), c_char_p, c_size_t], c_int32
    _function = getattr(library, f"fa_{_name}_prepare")
    _function.argtypes, _function.restype = [POINTER(_params)], c_int32
library.fa_sequences_workspace.argtypes = [POINTER(SequencesParams), POINTER(c_size_t)]
library.fa_backward_workspace.argtypes = [POINTER(BackwardParams), POINTER(c_size_t)]
library.fa_sequences_counters.argtypes = [POINTER(SequencesParams), POINTER(c_size_t), POINTER(c_int32)]
library.fa_counters.argtypes = [c_int32, c_void_p, c_size_t, POINTER(c_void_p)]
library.fa_version.restype = library.fa_last_error.restype = c_char_p
library.fa_gpu_check.argtypes = library.fa_limit_threads.argtypes = [c_int32]
library.fa_use_threads.argtypes = [c_void_p]
# How many threads this one's calls may use, as the library was last told.
_local = threading.local()


def limit_threads(count: int) -> None:
    """Has this thread's calls use at most so many threads of the CPU; 0 for one per processor."""
    if getattr(_local, "threads", 0) != count:
        check(library.fa_limit_threads(count))
        _local.threads = count


def use_threads_of_openmp() -> None:
    """Has the library compute on the threads of GNU's OpenMP, where somebody brought it into the process: where PyTorch does, its threads wait
    awake for its own next operation, and would be in the way of others. Elsewhere the library keeps its own."""
    try:
        parallel = ctypes.CDLL(None).GOMP_parallel
    except AttributeError:
        return
    check(library.fa_use_threads(ctypes.cast(parallel, c_void_p)))
    # OpenMP's threads are not in a child, where nobody would come.
    os.register_at_fork(after_in_child=lambda: library.fa_use_threads(None))


def check(status: int, phrases: Iterable[tuple[str, str]] = ()) -> None:
    """Raises what a status means; the sentence is the library's, in which phrases give way to the caller's words for them."""
    if status == OK:
        return
    sentence = library.fa_last_error().decode()
    for own, theirs in phrases:
        sentence = sentence.replace(own, theirs)
    if status == INVALID:
        raise ValueError(sentence)
    raise _out_of_memory()(sentence) if status == NO_MEMORY else RuntimeError(sentence)


def _out_of_memory() -> type[RuntimeError]:
    """What PyTorch raises where memory runs out, a kind of ``RuntimeError``: programs that try again with less wait for it."""
    if "torch" not in sys.modules:
        return RuntimeError
    import torch

    kind: type[RuntimeError] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
    return kind
