#!/usr/bin/env python3
"""Decoding over caches on the CPU: sequences, pages, e4m3, beside what memory gives.

    python3 cpu_caches.py [--batch 32] [--context 4096] [--heads 32/8] [--threads N] [--vectors avx2]

One query for each sequence, D 128; GB/s count K and V once. The limit is measured by reading as many bytes from end to end
(`torch.sum` of integers on the same threads), in turns with the calls.
"""
import argparse
import statistics
import time

import torch

from swift_flash_attention import _library
from swift_flash_attention.compat.flash_attn_interface import flash_attn_with_kvcache


def median(run, rounds):
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--heads", default="32/8")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--vectors", help="the instructions to use; the best of the machine unless given")
    options = parser.parse_args()
    if options.vectors:
        _library.check(_library.library.fa_choose_vectors(options.vectors.encode()))
    torch.set_num_threads(options.threads)
    (heads, kv_heads), d = map(int, options.heads.split("/")), 128
    batch, n = options.batch, options.context
    lengths = torch.full((batch,), n, dtype=torch.int32)
    print("| cache | time, ms | GB/s | limit, GB/s | of it |\n|---|---|---|---|---|")
    for dtype in [torch.bfloat16, torch.float8_e4m3fn, torch.float32]:
        for page in [None, 16, 256]:
            q = torch.randn(batch, 1, heads, d).to(torch.float32 if dtype == torch.float32 else torch.bfloat16)
            shape = (batch, n) if page is None else (batch * n // page, page)
            k, v = (torch.randn(*shape, kv_heads, d).to(dtype) for _ in range(2))
            table = None if page is None else torch.randperm(batch * n // page, dtype=torch.int32).view(batch, -1)
            scales = {}
            if dtype == torch.float8_e4m3fn:
                scales = {name: torch.ones(batch, kv_heads) for name in ["k_descale", "v_descale"]}
            size = 2 * batch * n * kv_heads * d * k.element_size()
            flat = torch.ones(size // 8, dtype=torch.int64)
            call = lambda: flash_attn_with_kvcache(  # noqa: E731
                q, k, v, cache_seqlens=lengths, page_table=table, causal=True, **scales)
            own, limit = median(call, options.rounds), median(flat.sum, options.rounds)
            name = f"{str(dtype).split('.')[1]}" + ("" if page is None else f", pages of {page}")
            print(f"| {name} | {own * 1e3:.1f} | {size / own / 1e9:.1f} | {size / limit / 1e9:.1f} | {limit / own:.0%} |", flush=True)


if __name__ == "__main__":
    main()
