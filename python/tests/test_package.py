"""What the package is to those who install it: typed, and light to import."""

import pathlib
import subprocess
import sys
import threading
from importlib import resources

import pytest
import torch

import swift_flash_attention as fa


def test_says_that_it_is_typed():
    assert resources.files("swift_flash_attention").joinpath("py.typed").is_file()


@pytest.mark.parametrize("module, others", [
    ("swift_flash_attention", ["torch", "numpy", "swift_flash_attention._types"]),
    ("swift_flash_attention.compat.flash_attn", ["transformers", "swift_flash_attention._types"]),
])
def test_importing_leaves_others_alone(module, others):
    code = f"import sys, {module}; sys.exit(' '.join(set({others}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.strip() == ""


def test_follows_torchs_threads():
    """Of torch's tensors, also where a plan was made before, and also in a thread that begins later; of others one per processor."""
    q = torch.randn(1, 512, 8, 64)
    fa.attention(q, q, q)
    before, processors = torch.get_num_threads(), fa.plan(q.numpy(), q.numpy(), q.numpy())
    plans = []
    try:
        for count in (1, before):
            torch.set_num_threads(count)
            thread = threading.Thread(target=lambda: plans.append(fa.plan(q, q, q)))
            thread.start()
            thread.join()
            plans.append(fa.plan(q, q, q))
            fa.attention(q, q, q)
            assert fa.plan(q.numpy(), q.numpy(), q.numpy()) == processors
    finally:
        torch.set_num_threads(before)
    assert ", 1 thread:" in plans[0] and plans[0] == plans[1]
    assert plans[2] == plans[3]


@pytest.mark.parametrize("call", ["whole", "sequences", "backward"])
def test_every_call_tells_the_limit(call, monkeypatch):
    told = []
    monkeypatch.setattr(fa._library, "limit_threads", told.append)
    q = torch.randn(1, 8, 2, 16, requires_grad=call == "backward")
    starts = torch.tensor([0, 8], dtype=torch.int32)
    from swift_flash_attention.compat.flash_attn_interface import flash_attn_varlen_func

    if call == "sequences":
        flash_attn_varlen_func(q[0], q[0], q[0], starts, starts, 8, 8)
    else:
        out = fa.attention(q, q, q)
    if call == "backward":
        told.clear()
        out.sum().backward()
    assert set(told) == {torch.get_num_threads()}


def test_uses_the_vectors_that_there_are():
    """However the library was linked, it finds out what the processor can do."""
    flags = pathlib.Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0].split()
    q = torch.randn(1, 64, 2, 32)
    if {"avx2", "fma", "f16c"} <= set(flags):
        assert "AVX" in fa.plan(q, q, q), fa.plan(q, q, q)
    else:
        pytest.skip("This processor has no AVX2.")
