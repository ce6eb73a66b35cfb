"""Tiny models of transformers' architectures, with random weights, and a call of each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers as T
from torch import Tensor, nn

ROWS, TOKENS, WORDS = 5, 12, 64

# Names that configurations have for the same thing; they ignore those that aren't theirs.
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MORE = {"head_dim": 8, "rope_theta": 10000.0}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "num_local_experts": 4}
D_MODEL = {
    "vocab_size": WORDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
T5 = {"vocab_size": WORDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
GPT = {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
GPT |= {"bos_token_id": 1, "eos_token_id": 2}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "embedding_size": 8}
SPEECH = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "conv_dim": (16, 16),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": WORDS,
}


@dataclass(frozen=True)
class Architecture:
    """A model and a call.

    Attributes:
        kind: `text`, `encoder-decoder`, `vision`, `speech` or `multimodal`.
        name: Of the model's class.
        build: Makes the model, with random weights.
        call: Keyword arguments.
    """

    kind: str
    name: str
    build: Callable[[], nn.Module]
    call: dict[str, Any]


def architectures() -> Iterator[Architecture]:
    """All of them."""
    ids = torch.randint(3, WORDS - 4, (ROWS, TOKENS), generator=seeded())
    images = torch.randn(ROWS, 3, 32, 32, generator=seeded())
    waves = torch.randn(ROWS, 800, generator=seeded())
    text = {"input_ids": ids}
    both = {"input_ids": ids, "decoder_input_ids": ids[:, :6]}
    for kind, table, call in (
        ("text", TEXT, text),
        ("encoder-decoder", ENCODER_DECODERS, both),
        ("vision", IMAGES, {"pixel_values": images}),
        ("speech", WAVES, {"input_values": waves}),
    ):
        for name, options in table.items():
            yield Architecture(kind, name, maker(name, options), call)
    noise = torch.rand(ROWS, 16, generator=seeded())  # else each call hides other patches
    masked = {"pixel_values": images, "noise": noise}
    yield Architecture("vision", "ViTMAEModel", maker("ViTMAEModel", VISION), masked)
    yield from spectrograms(ids)
    yield from multimodal(ids, images)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def maker(name: str, options: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        kind: Any = getattr(T, name)
        made: nn.Module = kind(kind.config_class(**options))
        return made

    return build


TEXT: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": SIZES,
    "MistralForCausalLM": SIZES | MORE,
    "Qwen2ForCausalLM": SIZES,
    "Qwen3ForCausalLM": SIZES | MORE,
    "GemmaForCausalLM": SIZES | MORE,
    "Gemma2ForCausalLM": SIZES | MORE,
    "Gemma3ForCausalLM": SIZES | MORE,
    "PhiForCausalLM": SIZES,
    "Phi3ForCausalLM": SIZES,
    "OlmoForCausalLM": SIZES,
    "Olmo2ForCausalLM": SIZES,
    "CohereForCausalLM": SIZES,
    "GraniteForCausalLM": SIZES,
    "StableLmForCausalLM": SIZES,
    "Starcoder2ForCausalLM": SIZES,
    "SmolLM3ForCausalLM": SIZES,
    "NemotronForCausalLM": SIZES,
    "PersimmonForCausalLM": SIZES,
    "GlmForCausalLM": SIZES | MORE,
    "MixtralForCausalLM": SIZES | EXPERTS,
    "Qwen2MoeForCausalLM": SIZES
    | EXPERTS
    | {"num_experts": 4, "shared_expert_intermediate_size": 16},
    "OlmoeForCausalLM": SIZES | EXPERTS | {"num_experts": 4},
    "GPT2LMHeadModel": GPT,
    "GPTBigCodeForCausalLM": GPT,
    "GPTJForCausalLM": GPT | {"rotary_dim": 4},
    "CodeGenForCausalLM": GPT | {"rotary_dim": 4},
    "GPTNeoForCausalLM": {
        "vocab_size": WORDS,
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64,
        "window_size": 8,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "GPTNeoXForCausalLM": SIZES,
    "OPTForCausalLM": SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "BloomForCausalLM": {"vocab_size": WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "FalconForCausalLM": SIZES,
    "MptForCausalLM": {"vocab_size": WORDS, "d_model": 32, "n_layers": 2, "n_heads": 4},
    "BioGptForCausalLM": SIZES,
    "XGLMForCausalLM": {
        "vocab_size": WORDS,
        "d_model": 32,
        "ffn_dim": 48,
        "num_layers": 2,
        "attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "MambaForCausalLM": SIZES | {"state_size": 8},
    "Mamba2ForCausalLM": SIZES | {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "RwkvForCausalLM": SIZES | {"attention_hidden_size": 32, "context_length": 64},
    "RecurrentGemmaForCausalLM": SIZES | {"lru_width": 32, "num_hidden_layers": 3},
    "BertForMaskedLM": SIZES,
    "BertForSequenceClassification": SIZES,
    "RobertaForTokenClassification": SIZES,
    "DistilBertForMaskedLM": {
        "vocab_size": WORDS,
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "max_position_embeddings": 64,
    },
    "AlbertForMaskedLM": SIZES | {"embedding_size": 16},
    "ElectraForMaskedLM": SIZES | {"embedding_size": 16},
    "DebertaForMaskedLM": SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "DebertaV2ForMaskedLM": SIZES | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "MPNetForMaskedLM": SIZES,
    "ModernBertForMaskedLM": SIZES,
    "RoFormerForMaskedLM": SIZES | {"embedding_size": 32},
    "ConvBertForMaskedLM": SIZES | {"embedding_size": 32},
    "NystromformerForMaskedLM": SIZES | {"num_landmarks": 4, "segment_means_seq_len": TOKENS},
    "FNetForMaskedLM": SIZES,
    "XLNetLMHeadModel": {
        "vocab_size": WORDS,
        "d_model": 32,
        "n_layer": 2,
        "n_head": 4,
        "d_inner": 48,
    },
    "FunnelForMaskedLM": {
        "vocab_size": WORDS,
        "d_model": 32,
        "n_head": 4,
        "d_head": 8,
        "d_inner": 48,
        "block_sizes": [1, 1],
    },
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "T5ForConditionalGeneration": T5,
    "MT5ForConditionalGeneration": T5,
    "UMT5ForConditionalGeneration": T5,
    "LongT5ForConditionalGeneration": T5 | {"local_radius": 4},
    "BartForConditionalGeneration": D_MODEL,
    "MBartForConditionalGeneration": D_MODEL,
    "PegasusForConditionalGeneration": D_MODEL,
    "MarianMTModel": D_MODEL,
    "BlenderbotForConditionalGeneration": D_MODEL,
    "M2M100ForConditionalGeneration": D_MODEL,
    "LEDForConditionalGeneration": D_MODEL
    | {
        "attention_window": 4,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    "ProphetNetForConditionalGeneration": {
        "vocab_size": WORDS,
        "hidden_size": 32,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    },
}
IMAGES: dict[str, dict[str, Any]] = {
    "ViTForImageClassification": VISION,
    "DeiTForImageClassification": VISION,
    "BeitForImageClassification": VISION,
    "Dinov2ForImageClassification": VISION,
    "YolosForObjectDetection": VISION | {"num_detection_tokens": 4, "image_size": [32, 32]},
    "SwinForImageClassification": SWIN,
    "Swinv2ForImageClassification": SWIN,
    "ConvNextForImageClassification": STAGES,
    "ConvNextV2ForImageClassification": STAGES,
    "ResNetForImageClassification": STAGES,
    "RegNetForImageClassification": STAGES | {"groups_width": 8},
    "BitForImageClassification": STAGES | {"num_groups": 4},
    "PoolFormerForImageClassification": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 24, 32],
    },
    "SegformerForSemanticSegmentation": {
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 24, 32],
        "num_attention_heads": [1, 2, 2, 4],
        "decoder_hidden_size": 16,
    },
    "PvtForImageClassification": {
        "image_size": 32,
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 24, 32],
        "num_attention_heads": [1, 2, 2, 4],
    },
    "MobileNetV2ForImageClassification": {"image_size": 32, "depth_multiplier": 0.35},
    "MobileViTForImageClassification": {
        "image_size": 32,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
    },
}
WAVES: dict[str, dict[str, Any]] = {
    "Wav2Vec2ForCTC": SPEECH,
    "HubertForCTC": SPEECH,
    "WavLMForCTC": SPEECH,
    "UniSpeechForCTC": SPEECH,
    "Data2VecAudioForCTC": SPEECH,
}


def spectrograms(ids: Tensor) -> Iterator[Architecture]:
    """What hears a spectrogram."""
    whisper = D_MODEL | {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32}
    features = torch.randn(ROWS, 8, 32, generator=seeded())
    call = {"input_features": features, "decoder_input_ids": ids[:, :6]}
    name = "WhisperForConditionalGeneration"
    yield Architecture("speech", name, maker(name, whisper), call)
    name, spectrum = "ASTForAudioClassification", VISION | {"max_length": 32, "num_mel_bins": 16}
    call = {"input_values": torch.randn(ROWS, 32, 16, generator=seeded())}
    yield Architecture("speech", name, maker(name, spectrum), call)
    name = "Speech2TextForConditionalGeneration"
    options = whisper | {"input_feat_per_channel": 8, "input_channels": 1, "conv_channels": 16}
    options |= {"max_source_positions": 64}
    call = {"input_features": features.transpose(1, 2), "decoder_input_ids": ids[:, :6]}
    yield Architecture("speech", name, maker(name, options), call)


def multimodal(ids: Tensor, images: Tensor) -> Iterator[Architecture]:
    """What sees and reads."""
    both = {"input_ids": ids, "pixel_values": images}
    parts = {"text_config": SIZES, "vision_config": VISION, "projection_dim": 16}
    for name in ("CLIPModel", "SiglipModel", "ChineseCLIPModel", "AltCLIPModel"):
        yield Architecture("multimodal", name, maker(name, parts), both)
    marks = torch.cat([torch.full((ROWS, 16), WORDS - 1), ids], 1)
    yield Architecture(
        "multimodal",
        "LlavaForConditionalGeneration",
        llava,
        both | {"input_ids": marks, "attention_mask": torch.ones_like(marks)},
    )
    yield Architecture(
        "multimodal",
        "VisionEncoderDecoderModel",
        captioner,
        {"pixel_values": images, "decoder_input_ids": ids[:, :6]},
    )
    yield Architecture("multimodal", "DetrForObjectDetection", detr, {"pixel_values": images})
    coders = {"input_ids": ids, "decoder_input_ids": ids[:, :6]}
    yield Architecture("encoder-decoder", "EncoderDecoderModel", coder, coders)


def llava() -> nn.Module:
    vision, text = T.CLIPVisionConfig(**VISION), T.LlamaConfig(**SIZES)
    options = {"image_token_index": WORDS - 1, "vision_feature_layer": -1}
    return T.LlavaForConditionalGeneration(
        T.LlavaConfig(vision_config=vision, text_config=text, **options)
    )


def captioner() -> nn.Module:
    made = T.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        T.ViTConfig(**VISION), T.GPT2Config(**GPT)
    )
    made.decoder_start_token_id, made.pad_token_id = 1, 0
    return T.VisionEncoderDecoderModel(made)


def coder() -> nn.Module:
    return T.EncoderDecoderModel(
        T.EncoderDecoderConfig.from_encoder_decoder_configs(
            T.BertConfig(**SIZES), T.BertConfig(**SIZES)
        )
    )


def detr() -> nn.Module:
    sizes = [8, 8, 8, 16]
    backbone = T.ResNetConfig(
        embedding_size=8, hidden_sizes=sizes, depths=[1] * 4, out_features=["stage4"]
    )
    options = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    options |= {"num_queries": 5}
    return T.DetrForObjectDetection(T.DetrConfig(backbone_config=backbone, **options, **D_MODEL))
