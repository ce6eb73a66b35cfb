"""Tiny models of every kind that Tauten walks, and a tokenizer that needs no download."""

from collections.abc import Callable

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

VOCABULARY = 256


def tiny_llama(tied: bool = True, layers: int = 3) -> nn.Module:
    """Grouped queries, gated MLP, RMSNorm."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config).eval()


def tiny_gpt2() -> nn.Module:
    """Conv1D layers with biases, learned positions."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=128, n_embd=64, n_layer=3, n_head=4
    )
    return transformers.GPT2LMHeadModel(config).eval()


def tiny_bert() -> nn.Module:
    """An encoder with segment embeddings and a pooler."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    return transformers.BertModel(config).eval()


class Residual(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding="same", padding_mode="reflect")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.norm(self.conv1(x)))))


def tiny_cnn() -> nn.Module:
    """A residual network for 1x12x12 images and 4 classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2),
        nn.Sequential(*(Residual(16) for _ in range(3))),
        nn.Conv2d(16, 16, 3, groups=4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    ).eval()


def tiny_mlp() -> nn.Module:
    """The model of the README."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10)).eval()


def tiny_attention() -> nn.Module:
    """torch's own encoder layers, whose fast path reads weights directly."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2).eval()


def _tokens() -> torch.Tensor:
    return torch.arange(48).view(2, 24) * 5 % VOCABULARY


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], torch.Tensor]]] = {
    "llama": (tiny_llama, _tokens),
    "llama_untied": (lambda: tiny_llama(tied=False), _tokens),
    "gpt2": (tiny_gpt2, _tokens),
    "bert": (tiny_bert, _tokens),
    "cnn": (tiny_cnn, lambda: torch.randn(3, 1, 12, 12, generator=torch.manual_seed(1))),
    "mlp": (tiny_mlp, lambda: torch.randn(5, 10, generator=torch.manual_seed(1))),
    "attention": (tiny_attention, lambda: torch.randn(2, 7, 32, generator=torch.manual_seed(1))),
}


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner)
