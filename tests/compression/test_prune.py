"""Pruning techniques on their own objectives, and exactly what they store."""

from itertools import pairwise

import pytest
import torch
from layer_inputs import layer_inputs
from torch import Tensor

from tauten import GPTQ, InputError, PruneMagnitude, PruneSparseGPT, PruneWanda, compress
from tauten.core.errors import NotApplicableError
from tauten.core.inputs import LayerInputs
from tauten.core.technique import WeightTechnique
from tauten.solvers.second_order import output_error

PRUNERS = (PruneMagnitude, PruneWanda, PruneSparseGPT)
INPUTS = layer_inputs(96, 1)


def weight_of(dtype: torch.dtype = torch.float32) -> Tensor:
    weight = torch.randn(40, 96, generator=torch.Generator().manual_seed(0)) * 0.1
    return weight.to(dtype)


def error(technique: WeightTechnique) -> float:
    change = technique.encode(weight_of(), INPUTS).dequantize() - weight_of()
    return float(output_error(change, INPUTS.moment).sum())


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_each_technique_keeps_outputs_better_than_the_simpler_one(pattern: str) -> None:
    techniques = (
        PruneMagnitude(pattern=pattern),
        PruneWanda(pattern=pattern),
        PruneSparseGPT(pattern=pattern, rounds=0),
        PruneSparseGPT(pattern=pattern),
    )
    errors = [error(technique) for technique in techniques]
    for simpler, better in pairwise(errors):
        assert better < 0.98 * simpler


def test_magnitude_keeps_weights_themselves_best() -> None:
    kept = [(p().encode(weight_of(), INPUTS).dequantize() - weight_of()).norm() for p in PRUNERS]
    assert kept[0] < kept[1] < kept[2]


@pytest.mark.parametrize("rounds", [0, 5])
@pytest.mark.parametrize("zero", ["none", "integer", "float"])
def test_masks_and_codes_together_beat_one_after_the_other(rounds: int, zero: str) -> None:
    joint = PruneSparseGPT(bits=4, group_size=32, zero=zero, rounds=rounds)
    pruned = PruneWanda().encode(weight_of(), INPUTS)
    quantized = GPTQ(4, 32, zero).encode(pruned.dequantize(), INPUTS).dequantize()
    separate = quantized * pruned.kept() - weight_of()
    assert error(joint) < 0.9 * float(output_error(separate, INPUTS.moment).sum())


@pytest.mark.parametrize("zero", ["none", "integer", "float"])
def test_codes_cost_little_beside_zeros(zero: str) -> None:
    floats, codes = PruneSparseGPT(), PruneSparseGPT(bits=8, group_size=32, zero=zero)
    assert error(floats) < error(codes) < 1.05 * error(floats)


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_a_bitmask_and_16_bits_a_kept_weight(pruner, dtype: torch.dtype) -> None:
    packed = pruner(0.5).encode(weight_of(dtype), INPUTS)
    assert packed.size_bytes == 40 * 96 // 8 + 40 * 96 // 2 * 2
    assert packed.size_bytes / weight_of(torch.bfloat16).nbytes == 0.5625
    fours = pruner(0.5, "2:4").encode(weight_of(dtype), INPUTS)
    assert fours.size_bytes == 40 * 96 * 3 // 4 // 8 + 40 * 96 // 2 * 2
    assert (fours.kept().view(40, 24, 4).sum(2) == 2).all()


def test_bytes_of_codes() -> None:
    packed = PruneSparseGPT(0.5, "2:4", bits=4, group_size=32).encode(weight_of(), INPUTS)
    codes, grid = 40 * 48 // 2, 40 * 3 * 2 + 40 * 2  # each row's 3 zeros of 4 bits fill 2 bytes
    assert packed.size_bytes == 40 * 9 + codes + grid


def test_magnitude_and_wanda_keep_weights_as_they_are() -> None:
    weight = weight_of(torch.bfloat16)
    for pruner in (PruneMagnitude(0.3), PruneWanda(0.3)):
        packed = pruner.encode(weight, INPUTS)
        assert torch.equal(packed.dequantize(torch.bfloat16), weight * packed.kept())


def test_without_inputs_the_smallest_weights_go() -> None:
    magnitude = PruneMagnitude().encode(weight_of())
    assert torch.equal(PruneSparseGPT().encode(weight_of()).kept(), magnitude.kept())
    assert (PruneWanda().encode(weight_of()).kept().sum(1) == 48).all()
    coded = PruneSparseGPT(bits=8, group_size=32).encode(weight_of())
    assert torch.equal(coded.kept(), magnitude.kept())
    assert (coded.dequantize() - magnitude.dequantize()).norm() < 0.01 * weight_of().norm()


@pytest.mark.parametrize("pruner", PRUNERS)
def test_a_convolution_keeps_its_shape(pruner) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    packed = pruner(0.25).encode(weight, layer_inputs(36, 4))
    assert packed.dequantize().shape == (6, 4, 3, 3) and int(packed.kept().sum()) == 6 * 27


@pytest.mark.parametrize("pruner", PRUNERS)
def test_what_leaves_nothing_or_does_not_fit_is_refused(pruner) -> None:
    with pytest.raises(NotApplicableError, match="leaves nothing"):
        pruner(0.99).encode(torch.ones(3, 8))
    with pytest.raises(NotApplicableError, match="multiple of 4"):
        pruner(0.5, "2:4").encode(torch.ones(3, 10))


@pytest.mark.parametrize("pruner", PRUNERS)
@pytest.mark.parametrize(
    "knobs",
    [
        {"sparsity": 0.0},
        {"sparsity": 1.0},
        {"sparsity": float("nan")},
        {"pattern": "4:8"},
        {"sparsity": 0.6, "pattern": "2:4"},
    ],
)
def test_bad_knobs_are_refused(pruner, knobs: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"{pruner.name}: {next(iter(knobs))}"):
        pruner(**knobs)


@pytest.mark.parametrize(
    "knobs",
    [
        {"bits": 9},
        {"group_size": -1},
        {"zero": "some"},
        {"damping": 0.0},
        {"rounds": -1},
        {"correction": 2.0},
    ],
)
def test_bad_knobs_of_sparsegpt_are_refused(knobs: dict[str, object]) -> None:
    with pytest.raises(InputError, match="prune_sparsegpt: " + next(iter(knobs))):
        PruneSparseGPT(**knobs)  # type: ignore[arg-type]


def test_correction_makes_up_for_moved_inputs() -> None:
    generator = torch.Generator().manual_seed(5)
    original = torch.randn(4000, 32, generator=generator) @ torch.randn(32, 32, generator=generator)
    moved = original * 0.9 + 0.2 * torch.randn(4000, 32, generator=generator)
    weight = torch.randn(16, 32, generator=generator)
    shift = (original - moved).t() @ moved / 4000
    inputs = LayerInputs(moved.t() @ moved / 4000, 4000, shift)

    def lost(correction: float) -> float:
        found = PruneSparseGPT(0.2, correction=correction).encode(weight, inputs).dequantize()
        return float((moved @ found.t() - original @ weight.t()).norm())

    assert lost(1.0) < 0.9 * lost(0.0)


def test_a_model_is_pruned_on_its_data_and_says_what_it_costs(caplog) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 32))
    x = torch.randn(256, 64) @ torch.randn(64, 64) / 8
    techniques = (PruneMagnitude(), PruneWanda(), PruneSparseGPT())
    with torch.no_grad():
        errors = [(compress(model, technique=t, data=[x])(x) - model(x)).norm() for t in techniques]
    assert errors[2] < 0.9 * min(errors[:2])
    assert "prune_wanda: pruned layers take fewer bytes" in caplog.text


def test_pruning_that_saves_no_byte_leaves_the_layer() -> None:
    model = torch.nn.Linear(64, 96, bias=False, dtype=torch.bfloat16)
    packed = compress(model, technique=PruneMagnitude(0.5))
    assert sum(t.nbytes for t in packed.state_dict().values()) <= 0.57 * model.weight.nbytes
    with pytest.raises(InputError, match="packing would not make it smaller"):
        compress(model, technique=PruneMagnitude(0.05))
