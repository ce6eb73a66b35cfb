"""Texts of encoders and classifiers: cut to the positions that a model has, padded where it can."""

import pytest
import torch
import transformers
from tiny_models import VOCABULARY, byte_tokenizer
from torch import nn

import tauten
from tauten.core.errors import InputError
from tauten.data.documents import Document
from tauten.data.windows import ENCODER_TOKENS, encoder_batches

SIZES = {"vocab_size": VOCABULARY, "num_hidden_layers": 1, "num_attention_heads": 2}
WIDE = {**SIZES, "hidden_size": 16, "intermediate_size": 24}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 1, "n_head": 2, "num_labels": 3}
TEXTS = ["A short one.", "A text of many letters, " * 40, "Another."]


def built(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    kind = getattr(transformers, name)
    return kind(kind.config_class(**options)).eval()


ENCODERS = {
    "CLIP": lambda: built("CLIPTextModel", **WIDE, max_position_embeddings=77),
    "SigLIP": lambda: built("SiglipTextModel", **WIDE, max_position_embeddings=64),
    "BERT": lambda: built("BertModel", **WIDE, max_position_embeddings=96),
    "RoBERTa": lambda: built("RobertaModel", **WIDE, max_position_embeddings=66, pad_token_id=1),
    "DistilBERT": lambda: built(
        "DistilBertModel", vocab_size=VOCABULARY, dim=16, hidden_dim=24, n_layers=1, n_heads=2
    ),
}
CLASSIFIERS = {
    "GPT-2": lambda: built("GPT2ForSequenceClassification", **GPT2),
    "Llama": lambda: built("LlamaForSequenceClassification", **WIDE, num_labels=1),
}


def batches(model: nn.Module, pad: bool) -> list[dict[str, torch.Tensor]]:
    tokenizer = byte_tokenizer()
    if pad:
        tokenizer.pad_token = "!"
    return encoder_batches([Document("", text) for text in TEXTS], tokenizer, model)


@pytest.mark.parametrize("name", ENCODERS)
def test_texts_are_cut_to_the_positions_of_an_encoder(name: str) -> None:
    model = ENCODERS[name]()
    (batch,) = batches(model, pad=True)
    longest = {"CLIP": 77, "SigLIP": 64, "BERT": 96, "RoBERTa": 64, "DistilBERT": ENCODER_TOKENS}[
        name
    ]
    assert batch["input_ids"].shape == (3, longest)
    known = {key: batch[key] for key in ("input_ids", "attention_mask")}
    assert model(**known).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_without_a_pad_token_answer_row_by_row(name: str, pad: bool) -> None:
    model = CLASSIFIERS[name]()
    found = batches(model, pad)
    assert [len(batch["input_ids"]) for batch in found] == [1, 1, 1]
    for text, batch in zip(TEXTS, found, strict=True):
        alone = byte_tokenizer()(text, return_tensors="pt").input_ids[:, :ENCODER_TOKENS]
        got = model(**{k: batch[k] for k in ("input_ids", "attention_mask")}).logits
        assert torch.allclose(got, model(alone).logits)


def test_classifiers_that_know_their_padding_take_all_at_once() -> None:
    model = built("LlamaForSequenceClassification", **WIDE, num_labels=1, pad_token_id=0)
    assert [len(batch["input_ids"]) for batch in batches(model, pad=True)] == [3]


SEQUENCES = {
    "T5": {"num_layers": 1, "num_heads": 2, "d_kv": 8},
    "Bart": {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2},
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_a_decoder_behind_an_encoder_is_given_the_text_too(kind: str) -> None:
    model = built(
        f"{kind}ForConditionalGeneration", vocab_size=VOCABULARY, d_model=16, **SEQUENCES[kind]
    )
    for batch in batches(model, pad=True):
        assert torch.equal(batch["decoder_input_ids"], batch["input_ids"])
        assert model(**batch).logits.shape == (*batch["input_ids"].shape, VOCABULARY)
    tauten.quantize(model, 4, technique="gptq", data=TEXTS, tokenizer=byte_tokenizer())


def test_text_for_a_model_of_speech_is_refused() -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "pad_token_id": 0}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = built("WhisperForConditionalGeneration", vocab_size=VOCABULARY, **sizes, **heads)
    with pytest.raises(InputError, match="takes input_features, not text: pass batches"):
        tauten.quantize(model, 4, technique="gptq", data=TEXTS, tokenizer=byte_tokenizer())
