import pytest
import torch

transformers = pytest.importorskip("transformers")
import swift_flash_attention.transformers  # noqa: E402


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


def test_refuses_masks_with_holes():
    model = llama(swift_flash_attention.transformers.NAME, "cpu", torch.float32)
    tokens = torch.randint(3, 199, (2, 6))
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with pytest.raises(NotImplementedError, match="holes"), torch.no_grad():
        model(tokens, attention_mask=mask)
