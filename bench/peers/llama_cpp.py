"""llama.cpp: all matrices in Q4_0 (4 bits in blocks of 32), the head and embedding too."""

import json
from pathlib import Path
from typing import Any

from . import adapter
from .engine import Stepwise

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}


def convert(original: Path, out: Path) -> None:
    """Write a GGUF without a vocabulary, as only token ids go in and out."""
    import gguf
    import numpy as np
    from safetensors import safe_open

    config = json.loads((original / "config.json").read_text())
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(out / "model.gguf", "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    with safe_open(original / "model.safetensors", "numpy") as tensors:
        for key in tensors.keys():  # noqa: SIM118
            value, name = tensors.get_tensor(key).astype(np.float32), key
            if key.endswith(("q_proj.weight", "k_proj.weight")):
                value = interleave(value, heads if "q_proj" in key else key_heads)
            for old, new in NAMES.items():
                name = name.replace(old, new)
            kinds = gguf.GGMLQuantizationType
            kind = kinds.Q4_0 if value.ndim == 2 else kinds.F32
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleave(weight: Any, heads: int) -> Any:
    """Rows in the order of GGUF's llama, whose rotary pairs lie side by side, not in halves."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


class LlamaCpp(Stepwise):
    """llama.cpp through its C interface: its Python sampler costs more than a small model."""

    def __init__(self, folder: Path, threads: int, variant: str):
        import llama_cpp
        import numpy

        self._native, self._numpy = llama_cpp, numpy
        self._model = llama_cpp.Llama(
            str(folder / "model.gguf"), n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads,
            n_threads_batch=threads, flash_attn=True, verbose=False,
        )  # fmt: skip

    def start(self, ids: list[int]) -> int:
        memory = self._native.llama_get_memory(self._model.ctx)
        self._native.llama_memory_clear(memory, True)
        return self._compute(ids)

    def step(self, token: int) -> int:
        return self._compute([token])

    def _compute(self, ids: list[int]) -> int:
        tokens = (self._native.llama_token * len(ids))(*ids)
        batch = self._native.llama_batch_get_one(tokens, len(ids))
        if self._native.llama_decode(self._model.ctx, batch):
            raise RuntimeError(f"llama_decode refused {len(ids)} tokens")
        logits = self._native.llama_get_logits_ith(self._model.ctx, -1)
        return int(self._numpy.ctypeslib.as_array(logits, (self._model.n_vocab(),)).argmax())


if __name__ == "__main__":
    adapter.main(convert, LlamaCpp)
