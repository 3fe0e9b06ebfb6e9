"""Random calls of every function. Most are legal by construction, of any kind of list, number, stride and type: none may be refused, and
each must be what float64 says. The others have one thing wrong, and must be refused in a sentence that names an argument."""

import inspect
import math
import random
import re
import time

import numpy
import pytest
import torch
from reference import attention as exact
from reference import check, turned

import swift_flash_attention as fa
from swift_flash_attention.compat.flash_attn_interface import (
    flash_attn_combine, flash_attn_func, flash_attn_qkvpacked_func, flash_attn_varlen_func, flash_attn_with_kvcache)

TYPES = [torch.float32, torch.bfloat16, torch.float16]


class Draw(random.Random):
    """A call, argument by argument."""

    def tensor(self, *shape, dtype=torch.float32, spread=True):
        """A tensor of some strides."""
        kind = self.randrange(6) if spread and len(shape) > 2 and 0 not in shape else 0
        if kind == 1:
            return torch.randn(*shape[:-1], shape[-1] + 8).to(dtype)[..., 8:]
        if kind == 2:
            return torch.randn(shape[1], shape[0], *shape[2:]).to(dtype).transpose(0, 1)
        if kind == 3:
            return torch.randn(shape[0] * 2, *shape[1:]).to(dtype)[::2]
        if kind == 4:
            return torch.randn(*shape[:-1], shape[-1] * 2).to(dtype)[..., ::2]
        if kind == 5:
            return torch._neg_view(torch.randn(*shape).to(dtype))
        return torch.randn(*shape).to(dtype)

    def list(self, values):
        """A list of one of the kinds that people have."""
        value = torch.tensor(values, dtype=torch.int32)
        return self.choice([value, value, value.long(), value.numpy(), values, tuple(values), torch.stack([value, value], -1)[..., 0]])

    def number(self, value):
        return self.choice([value, value, torch.tensor(value), numpy.float64(value), numpy.array(value)])

    def whole(self, value):
        return self.choice([value, value, numpy.int64(value), torch.tensor(value)])

    def scores(self, names):
        """Options of the scores under a function's names, and as the reference has them."""
        own, given = {}, {}
        causal = self.random() < 0.5
        left, right = self.choice([(-1, -1), (-1, -1), (5, 2), (3, -1), (-1, 4), (0, 0)])
        if causal:
            given[names["causal"]] = self.choice([True, True, 1, numpy.bool_(True), torch.tensor(True)])
        if (left, right) != (-1, -1) or self.random() < 0.1:
            sides = tuple(self.choice([None, -1]) if side < 0 else self.whole(side) for side in (left, right))
            given[names["window"]] = self.choice([sides, list(sides)])
        own |= {"causal": causal, "window": (left, right)}
        if self.random() < 0.2:
            own["chunk"] = self.choice([1, 4, 9])
            given[names["chunk"]] = self.whole(own["chunk"])
        if self.random() < 0.2:
            own["softcap"] = self.choice([0.5, 3.0])
            given[names["softcap"]] = self.number(own["softcap"])
        if self.random() < 0.3:
            own["scale"] = self.choice([0.3, -0.2, 0.0, 1.0])
            given[names["scale"]] = self.number(own["scale"])
        return given, own

    def heads(self):
        own, group = self.choice([1, 2]), self.choice([1, 1, 2, 3])
        return own * group, own


FA3 = {"causal": "causal", "window": "window_size", "chunk": "attention_chunk", "softcap": "softcap", "scale": "softmax_scale"}
OURS = {name: name for name in FA3}


def compare(out, q, k, v, own, dtype):
    right, _ = exact(q, k, v, **own)
    if dtype == torch.float32:
        top = max(1e-3, v.abs().max().item() if v.numel() else 0)
        assert out.shape == right.shape and not out.isnan().any()
        assert (out.double() - right).abs().max() <= 3e-5 * top if out.numel() else True
    else:
        plain, _ = exact(q, k, v, plain=dtype, **own)
        check(out, right, plain, dtype)


def whole(draw, names=FA3):
    dtype, (h, hk), d = draw.choice(TYPES), draw.heads(), draw.choice([8, 16, 40, 64])
    b, n, s, dv = draw.choice([1, 2]), draw.choice([0, 1, 3, 17]), draw.choice([0, 1, 5, 33]), draw.choice([d, d, 8, 24])
    given, own = draw.scores(names)
    q, k, v = draw.tensor(b, n, h, d, dtype=dtype), draw.tensor(b, s, hk, d, dtype=dtype), draw.tensor(b, s, hk, dv, dtype=dtype)

    def verify(out):
        for i in range(b):
            compare(out[i], q[i], k[i], v[i], own, dtype)

    return {"q": q, "k": k, "v": v, **given}, verify


def draw_func(draw):
    arguments, verify = whole(draw)
    if draw.random() < 0.2:
        arguments |= {"num_splits": draw.choice([0, 1, 7]), "pack_gqa": draw.choice([None, True]), "deterministic": True}
    return flash_attn_func, arguments, verify


def draw_attention(draw):
    arguments, verify = whole(draw, OURS)
    kind = draw.randrange(3)
    if kind == 1:
        q, v = arguments["q"], arguments["v"]
        arguments["out"] = draw.choice([torch.empty(*q.shape[:3], v.shape[-1], dtype=q.dtype),
                                        torch.empty(*q.shape[:3], v.shape[-1] + 8, dtype=q.dtype)[..., 8:]])
    elif kind == 2 and arguments["q"].dtype != torch.bfloat16:
        for name in "qkv":
            arguments[name] = arguments[name].resolve_neg().contiguous().numpy()
        return fa.attention, arguments, lambda out: verify(torch.as_tensor(out))
    return fa.attention, arguments, verify


def draw_qkvpacked(draw):
    dtype, h, d, b, n = draw.choice(TYPES), draw.choice([1, 2]), draw.choice([16, 64]), 2, draw.choice([1, 9])
    given, own = draw.scores(FA3)
    qkv = draw.tensor(b, n, 3, h, d, dtype=dtype, spread=False)

    def verify(out):
        for i in range(b):
            compare(out[i], *qkv[i].unbind(1), own, dtype)

    return flash_attn_qkvpacked_func, {"qkv": qkv, **given}, verify


def starts(counts):
    return [0, *numpy.cumsum(counts).tolist()]


def draw_varlen(draw):
    dtype, (h, hk), d = draw.choice(TYPES), draw.heads(), draw.choice([8, 32, 64])
    batch = draw.choice([1, 2, 4])
    queries, keys = [draw.choice([0, 1, 4, 11]) for _ in range(batch)], [draw.choice([0, 1, 7, 20]) for _ in range(batch)]
    given, own = draw.scores(FA3)
    q = draw.tensor(sum(queries), h, d, dtype=dtype)
    k, v = (draw.tensor(sum(keys), hk, d, dtype=dtype) for _ in range(2))
    used = [draw.randint(0, n) for n in keys] if draw.random() < 0.3 else keys
    arguments = {
        "q": q, "k": k, "v": v, "cu_seqlens_q": draw.list(starts(queries)), "cu_seqlens_k": draw.list(starts(keys)),
        "max_seqlen_q": draw.whole(max(queries) + draw.choice([0, 3])), "max_seqlen_k": draw.whole(max(keys)), **given}
    if used is not keys:
        arguments["seqused_k"] = draw.list(used)

    def verify(out):
        for a, n, c, m in zip(starts(queries), queries, starts(keys), used):
            compare(out[a : a + n], q[a : a + n], k[c : c + m], v[c : c + m], own, dtype)

    return flash_attn_varlen_func, arguments, verify


def draw_kvcache(draw):
    dtype, (h, hk), d = draw.choice(TYPES), draw.heads(), draw.choice([16, 32, 64])
    batch, n, capacity = draw.choice([1, 3]), draw.choice([1, 1, 4]), draw.choice([6, 24])
    new = draw.choice([0, 0, 1, 3])
    given, own = draw.scores(FA3)
    lengths = [draw.randint(0, capacity - new) for _ in range(batch)]
    padding = [draw.randint(0, x) for x in lengths] if draw.random() < 0.2 else [0] * batch
    q = draw.tensor(batch, n, h, d, dtype=dtype)
    arguments = {"q": q, **given}
    page = draw.choice([None, None, 1, 4])
    if page:
        per, pages = -(-capacity // page), -(-capacity // page) * batch + 1
        order = draw.sample(range(pages), per * batch)
        table = [order[i * per : (i + 1) * per] for i in range(batch)]
        caches = [torch.randn(pages, page, hk, d).to(dtype) for _ in range(2)]
        arguments["page_table"] = draw.list(table)
        rows = lambda cache, b: cache[table[b]].flatten(0, 1)  # noqa: E731
        capacity = per * page
    else:
        index = draw.sample(range(batch + 1), batch)
        caches = [torch.randn(batch + 1, capacity, hk, d).to(dtype) for _ in range(2)]
        arguments["cache_batch_idx"] = draw.list(index)
        rows = lambda cache, b: cache[index[b]]  # noqa: E731
    keys = [[rows(cache, b)[: lengths[b]].clone() for cache in caches] for b in range(batch)]
    same = len(set(lengths)) == 1 and draw.random() < 0.5
    arguments |= {"k_cache": caches[0], "v_cache": caches[1], "cache_seqlens": draw.whole(lengths[0]) if same else draw.list(lengths)}
    if any(padding):
        arguments["cache_leftpad"] = draw.list(padding)
    tables, interleaved = (), draw.random() < 0.5
    if new:
        arguments |= {name: draw.tensor(batch, new, hk, d, dtype=dtype) for name in ("k", "v")}
        if draw.random() < 0.4:
            angles = torch.rand(capacity + 4, draw.choice([8, d // 2])) * 6
            tables = tuple(f(angles).to(dtype) for f in (torch.cos, torch.sin))
            arguments |= {"rotary_cos": tables[0], "rotary_sin": tables[1], "rotary_interleaved": interleaved}

    def verify(out):
        advances = own["causal"] or own["window"] != (-1, -1) or "chunk" in own
        for b in range(batch):
            k, v, own_q = *keys[b], q[b]
            if new:
                stored = rows(caches[0], b)[lengths[b] : lengths[b] + new]
                if tables:
                    places = lengths[b] + torch.arange(max(n, new))
                    right = turned(arguments["k"][b].float(), *tables, places[:new], interleaved)
                    assert torch.allclose(stored.float(), right, rtol=2**-7, atol=1e-3)
                    own_q = turned(own_q.float(), *tables, places[:n] if advances else places[:1].expand(n), interleaved).to(dtype)
                else:
                    assert torch.equal(stored, arguments["k"][b])
                assert torch.equal(rows(caches[1], b)[lengths[b] : lengths[b] + new], arguments["v"][b])
                k, v = torch.cat([k, stored]), torch.cat([v, arguments["v"][b]])
            if tables:
                # What was rounded when queries were turned is no error of the attention.
                right, _ = exact(own_q, k[padding[b] :], v[padding[b] :], **own)
                assert torch.allclose(out[b].double(), right, rtol=0.02, atol=0.05 if dtype != torch.float32 else 1e-3)
            else:
                compare(out[b], own_q, k[padding[b] :], v[padding[b] :], own, dtype)

    return flash_attn_with_kvcache, arguments, verify


def draw_combine(draw):
    parts, d = draw.choice([1, 3]), draw.choice([8, 20, 33])
    outs, lses = draw.tensor(parts, 2, 4, 2, d), torch.randn(parts, 2, 4, 2)
    lses[draw.randrange(parts), 0, 1] = draw.choice([math.inf, -math.inf])

    def verify(result):
        weights = torch.softmax(lses.where(lses != math.inf, -math.inf).double(), 0).nan_to_num(0)
        assert torch.allclose(result[0].double(), (weights[..., None] * outs.double()).sum(0), atol=1e-5)

    return flash_attn_combine, {"out_partial": outs, "lse_partial": lses}, verify


DRAWS = [draw_func, draw_func, draw_attention, draw_attention, draw_varlen, draw_varlen, draw_kvcache, draw_kvcache, draw_kvcache,
         draw_qkvpacked, draw_combine]
TENSORS = {"q", "k", "v", "qkv", "k_cache", "v_cache", "out_partial", "lse_partial", "rotary_cos", "rotary_sin", "out"}
LISTS = {"cu_seqlens_q", "cu_seqlens_k", "seqused_k", "cache_seqlens", "cache_batch_idx", "cache_leftpad", "page_table"}
NUMBERS = {"softmax_scale", "scale", "softcap"}
WHOLES = {"attention_chunk", "chunk", "max_seqlen_q", "max_seqlen_k"}


def spoil(draw, function, arguments):
    """One argument that cannot be."""
    name = draw.choice(sorted(set(arguments) & (TENSORS | LISTS | NUMBERS | WHOLES | {"causal", "window", "window_size"})))
    value = arguments[name]
    if name in TENSORS:
        if isinstance(value, numpy.ndarray):
            wrong = [value.astype("int32"), value[0], "q", 3, numpy.ma.masked_array(value), value[None]]
        else:
            value = value.resolve_neg()
            wrong = [value.to(torch.int16), value.to("meta"), value[None], "tensor", 7, [1.0], value.to_sparse(),
                     value.to(torch.complex64)]
            if name != "out_partial":
                wrong.append(torch.cat([value, value[..., :1]], -1))
            if name in ("k", "v", "k_cache", "v_cache", "out") and value.shape[-2] > 0:
                wrong.append(torch.cat([value, value], -2)[..., : value.shape[-2] + 1 if name == "v" else value.shape[-2] * 2 + 1, :])
    elif name in LISTS:
        plain = numpy.array(value.tolist() if hasattr(value, "tolist") else value)
        wrong = [plain + 0.5, "list", {1: 2}, plain[None].repeat(2, 0) if plain.ndim else plain - 99]
        if plain.ndim:
            wrong += [numpy.concatenate([plain, plain]), torch.as_tensor(plain).to("meta"), torch.as_tensor(plain) > 0]
            if plain.size:
                wrong.append(plain - 99 if name != "page_table" else None)
        else:
            wrong.append(10**9)
        wrong = [x for x in wrong if x is not None]
    elif name in NUMBERS:
        wrong = ["1", math.nan, math.inf, [1.0], torch.ones(2)] + ([None, -1.0] if name == "softcap" and function is not fa.attention else [])
    elif name in WHOLES:
        wrong = [1.5, "4", [4], torch.tensor(1.5)] + ([-1] if "chunk" in name else [])
    elif name == "causal":
        wrong = ["no", 3, None, [True], 0.5]
    else:
        wrong = [5, (1, 2, 3), ("a", 1), (1.5, 0), "ab"]
    return name, {**arguments, name: draw.choice(wrong)}


def run(seed, count, seconds):
    draw, begin, legal, refused = Draw(seed), time.monotonic(), 0, 0
    for number in range(count):
        if time.monotonic() - begin > seconds:
            break
        torch.manual_seed(seed * 1_000_003 + number)
        function, arguments, verify = draw.choice(DRAWS)(draw)
        if draw.random() < 0.75:
            legal += 1
            try:
                verify(function(**arguments))
            except Exception as error:
                raise AssertionError(f"call {number} of seed {seed}: {function.__name__}({describe(arguments)})") from error
            continue
        name, arguments = spoil(draw, function, arguments)
        try:
            function(**arguments)
        except (ValueError, TypeError, NotImplementedError) as error:
            names = [x for x in inspect.signature(function).parameters if re.search(rf"\b{x}\b", str(error))]
            assert names, f"call {number} of seed {seed}: {function.__name__} with a wrong {name}: {error}"
            refused += 1
        else:
            raise AssertionError(f"call {number} of seed {seed}: {function.__name__} took a wrong {name}: {describe(arguments)}")
    return legal, refused


def describe(arguments):
    return ", ".join(
        f"{name}={tuple(x.shape)} {x.dtype}" if hasattr(x, "shape") and x.shape else f"{name}={x!r}" for name, x in arguments.items())


@pytest.mark.parametrize("seed", range(4))
def test_random_calls(seed):
    legal, refused = run(seed, 5000, seconds=60)
    assert legal > 0.7 * (legal + refused) and refused > 50
