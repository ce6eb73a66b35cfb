"""What calls are given and return crosses to workers as it is, or is refused by name."""

import copy
import dataclasses
import pickle
from collections import UserDict, namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from parallel_layouts import laid_out
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

import tauten
from tauten.core.rows import count_rows, cut_rows
from tauten.core.trees import Watched, copied, flatten, map_tensors, tensors_of, unflatten
from tauten.distributed.wire import decode, encode
from tauten.parallel import by_value
from tauten.parallel.comparison import difference
from tauten.parallel.plan import Layout
from tauten.parallel.rows import join_rows
from tauten.parallel.shared_file import SharedFile


class Slotted:
    """Has slots in the place of a dict."""

    __slots__ = ("name", "x")

    def __init__(self, x: Tensor):
        self.name, self.x = "a", x


@dataclasses.dataclass
class Boxes:
    """Of images."""

    boxes: Tensor
    labels: list[str]


class Ring:
    """Holds itself, as some caches hold their layers' parent."""

    def __init__(self, x: Tensor):
        self.x, self.me = x, self


Pair = namedtuple("Pair", "x y")


def cache() -> Any:
    made = transformers.DynamicCache()
    for layer in range(2):
        made.update(torch.randn(3, 2, 4, 8), torch.randn(3, 2, 4, 8), layer)
    return made


OBJECTS = {
    "dynamic cache": cache,
    "encoder-decoder cache": lambda: transformers.EncoderDecoderCache(cache(), cache()),
    "encoding": lambda: transformers.BatchEncoding({"input_ids": torch.arange(12).view(3, 4)}),
    "a dict of the user": lambda: UserDict({"x": torch.randn(3, 4)}),
    "slots": lambda: Slotted(torch.randn(3, 4)),
    "dataclass": lambda: Boxes(torch.randn(3, 4), ["a"]),
    "named tuple": lambda: Pair(torch.randn(3), Slotted(torch.randn(3, 2))),
    "output in an output": lambda: BaseModelOutput(torch.randn(3, 2), (torch.randn(3, 1),)),
    "ring": lambda: Ring(torch.randn(3, 4)),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "a tensor twice": lambda: [torch.ones(3)] * 2,
}


def contents(value: Any) -> list[Tensor]:
    """All tensors of a value, also of one that isn't taken apart."""
    return tensors_of(value.x if isinstance(value, Ring) else value)


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_cross_with_their_tensors(name: str, tmp_path: Path) -> None:
    given = OBJECTS[name]()
    ours, theirs = SharedFile(tmp_path / "file"), SharedFile(tmp_path / "file")
    made = theirs.read(pickle.loads(pickle.dumps(ours.write({"value": given}))))["value"]
    assert type(made) is type(given)
    for one, other in zip(contents(made), contents(given), strict=True):
        assert one.layout == other.layout and torch.equal(one.to_dense(), other.to_dense())
    # What a next message overwrites must have been copied: also inside of objects.
    kept = map_tensors(Tensor.clone, made)
    before = [tensor.clone().to_dense() for tensor in contents(given)]
    ours.write({"value": map_tensors(torch.zeros_like, given)})
    for one, other in zip(contents(kept), before, strict=True):
        assert torch.equal(one.to_dense(), other)


@pytest.mark.parametrize(
    "name", [n for n in OBJECTS if n not in ("ring", "sparse", "a tensor twice")]
)
def test_objects_are_cut_and_joined_by_rows(name: str) -> None:
    given = OBJECTS[name]()
    parts = cut_rows(((given,), {}), [1, 2])
    assert [count_rows(part) for part in parts] == [1, 2]
    (joined,), _ = join_rows(parts, [1, 2])
    assert type(joined) is type(given) and difference(joined, given) == 0


def test_differences_inside_objects_count() -> None:
    one, other = cache(), cache()
    assert difference(one, copy.deepcopy(one)) == 0
    assert difference(one, other) > 0


def test_leaves_of_an_object_make_it_again() -> None:
    given = cache()
    leaves, form = flatten({"cache": given, "n": 3})
    made = unflatten(leaves, form)["cache"]
    assert type(made) is type(given) and made is not given
    assert made.layers[1].keys is given.layers[1].keys
    assert made.get_seq_length() == given.get_seq_length()


def test_what_a_call_changes_in_place_is_seen() -> None:
    def names(*args: Any, change: Any, **kwargs: Any) -> list[str]:
        watched = Watched(args, kwargs)
        change(*args, **kwargs)
        return watched.changed()

    step = torch.ones(3, 2, 1, 8)
    assert names(cache(), change=lambda c: c.update(step, step, 0)) == ["argument 1"]
    assert names(past=transformers.DynamicCache(), change=lambda past: past.update(step, step, 0))
    assert names([torch.ones(2)], change=lambda state: state[0].add_(1)) == ["argument 1"]
    assert names([1], change=lambda state: state.append(2)) == ["argument 1"]
    assert not names(cache(), torch.ones(2), change=lambda c, x: x.add_(1))


def test_copies_share_nothing() -> None:
    given = {"cache": cache(), "x": torch.ones(2, requires_grad=True) * 2}
    made = copied(given)
    assert difference(made, given) == 0 and not made["x"].requires_grad
    for one, other in zip(tensors_of(made), tensors_of(given), strict=True):
        assert one.data_ptr() != other.data_ptr()


def test_a_call_that_changes_a_cache_is_refused_by_name(tiny_llama: Any) -> None:
    ids = torch.arange(8).view(2, 4)
    with laid_out(tiny_llama, Layout(data=2)) as parallel, torch.no_grad():
        first = parallel(ids, use_cache=True)
        expected = tiny_llama(ids, use_cache=True)
        assert difference(first.past_key_values, expected.past_key_values) < 1e-5
        with pytest.raises(tauten.InputError, match="past_key_values"):
            parallel(ids, past_key_values=transformers.DynamicCache(), use_cache=True)
        torch.testing.assert_close(parallel(ids).logits, expected.logits, atol=1e-5, rtol=1e-5)


@pytest.fixture
def tiny_llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=64, **sizes, **heads)
    return transformers.LlamaForCausalLM(config).eval()


def test_hooks_of_packages_work_on_their_own_globals(tiny_llama: Any) -> None:
    """transformers' hooks look into a `ContextVar`, which can't be copied and mustn't be."""
    ids = torch.arange(8).view(2, 4)
    tiny_llama(ids, output_hidden_states=True)  # has the hooks made
    made = by_value.loads(by_value.dumps(tiny_llama))
    with torch.no_grad():
        one, other = (m(ids, output_hidden_states=True) for m in (made, tiny_llama))
    assert len(one.hidden_states) == len(other.hidden_states) == 3
    assert difference(one, other) == 0


def test_made_functions_of_packages_keep_closure_and_defaults() -> None:
    original = nn.Linear(2, 2).register_forward_hook  # any module that is installed

    def made(depth: int) -> Any:
        def count(n: int = 3, *, step: int = 1) -> int:
            return n + depth + (count(n - 1) if n else 0) * step

        return count

    function = made(2)
    function.__module__ = original.__func__.__module__
    again = by_value.loads(by_value.dumps(function))
    assert again() == function() and again(1, step=2) == function(1, step=2)
    assert again.__globals__ is vars(__import__("torch").nn.modules.module)


def test_outputs_of_a_models_own_module_travel_to_other_machines() -> None:
    from transformers.models.clip.modeling_clip import CLIPOutput

    given = CLIPOutput(logits_per_text=torch.ones(2, 2), text_embeds=torch.zeros(2, 3))
    made = decode(encode(given))
    assert type(made) is CLIPOutput and torch.equal(made.logits_per_text, given.logits_per_text)

    @dataclasses.dataclass
    class OwnOutput(transformers.utils.ModelOutput):
        x: Tensor | None = None

    for value in (OwnOutput(torch.ones(1)), Pair(1, 2)):
        with pytest.raises(tauten.InputError, match=type(value).__name__):
            encode(value)


def test_workers_know_which_outputs_a_class_can_be_asked_for(tiny_llama: Any) -> None:
    """transformers keeps that by classes that were made in the process; workers make none."""
    ids = torch.arange(8).view(2, 4)
    with torch.no_grad():
        expected = tiny_llama(ids, output_hidden_states=True)
    with laid_out(tiny_llama, Layout(data=2)) as parallel:
        made = parallel(ids, output_hidden_states=True)
    assert len(made.hidden_states) == len(expected.hidden_states) == 3
    assert difference(made.hidden_states, expected.hidden_states) < 1e-5


def test_parametrized_layers_cross() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    nn.utils.parametrizations.orthogonal(model[1])
    model.eval()
    made = by_value.loads(by_value.dumps(model))
    x = torch.randn(6, 4)
    assert torch.equal(made(x), model(x))
    assert list(made.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        made[0].parametrizations.weight.original0.mul_(2)
        assert not torch.equal(made(x), model(x))  # its weight is computed of its own parameters
    with laid_out(model, Layout(data=2)) as parallel:
        assert len(parallel.worker_pids) == 2
        assert difference(parallel(x), model(x)) < 1e-6


def test_the_memory_of_xlnet_is_no_output() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
    model = transformers.XLNetLMHeadModel(transformers.XLNetConfig(**sizes)).eval()
    ids = torch.arange(20).view(4, 5)
    with torch.no_grad():
        expected = model(ids)
    with tauten.distribute(model, workers=2) as spread:
        made = spread(ids), spread(ids)
        assert not spread._workers.cuts.refusal
    assert "mems" in expected and "mems" not in made[0]
    assert max(difference(one.logits, expected.logits) for one in made) < 1e-5
