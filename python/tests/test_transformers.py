import inspect

import pytest
import torch

transformers = pytest.importorskip("transformers")
import swift_flash_attention.transformers  # noqa: E402
from swift_flash_attention.transformers import NAME, attention  # noqa: E402


def llama(implementation, device, dtype):
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        vocab_size=199, hidden_size=128, intermediate_size=160, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=256, attn_implementation=implementation, pad_token_id=0,
        bos_token_id=1, eos_token_id=2)
    return transformers.LlamaForCausalLM(config).to(device=device, dtype=dtype).eval()


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("lengths", [(9,), (13, 5, 1)], ids=["one", "left-padded"])
def test_generates_the_same_tokens(device, lengths, cache):
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    tokens = torch.randint(3, 199, (len(lengths), max(lengths)), device=device)
    mask = torch.ones_like(tokens)
    for row, length in enumerate(lengths):
        tokens[row, : max(lengths) - length] = 0
        mask[row, : max(lengths) - length] = 0
    results, logits = [], []
    for implementation in ("sdpa", swift_flash_attention.transformers.NAME):
        model = llama(implementation, device, dtype)
        with torch.no_grad():
            logits.append(model(tokens, attention_mask=mask).logits[:, -1].float())
            results.append(
                model.generate(
                    tokens, attention_mask=mask, max_new_tokens=24, do_sample=False, cache_implementation=cache,
                    eos_token_id=None))
    scale = logits[0].abs().max().item()
    assert (logits[0] - logits[1]).abs().max().item() < scale * (1e-4 if dtype == torch.float32 else 5e-2)
    if dtype == torch.float32:
        assert torch.equal(*results)
    else:
        # In bf16 near ties may fall either way, and then all that follows; the first tokens are those of sdpa.
        same = (results[0] == results[1]).float().mean().item()
        assert torch.equal(results[0][:, : max(lengths) + 1], results[1][:, : max(lengths) + 1]) or same > 0.9


# MARK: - Masks


class Layer(torch.nn.Module):
    is_causal = True


TOKENS = torch.randint(3, 199, (1, 15), generator=torch.Generator().manual_seed(0))
# Three documents.
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6]])
STARTS = torch.tensor([0, 5, 8, 15], dtype=torch.int32)
KEYWORDS = {"cu_seq_lens_q": STARTS, "cu_seq_lens_k": STARTS, "max_length_q": 7, "max_length_k": 7}


def small(implementation, window=None):
    options = {
        "vocab_size": 199, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": None}
    torch.manual_seed(0)
    if window is None:
        model = transformers.LlamaForCausalLM._from_config(
            transformers.LlamaConfig(**options), attn_implementation=implementation)
    else:
        model = transformers.MistralForCausalLM._from_config(
            transformers.MistralConfig(sliding_window=window, **options), attn_implementation=implementation)
    return model.eval()


def logits(implementation, window=None, tokens=TOKENS, **options):
    with torch.no_grad():
        return small(implementation, window)(tokens, **options).logits


def check_equal(window=None, real=None, **options):
    one, other = (logits(name, window, **options) for name in ("eager", NAME))
    if real is not None:
        one, other = one[real.bool()], other[real.bool()]
    assert (one - other).abs().max() < 1e-4 * one.abs().max()


@pytest.mark.parametrize("window", [None, 4])
def test_documents_do_not_see_each_other(window):
    check_equal(window, position_ids=POSITIONS, use_cache=False)
    model = small("eager", window)
    with torch.no_grad():
        apart = torch.cat([model(TOKENS[:, a:b]).logits for a, b in zip(STARTS[:-1], STARTS[1:])], 1)
    # As DataCollatorWithFlattening hands them over, whether the mask knows the documents too or not.
    for use_cache in (False, True):
        own = logits(NAME, window, position_ids=POSITIONS, use_cache=use_cache, **KEYWORDS)
        assert (own - apart).abs().max() < 1e-4 * apart.abs().max()


def test_documents_by_their_numbers_alone():
    numbers = torch.tensor([[0] * 5 + [1] * 3 + [2] * 7], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="^seq_idx tells documents apart, and neither the mask nor cu_seq_lens_q does"):
        logits(NAME, seq_idx=numbers)
    own = logits(NAME, position_ids=POSITIONS, seq_idx=numbers, **KEYWORDS)
    assert torch.equal(own, logits(NAME, position_ids=POSITIONS, **KEYWORDS))
    check_equal(position_ids=POSITIONS, use_cache=False)
    logits(NAME, position_ids=POSITIONS, seq_idx=numbers, use_cache=False)


def test_documents_need_all_of_their_keywords():
    with pytest.raises(ValueError, match="^cu_seq_lens_k is missing"):
        logits(NAME, cu_seq_lens_q=STARTS)
    with pytest.raises(ValueError, match="cu_seq_lens_q tells documents of one row apart; there are 2 rows"):
        logits(NAME, tokens=TOKENS.repeat(2, 1), **KEYWORDS)
    for gone in (0, 5):
        padded = torch.ones_like(TOKENS)
        padded[0, gone] = 0
        with pytest.raises(NotImplementedError, match="cu_seq_lens_q is not supported together with padding"):
            logits(NAME, attention_mask=padded, **KEYWORDS)
        with pytest.raises(NotImplementedError, match="^seq_idx tells documents apart"):
            logits(NAME, attention_mask=padded, seq_idx=torch.tensor([[0] * 5 + [1] * 10]))


@pytest.mark.parametrize("gone", [slice(0, 3), slice(12, 15), slice(5, 7)])
def test_chunks_of_the_mask_itself(gone):
    """They count from the first key of the row, padding or not, where ``chunked_overlay`` counts from the first real one."""
    from transformers.masking_utils import create_causal_mask

    real = torch.ones(2, 15, dtype=torch.long)
    real[1, gone] = 0
    results = []
    for name in ("eager", NAME):
        model = small(name)
        mask = made_by(
            create_causal_mask, model.config, torch.zeros(2, 15, 64), real, and_mask_function=lambda b, h, q, k: q // 4 == k // 4)
        with torch.no_grad():
            results.append(model(TOKENS.repeat(2, 1), attention_mask=mask, use_cache=False).logits[real.bool()])
    assert (results[0] - results[1]).abs().max() < 1e-4 * results[0].abs().max()


@pytest.mark.parametrize("window", [None, 4])
def test_padding_anywhere(window):
    for gone in (slice(0, 4), slice(11, 15), slice(4, 7), [2, 3, 9]):
        real = torch.ones(2, 15, dtype=torch.long)
        real[1, gone] = 0
        check_equal(window, real, tokens=TOKENS.repeat(2, 1), attention_mask=real)


def test_right_padded_prompts_generate():
    tokens, real = TOKENS.repeat(2, 1), torch.ones(2, 15, dtype=torch.long)
    real[1, 9:] = 0
    one, other = (
        small(name).generate(tokens, attention_mask=real, max_new_tokens=6, do_sample=False) for name in ("eager", NAME))
    assert torch.equal(one, other)


def test_masks_of_four_axes():
    causal = torch.ones(15, 15, dtype=torch.bool).tril()[None, None]
    scattered = torch.rand(1, 1, 15, 15, generator=torch.Generator().manual_seed(1)) > 0.5
    blocks = causal | (torch.arange(15)[:, None] // 5 == torch.arange(15) // 5)
    for seen in (causal, blocks):
        expected = logits("sdpa", attention_mask=seen)
        lowest = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
        for given in (seen, lowest):
            own = logits(NAME, attention_mask=given)
            assert (own - expected).abs().max() < 1e-4 * expected.abs().max()
    with pytest.raises(NotImplementedError, match="see keys in [0-9]+ pieces"):
        logits(NAME, attention_mask=scattered | causal.transpose(2, 3) & causal)
    with pytest.raises(NotImplementedError, match="a bias that is added to scores"):
        logits(NAME, attention_mask=torch.where(causal, 0.5, torch.finfo(torch.float32).min))
    with pytest.raises(NotImplementedError, match="attention_mask has 4 axes of torch.int64"):
        logits(NAME, attention_mask=causal.long())
    q = torch.randn(3, 2, 6, 16)
    one = torch.ones(1, 1, 1, 9, dtype=torch.bool)
    assert torch.allclose(attention(Layer(), q, q, q, one)[0], attention(Layer(), q, q, q, None, is_causal=False)[0])
    with pytest.raises(ValueError, match=r"attention_mask has the shape \(2, 1, 1, 6\); 3 x 6 queries and 6 keys need \(3, 1, 6, 6\)"):
        attention(Layer(), q, q, q, one.expand(2, 1, 1, 9))
    with pytest.raises(NotImplementedError, match=r"attention_mask has the shape \(3, 6\)"):
        attention(Layer(), q, q, q, torch.ones(3, 6))


# MARK: - Keywords


def test_unknown_keywords_raise():
    with pytest.raises(NotImplementedError, match="^the keyword block_mask, which this attention does not know"):
        logits(NAME, block_mask=torch.ones(3))
    with pytest.raises(NotImplementedError, match="output_attentions=True"):
        logits(NAME, output_attentions=True)


def test_a_layer_without_a_mask():
    q, k = torch.randn(1, 2, 6, 16), torch.randn(1, 2, 9, 16)
    with pytest.raises(NotImplementedError, match="6 queries and 9 keys and has no mask that says where the queries stand"):
        attention(Layer(), q, k, k, None)
    # As sdpa does, one query sees all keys.
    own, _ = attention(Layer(), q[:, :, :1], k, k, None)
    expected = torch.nn.functional.scaled_dot_product_attention(q[:, :, :1], k, k).transpose(1, 2)
    assert torch.allclose(own, expected, atol=1e-5)
    with pytest.raises(NotImplementedError, match=r"window \(sliding_window=4\) and no mask that says to which sides"):
        attention(Layer(), q, q, q, None, sliding_window=4, is_causal=False)
    with pytest.raises(NotImplementedError, match="dropout is not supported; set attention_dropout to 0"):
        attention(Layer(), q, q, q, None, dropout=0.1)
    with pytest.raises(NotImplementedError, match="differs between heads"):
        attention(Layer(), q, q, q, torch.ones(1, 2, 6, 6, dtype=torch.bool).tril() ^ torch.eye(6, dtype=torch.bool).expand(1, 2, 6, 6) &
                  torch.tensor([True, False])[None, :, None, None])


def made_by(create, config, embeds, real=None, **more):
    """A mask that a function of transformers creates; its parameters have had several names."""
    values = {
        "inputs_embeds": embeds, "input_embeds": embeds, "cache": None, "past_key_values": None,
        "cache_position": torch.arange(embeds.shape[1])}
    parameters = inspect.signature(inspect.unwrap(create)).parameters
    return create(config=config, attention_mask=real, **{name: values[name] for name in values if name in parameters}, **more)


def test_a_mask_for_other_lengths_is_refused():
    from transformers.masking_utils import create_causal_mask

    config = transformers.LlamaConfig()
    config._attn_implementation = NAME
    made = made_by(create_causal_mask, config, torch.randn(2, 6, 16))
    q, k = torch.randn(2, 2, 6, 16), torch.randn(2, 2, 9, 16)
    with pytest.raises(NotImplementedError, match="llama made its mask for 2 x 6 queries and 6 keys, and attends with 2 x 6 queries and 9"):
        attention(Layer(), q, k, k, made)
    with pytest.raises(NotImplementedError, match="llama computes with its attention mask itself"):
        torch.zeros(2, 2, 6, 6) + made
    with pytest.raises(NotImplementedError, match="llama computes with its attention mask itself"), torch.device("cpu"):
        made.size()
    assert attention(Layer(), q, q, q, made.to("cpu").clone())[0].shape == (2, 6, 2, 16)


def test_autocast_casts_as_sdpa_does():
    results = []
    for name in ("sdpa", NAME):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            results.append(small(name)(TOKENS).logits.float())
    assert (results[0] - results[1]).abs().max() < 0.05 * results[0].abs().max()
    q = torch.randn(1, 2, 6, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(Layer(), q, q, q.bfloat16(), None)[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="v is torch.bfloat16; torch.float32 is needed"):
        attention(Layer(), q, q, q.bfloat16(), None)


# MARK: - Traces


@pytest.mark.parametrize("case", ["plain", "left", "right", "documents", "cache"])
def test_compiles_whole(case):
    real = torch.ones(2, 15, dtype=torch.long)
    tokens, options = TOKENS.repeat(2, 1), {"use_cache": case == "cache"}
    if case == "documents":
        options["position_ids"] = POSITIONS.repeat(2, 1)
    elif case in ("left", "right"):
        real[1, slice(0, 4) if case == "left" else slice(11, 15)] = 0
        options["attention_mask"] = real
    expected = logits("eager", tokens=tokens, **options)[real.bool()]
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(small(NAME), backend="aot_eager", fullgraph=True)
        own = compiled(tokens, **options).logits[real.bool()]
        assert (own - expected).abs().max() < 1e-4 * expected.abs().max()
        if case == "left":
            real[1, 6] = 0
            with pytest.raises(NotImplementedError, match="attention_mask has holes, which a compiled model cannot look for"):
                compiled(tokens, **options)


@pytest.mark.parametrize("case", ["plain", "left", "right", "window"])
def test_masks_made_before_a_compiled_model(case):
    """As ``generate`` does it with a static cache on a GPU."""
    from transformers.masking_utils import create_masks_for_generate

    window = 4 if case == "window" else None
    real = torch.ones(2, 15, dtype=torch.long)
    if case in ("left", "right"):
        real[1, slice(0, 4) if case == "left" else slice(11, 15)] = 0
    tokens, model = TOKENS.repeat(2, 1), small(NAME, window)
    expected = logits("eager", window, tokens=tokens, attention_mask=real)[real.bool()]
    made = made_by(create_masks_for_generate, model.config, torch.zeros(2, 15, 64), real)
    torch._dynamo.reset()
    with torch.no_grad():
        own = torch.compile(model, backend="aot_eager", fullgraph=True)(tokens, attention_mask=made, use_cache=False)
    assert (own.logits[real.bool()] - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("case", ["plain", "left", "right"])
def test_compiles_on_a_gpu(gpu, case, mode):
    real = torch.ones(2, 15, dtype=torch.long, device=gpu)
    tokens, options = TOKENS.repeat(2, 1).to(gpu), {"use_cache": False}
    if case != "plain":
        real[1, slice(0, 4) if case == "left" else slice(11, 15)] = 0
        options["attention_mask"] = real
    models = [small(name).to(gpu, torch.bfloat16) for name in ("eager", NAME)]
    torch._dynamo.reset()
    with torch.no_grad():
        expected = models[0](tokens, **options).logits[real.bool()].float()
        compiled = torch.compile(models[1], mode=mode, fullgraph=True)
        for _ in range(3):
            own = compiled(tokens, **options).logits[real.bool()].float()
        assert (own - expected).abs().max() < 0.1 * expected.abs().max()


def test_exports():
    real = torch.ones(2, 15, dtype=torch.long)
    real[1, :4] = 0
    options = {"input_ids": TOKENS.repeat(2, 1), "attention_mask": real, "use_cache": False}
    expected = logits("eager", tokens=options["input_ids"], attention_mask=real)[real.bool()]
    with torch.no_grad():
        own = torch.export.export(small(NAME), (), options).module()(**options).logits[real.bool()]
    assert (own - expected).abs().max() < 1e-4 * expected.abs().max()


RIGHT = torch.ones(2, 15, dtype=torch.long)
RIGHT[1, 9:] = 0
LEFT, MIDDLE = RIGHT.flip(1), RIGHT.clone()
MIDDLE[0, 4:6] = 0


@pytest.mark.parametrize("options", [
    {}, {"attention_mask": RIGHT}, {"attention_mask": LEFT}, {"attention_mask": MIDDLE}, {"position_ids": POSITIONS, "use_cache": False},
    {"position_ids": POSITIONS, "use_cache": False, **KEYWORDS}], ids=["whole", "right", "left", "middle", "documents", "starts"])
def test_trains_as_with_eager(options):
    """Gradients of all parameters; padding has no label. (Lists of documents are not for eager, which finds them in position_ids.)"""
    rows = 2 if "attention_mask" in options else 1
    tokens = TOKENS.repeat(rows, 1)
    labels = tokens.clone()
    if "attention_mask" in options:
        real = options["attention_mask"].bool()
        # Nor has what a row of padding would have to foresee.
        real[:, 1:] &= options["attention_mask"][:, :-1].bool()
        labels[~real] = -100
    found = []
    for name in ("eager", NAME):
        model = small(name).train()
        own = {key: value for key, value in options.items() if name == NAME or key not in KEYWORDS}
        model(tokens, labels=labels, **own).loss.backward()
        found.append({key: value.grad for key, value in model.named_parameters()})
    for key, expected in found[0].items():
        assert (found[1][key] - expected).abs().max() <= 1e-4 * max(expected.abs().max().item(), 1e-3), key


@pytest.mark.parametrize("real", [RIGHT, LEFT], ids=["right", "left"])
def test_compiled_training_of_padding(real):
    torch._dynamo.reset()
    tokens = TOKENS.repeat(2, 1)
    labels = tokens.masked_fill(real == 0, -100)
    labels[:, 1:].masked_fill_(real[:, :-1] == 0, -100)
    found = []
    for name in ("eager", NAME):
        model = small(name).train()
        run = torch.compile(model, backend="aot_eager") if name == NAME else model
        run(tokens, attention_mask=real, labels=labels).loss.backward()
        found.append({key: value.grad for key, value in model.named_parameters()})
    for key, expected in found[0].items():
        assert (found[1][key] - expected).abs().max() <= 1e-4 * max(expected.abs().max().item(), 1e-3), key
