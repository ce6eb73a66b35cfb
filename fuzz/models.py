"""Models that are as small as they can be, and files of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from torch import nn

from fuzz.reader import plain
from tauten.data.texts import read_texts
from tauten.data.windows import token_batches

TOKENS = torch.arange(12).view(1, 12) * 7 % 256
IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
TEXTS = [f"Document {i}: the number {i * i} is the square of {i}. " * 3 for i in range(12)]
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"


def llama(layers: int = 1) -> nn.Module:
    """A language model of 15 KB a layer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).eval()


def llama_folder(folder: Path, layers: int = 1) -> None:
    """It as a Hugging Face folder in shards, with tokenizer, template and generation settings."""
    transformers.utils.logging.disable_progress_bar()
    llama(layers).save_pretrained(folder, max_shard_size="40KB")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    transformers.GenerationConfig(
        max_new_tokens=5, temperature=0.7, do_sample=True
    ).save_pretrained(folder)


def read_by(load_tokenizer: Callable[[], Any]) -> Any:
    """What a tokenizer makes of a text, and of a chat by its template."""
    chat = [{"role": "user", "content": TEXTS[1]}]
    documents = read_texts([chat, TEXTS[2]], None, load_tokenizer).documents
    tokenizer = load_tokenizer()
    batches = token_batches(documents, tokenizer, 32, 256, 64)
    return [*map(plain, batches), tokenizer.decode(range(50))]


def network() -> nn.Module:
    """Convolutions and linear layers for images of 8x8."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    ).eval()


def images(count: int = 24) -> list[torch.Tensor]:
    """Batches for the network."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(4, 1, 8, 8, generator=generator) for _ in range(count)]


def gguf_file(file: Path) -> None:
    """A llama of one layer with a vocabulary of 40 tokens."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*("<unk>", "<s>", "</s>"), *(f"token{i}" for i in range(37))])
    writer.add_token_scores([float(-i) for i in range(40)])
    writer.add_token_types([1] * 40)
    writer.add_bos_token_id(1)
    generator = torch.Generator().manual_seed(3)
    shapes = {"token_embd": (40, 32), "output_norm": (32,)}
    shapes |= {f"blk.0.attn_{key}": (32, 32) for key in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.{key}_norm": (32,) for key in ("attn", "ffn")}
    shapes |= {f"blk.0.ffn_{key}": (32, 32) for key in ("gate", "up", "down")}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator).numpy()
        if len(shape) == 2:
            packed = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
