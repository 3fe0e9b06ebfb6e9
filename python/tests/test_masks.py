"""What mask functions say, and masks key by key as ranges of keys."""

import pytest
import torch

from swift_flash_attention import _mask_rules as rules
from swift_flash_attention._mask_rules import Rule
from swift_flash_attention._mask_ranges import boolean, ranges_of_mask, ranges_of_rule
from swift_flash_attention._masked import by_ranges

SHIFT = torch.tensor([2, 0])


def both(*functions):
    def together(b, h, q, k):
        result = q.new_ones((), dtype=torch.bool)
        for function in functions:
            result = result & function(b, h, q, k).to(result.device)
        return result

    return together


def either(*functions):
    def any_of(b, h, q, k):
        result = q.new_zeros((), dtype=torch.bool)
        for function in functions:
            result = result | function(b, h, q, k).to(result.device)
        return result

    return any_of


def causal(b, h, q, k):
    return k <= q


def changed(mask):
    mask[..., 3:] = False
    return mask


def negated(distance):
    distance.neg_()
    return distance


@pytest.mark.parametrize(
    "function, rule", [
        (causal, Rule(right=0)), (lambda b, h, q, k: q >= k, Rule(right=0)), (lambda b, h, q, k: q >= 0, Rule()),
        (lambda b, h, q, k: k < q + 1, Rule(right=0)), (lambda b, h, q, k: k > q - 5, Rule(left=4)),
        (lambda b, h, q, k: q - k < 5, Rule(left=4)), (lambda b, h, q, k: (q - k).abs() <= 3, Rule(left=3, right=3)),
        (lambda b, h, q, k: abs(k - q) < 3, Rule(left=2, right=2)), (lambda b, h, q, k: 2 + q >= k, Rule(right=2)),
        (both(causal, lambda b, h, q, k: k > q - 5, lambda b, h, q, k: k > q - 3), Rule(left=2, right=0)),
        (both(causal, lambda b, h, q, k: q // 8 == k // 8), Rule(right=0, chunk=8)),
        (both(causal, lambda b, h, q, k: (q - SHIFT[b]) // 8 == (k - SHIFT[b]) // 8), Rule(right=0, chunk=8)),
        (either(causal, lambda b, h, q, k: q >= 0), Rule()), (either(causal), Rule(right=0)),
        # What is no rule must not become one.
        (lambda b, h, q, k: k < q, None), (either(causal, lambda b, h, q, k: k < 4), None),
        (lambda b, h, q, k: SHIFT[q % 2] == SHIFT[k % 2], None), (lambda b, h, q, k: torch.tensor(True), None),
        (lambda b, h, q, k: k % 2 == 0, None), (both(causal, lambda b, h, q, k: k != 3), None),
        (both(causal, lambda b, h, q, k: q // 8 == k // 4), None), (lambda b, h, q, k: ~causal(b, h, q, k), None),
        (lambda b, h, q, k: 2 * k <= q, None), (lambda b, h, q, k: k <= SHIFT[b], None), (lambda b, h, q, k: True, None),
        (both(causal, lambda b, h, q, k: q // 8 == k // 8, lambda b, h, q, k: q // 4 == k // 4), None),
        (lambda b, h, q, k: causal(b, h, q, k) if h == 0 else q >= 0, Rule(right=0)),
        (lambda b, h, q, k: (q - k).abs() <= 2.5, None), (lambda b, h, q, k: q // 4.5 == k // 4.5, None),
        (lambda b, h, q, k: causal(b, h, q, k).logical_and_(q - k < 3), None), (lambda b, h, q, k: changed(causal(b, h, q, k)), None),
        (lambda b, h, q, k: (q - k).abs_() <= 2, None), (lambda b, h, q, k: negated(q - k) <= 2, None),
    ])
def test_rules(function, rule):
    found = rules.read(function, 2)
    assert (found and found[0]) == rule
    if rule is None:
        return
    # What the rule says is what the function says.
    b, h, q, k = torch.arange(2)[:, None, None, None], torch.zeros(1, 1, 1, 1), torch.arange(20)[:, None], torch.arange(20)
    own = torch.ones(2, 1, 20, 20, dtype=torch.bool)
    if rule.left >= 0:
        own &= k >= q - rule.left
    if rule.right >= 0:
        own &= k <= q + rule.right
    if rule.chunk:
        start = found[1][0] if found[1] else 0
        own &= torch.div(q - start, rule.chunk, rounding_mode="floor") == torch.div(k - start, rule.chunk, rounding_mode="floor")
    assert torch.equal(function(b, h, q, k).expand(2, 1, 20, 20), own)


def sdpa(q, k, v, mask):
    out = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2).double() for x in (q, k, v)), attn_mask=mask[:, None], enable_gqa=True)
    return torch.where(mask.any(-1)[:, None, :, None], out, 0).transpose(1, 2)


@pytest.mark.parametrize("case", range(60))
def test_ranges_of_any_mask(case):
    """Each query sees a range of keys of its own; neighbours often see nearly the same."""
    torch.manual_seed(case)
    batch, queries, keys = 2, [1, 7, 20, 40][case % 4], [5, 33, 64][case % 3]
    first = torch.zeros(batch, queries, dtype=torch.long)
    end = torch.zeros_like(first)
    for b in range(batch):
        low, high = 0, int(torch.randint(0, keys + 1, ()))
        for i in range(queries):
            kind = int(torch.randint(0, 12, ()))
            if kind < 5:
                high += 1
            elif kind < 7:
                low, high = low + 1, high + 1
            elif kind == 10:
                low, high = (int(x) for x in torch.randint(0, keys + 1, (2,)).sort().values)
            elif kind == 11:
                low = high = 0
            low, high = min(low, keys), min(high, keys)
            first[b, i], end[b, i] = low, high
    places = torch.arange(keys)
    mask = (places >= first[..., None]) & (places < end[..., None])
    if case % 5 == 0:
        # Keys that nobody sees, among the others.
        gone = torch.rand(batch, 1, keys) < 0.3
        mask = mask & ~gone
    q = torch.randn(batch, queries, 4, 16)
    k, v = torch.randn(batch, keys, 2, 16), torch.randn(batch, keys, 2, 24)
    own = by_ranges(q, k, v, None, ranges_of_mask(mask), 0.0, None)
    assert torch.allclose(own.double(), sdpa(q, k, v, mask), atol=1e-5)


def test_ranges_of_known_masks():
    causal = torch.ones(2, 50, 50, dtype=torch.bool).tril()
    window = causal.triu(-9)
    documents = causal & (torch.arange(50)[:, None] // 20 == torch.arange(50) // 20)
    prefix = causal | (torch.arange(50) < 10)
    streaming = window | causal & (torch.arange(50) < 4)
    for mask, count in ((causal, 1), (window, 1), (documents, 1), (prefix, 1), (streaming, 2), (torch.ones_like(causal), 1)):
        made = ranges_of_mask(mask)
        assert made.numbers.shape == (2, 50, count, 2) and made.order is None
        begin, end = made.numbers[..., None].unbind(-2)
        places = torch.arange(50)
        assert torch.equal(((places >= begin) & (places < end)).any(2), mask)
    assert ranges_of_mask(causal).rule(50) == Rule(right=0) and ranges_of_mask(window).rule(50) == Rule(left=9, right=0)
    assert ranges_of_mask(documents).rule(50) is None and ranges_of_mask(torch.ones_like(causal)).rule(50) == Rule()
    one = ranges_of_mask(documents[:1])
    assert one.stay_within(torch.tensor([0, 20, 40])) and one.stay_within(torch.tensor([0, 20, 40, 50]))
    assert not one.stay_within(torch.tensor([0, 10, 40])) and not ranges_of_mask(causal[:1]).stay_within(torch.tensor([0, 20]))


def test_ranges_of_a_rule_are_its_keys():
    numbers = torch.tensor([[12, 9], [12, 11], [0, 3]], dtype=torch.int32)
    for rule in (Rule(), Rule(right=0), Rule(left=3, right=0), Rule(left=2, right=1), Rule(right=0, chunk=4)):
        made = ranges_of_rule(rule, numbers, 5)
        for b in range(2):
            last, end, begin = numbers[:, b].tolist()
            for i in range(5):
                place = last - 5 + i
                seen = [
                    j for j in range(begin, end)
                    if (rule.left < 0 or place - j <= rule.left) and (rule.right < 0 or j - place <= rule.right)
                    and (not rule.chunk or (j - begin) // rule.chunk == (place - begin) // rule.chunk)]
                low, high = made[b, i, 0].tolist()
                assert list(range(low, high)) == seen


def test_masks_that_are_refused():
    seen = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    seen = torch.ones(1, 1, 4, 7, dtype=torch.bool)
    seen[0, 0, 3, 1] = seen[0, 0, 3, 4] = False
    with pytest.raises(NotImplementedError, match="^attention_mask has queries that see keys in 3 pieces"):
        ranges_of_mask(boolean(seen))
    with pytest.raises(NotImplementedError, match="has 2 axes of torch.bool"):
        boolean(seen[0, 0])
    with pytest.raises(NotImplementedError, match="holds numbers other than 0 and the lowest one"):
        boolean(torch.randn(1, 1, 4, 4))
