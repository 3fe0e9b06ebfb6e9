#!/usr/bin/env python3
"""What masks as ranges of keys cost and save: calls in turns, in one process and by one loop, and beside PyTorch's FlexAttention.

    python3 ranges.py [--device cpu|cuda] [--rounds 40]

On a GPU each call is timed by events after the L2 cache was filled with something else by reading; FlexAttention is compiled, and its
block mask made ahead. 16384 tokens and 2048 columns of heads, N 8192:

- a causal mask given as one range a query, beside the rule; documents of 1000 tokens, beside FlexAttention and beside packed sequences;
- a window of 1024 keys with the first 4, beside the window alone; gradients of documents beside FlexAttention's, and causal ones beside
  the rule's.
"""
import argparse
import statistics
import time

import torch

from backward_beside_pytorch import once
from swift_flash_attention.compat.flash_attn_interface import flash_attn_func, flash_attn_varlen_func


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--hdims", default="64,128")
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    flusher = torch.zeros(512 << 20, dtype=torch.uint8, device="cuda") if on_gpu else None
    batch, n = (2, 8192) if on_gpu else (1, 1024)
    size, window = (1000, 1024) if on_gpu else (125, 128)

    def compare(name, ways):
        times = {way: [] for way in ways}
        for _ in range(options.rounds + 3):
            for way, run in ways.items():
                times[way].append(once(run, options.device, flusher))
        medians = {way: statistics.median(own[3:]) for way, own in times.items()}
        first = next(iter(medians.values()))
        print(
            f"{name}: " + ", ".join(f"{way} {x * 1e6:.1f} us ({x / first:.4f})" for way, x in medians.items()), flush=True)

    places = torch.arange(n, dtype=torch.int32, device=options.device)
    causal = torch.stack([torch.zeros_like(places), places + 1], -1)[None, :, None].contiguous()
    document = places // size
    documents = torch.stack([document * size, (document * size + size).clamp(max=n)], -1)[None, :, None].to(torch.int32).contiguous()
    starts = torch.arange(0, n, size, dtype=torch.int32, device=options.device)
    starts = torch.cat([starts + b * n for b in range(batch)] + [torch.tensor([batch * n], dtype=torch.int32, device=options.device)])
    flex = None
    if on_gpu:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        flex = torch.compile(flex_attention)

        def of_document(b, h, i, j):
            return (document[i] == document[j]) & (j <= i)

        torch.cuda.synchronize()
        begin = time.perf_counter()
        blocks = create_block_mask(of_document, None, None, n, n)
        torch.cuda.synchronize()
        print(f"FlexAttention's block mask, the first time: {(time.perf_counter() - begin) * 1e3:.1f} ms")
    for d in map(int, options.hdims.split(",")):
        heads = (2048 if on_gpu else 512) // d
        q, k, v = (torch.randn(batch, n, heads, d, device=options.device).bfloat16().requires_grad_() for _ in range(3))
        upstream = torch.randn_like(q)
        turned = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v)]
        flat = [x.detach().flatten(0, 1) for x in (q, k, v)]
        with torch.no_grad():
            compare(f"D {d}, causal", {
                "rule": lambda: flash_attn_func(q, k, v, causal=True),
                "ranges": lambda: flash_attn_func(q, k, v, key_ranges=causal)})
            compare(f"D {d}, window of {window}", {
                "rule": lambda: flash_attn_func(q, k, v, causal=True, window_size=(window - 1, 0)),
                "and 4 first keys": lambda: flash_attn_func(q, k, v, causal=True, window_size=(window - 1, 0), first_keys=4)})
            ways = {
                "packed sequences": lambda: flash_attn_varlen_func(*flat, starts, starts, size, size, causal=True),
                "ranges": lambda: flash_attn_func(q, k, v, causal=True, key_ranges=documents)}
            if flex is not None:
                ways["FlexAttention"] = lambda: flex(*turned, block_mask=blocks)
            compare(f"D {d}, documents of {size}", ways)

        def backward(made, inputs, upstream):
            return lambda: torch.autograd.grad(made, inputs, upstream, retain_graph=True)

        compare(f"D {d}, causal, gradients", {
            "rule": backward(flash_attn_func(q, k, v, causal=True), (q, k, v), upstream),
            "ranges": backward(flash_attn_func(q, k, v, key_ranges=causal), (q, k, v), upstream)})
        ways = {"ranges": backward(flash_attn_func(q, k, v, causal=True, key_ranges=documents), (q, k, v), upstream)}
        if flex is not None:
            ways["FlexAttention"] = backward(
                flex(*turned, block_mask=blocks), turned, upstream.transpose(1, 2).contiguous())
        compare(f"D {d}, documents of {size}, gradients", ways)


if __name__ == "__main__":
    main()
