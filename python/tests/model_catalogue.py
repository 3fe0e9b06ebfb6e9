"""Tiny Hugging Face models with random weights, of many architectures, for comparing attention implementations on a CPU in float32.

    for entry in available():                         # the entries whose classes this transformers has
        model = build(entry, "eager")                 # cls._from_config(config, attn_implementation=...), eval mode
        for padding in entry.pads:                    # "none" (no mask at all), "left", "right"
            inputs = entry.inputs(padding)
            out = output_of(model(**inputs))          # (batch, positions, features)
            real = real_positions(model, inputs, out) # (batch, positions) bool, False at padding

Weights are the same for every implementation, and spread enough that windows, softcaps and biases change what comes out. Head
dimensions are multiples of 8 (16 unless said otherwise). No tokenizer, no file, no network.
"""
import re
from dataclasses import dataclass, field

import torch
import transformers

VERSION = "v4" if transformers.__version__.startswith("4.") else "v5"
BOTH, V5, NONE = ("v4", "v5"), ("v5",), ()
STD, VOCAB, BATCH, SEQ, PAD_LEN, IMG, PATCH = 0.2, 199, 2, 16, 5, 32, 8
IMAGE_TOKEN = 198  # never drawn by `_ids`; 32 / 8 squared = 16 patches an image
ALL = ("none", "left", "right")


@dataclass
class Entry:
    name: str
    kind: str  # "decoder", "encoder", "encoder-decoder", "vision", "multimodal" or "audio"
    model: str  # class name in transformers
    config_cls: str
    config_kwargs: dict
    form: str = "text"  # which inputs: see `inputs`
    pads: tuple = ALL
    generate: bool = False
    versions: tuple = BOTH  # transformers lines that have the class
    dispatch: tuple = BOTH  # lines in which the model calls a function registered with AttentionInterface
    static: tuple = BOTH  # lines in which generate(cache_implementation="static") under eager equals the dynamic cache
    lift: dict = field(default_factory=dict)  # regex of parameter names -> std they are redrawn with after building
    image_tokens: int = 16
    note: str = ""

    @property
    def available(self):
        return VERSION in self.versions and all(hasattr(transformers, c) for c in (self.model, self.config_cls))

    def make(self):
        """(model class, a fresh config)"""
        return getattr(transformers, self.model), getattr(transformers, self.config_cls)(**self.config_kwargs)

    def inputs(self, padding="none"):
        assert padding in self.pads, f"{self.name} has no padding mode {padding}"
        return FORMS[self.form](self, padding)

    def generate_inputs(self):
        """Left-padded prompts (encoder inputs, for an encoder-decoder); pass max_new_tokens etc. yourself."""
        inputs = self.inputs("left" if "left" in self.pads else "none")
        return {k: v for k, v in inputs.items() if not k.startswith("decoder_")}


def build(entry, attn_implementation="eager", seed=0):
    cls, config = entry.make()
    torch.manual_seed(seed)
    model = cls._from_config(config, attn_implementation=attn_implementation).float().eval()
    torch.manual_seed(seed + 1)
    with torch.no_grad():
        for pattern, std in entry.lift.items():
            hits = [p for n, p in model.named_parameters() if re.search(pattern, n)]
            assert hits, f"{entry.name}: no parameter matches {pattern}"
            for p in hits:
                p.normal_(0.0, std)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = None
        model.generation_config.forced_eos_token_id = None
        model.generation_config.pad_token_id = 0
    return model


def available(kind=None):
    return [e for e in CATALOG if e.available and kind in (None, e.kind)]


def output_of(out):
    for key in ("logits", "last_hidden_state"):
        if getattr(out, key, None) is not None:
            return getattr(out, key)
    text = getattr(out, "text_model_output", None)  # CLIP
    return out[0] if text is None else text.last_hidden_state


def real_positions(model, inputs, out):
    if "decoder_attention_mask" in inputs:
        return inputs["decoder_attention_mask"].bool()
    mask = None if "decoder_input_ids" in inputs else inputs.get("attention_mask")
    if mask is None:
        return torch.ones(out.shape[:2], dtype=torch.bool)
    if "input_values" in inputs:  # audio: from samples to frames
        mask = model._get_feature_vector_attention_mask(out.shape[1], mask)
    return mask.bool()


# MARK: - Inputs


def _gen(seed):
    return torch.Generator().manual_seed(seed)


def _ids(seed=0, length=SEQ):
    return torch.randint(3, VOCAB - 4, (BATCH, length), generator=_gen(seed))


def _padded(ids, padding, prefix=""):
    """The last row is padded by PAD_LEN tokens with id 0 (its first tokens survive under both sides)."""
    if padding == "none":
        return {prefix + "input_ids": ids}
    ids, mask = ids.clone(), torch.ones_like(ids)
    gone = slice(0, PAD_LEN) if padding == "left" else slice(-PAD_LEN, None)
    ids[-1] = ids[-1].roll(PAD_LEN) if padding == "left" else ids[-1]
    ids[-1, gone], mask[-1, gone] = 0, 0
    return {prefix + "input_ids": ids, prefix + "attention_mask": mask}


def _text(entry, padding):
    return _padded(_ids(), padding)


def _seq2seq(entry, padding):
    return _padded(_ids(), padding) | _padded(_ids(1, 12), padding, "decoder_")


def _pixels(entry, padding):
    return {"pixel_values": torch.randn(BATCH, 3, IMG, IMG, generator=_gen(2))}


def _speech(entry, padding):
    feats = {"input_features": torch.randn(BATCH, 16, 24, generator=_gen(3))}
    return feats | _padded(_ids(1, 12), padding, "decoder_")


def _wave(entry, padding):
    out = {"input_values": torch.randn(BATCH, 220, generator=_gen(4))}
    if padding == "right":
        out["attention_mask"] = torch.ones(BATCH, 220, dtype=torch.long)
        out["attention_mask"][-1, 150:] = 0
        out["input_values"][-1, 150:] = 0.0
    return out


def _vlm(entry, padding):
    """Two text tokens, the image's tokens, six text tokens; padding is added around."""
    n = entry.image_tokens
    text, image = _ids(0, 8), torch.full((BATCH, n), IMAGE_TOKEN)
    ids = torch.cat([text[:, :2], image, text[:, 2:]], 1)
    if padding != "none":
        extra = _ids(5, PAD_LEN)
        ids = torch.cat([ids, extra], 1)
    return _padded(ids, padding) | _pixels(entry, padding)


def _vlm_types(entry, padding):
    out = _vlm(entry, padding)
    return out | {"token_type_ids": (out["input_ids"] == IMAGE_TOKEN).long()}


def _paligemma(entry, padding):
    out = _vlm(entry, padding)  # token_type_ids here: 0 prefix, 1 suffix
    return out | {"token_type_ids": torch.zeros_like(out["input_ids"])}


def _qwen_vl(entry, padding):
    out = _vlm(entry, padding)
    out["image_grid_thw"] = torch.tensor([[1, 4, 4]] * BATCH)
    out["pixel_values"] = torch.randn(BATCH * 16, 3 * 2 * PATCH * PATCH, generator=_gen(2))
    if VERSION == "v5":
        out["mm_token_type_ids"] = (out["input_ids"] == IMAGE_TOKEN).int()
    return out


def _clip(entry, padding):
    return _text(entry, padding) | _pixels(entry, padding)


FORMS = dict(text=_text, seq2seq=_seq2seq, pixels=_pixels, speech=_speech, wave=_wave, vlm=_vlm, vlm_types=_vlm_types,
             paligemma=_paligemma, qwen_vl=_qwen_vl, clip=_clip)

# MARK: - Configurations


TOK = dict(vocab_size=VOCAB, pad_token_id=0, bos_token_id=1, eos_token_id=None)
BASE = TOK | dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                  max_position_embeddings=64, initializer_range=STD)
CLIPT = {k: v for k, v in BASE.items() if k != "initializer_range"} | dict(eos_token_id=2, projection_dim=64)
GQA = BASE | dict(num_key_value_heads=2)
GQAH = GQA | dict(head_dim=16)
ENC = {k: v for k, v in BASE.items() if k not in ("bos_token_id", "eos_token_id")} | dict(type_vocab_size=2)
BART = TOK | dict(d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                  encoder_ffn_dim=96, decoder_ffn_dim=96, max_position_embeddings=64, init_std=STD,
                  decoder_start_token_id=2, forced_eos_token_id=None)
T5 = TOK | dict(d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4, relative_attention_num_buckets=8,
                relative_attention_max_distance=12, decoder_start_token_id=0)
VIT = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=IMG,
           patch_size=PATCH, initializer_range=STD)
CLIPV = {k: v for k, v in VIT.items() if k != "initializer_range"} | dict(initializer_factor=1.0)
SIGLIP = {k: v for k, v in VIT.items() if k != "initializer_range"}
MOE = dict(num_experts_per_tok=2, num_local_experts=4)
MLA = BASE | dict(num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=24, qk_nope_head_dim=16, qk_rope_head_dim=8,
                  v_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_group=1,
                  topk_group=1, first_k_dense_replace=1, n_shared_experts=1)
WAV = dict(vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
           conv_dim=(32, 32), conv_kernel=(10, 3), conv_stride=(5, 2), num_feat_extract_layers=2,
           feat_extract_norm="layer", num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
           initializer_range=STD, mask_time_prob=0.0, apply_spec_augment=False, do_stable_layer_norm=True)
SLIDE = ["sliding_attention", "full_attention"]
QK = r"(q_proj|k_proj|v_proj|out_proj|qkv)\.weight"


def D(name, model, cfg, kwargs, **kw):
    return Entry(name, "decoder", model, cfg, kwargs, generate=True, **kw)


def N(name, model, cfg, kwargs, **kw):
    return Entry(name, "encoder", model, cfg, kwargs, **kw)


def S(name, model, cfg, kwargs, **kw):
    return Entry(name, "encoder-decoder", model, cfg, kwargs, **(dict(form="seq2seq", generate=True) | kw))


def V(name, model, cfg, kwargs, **kw):
    return Entry(name, "vision", model, cfg, kwargs, form="pixels", pads=("none",), **kw)


def M(name, model, cfg, kwargs, **kw):
    return Entry(name, "multimodal", model, cfg, kwargs, **(dict(form="vlm", generate=True) | kw))


CATALOG = [
    D("llama", "LlamaForCausalLM", "LlamaConfig", GQAH),
    D("mistral", "MistralForCausalLM", "MistralConfig", GQAH | dict(sliding_window=5), note="sliding, every layer"),
    D("qwen2", "Qwen2ForCausalLM", "Qwen2Config", GQA | dict(
        use_sliding_window=True, sliding_window=5, max_window_layers=1), note="layer 0 full, layer 1 sliding"),
    D("qwen3", "Qwen3ForCausalLM", "Qwen3Config", GQAH),
    D("phi", "PhiForCausalLM", "PhiConfig", GQA),
    D("phi3", "Phi3ForCausalLM", "Phi3Config", GQA | dict(sliding_window=8), note="sliding, every layer"),
    D("gemma", "GemmaForCausalLM", "GemmaConfig", GQAH),
    D("gemma2", "Gemma2ForCausalLM", "Gemma2Config", GQAH | dict(
        sliding_window=5, layer_types=SLIDE, attn_logit_softcapping=2.0, query_pre_attn_scalar=16), note="softcap"),
    D("gemma3", "Gemma3ForCausalLM", "Gemma3TextConfig", GQAH | dict(
        sliding_window=5, layer_types=SLIDE, query_pre_attn_scalar=16)),
    D("cohere", "CohereForCausalLM", "CohereConfig", GQA),
    D("cohere2", "Cohere2ForCausalLM", "Cohere2Config", GQA | dict(sliding_window=5, layer_types=SLIDE)),
    D("olmo2", "Olmo2ForCausalLM", "Olmo2Config", GQA),
    D("olmo3", "Olmo3ForCausalLM", "Olmo3Config", GQA | dict(sliding_window=5, layer_types=SLIDE)),
    D("gpt2", "GPT2LMHeadModel", "GPT2Config", TOK | dict(
        n_embd=64, n_layer=2, n_head=4, n_positions=64, initializer_range=STD)),
    D("gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", BASE),
    D("gpt_neo", "GPTNeoForCausalLM", "GPTNeoConfig", TOK | dict(
        hidden_size=64, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=5,
        max_position_embeddings=64, initializer_range=STD), note="local layer, unscaled scores",
      dispatch=NONE, static=NONE),
    D("gptj", "GPTJForCausalLM", "GPTJConfig", TOK | dict(
        n_embd=64, n_layer=2, n_head=4, n_positions=64, rotary_dim=8, initializer_range=STD), dispatch=V5),
    D("opt", "OPTForCausalLM", "OPTConfig", TOK | dict(
        hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        word_embed_proj_dim=64, init_std=STD)),
    D("gpt_bigcode", "GPTBigCodeForCausalLM", "GPTBigCodeConfig", TOK | dict(
        n_embd=64, n_layer=2, n_head=4, n_positions=64, multi_query=True, initializer_range=STD), note="one kv head"),
    D("starcoder2", "Starcoder2ForCausalLM", "Starcoder2Config", GQA | dict(sliding_window=5)),
    D("granite", "GraniteForCausalLM", "GraniteConfig", GQA | dict(attention_multiplier=0.2), note="own scaling"),
    D("llama4", "Llama4ForCausalLM", "Llama4TextConfig", GQAH | MOE | dict(
        num_hidden_layers=4, attention_chunk_size=5, no_rope_layers=[1, 1, 1, 0], intermediate_size_mlp=96,
        floor_scale=4), note="chunked layers, one full layer without rope, temperature tuning"),
    D("gpt_oss", "GptOssForCausalLM", "GptOssConfig", GQAH | MOE | dict(sliding_window=5, layer_types=SLIDE),
      lift={r"\.sinks$": 2.0}, note="sinks (s_aux)"),
    D("bloom", "BloomForCausalLM", "BloomConfig", TOK | dict(
        hidden_size=64, n_layer=2, n_head=4, initializer_range=STD), note="alibi", dispatch=NONE),
    D("xglm", "XGLMForCausalLM", "XGLMConfig", TOK | dict(
        d_model=64, ffn_dim=96, num_layers=2, attention_heads=4, max_position_embeddings=64, init_std=STD),
      dispatch=NONE, static=V5),
    D("falcon", "FalconForCausalLM", "FalconConfig", TOK | dict(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2, new_decoder_architecture=True,
        initializer_range=STD), dispatch=NONE),
    D("falcon_alibi", "FalconForCausalLM", "FalconConfig", TOK | dict(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, multi_query=True, alibi=True, parallel_attn=False,
        initializer_range=STD), note="alibi, one kv head", dispatch=NONE, static=NONE),
    D("mpt", "MptForCausalLM", "MptConfig", TOK | dict(
        d_model=64, n_heads=4, n_layers=2, max_seq_len=64, initializer_range=STD), note="alibi", dispatch=NONE),
    D("smollm3", "SmolLM3ForCausalLM", "SmolLM3Config", GQA | dict(no_rope_layers=[1, 0])),
    D("deepseek_v2", "DeepseekV2ForCausalLM", "DeepseekV2Config", MLA | dict(topk_method="greedy"),
      note="MLA: qk head 24, v head 16", static=V5),
    D("deepseek_v3", "DeepseekV3ForCausalLM", "DeepseekV3Config", MLA, note="MLA: qk head 24, v head 16", static=V5),
    D("mixtral", "MixtralForCausalLM", "MixtralConfig", GQAH | MOE),
    D("qwen3_moe", "Qwen3MoeForCausalLM", "Qwen3MoeConfig", GQAH | dict(
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32)),
    D("stablelm", "StableLmForCausalLM", "StableLmConfig", GQA, dispatch=V5),
    D("glm4", "Glm4ForCausalLM", "Glm4Config", GQAH),
    D("modernbert_decoder", "ModernBertDecoderForCausalLM", "ModernBertDecoderConfig", TOK | dict(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, local_attention=10,
        layer_types=SLIDE, initializer_range=STD, cls_token_id=1, sep_token_id=2)),
    D("bert_decoder", "BertLMHeadModel", "BertConfig", ENC | dict(is_decoder=True), note="is_decoder=True, causal",
      dispatch=V5),
    # encoders
    N("embedding_gemma", "Gemma3TextModel", "Gemma3TextConfig", GQAH | dict(
        sliding_window=8, layer_types=SLIDE, query_pre_attn_scalar=16, use_bidirectional_attention=True),
      note="bidirectional, two-sided sliding"),
    N("bert", "BertForMaskedLM", "BertConfig", ENC, dispatch=V5),
    N("roberta", "RobertaForMaskedLM", "RobertaConfig", ENC, dispatch=V5),
    N("distilbert", "DistilBertForMaskedLM", "DistilBertConfig", dict(
        vocab_size=VOCAB, pad_token_id=0, dim=64, hidden_dim=96, n_layers=2, n_heads=4, max_position_embeddings=64,
        initializer_range=STD), dispatch=V5),
    N("modernbert", "ModernBertForMaskedLM", "ModernBertConfig", TOK | dict(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, local_attention=6,
        global_attn_every_n_layers=2, initializer_range=STD, cls_token_id=1, sep_token_id=2) | (
            {"reference_compile": False} if VERSION == "v4" else {}), note="two-sided local layer in the middle",
      dispatch=V5),
    N("electra", "ElectraForMaskedLM", "ElectraConfig", ENC | dict(embedding_size=64), dispatch=V5),
    N("xlm_roberta", "XLMRobertaForMaskedLM", "XLMRobertaConfig", ENC, dispatch=V5),
    N("albert", "AlbertForMaskedLM", "AlbertConfig", ENC | dict(embedding_size=64), dispatch=V5),
    N("esm", "EsmForMaskedLM", "EsmConfig", {k: v for k, v in ENC.items() if k != "type_vocab_size"} | dict(
        position_embedding_type="rotary", mask_token_id=190, token_dropout=False), note="rotary"),
    N("mpnet", "MPNetForMaskedLM", "MPNetConfig", BASE,
      lift={"relative_attention_bias": 1.0}, note="position bias", dispatch=NONE),
    N("nomic_bert", "NomicBertForMaskedLM", "NomicBertConfig", ENC, versions=V5, dispatch=V5),
    N("eurobert", "EuroBertForMaskedLM", "EuroBertConfig", GQAH | dict(mask_token_id=190), versions=V5, dispatch=V5),
    N("clip_text", "CLIPTextModel", "CLIPTextConfig", CLIPT,
      lift={QK: STD}, note="causal"),
    # encoder-decoders
    S("t5", "T5ForConditionalGeneration", "T5Config", T5, lift={"relative_attention_bias": 1.0}, note="position bias",
      dispatch=V5),
    S("umt5", "UMT5ForConditionalGeneration", "UMT5Config", T5, lift={"relative_attention_bias": 1.0},
      note="position bias in every layer", dispatch=V5),
    S("bart", "BartForConditionalGeneration", "BartConfig", BART),
    S("mbart", "MBartForConditionalGeneration", "MBartConfig", BART),
    S("marian", "MarianMTModel", "MarianConfig", BART),
    S("pegasus", "PegasusForConditionalGeneration", "PegasusConfig", BART),
    S("m2m_100", "M2M100ForConditionalGeneration", "M2M100Config", BART),
    S("t5gemma", "T5GemmaForConditionalGeneration", "T5GemmaConfig", dict(
        encoder=GQAH | dict(sliding_window=8, layer_types=SLIDE, attn_logit_softcapping=2.0, query_pre_attn_scalar=16),
        decoder=GQAH | dict(sliding_window=5, layer_types=SLIDE, attn_logit_softcapping=2.0, query_pre_attn_scalar=16),
        vocab_size=VOCAB), note="softcap, sliding, GQA cross attention"),
    Entry("whisper", "audio", "WhisperForConditionalGeneration", "WhisperConfig", {
        k: v for k, v in BART.items() if k not in ("max_position_embeddings", "forced_eos_token_id")} | dict(
            num_mel_bins=16, max_source_positions=12, max_target_positions=48, suppress_tokens=None,
            begin_suppress_tokens=None), form="speech", note="encoder-decoder; no encoder padding"),
    Entry("wav2vec2", "audio", "Wav2Vec2Model", "Wav2Vec2Config", WAV, form="wave", pads=("none", "right")),
    Entry("hubert", "audio", "HubertModel", "HubertConfig", WAV, form="wave", pads=("none", "right")),
    # vision
    V("vit", "ViTModel", "ViTConfig", VIT),
    V("deit", "DeiTModel", "DeiTConfig", VIT),
    V("dinov2", "Dinov2Model", "Dinov2Config", {k: v for k, v in VIT.items() if k != "intermediate_size"}),
    V("dinov3_vit", "DINOv3ViTModel", "DINOv3ViTConfig", VIT | dict(num_register_tokens=2), note="2d rope"),
    V("beit", "BeitModel", "BeitConfig", VIT | dict(use_relative_position_bias=True),
      lift={"relative_position_bias_table": 1.0}, note="position bias", dispatch=V5),
    V("siglip_vision", "SiglipVisionModel", "SiglipVisionConfig", SIGLIP, lift={QK: STD}),
    V("clip_vision", "CLIPVisionModel", "CLIPVisionConfig", CLIPV, lift={QK: STD}),
    # multimodal
    M("paligemma", "PaliGemmaForConditionalGeneration", "PaliGemmaConfig", dict(
        vision_config=SIGLIP | dict(model_type="siglip_vision_model"), projection_dim=64, hidden_size=64,
        text_config=GQAH | dict(model_type="gemma"), image_token_index=IMAGE_TOKEN, pad_token_id=0,
        bos_token_id=1, eos_token_id=None), form="paligemma", note="bidirectional prefix", static=V5),
    M("gemma3_vlm", "Gemma3ForConditionalGeneration", "Gemma3Config", dict(
        vision_config=SIGLIP | dict(model_type="siglip_vision_model", vision_use_head=False), mm_tokens_per_image=4,
        text_config=GQAH | dict(model_type="gemma3_text", sliding_window=5, layer_types=SLIDE,
                                query_pre_attn_scalar=16), boi_token_index=196, eoi_token_index=197,
        image_token_index=IMAGE_TOKEN, initializer_range=STD, eos_token_id=None), form="vlm_types", image_tokens=4,
      note="image tokens see each other both ways"),
    M("llava", "LlavaForConditionalGeneration", "LlavaConfig", dict(
        vision_config=CLIPV | dict(model_type="clip_vision_model", projection_dim=64), image_token_index=IMAGE_TOKEN,
        text_config=GQAH | dict(model_type="llama"), vision_feature_layer=-1, pad_token_id=0)),
    M("qwen2_vl", "Qwen2VLForConditionalGeneration", "Qwen2VLConfig", dict(
        vision_config=dict(depth=2, embed_dim=64, hidden_size=64, num_heads=4, mlp_ratio=2, patch_size=PATCH,
                           spatial_merge_size=2, temporal_patch_size=2, initializer_range=STD),
        text_config=GQA | dict(rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3],
                                                "rope_theta": 10000.0},
                               rope_scaling={"type": "mrope", "mrope_section": [2, 3, 3]}),
        image_token_id=IMAGE_TOKEN, video_token_id=195, vision_start_token_id=196, vision_end_token_id=197,
        initializer_range=STD), form="qwen_vl", image_tokens=4, note="packed images in the vision tower, 3d rope"),
    M("clip", "CLIPModel", "CLIPConfig", dict(
        text_config=CLIPT, vision_config=CLIPV | dict(projection_dim=64), projection_dim=64), form="clip",
      generate=False, lift={QK: STD}, note="two towers; output_of gives the text tower's states"),
]
