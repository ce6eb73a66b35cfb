"""Teachers that can't teach a student are refused in words, before anything is trained."""

import pytest
import torch
import transformers
from torch import nn

import tauten

IDS = torch.arange(64).view(4, 16) * 3 % 256
X = torch.randn(8, 16, generator=torch.manual_seed(1))


def llama(vocabulary: int) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=vocabulary, **sizes, **heads)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("student", "teacher", "data", "words"),
    [
        (llama(256), llama(100), IDS, r"teacher: Llama.* knows 100 tokens.*token 189"),
        (llama(100), llama(256), IDS, r"student: Llama.* knows 100 tokens.*token 189"),
        (nn.Linear(16, 4), nn.Linear(8, 4), X, r"teacher: Linear can't be called on this data"),
        (nn.Linear(16, 4), llama(256), X, r"teacher: Llama.* can't be called on this data"),
        (nn.Linear(16, 4), nn.Linear(16, 6), X, r"student predicts 4 classes.*its teacher 6"),
        (llama(256), llama(320), IDS, r"student predicts 256 classes.*its teacher 320"),
    ],
    ids=["small teacher", "small student", "inputs", "kinds", "classes", "padded teacher"],
)
def test_what_doesnt_fit_is_named(student, teacher, data, words: str) -> None:
    with pytest.raises(tauten.InputError, match=words) as caught:
        tauten.compress(student, technique=tauten.Distill(steps=1), teacher=teacher, data=[data])
    assert "\n" not in str(caught.value)


def test_a_token_in_the_last_batch_is_seen_before_the_first_is_trained_on(monkeypatch) -> None:
    monkeypatch.setattr(tauten.Distill, "tune", lambda *_: pytest.fail("it was trained"))
    batches = [*[IDS % 100] * 6, IDS]
    with pytest.raises(tauten.InputError, match="the data holds token 189"):
        technique = tauten.Distill(steps=1)
        tauten.compress(llama(100), technique=technique, teacher=llama(100), data=batches)
