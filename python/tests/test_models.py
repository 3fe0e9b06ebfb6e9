"""Models of many architectures: with our attention, what eager computes in float32, or a refusal that is listed here."""

import pathlib

import model_catalogue as catalogue
import pytest
import torch
import transformers

from swift_flash_attention.transformers import NAME

# What is refused, in the words of the refusal. Transformers itself has no place for any registered attention in some models (KeyError).
BIAS = "a bias on scores \\(position_bias\\)"
OWN = "computes with its attention mask itself"
ALL_REFUSED = {
    "v4": {},
    "v5": {"t5": BIAS, "umt5": BIAS, "bloom": OWN, "xglm": OWN, "mpt": OWN, "mpnet": OWN, "beit": OWN},
}
ALL_WITHOUT_PLACE = {
    "v4": {
        "gpt_neo", "falcon", "falcon_alibi", "gptj", "stablelm", "bert_decoder", "bert", "roberta", "distilbert", "modernbert",
        "electra", "xlm_roberta", "albert", "beit"},
    "v5": {"gpt_neo", "falcon", "falcon_alibi"},
}
# Models of transformers 4 whose own attention computes, with masks of eager, and asks us nothing.
ALL_UNASKED = {"v4": {"bloom", "xglm", "mpt", "mpnet", "t5", "umt5"}, "v5": set()}
REFUSED, NO_PLACE, UNASKED = (of[catalogue.VERSION] for of in (ALL_REFUSED, ALL_WITHOUT_PLACE, ALL_UNASKED))
# Generation that cannot be compared: transformers' own static caches fail, or the mask is made for other keys than there are.
ALL_WITHOUT_STATIC = {"v5": set(), "v4": {"xglm", "deepseek_v2", "deepseek_v3"}}
NO_STATIC = ALL_WITHOUT_STATIC[catalogue.VERSION]
ALL_WITHOUT_GENERATION = {"v5": set(), "v4": {"t5gemma"}}
NO_GENERATION = ALL_WITHOUT_GENERATION[catalogue.VERSION]
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


def table():
    """Documentation/Models.md: what becomes of each model, which the tests of this file hold for the transformers that runs them."""

    def word(entry, version):
        if version not in entry.versions:
            return "-"
        if entry.name in ALL_REFUSED[version]:
            return {BIAS: "raises: a bias on scores", OWN: "raises: computes with its mask itself"}[ALL_REFUSED[version][entry.name]]
        if entry.name in ALL_WITHOUT_PLACE[version]:
            return "has no place for registered attention"
        if entry.name in ALL_UNASKED[version]:
            return "its own attention, as ever"
        if entry.name in ALL_WITHOUT_GENERATION[version]:
            return "yes, but generation raises"
        is_static = version in entry.static and entry.name not in ALL_WITHOUT_STATIC[version]
        return "yes" if is_static or not entry.generate else "yes; static caches not compared"

    lines = [
        "# Models of transformers", "",
        "What `attn_implementation=\"swift_attention\"` computes: \"yes\" means what `eager` computes within 1e-4, in float32 on the CPU, without padding and with",
        "padding on each side that the model takes, and for models that write, the same tokens with growing and static caches. Tiny models with random weights, by",
        "`python/tests/test_models.py`, whose `table()` made this page and which fails where it is not so.", "",
        "| model | class | kind | transformers 4.57 | transformers 5 |", "|---|---|---|---|---|"]
    for entry in sorted(catalogue.CATALOG, key=lambda e: (e.kind, e.name)):
        lines.append(f"| {entry.name} | `{entry.model}` | {entry.kind} | {word(entry, 'v4')} | {word(entry, 'v5')} |")
    return "\n".join(lines) + "\n"


PAGE = pathlib.Path(__file__).resolve().parents[2] / "Documentation/Models.md"


@pytest.mark.skipif(not PAGE.parent.exists(), reason="the tests run without the project around them")
def test_the_page_says_what_the_tests_hold():
    assert PAGE.read_text() == table(), "write it again: python -c 'import test_models as t; t.PAGE.write_text(t.table())'"


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
