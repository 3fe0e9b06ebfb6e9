#!/usr/bin/env python3
"""What attention sinks cost: the same calls with and without them, in turns, in one process and by one loop.

    python3 sinks.py [--device cpu|cuda] [--rounds 60]

On a GPU each call is timed by events after the L2 cache was filled with something else by reading. Prefill of 16384 tokens and 2048
columns of heads, causal, N 8192; decoding of 32 sequences, 64 query heads, 8 key/value heads, 8192 keys. Smaller on the CPU.
"""
import argparse
import statistics

import torch

from backward_beside_pytorch import once
from swift_flash_attention.compat.flash_attn_interface import flash_attn_func, flash_attn_with_kvcache


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    flusher = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda") if on_gpu else None

    def random(*shape):
        return torch.randn(shape, device=options.device).bfloat16()

    def compare(name, function, heads):
        sinks = random(heads)
        ways = {"without": lambda: function(), "with": lambda: function(s_aux=sinks)}
        times = {way: [] for way in ways}
        for _ in range(options.rounds + 3):
            for way, run in ways.items():
                times[way].append(once(run, options.device, flusher))
        plain, with_sinks = (statistics.median(times[way][3:]) for way in ("without", "with"))
        print(f"{name}: {plain * 1e6:.1f} us without, {with_sinks * 1e6:.1f} with sinks, {with_sinks / plain:.4f}", flush=True)

    n = 8192 if on_gpu else 512
    for d in (64, 128, 256):
        heads = (2048 if on_gpu else 512) // d
        q, k, v = (random(2, n, heads, d) for _ in range(3))
        compare(f"prefill D {d}", lambda **given: flash_attn_func(q, k, v, causal=True, **given), heads)
    for batch, queries, kv_heads in ((32, 1, 8), (128, 1, 8), (32, 4, 8)):
        batch, keys = (batch, 8192) if on_gpu else (2, 2048)
        q = random(batch, queries, 64, 128)
        k, v = (random(batch, keys, kv_heads, 128) for _ in range(2))
        lengths = torch.full((batch,), keys, dtype=torch.int32, device=options.device)
        compare(
            f"decoding B {batch}, {queries} queries, 64/{kv_heads} heads, {keys} keys",
            lambda **given: flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True, **given), 64)


if __name__ == "__main__":
    main()
