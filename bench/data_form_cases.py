"""Forty-odd forms of data, each with a tiny model that takes it."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

ROWS = 96
WORDS = ("cats", "dogs", "trees", "cars", "houses", "rivers", "stones", "clouds", "birds", "books")
_random = random.Random(0)
TEXTS = [
    f"Document {i}: " + " ".join(_random.choice(WORDS) for _ in range(20)) + "."
    for i in range(ROWS)
]
BOOK = [" ".join(_random.choice(WORDS) for _ in range(20)) + ". " for _ in range(800)]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
_normal = torch.Generator().manual_seed(1)
X, Z = (torch.randn(ROWS, 10, generator=_normal) for _ in range(2))
IDS = torch.randint(0, 256, (ROWS, 24), generator=_normal)
MASK = torch.ones_like(IDS)


class Two(nn.Module):
    """Takes two required arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(10, 32), nn.Linear(10, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        return self.head(torch.relu(self.first(x) + self.second(z)))


class Scaled(nn.Module):
    """Takes a number beside its tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = classifier()

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.layers(x * scale)


class Features(nn.Module):
    """Takes one dict, as sentence-transformers' modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layers = nn.Embedding(256, 10), classifier()

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        mask = features["attention_mask"][..., None]
        pooled = (self.words(features["input_ids"]) * mask).sum(1) / mask.sum(1)
        return {**features, "sentence_embedding": self.layers(pooled)}


class Cloud(nn.Module):
    """The points of a call are one example."""

    def __init__(self) -> None:
        super().__init__()
        self.points, self.head = nn.Linear(10, 32), nn.Linear(32, 4)

    def forward(self, points: Tensor) -> Tensor:
        return self.head(torch.relu(self.points(points)).amax(0, keepdim=True))


class PlainGPT(nn.Module):
    """As in nanoGPT: logits of the last place only, unless there are targets."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(256, 32), nn.Embedding(64, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.blocks, self.head = nn.ModuleList([layer]), nn.Linear(32, 256)
        self.block_size = 64

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        length = idx.shape[1]
        x = self.words(idx) + self.places(torch.arange(length))
        causal = torch.triu(torch.full((length, length), -torch.inf), 1)
        for block in self.blocks:
            x = block(x, src_mask=causal)
        if targets is None:
            return self.head(x[:, [-1]]), None
        logits = self.head(x)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss


def classifier() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 4))


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().eval()


def classes(build: Callable[[], nn.Module], *inputs: Tensor, **named: Tensor) -> Tensor:
    """What a model mostly answers, so that it is a good one: every tenth is another class."""
    with torch.no_grad():
        output = seeded(build)(*inputs, **named)
    logits = getattr(output, "logits", output)
    found = logits.argmax(-1)
    found[::10] = (found[::10] + 1) % logits.shape[-1]
    return found


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 256}


def language_model() -> nn.Module:
    config = transformers.LlamaConfig(
        **SIZES, num_hidden_layers=2, num_key_value_heads=2, max_position_embeddings=128
    )
    return transformers.LlamaForCausalLM(config)


def encoder() -> nn.Module:
    config = transformers.BertConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=128)
    return transformers.BertModel(config)


def tokenizer(template: str | None = TEMPLATE) -> Any:
    """A token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="!")
    made.chat_template = template
    return made


@dataclass(frozen=True)
class Form:
    """One form of data.

    Attributes:
        name: In the table.
        model: Builds what takes it.
        data: Makes it, in an empty folder where it needs one.
        options: Other arguments of the calls.
        refused: No part of it can be read, so that it must be refused.
    """

    name: str
    model: Callable[[], nn.Module]
    data: Callable[[Path], Any]
    options: dict[str, Any] = field(default_factory=dict)
    refused: bool = False


def sequence_classifier() -> nn.Module:
    config = transformers.BertConfig(**SIZES, num_hidden_layers=2, num_labels=3)
    return transformers.BertForSequenceClassification(config)


def trained_gpt() -> nn.Module:
    """Has learned the words of the texts."""
    model = seeded(PlainGPT).train()
    ids = torch.tensor([tokenizer()(text)["input_ids"][:65] for text in TEXTS])
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(ids[:, :-1], ids[:, 1:])[1].backward()
        optimizer.step()
    return model.eval()


def encodings() -> Any:
    found = tokenizer()(TEXTS, return_tensors="pt", padding=True, truncation=True, max_length=64)
    found.pop("token_type_ids", None)
    return found


def loader() -> DataLoader[Any]:
    rows = [{key: value[i] for key, value in encodings().items()} for i in range(ROWS)]
    return DataLoader(rows, 8, collate_fn=transformers.DataCollatorWithPadding(tokenizer()))  # type: ignore[arg-type]


def pairs() -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(X.split(8), classes(classifier, X).split(8), strict=True)


class Once:
    """An iterable that gives its batches once."""

    def __init__(self) -> None:
        self._left = list(pairs())

    def __iter__(self) -> Iterator[Any]:
        while self._left:
            yield self._left.pop()


def tensor_forms() -> list[Form]:
    y, two = classes(classifier, X), classes(Two, X, Z)
    dicts = {"input_ids": IDS, "attention_mask": MASK}
    labels = classes(sequence_classifier, **dicts)
    labelled = {**dicts, "labels": labels}
    short = dict(tokenizer()([text[: 60 + i % 9] for i, text in enumerate(TEXTS)]))
    known = torch.tensor([tokenizer()(text)["input_ids"][:65] for text in TEXTS])
    rows = [{"input_ids": ids.tolist(), "attention_mask": [1] * 24} for ids in IDS]
    return [
        Form("one tensor", classifier, lambda _: X),
        Form("(x,)", classifier, lambda _: [(X,)]),
        Form("(x, y)", classifier, lambda _: [(X, y)]),
        Form("(x, z), two arguments", Two, lambda _: [(X, Z)]),
        Form("(x, z, y), two arguments", Two, lambda _: [(X, Z, two)]),
        Form("((x, z), y)", Two, lambda _: [((X, Z), two)]),
        Form("[[x, z], y] of a DataLoader", Two, lambda _: [[[X, Z], two]]),
        Form("dict", encoder, lambda _: [dicts]),
        Form("dict, labels that the model doesn't take", encoder, lambda _: [labelled]),
        Form("dict, a float beside the tensor", Scaled, lambda _: [{"x": X, "scale": 2.0}]),
        Form("dict, names beside tensors", Scaled, lambda _: [{"x": X, "id": TEXTS}]),
        Form("(ids, mask, y)", sequence_classifier, lambda _: [(IDS, MASK, labels)]),
        Form("BatchEncoding", encoder, lambda _: encodings()),
        Form("DataLoader with a collator", encoder, lambda _: loader()),
        Form("DataLoader", classifier, lambda _: DataLoader(TensorDataset(X, y), 8)),
        Form("Dataset", classifier, lambda _: TensorDataset(X, y)),
        Form("numpy, float64", classifier, lambda _: X.double().numpy()),
        Form("numpy pairs", classifier, lambda _: [(X.numpy(), y.numpy())]),
        Form("lists of numbers", classifier, lambda _: X.tolist()),
        Form("list of rows (n,)", classifier, lambda _: list(X)),
        Form("list of tokenized rows", encoder, lambda _: rows),
        Form("tokenized rows of many lengths", encoder, lambda _: short),
        Form("dict as the one argument", Features, lambda _: [dicts]),
        Form("points of one example a batch", Cloud, lambda _: list(X.view(32, 3, 10))),
        Form("generator", classifier, lambda _: pairs()),
        Form("iterable that ends", classifier, lambda _: Once()),
        Form("nanoGPT, tokens", PlainGPT, lambda _: [IDS]),
        Form("nanoGPT, (tokens, targets)", trained_gpt, lambda _: [(known[:, :-1], known[:, 1:])]),
        Form("no batches", classifier, lambda _: [], refused=True),
        Form("tensors with a NaN", classifier, lambda _: [X, X / 0], refused=True),
        Form("a width that the model doesn't take", classifier, lambda _: [X[:, :5]], refused=True),
    ]
