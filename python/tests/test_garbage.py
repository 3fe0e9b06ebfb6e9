"""Garbage in every list of numbers that a GPU reads: no access outside the tensors, and a context that lives."""

import pytest
import torch

from swift_flash_attention.compat.flash_attn_interface import flash_attn_varlen_func, flash_attn_with_kvcache

NASTY = [-(2**31), 1 - 2**31, -65536, -2, -1, 0, 1, 2, 16, 47, 48, 49, 64, 65, 2**16, 2**24, 2**29, 2**30, 2**31 - 1]


def garbage(shape, draw, device):
    numbers = torch.tensor(NASTY, dtype=torch.int32)
    return numbers[torch.randint(len(NASTY), shape, generator=draw)].to(device)


def right(device):
    """A call of known result: whoever lost the context fails here."""
    q = torch.zeros(1, 1, 2, 64, dtype=torch.bfloat16, device=device)
    k = torch.ones(1, 64, 1, 64, dtype=torch.bfloat16, device=device)
    out = flash_attn_with_kvcache(q, k, k, cache_seqlens=torch.full((1,), 33, dtype=torch.int32, device=device))
    torch.cuda.synchronize(device)
    return bool((out == 1).all())


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(40))
def test_garbage_leaves_the_context_alive(gpu, seed):
    draw = torch.Generator().manual_seed(seed)
    flip = lambda: int(torch.randint(2, (), generator=draw)) == 1  # noqa: E731
    batch, heads, d = 5, 2, 64
    tensor = lambda *shape: torch.randn(*shape, generator=draw).to(torch.bfloat16).to(gpu)  # noqa: E731
    for page_size in (16, 3, None):
        rows = 64 if page_size is None else page_size
        k, v = tensor(9, rows, heads, d), tensor(9, rows, heads, d)
        q = tensor(batch, 1 + 2 * flip(), 4, d)
        options = {"cache_seqlens": garbage((batch,), draw, gpu), "causal": flip()}
        if page_size is not None:
            options["page_table"] = garbage((batch, 4 if page_size == 16 else 20), draw, gpu)
        if flip():
            options["cache_batch_idx"] = garbage((batch,), draw, gpu)
        if flip():
            options["cache_leftpad"] = garbage((batch,), draw, gpu)
        if flip():
            options |= {"k": tensor(batch, 3, heads, d), "v": tensor(batch, 3, heads, d)}
            if flip():
                positions = 4096
                options |= {"rotary_cos": tensor(positions, 16), "rotary_sin": tensor(positions, 16)}
        flash_attn_with_kvcache(q, k, v, **options)
    starts = lambda: garbage((batch + 1,), draw, gpu)  # noqa: E731
    for length in (1, 40):
        flash_attn_varlen_func(
            tensor(65, 4, d), tensor(65, heads, d), tensor(65, heads, d), starts(), starts(), length, length, causal=flip())
    torch.cuda.synchronize(gpu)
    assert right(gpu)


@pytest.mark.gpu
def test_keys_on_missing_pages_are_zeros(gpu):
    draw = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 4, 64, generator=draw), torch.randn(8, 16, 2, 64, generator=draw)
    q, k = q.to(torch.bfloat16).to(gpu), k.to(torch.bfloat16).to(gpu)
    lengths = torch.tensor([60, 60], dtype=torch.int32, device=gpu)
    table = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]], dtype=torch.int32, device=gpu)
    expected = flash_attn_with_kvcache(q, k, k, cache_seqlens=lengths, page_table=table)
    zeros = k.clone()
    zeros[2] = 0
    of_zeros = flash_attn_with_kvcache(q, zeros, zeros, cache_seqlens=lengths, page_table=table)
    for wrong in (-1, 8, 2**31 - 1):
        table[0, 2] = wrong
        out = flash_attn_with_kvcache(q, k, k, cache_seqlens=lengths, page_table=table)
        assert torch.equal(out[1], expected[1]) and torch.equal(out[0], of_zeros[0])
        # Nothing is appended there, nor anywhere else instead.
        cache, values, new = k.clone(), k.clone(), torch.ones(2, 4, 2, 64, dtype=torch.bfloat16, device=gpu)
        flash_attn_with_kvcache(q, cache, values, new, new, cache_seqlens=torch.full_like(lengths, 40), page_table=table)
        appended = k.clone()
        appended[6, 8:12] = 1
        assert torch.equal(cache, appended) and torch.equal(values, appended)
