"""Models of many architectures: with our attention, what eager computes in float32, or a refusal that is listed here."""

import model_catalogue as catalogue
import pytest
import torch
import transformers

from swift_flash_attention.transformers import NAME

# What is refused, in the words of the refusal. Transformers itself has no place for any registered attention in some models (KeyError).
BIAS = "a bias on scores \\(position_bias\\)"
OWN = "computes with its attention mask itself"
REFUSED = {
    "v5": {"t5": BIAS, "umt5": BIAS, "bloom": OWN, "xglm": OWN, "mpt": OWN, "mpnet": OWN, "beit": OWN},
    "v4": {},
}[catalogue.VERSION]
NO_PLACE = {
    "v5": {"gpt_neo", "falcon", "falcon_alibi"},
    "v4": {
        "gpt_neo", "falcon", "falcon_alibi", "gptj", "stablelm", "bert_decoder", "bert", "roberta", "distilbert", "modernbert",
        "electra", "xlm_roberta", "albert", "beit"},
}[catalogue.VERSION]
# Models of transformers 4 whose own attention computes, with masks of eager, and asks us nothing.
UNASKED = {"v5": set(), "v4": {"bloom", "xglm", "mpt", "mpnet", "t5", "umt5"}}[catalogue.VERSION]
# Generation that cannot be compared: transformers' own static caches fail, or the mask is made for other keys than there are.
NO_STATIC = {"v5": set(), "v4": {"xglm", "deepseek_v2", "deepseek_v3"}}[catalogue.VERSION]
NO_GENERATION = {"v5": set(), "v4": {"t5gemma"}}[catalogue.VERSION]
OTHERS_KEYS = "made its mask for 2 x 1 queries and 16 keys, and attends with 2 x 1 queries and 4 keys"

ENTRIES = {entry.name: entry for entry in catalogue.available()}
COMPUTED = sorted(set(ENTRIES) - set(REFUSED) - NO_PLACE)


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()


def difference(entry, padding, models):
    inputs = entry.inputs(padding)
    with torch.no_grad():
        one, other = (catalogue.output_of(model(**inputs)) for model in models)
    real = catalogue.real_positions(models[0], inputs, one)
    return (one - other)[real].abs().max().item() / one[real].abs().max().item()


def test_there_are_enough():
    assert len(COMPUTED) - len(UNASKED) >= (45 if catalogue.VERSION == "v5" else 40)
    assert set(REFUSED) | NO_PLACE | UNASKED <= set(ENTRIES)


@pytest.mark.parametrize("name", COMPUTED)
def test_computes_what_eager_does(name):
    entry = ENTRIES[name]
    models = [catalogue.build(entry, implementation) for implementation in ("eager", NAME)]
    for padding in entry.pads:
        assert difference(entry, padding, models) < 1e-4, padding
    if not entry.generate:
        return
    prompt = entry.generate_inputs()
    if name in NO_GENERATION:
        with pytest.raises(NotImplementedError, match=OTHERS_KEYS):
            models[1].generate(**prompt, max_new_tokens=4, do_sample=False)
        return
    for cache in (None, "static"):
        if cache == "static" and (catalogue.VERSION not in entry.static or name in NO_STATIC):
            continue
        options = {"max_new_tokens": 4, "do_sample": False, "cache_implementation": cache}
        if cache == "static":
            options["disable_compile"] = True
        one, other = (model.generate(**prompt, **options) for model in models)
        assert torch.equal(one, other), cache


DECODERS = [name for name in COMPUTED if ENTRIES[name].kind == "decoder" and name not in UNASKED]


@pytest.mark.parametrize("name", DECODERS)
def test_a_second_turn_over_a_cache(name):
    """Several tokens behind a cache, with padding in the first turn to the left of one row, and in the second behind the other."""
    entry = ENTRIES[name]
    inputs = entry.inputs("left")
    tokens, mask = inputs["input_ids"], inputs["attention_mask"]
    more, longer = tokens.roll(3, 1)[:, :6], torch.cat([mask, torch.ones_like(mask[:, :6])], 1)
    longer[0, -2:] = 0
    results = []
    for implementation in ("eager", NAME):
        model = catalogue.build(entry, implementation)
        with torch.no_grad():
            first = model(input_ids=tokens, attention_mask=mask, use_cache=True)
            second = model(input_ids=more, attention_mask=longer, past_key_values=first.past_key_values, use_cache=True)
        results.append(second.logits[longer[:, -6:].bool()])
    assert (results[0] - results[1]).abs().max() < 1e-4 * results[0].abs().max()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refuses_by_name(name):
    entry = ENTRIES[name]
    model = catalogue.build(entry, NAME)
    for padding in entry.pads:
        with pytest.raises(NotImplementedError, match=REFUSED[name]) as refusal, torch.no_grad():
            model(**entry.inputs(padding))
        assert "use attn_implementation='eager' or 'sdpa'" in str(refusal.value)


@pytest.mark.parametrize("name", sorted(NO_PLACE))
def test_transformers_has_no_place_for_it(name):
    entry = ENTRIES[name]
    with pytest.raises(KeyError, match=NAME), torch.no_grad():
        catalogue.build(entry, NAME)(**entry.inputs("none"))


def test_gpt_oss_learns_as_eager_does():
    """A training step has eager's gradients, those of the sinks included."""
    entry = ENTRIES["gpt_oss"]
    found = []
    for implementation in ("eager", NAME):
        model = catalogue.build(entry, implementation)
        model.train()
        inputs = entry.inputs("none" if "none" in entry.pads else entry.pads[0])
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    eager, own = found
    assert eager.keys() == own.keys() and any("sinks" in name for name in own)
    for name, expected in eager.items():
        assert (own[name] - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-7, name
