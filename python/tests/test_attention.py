import numpy
import pytest
import torch
from reference import attention as exact_attention
from reference import check, check_lse

import swift_flash_attention as fa


def dtypes(device):
    return [torch.float32, torch.bfloat16, torch.float16] if device == "cpu" else [torch.bfloat16, torch.float16]


OPTIONS = [
    {}, {"causal": True}, {"window": (5, 2)}, {"window": (9, -1), "causal": True}, {"window": (None, 3)}, {"chunk": 16, "causal": True}, {"softcap": 3.0},
    {"scale": 0.02}, {"scale": -0.3, "causal": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_is_attention(device, options):
    for dtype in dtypes(device):
        q = torch.randn(2, 37, 6, 40, dtype=dtype, device=device)
        k = torch.randn(2, 61, 2, 40, dtype=dtype, device=device)
        v = torch.randn(2, 61, 2, 24, dtype=dtype, device=device)
        out, lse = fa.attention(q, k, v, return_lse=True, **options)
        window = tuple(-1 if side is None else side for side in options.get("window", (None, None)))
        own = {**options, "window": window}
        for b in range(2):
            exact, exact_lse = exact_attention(q[b], k[b], v[b], **own)
            plain, _ = exact_attention(q[b], k[b], v[b], plain=dtype, **own)
            check(out[b], exact, plain, dtype)
            check_lse(lse[b], exact_lse)


def test_strides_of_any_kind():
    q = torch.randn(6, 2, 5, 16).permute(1, 2, 0, 3)
    k = torch.randn(2, 1, 1, 16).expand(2, 9, 2, 16)
    v = torch.randn(2, 18, 2, 16)[:, ::2]
    out = fa.attention(q, k, v)
    assert torch.allclose(out, fa.attention(q.contiguous(), k.contiguous(), v.contiguous()))
    given = torch.full((2, 5, 6, 16), torch.nan)
    assert fa.attention(q, k, v, out=given) is given and torch.equal(given, out)


class OnlyDLPack:
    """An array of a library that nobody here has heard of."""

    def __init__(self, tensor):
        self.tensor, self.shape = tensor, tuple(tensor.shape)

    def __dlpack__(self, **arguments):
        return self.tensor.__dlpack__()

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


def test_arrays_of_others():
    q, k, v = (torch.randn(1, 5, 2, 16) for _ in range(3))
    expected = fa.attention(q, k, v).numpy()
    own = fa.attention(q.numpy(), k.numpy(), v.numpy())
    assert isinstance(own, numpy.ndarray) and numpy.array_equal(own, expected)
    out = numpy.empty_like(expected)
    fa.attention(*(OnlyDLPack(x) for x in (q, k, v)), out=out)
    assert numpy.array_equal(out, expected)
    halves = [OnlyDLPack(x.bfloat16()) for x in (q, k, v)]
    out = torch.empty(1, 5, 2, 16, dtype=torch.bfloat16)
    fa.attention(*halves, out=out)
    assert torch.equal(out, fa.attention(q.bfloat16(), k.bfloat16(), v.bfloat16()))
    out, lse = fa.attention(q.numpy(), k.numpy(), v.numpy(), return_lse=True)
    assert lse.dtype == numpy.float32 and lse.shape == (1, 2, 5)


@pytest.mark.gpu
def test_cupy(gpu):
    cupy = pytest.importorskip("cupy")
    q = torch.randn(1, 50, 2, 64, dtype=torch.float16, device=gpu)
    own = fa.attention(*(cupy.from_dlpack(q) for _ in range(3)))
    assert isinstance(own, cupy.ndarray)
    assert torch.equal(torch.from_dlpack(own), fa.attention(q, q, q))


def test_refuses_in_sentences():
    q = torch.randn(1, 5, 4, 16)
    with pytest.raises(ValueError, match=r"4 query heads \(of q\) cannot share 3 key/value heads \(of k and v\) evenly"):
        fa.attention(q, q[:, :, :3], q[:, :, :3])
    with pytest.raises(ValueError, match="must be \\[batch, tokens, heads, dimension\\]"):
        fa.attention(q[0], q, q)
    with pytest.raises(ValueError, match="The head dimension of q and k is 12; the CPU path takes multiples of 8"):
        fa.attention(q[..., :12].contiguous(), q[..., :12].contiguous(), q)
    with pytest.raises(TypeError, match="torch.int32"):
        fa.attention(q.int(), q.int(), q.int())
    with pytest.raises(ValueError, match="k must have the device and the element type of q"):
        fa.attention(q, q.half(), q)
    with pytest.raises(ValueError, match="elements must lie side by side"):
        fa.attention(q.numpy()[..., ::2], q.numpy()[..., :8], q.numpy())


def test_says_what_it_does():
    q = torch.randn(1, 5, 4, 16)
    assert fa.plan(q, q, q).startswith("CPU, ")
    # What attention takes, plan takes, and says what becomes of it.
    apart = q.transpose(1, 3).contiguous().transpose(1, 3).requires_grad_()
    assert fa.plan(q, apart, q).endswith("copied first, since the elements of a row lie apart: k")
    with torch.autocast("cpu", torch.bfloat16):
        assert fa.plan(q, q, q).endswith("autocast: in torch.bfloat16")
    with pytest.raises(ValueError, match="k has the shape"):
        fa.plan(q, q[0], q)
    assert fa.__version__ == "1.0.0"
    if not torch.cuda.is_available():
        assert not fa.gpu_is_usable()
