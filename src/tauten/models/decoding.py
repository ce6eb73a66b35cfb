"""Which transformers models the native decoder takes over."""

from typing import Any

import torch
from torch import nn

from tauten.core.errors import InputError
from tauten.core.printing import logger
from tauten.formats.packed import PackedWeight
from tauten.runtime import kernels
from tauten.runtime.decoder import Decoder
from tauten.runtime.decoder_layout import DecoderShape, DecoderWeight, LayerWeights, Linear
from tauten.runtime.modules import PackedEmbedding, PackedLinear, PackedModule

# By name: importing them takes seconds, and who has such a model has imported it.
ARCHITECTURES = {
    f"transformers.models.{name.lower()}.modeling_{name.lower()}.{name}ForCausalLM"
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3")
}
ACTIVATIONS = {"transformers.activations.SiLUActivation", "torch.nn.modules.activation.SiLU"}
# Others change the frequencies with the length of the text.
STATIC_ROTARY = {"default", "linear", "llama3", "yarn"}
_log = logger(__name__)


def decoder_for(model: nn.Module) -> Decoder | None:
    """A native decoder with a model's own weights, None where only transformers computes it.

    It needs one of `ARCHITECTURES`, built of that architecture's own modules in float32, with all
    linear layers and the embedding packed in integers or codebooks that the native library serves,
    full attention, rotary frequencies that don't depend on the length, and no hooks.

    Args:
        model: As loaded by tauten; its weights are interleaved in place.
    """
    reason = _obstacle(model)
    if reason is None:
        try:
            return _build(model)
        except InputError as error:  # sizes that the configuration doesn't tell: pruned heads, ...
            reason = str(error)
    _log.debug("no native decoder for %s: %s", type(model).__name__, reason)
    return None


def _obstacle(model: nn.Module) -> str | None:
    """Why the native decoder doesn't compute what this model does."""
    if class_name(model) not in ARCHITECTURES:
        return "unknown architecture"
    if model.training:
        return "it is in training"
    config: Any = model.config
    own = (PackedModule, PackedWeight, nn.ModuleList)
    modules = dict(model.named_modules())
    for name, module in modules.items():
        foreign = type(module).__module__ != type(model).__module__ and not isinstance(module, own)
        if foreign and class_name(module) not in ACTIVATIONS:
            return f"{name} is a {type(module).__name__}"
        if _is_intercepted(module):
            return f"{name} has hooks, or a forward of its own"
    parameters = [p for m in modules.values() for p in m.parameters(recurse=False)]
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in parameters):
        return "parameters aren't float32 on the CPU"
    packed = [m for m in modules.values() if isinstance(m, PackedModule)]
    if not all(isinstance(m.packed, DecoderWeight) for m in packed):
        return "not all packed weights are integers or codebooks"
    if any(m.activation == "static" for m in packed):
        return "activations are rounded by a fixed step"
    if any(m.dtype_like.dtype != torch.float32 for m in packed):
        return "packed layers don't compute in float32"
    if config.hidden_act not in ("silu", "swish"):
        return f"activation {config.hidden_act}"
    if _window(config) < config.max_position_embeddings:
        return "attention in a sliding window"
    base: Any = model.model
    if base.rotary_emb.rope_type not in STATIC_ROTARY:
        return f"rotary positions of type {base.rotary_emb.rope_type}"
    if not all(kernels.prepare(m.packed) for m in packed):
        return "the native library doesn't serve all weights"
    return None


def class_name(module: nn.Module) -> str:
    """Module and name of a module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _is_intercepted(module: nn.Module) -> bool:
    """Whether others see or change what a module computes."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or "forward" in vars(module)


def _window(config: Any) -> float:
    """Positions that the layer with the shortest sight sees."""
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return float("inf")
    return window


def _build(model: nn.Module) -> Decoder:
    config: Any = model.config
    base: Any = model.model
    attention = base.layers[0].self_attn
    shape = DecoderShape(
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=attention.head_dim,
        context=config.max_position_embeddings,
        epsilon=config.rms_norm_eps,
        frequency=base.rotary_emb.inv_freq.float().contiguous(),
        rotary_scale=float(base.rotary_emb.attention_scaling),
    )
    layers = [_layer(layer) for layer in base.layers[: config.num_hidden_layers]]
    embedding = base.embed_tokens
    if not isinstance(embedding, PackedEmbedding):
        raise InputError(f"the embedding is a {type(embedding).__name__}, not packed")
    weight: Any = embedding.packed
    return Decoder(layers, weight, base.norm.weight, _linear(model.lm_head), shape)


def _layer(layer: Any) -> LayerWeights:
    attention, mlp = layer.self_attn, layer.mlp
    query_norm = getattr(attention, "q_norm", None)
    key_norm = getattr(attention, "k_norm", None)
    return LayerWeights(
        query=_linear(attention.q_proj),
        key=_linear(attention.k_proj),
        value=_linear(attention.v_proj),
        output=_linear(attention.o_proj),
        gate=_linear(mlp.gate_proj),
        up=_linear(mlp.up_proj),
        down=_linear(mlp.down_proj),
        attention_norm=layer.input_layernorm.weight,
        mlp_norm=layer.post_attention_layernorm.weight,
        query_norm=None if query_norm is None else query_norm.weight,
        key_norm=None if key_norm is None else key_norm.weight,
    )


def _linear(module: Any) -> Linear:
    if not isinstance(module, PackedLinear):
        raise InputError(f"a linear layer is a {type(module).__name__}, not packed")
    weight: Any = module.packed
    return Linear(weight, module.bias, module.activation)
