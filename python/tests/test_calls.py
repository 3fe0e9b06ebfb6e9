"""What a plain call does, counted: what it costs the host is a matter of how much it does. (Benchmarks/call_overhead.py times it.)"""

import collections

import pytest
import torch

from swift_flash_attention import _library
from swift_flash_attention.compat.flash_attn_interface import flash_attn_func, flash_attn_with_kvcache


ALLOCATIONS = {"aten::new_empty", "aten::empty_like", "aten::empty", "aten::empty_strided"}


def allocations(operators):
    """How many tensors are made; nothing else is done."""
    assert set(operators) <= ALLOCATIONS, operators
    return operators["aten::empty"] + operators["aten::empty_strided"]


class Counted:
    """The library, whose calls are counted."""

    def __init__(self, library):
        self._library, self.calls = library, collections.Counter()

    def __getattr__(self, name):
        function = getattr(self._library, name)

        def call(*arguments):
            self.calls[name] += 1
            return function(*arguments)

        return call


def counted(function, monkeypatch, device):
    """PyTorch's operators, the library's calls and the GPU's launches of one call; others came before it."""
    for _ in range(3):
        function()
    library = Counted(_library.library)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        torch.cuda.synchronize()
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with monkeypatch.context() as patch:
        patch.setattr(_library, "library", library)
        with torch.profiler.profile(activities=activities) as profile:
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
    events = [event for event in profile.events() if event.name.startswith("aten::")]
    kernels = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return collections.Counter(event.name for event in events), library.calls, kernels


def calls(device):
    q = torch.randn(1, 1, 32, 128, dtype=torch.bfloat16, device=device)
    k, v = (torch.randn(1, 1024, 8, 128, dtype=torch.bfloat16, device=device) for _ in range(2))
    lengths = torch.tensor([1024], dtype=torch.int32, device=device)
    return {
        "fa_sequences": lambda: flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True),
        "fa_forward": lambda: flash_attn_func(q, k, v, causal=True),
    }


@pytest.mark.parametrize("name", ["fa_sequences", "fa_forward"])
def test_a_plain_call_allocates_once_and_calls_the_library_once(name, monkeypatch):
    device = torch.device("cpu")
    with torch.no_grad():
        operators, library, _ = counted(calls(device)[name], monkeypatch, device)
    assert library == {name: 1}
    assert allocations(operators) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["fa_sequences", "fa_forward"])
def test_a_plain_call_launches_once(name, gpu, monkeypatch):
    device = torch.device(gpu)
    with torch.no_grad():
        operators, library, kernels = counted(calls(device)[name], monkeypatch, device)
    assert library[name] == 1 and set(library) <= {name, "fa_counters"}
    # The output, and the workspace of a call that has parts.
    assert allocations(operators) <= 2
    assert len(kernels) == 1, kernels
