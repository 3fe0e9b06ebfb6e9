"""Captured calls: a graph holds attention's own launches and nothing else, and may run beside others."""

import contextlib
import ctypes
import gc

import pytest
import torch

import swift_flash_attention as fa
from swift_flash_attention.compat.flash_attn_interface import (
    flash_attn_combine, flash_attn_func, flash_attn_varlen_func, flash_attn_with_kvcache)

pytestmark = pytest.mark.gpu
KERNEL = 0


def node_types(graph):
    """The types of a captured graph's nodes, as ``CUgraphNodeType`` counts them."""
    driver = ctypes.CDLL("libcuda.so.1")
    raw = ctypes.c_void_p(graph.raw_cuda_graph())
    count = ctypes.c_size_t()
    assert driver.cuGraphGetNodes(raw, None, ctypes.byref(count)) == 0
    nodes = (ctypes.c_void_p * count.value)()
    assert driver.cuGraphGetNodes(raw, nodes, ctypes.byref(count)) == 0
    types = []
    for node in nodes:
        kind = ctypes.c_int()
        assert driver.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(kind)) == 0
        types.append(kind.value)
    return types


@contextlib.contextmanager
def captured(graph, device, stream=None):
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=stream):
        yield


def decoding(device, batch=2, queries=1, heads=32, own=8, capacity=4096, dimension=128):
    q = torch.randn(batch, queries, heads, dimension, dtype=torch.bfloat16, device=device)
    k, v = (torch.randn(batch, capacity, own, dimension, dtype=torch.bfloat16, device=device) for _ in range(2))
    return q, k, v, torch.full((batch,), capacity - 7, dtype=torch.int32, device=device)


def calls(device):
    """Calls by name: a function, and the launches that it should be."""
    q, k, v, lengths = decoding(device)
    many = decoding(device, batch=1, queries=64, heads=16, own=1, capacity=8192)
    long = decoding(device, batch=1, heads=16, own=1, capacity=32768)
    new = torch.randn(2, 1, 8, 128, dtype=torch.bfloat16, device=device)
    starts = torch.tensor([0, 3, 200], dtype=torch.int32, device=device)
    packed = torch.randn(200, 8, 128, dtype=torch.bfloat16, device=device)
    small = torch.randn(1, 8, 64, 128, dtype=torch.bfloat16, device=device)
    parts, sums = torch.randn(2, 1, 3, 4, 64, device=device), torch.randn(2, 1, 4, 3, device=device).transpose(-1, -2)
    return {
        "decode": (lambda: flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths), (1, 2)),
        "decode, one head": (lambda: flash_attn_with_kvcache(*long[:3], cache_seqlens=long[3]), (1, 2)),
        "decode, many rows": (lambda: flash_attn_with_kvcache(*many[:3], cache_seqlens=many[3], causal=True), (1, 2)),
        "append": (lambda: flash_attn_with_kvcache(q, k, v, k=new, v=new, cache_seqlens=lengths, causal=True), (2, 3)),
        "forward": (lambda: flash_attn_func(small, small, small, causal=True), (1,)),
        "attention": (lambda: fa.attention(small, small, small, causal=True), (1,)),
        "varlen": (lambda: flash_attn_varlen_func(packed, packed, packed, starts, starts, 197, 197, causal=True), (1, 2)),
        "combine": (lambda: flash_attn_combine(parts, sums)[0], (1, 2, 3)),
    }


NAMES = ("decode", "decode, one head", "decode, many rows", "append", "forward", "attention", "varlen", "combine")


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_holds_nothing_but_attention(gpu, name):
    function, counts = calls(gpu)[name]
    expected = function().clone()
    torch.cuda.synchronize(gpu)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with captured(graph, gpu):
        out = function()
    types = node_types(graph)
    assert set(types) == {KERNEL} and len(types) in counts, types
    graph.instantiate()
    for _ in range(3):
        out.zero_()
        graph.replay()
        torch.cuda.synchronize(gpu)
        assert torch.equal(out, expected)


def test_a_new_shape_inside_a_capture(gpu):
    """Its kernel is compiled there, which a capture would otherwise forbid."""
    q, k, v, lengths = decoding(gpu, batch=3, heads=24, own=3, capacity=300, dimension=72)
    graph = torch.cuda.CUDAGraph()
    with captured(graph, gpu):
        out = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths)
        whole = flash_attn_func(q, k, v, softcap=2.0)
    graph.replay()
    torch.cuda.synchronize(gpu)
    assert torch.equal(out, flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths))
    assert torch.equal(whole, flash_attn_func(q, k, v, softcap=2.0))


def test_graphs_beside_each_other(gpu):
    """Counters of graphs, streams and plain calls do not meet, whatever runs at the same time."""
    with torch.cuda.device(gpu):
        streams = [torch.cuda.Stream() for _ in range(4)]
        made = []
        for number, stream in enumerate(streams):
            q, k, v, lengths = decoding(gpu, batch=1, heads=8, own=1, capacity=16384)
            expected = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths).clone()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                outs = [flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths) for _ in range(3)]
            made.append((graph, outs, expected, (q, k, v, lengths)))
        for _ in range(50):
            for (graph, *_), stream in zip(made, streams):
                with torch.cuda.stream(stream):
                    graph.replay()
            _, _, expected, (q, k, v, lengths) = made[0]
            plain = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths)
        torch.cuda.synchronize()
        assert torch.equal(plain, expected)
        for _, outs, expected, _ in made:
            assert all(torch.equal(out, expected) for out in outs)


def test_many_graphs_need_little_memory(gpu):
    q, k, v, lengths = decoding(gpu, batch=1, heads=8, own=1, capacity=8192)
    expected = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths)
    free = []
    for _ in range(20):
        graph = torch.cuda.CUDAGraph()
        with captured(graph, gpu):
            out = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths)
        graph.replay()
        torch.cuda.synchronize(gpu)
        assert torch.equal(out, expected)
        del graph, out
        gc.collect()
        free.append(torch.cuda.mem_get_info(gpu)[0])
    assert free[-1] >= free[3] - (2 << 20)


def test_the_pool_of_several_graphs(gpu):
    """Graphs that share memory, which others of them write meanwhile."""
    q, k, v, lengths = decoding(gpu, batch=1, heads=8, own=1, capacity=8192)
    expected = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths)
    with torch.cuda.device(gpu):
        pool, graphs = torch.cuda.graph_pool_handle(), []
        for number in range(3):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                junk = torch.full((1 << 20,), number + 1, dtype=torch.int32, device=gpu)
                out = flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths)
                del junk
                out = out + 0
            graphs.append((graph, out))
        for _ in range(3):
            for graph, out in graphs:
                graph.replay()
                torch.cuda.synchronize()
                assert torch.equal(out, expected)
