"""Zeros shared out by sensitivity: the estimate against true KL, and what comes of it."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_cnn, tiny_llama
from torch import Tensor, nn

import tauten
from tauten.core.errors import InputError
from tauten.core.recipe import Recipe
from tauten.evaluation.sensitivity import Sensitivity, sensitivities
from tauten.formats.sparse import SparseWeight
from tauten.models.calibration import CalibrationBatch
from tauten.models.packing import packed_modules
from tauten.models.structure import find_structure
from tauten.search.techniques import TECHNIQUES
from tauten.solvers.second_order import output_error

X = torch.randn(256, 12, generator=torch.manual_seed(1))
TOKENS = [torch.randint(256, (4, 32), generator=torch.manual_seed(i)) for i in range(4)]


def filled(_: Any) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()


def uneven_mlp() -> nn.Module:
    """Its second layer hardly reaches the output; the others do."""

    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.idle = nn.Linear(12, 32), nn.Linear(32, 32)
            self.last = nn.Linear(32, 8)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.first(x))
            out: Tensor = self.last(hidden + 0.05 * torch.relu(self.idle(hidden)))
            return 4 * out

    torch.manual_seed(0)
    return Uneven().eval()


def sharp_llama() -> nn.Module:
    """Its predictions are far from uniform, and its layers matter unequally."""
    model = tiny_llama(tied=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "layers." in name:
                parameter.mul_(12 if "layers.0" in name else 4)
        model.lm_head.weight.mul_(20)
    return model


def divergence(model: nn.Module, other: nn.Module, calls: list[Tensor]) -> float:
    """Mean KL of the predictions."""
    total = 0.0
    for call in calls:
        with torch.no_grad():
            pair = [m(call) for m in (model, other)]
        ours, theirs = ((p if isinstance(p, Tensor) else p.logits).log_softmax(-1) for p in pair)
        total += float((ours.exp() * (ours - theirs)).sum(-1).mean())
    return total / len(calls)


def found_of(model: nn.Module, calls: list[Tensor], chained: bool) -> dict[str, Sensitivity]:
    blocks = find_structure(model).blocks if chained else ()
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    names_of: dict[str, list[str]] = {}
    for name in layers:
        block = find_structure(model).block_of(name) if chained else ""
        names_of.setdefault(block, []).append(name)
    batches = [CalibrationBatch((call,), {}) for call in calls]
    parts = sensitivities(model, blocks, filled, names_of, batches)
    return {name: found for part in parts for name, found in part.items()}


def test_predicts_the_divergence_that_a_small_change_of_a_layer_makes() -> None:
    model, calls = uneven_mlp(), [X[:128]]
    for name, found in found_of(model, calls, chained=False).items():
        change = 0.01 * torch.randn(model.get_submodule(name).weight.shape)
        other = uneven_mlp()
        other.get_submodule(name).weight.data += change
        predicted = 0.5 * (found.fisher * output_error(change, found.inputs.moment)).sum()
        assert float(predicted) == pytest.approx(divergence(model, other, calls), rel=0.5), name


class Flat(nn.Module):
    """One number a row, without a dimension of its own; or a loss, their mean square."""

    def __init__(self, returns: str):
        super().__init__()
        self.layer, self.returns = nn.Linear(12, 1), returns
        self.layer.weight.data = torch.linspace(-1, 1, 12)[None]
        self.layer.bias.data = torch.full((1,), 0.3)

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x)
        if self.returns == "losses":
            return {"near": y.square().mean(), "far": 3 * y.square().mean()}
        return y[:, 0] if self.returns == "flat" else y


def test_outputs_without_a_second_dimension_are_numbers_not_classes() -> None:
    found = [found_of(Flat(kind), [X[:64]], False)["layer"] for kind in ("flat", "column")]
    assert torch.equal(found[0].fisher, found[1].fisher) and found[0].fisher.sum() > 0


def test_a_model_of_losses_is_as_sensitive_as_its_losses() -> None:
    x = X[:64]
    (found,) = found_of(Flat("losses"), [x], False).values()
    slopes = 8 * Flat("column")(x).detach()  # of four mean squares of 64 rows, times 64
    expected = slopes.square().sum() / 64
    assert float(found.fisher) == pytest.approx(float(expected), rel=1e-4)


def test_block_by_block_is_as_in_one_piece() -> None:
    model = sharp_llama()
    whole, chained = (found_of(model, TOKENS[:1], c) for c in (False, True))
    assert whole.keys() == chained.keys() and len(whole) == 22
    for name, found in whole.items():
        ours, theirs = found.fisher.sum(), chained[name].fisher.sum()
        torch.testing.assert_close(ours, theirs, rtol=0.2, atol=0)
        moments = found.inputs.moment, chained[name].inputs.moment
        assert (moments[0] - moments[1]).norm() < 0.1 * moments[0].norm()
    assert all(p.grad is None for p in model.parameters()), "gradients of the user's model"


def kept_of(model: nn.Module) -> dict[str, float]:
    layers = [(n, m.packed) for n, m in packed_modules(model) if isinstance(m.packed, SparseWeight)]
    return {name: int(weight.kept().sum()) for name, weight in layers}


PRUNERS = (tauten.PruneMagnitude, tauten.PruneWanda, tauten.PruneSparseGPT)


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("kind", ["llama", "mlp"])
def test_loses_less_with_as_many_zeros(pruner: Any, kind: str) -> None:
    build, calls = (sharp_llama, TOKENS) if kind == "llama" else (uneven_mlp, [X])
    model = build()
    even = tauten.compress(model, technique=pruner(0.4), data=calls)
    fitted = tauten.compress(model, technique=pruner(0.4, allocation="sensitivity"), data=calls)
    kept = kept_of(even), kept_of(fitted)
    assert kept[0].keys() == kept[1].keys()
    assert 0.95 * sum(kept[0].values()) <= sum(kept[1].values()) <= sum(kept[0].values())
    assert len({round(kept[1][n] / kept[0][n], 2) for n in kept[0]}) > 1
    assert divergence(model, fitted, calls) < 0.97 * divergence(model, even, calls)


def test_a_layer_that_hardly_matters_gets_most_zeros() -> None:
    technique = tauten.PruneWanda(0.5, allocation="sensitivity")
    kept = kept_of(tauten.compress(uneven_mlp(), technique=technique, data=[X]))
    assert kept["idle"] / 32**2 < 0.35 < 0.55 < kept["last"] / (32 * 8)


def test_written_recipe_holds_the_sparsities_and_needs_no_gradients(tmp_path: Path) -> None:
    model = sharp_llama()
    technique = tauten.PruneMagnitude(0.4, allocation="sensitivity")
    tauten.compress(model, technique=technique, data=TOKENS, out=tmp_path / "out")
    written = Recipe.from_yaml((tmp_path / "out" / "recipe.yaml").read_text(), TECHNIQUES)
    assert len({t.sparsity for _, t in written.steps[0].layers}) > 1
    assert len(str(written)) < 100
    again = tauten.compress(model, technique=written)  # without data
    loaded = tauten.load(tmp_path / "out", model=sharp_llama())
    assert torch.equal(again(TOKENS[0]).logits, loaded(TOKENS[0]).logits)


def test_a_folder_is_judged_block_by_block_alike(tmp_path: Path) -> None:
    sharp_llama().save_pretrained(tmp_path / "in")
    technique = tauten.PruneWanda(0.4, allocation="sensitivity")
    tauten.compress(tmp_path / "in", technique=technique, data=TOKENS, out=tmp_path / "out")
    streamed = kept_of(tauten.load(tmp_path / "out"))
    assert streamed == kept_of(tauten.compress(sharp_llama(), technique=technique, data=TOKENS))


def test_convolutions_have_sensitivities_too() -> None:
    images = torch.randn(32, 1, 12, 12, generator=torch.manual_seed(0))
    technique = tauten.PruneWanda(0.5, allocation="sensitivity")
    packed = tauten.compress(tiny_cnn(), technique=technique, data=[images])
    shares = {
        n: k / m.packed.kept().numel()
        for (n, m), k in zip(packed_modules(packed), kept_of(packed).values(), strict=True)
    }
    assert len({round(share, 1) for share in shares.values()}) > 1


def test_bad_input_says_what_is_missing() -> None:
    with pytest.raises(InputError, match=r"prune_wanda: allocation=sensitivity needs data"):
        tauten.compress(uneven_mlp(), technique=tauten.PruneWanda(allocation="sensitivity"))
    for pruner in PRUNERS:
        with pytest.raises(InputError, match=r"allocation='best': expected uniform or sens"):
            pruner(allocation="best")
        with pytest.raises(InputError, match=r"2:4 zeroes half of every layer"):
            pruner(pattern="2:4", allocation="sensitivity")


def test_data_that_gives_nan_is_refused() -> None:
    calls = [torch.full((8, 12), torch.nan)]
    technique = tauten.PruneWanda(allocation="sensitivity")
    with pytest.raises(InputError, match=r"NaN|finite"):
        tauten.compress(uneven_mlp(), technique=technique, data=calls)
