"""Batches cut among copies of a model: bit-equal to the model on the same parts, in order."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from faulty_models import Parts
from parallel_layouts import by_parts, laid_out
from tiny_models import MODELS, tiny_llama
from torch import Tensor, nn

import tauten
from tauten.core.errors import InputError
from tauten.core.rows import cut_rows
from tauten.parallel.benches import PoolBench
from tauten.parallel.given import Given
from tauten.parallel.plan import Layout
from tauten.parallel.pool import Pool
from tauten.parallel.row_cuts import RowCuts
from tauten.parallel.rows import even_sizes, join_rows

TWO = Layout(data=2)
TOKENS = torch.arange(7 * 12).view(7, 12) * 5 % 256


@pytest.fixture(scope="module")
def llama() -> Iterator[Any]:
    with laid_out(tiny_llama(), TWO) as parallel:
        yield parallel


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_any_number_of_rows_is_bit_equal_and_in_order(llama: Any, rows: int) -> None:
    sizes = [size for size in even_sizes(rows, 2) if size]
    expected = by_parts(tiny_llama(), TOKENS[:rows], sizes)
    assert torch.equal(llama(TOKENS[:rows]).logits, expected)
    assert torch.equal(llama(input_ids=TOKENS[:rows], attention_mask=None).logits, expected)


def test_every_kind_of_model_and_a_packed_one(model_and_input: tuple[Any, torch.Tensor]) -> None:
    model, x = model_and_input
    sizes = [-(-len(x) // 2), len(x) // 2]
    for one in (model, tauten.quantize(model, 4)):
        expected = by_parts(one, x, sizes)
        with laid_out(one, TWO) as parallel:
            parallel(x)  # whole, to prove that it may be cut
            made = parallel(x)
        made = getattr(made, "logits", getattr(made, "last_hidden_state", made))
        assert torch.equal(made, expected)


def test_generate_before_any_call_of_a_model_that_takes_more_than_tokens() -> None:
    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1}
    model: Any = transformers.T5ForConditionalGeneration(
        transformers.T5Config(num_heads=2, **sizes)
    )
    options = {"max_new_tokens": 3, "do_sample": False, "decoder_start_token_id": 0}
    expected = model.eval().generate(TOKENS[:1] % 64, **options)
    with tauten.parallelize(model, workers=2) as parallel:
        assert torch.equal(parallel.generate(TOKENS[:1] % 64, **options), expected)
        assert "parallel.plan(example)" in parallel.plan.reason


def test_generate_is_the_models_own(llama: Any) -> None:
    expected = tiny_llama().generate(TOKENS[:1], max_new_tokens=3, do_sample=False)
    assert torch.equal(llama.generate(TOKENS[:1], max_new_tokens=3, do_sample=False), expected)


def test_outputs_may_be_trees_and_what_has_no_rows_runs_whole() -> None:
    model, x = Parts(), torch.randn(5, 4)
    with laid_out(model, TWO) as parallel:
        made = parallel(x)
        assert made["width"] == 3 and made["pair"][0].dtype == torch.bfloat16
        assert torch.equal(made["pair"][1], model(x)["pair"][1])
        for rows in (5, 1):
            made = parallel(x[:rows], loss=True)
            assert torch.equal(made["whole"], model(x[:rows], loss=True)["whole"])


def test_the_models_errors_are_raised_here_and_workers_go_on(llama: Any) -> None:
    with pytest.raises(IndexError):
        llama(TOKENS + 250)
    assert llama(TOKENS).logits.shape == (7, 12, 256)
    with pytest.raises(ValueError, match="input_ids"):
        llama()


def test_map_keeps_the_order_and_draws_no_more_than_it_needs(llama: Any) -> None:
    drawn: list[int] = []

    def inputs() -> Iterator[Any]:
        for rows in (3, 1, 2, 5, 4, 6, 1, 2, 3, 1, 1, 1):
            drawn.append(rows)
            yield {"input_ids": TOKENS[:rows]}

    results = tauten.map(llama, inputs())
    first = next(results)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    assert len(drawn) <= 5, "results that nobody took yet hold it back"
    with pytest.raises(InputError, match="take its results first"):
        llama(TOKENS)
    made = [first, *results]
    for rows, result in zip(drawn, made, strict=True):
        assert torch.equal(result.logits, by_parts(tiny_llama(), TOKENS[:rows], [rows]))


def test_a_map_that_is_left_early_leaves_nothing_behind(llama: Any) -> None:
    for _ in tauten.map(llama, [TOKENS] * 4):
        break
    assert torch.equal(llama(TOKENS).logits, by_parts(tiny_llama(), TOKENS, [4, 3]))


class Scaled(nn.Module):
    """Requires two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        made: Tensor = self.layer(x) * scale
        return made


def test_items_of_a_map_are_what_a_model_takes() -> None:
    model, x, scale = Scaled().eval(), torch.randn(4, 8), torch.randn(4, 8)
    expected, labels = model(x, scale).detach(), torch.zeros(4)
    items = [(x, scale), [x, scale], ((x, scale), labels), {"x": x, "scale": scale}]
    laid_out = tauten.parallelize(model, workers=2, mode="data", example_inputs=(x, scale))
    for many in (laid_out, tauten.distribute(model, workers=2)):
        with many:
            assert all(torch.allclose(made, expected) for made in many.map(items))


def test_map_of_a_plain_model() -> None:
    build, example = MODELS["mlp"]
    with torch.inference_mode():
        expected = [build()(example() * k) for k in range(3)]
    made = tauten.map(build(), ((example() * k, "label") for k in range(3)), workers=2)
    assert all(map(torch.equal, made, expected))


def test_closed_workers_are_explained() -> None:
    with laid_out(Parts(), TWO) as parallel:
        pass
    with pytest.raises(InputError, match="call parallelize or distribute again"):
        parallel(torch.randn(2, 4))


def test_parts_make_up_the_whole() -> None:
    x, mask = torch.randn(5, 3), torch.ones(1, 3)
    sizes = even_sizes(5, 3)
    parts = cut_rows(((x, mask), {"n": 4}), sizes)
    assert sizes == [2, 2, 1] and even_sizes(1, 3) == [1, 0, 0]
    assert all(part[0][1] is mask and part[1] == {"n": 4} for part in parts)
    joined = join_rows([part[0][0] for part in parts], sizes)
    assert torch.equal(joined, x) and joined.data_ptr() != x.data_ptr()


def test_fewer_calls_than_copies_after_a_map_was_left() -> None:
    with laid_out(Parts(), TWO) as parallel:
        x = torch.randn(1, 4)
        for _ in parallel.map([x, x, x]):
            break
        assert len(list(parallel.map([x]))) == 1
        assert parallel(x)["y"].shape == (1, 3)


def test_a_layout_that_fails_to_load_leaves_the_pool_usable() -> None:
    bench = PoolBench(Pool(*Given(tiny_llama()).packed()), RowCuts("llama", 1e-3))
    try:
        with pytest.raises(InputError, match="at most 2"):
            bench.load(Layout(tensor=3, data=2), (), None)
        bench.load(TWO, (), None)
        assert torch.equal(
            bench.call("forward", (TOKENS,), {}).logits, by_parts(tiny_llama(), TOKENS, [4, 3])
        )
    finally:
        bench.close()
