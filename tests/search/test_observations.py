"""What layers see is found once for all levels, and levels come out the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_llama

from tauten.core.recipe import Recipe
from tauten.models.batch import CalibrationBatch
from tauten.models.chain import BlockCall
from tauten.models.source import open_source
from tauten.models.structure import find_structure
from tauten.quantization import GPTQ, KQuant
from tauten.search import observations
from tauten.search.workspace import Workspace

IDS = torch.randint(0, 128, (16, 24), generator=torch.Generator().manual_seed(0))
SEEN = [CalibrationBatch((), {"input_ids": IDS}, torch.ones_like(IDS, dtype=torch.bool))]
FIRST, SECOND = (replace(Recipe.of(t), apart=True) for t in (KQuant(5), GPTQ(3, 32)))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each run of a block, by its number of examples."""
    counted: list[int] = []
    real = BlockCall.run

    def run(self: BlockCall, block: torch.nn.Module, state: torch.Tensor) -> torch.Tensor:
        counted.append(len(state))
        return real(self, block, state)

    monkeypatch.setattr(BlockCall, "run", run)
    return counted


def workspace(folder: Path) -> Workspace:
    folder.mkdir()
    model = tiny_llama()
    return Workspace(folder, open_source(model), find_structure(model), {}, SEEN)


def packed(place: Workspace, recipe: Recipe) -> dict[str, torch.Tensor]:
    candidate = place.apply(recipe)
    return {
        name: tensor
        for part in candidate.parts
        for name, tensor in load_file(candidate.store.file(part)).items()
    }


def assert_same(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_a_second_level_runs_no_block_and_is_the_same(tmp_path: Path, runs: list[int]) -> None:
    expected = packed(workspace(tmp_path / "alone"), SECOND)
    place = workspace(tmp_path / "both")
    packed(place, FIRST)
    runs.clear()
    assert_same(packed(place, SECOND), expected)
    assert not runs


def test_the_first_level_runs_each_block_once(tmp_path: Path, runs: list[int]) -> None:
    place = workspace(tmp_path / "first")
    packed(place, FIRST)
    blocks = len(place.structure.blocks)
    # The first example shows before whether the blocks form a chain, and compute in 16 bits.
    assert [rows for rows in runs if rows > 1] == [len(IDS)] * blocks
    assert len(SEEN) == 1


def test_recipes_in_sequence_look_for_themselves(tmp_path: Path, runs: list[int]) -> None:
    in_sequence = replace(SECOND, apart=False)
    expected = packed(workspace(tmp_path / "alone"), in_sequence)
    place = workspace(tmp_path / "both")
    packed(place, FIRST)
    runs.clear()
    assert_same(packed(place, in_sequence), expected)
    assert runs


def test_half_an_observation_is_none(tmp_path: Path, runs: list[int]) -> None:
    """A level that was killed and resumed didn't see the layers that were packed before."""
    expected = packed(workspace(tmp_path / "alone"), SECOND)
    place = workspace(tmp_path / "both")
    packed(place, FIRST)
    (place.folder / "observed" / "layers.json").unlink()
    runs.clear()
    assert_same(packed(place, SECOND), expected)
    assert runs


def test_what_takes_too_much_disk_is_not_kept(
    tmp_path: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = packed(workspace(tmp_path / "alone"), SECOND)
    monkeypatch.setattr(observations, "MAX_BYTES", 1000)
    place = workspace(tmp_path / "both")
    packed(place, FIRST)
    assert not (place.folder / "observed" / "layers.json").exists()
    runs.clear()
    assert_same(packed(place, SECOND), expected)
    assert runs


def test_a_run_warns_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    few = [CalibrationBatch((), {"input_ids": IDS[:2]}, None)]
    model = tiny_llama()
    place = Workspace(tmp_path, open_source(model), find_structure(model), {}, few)
    for recipe in (FIRST, SECOND):
        place.apply(recipe)
    assert caplog.text.count("saw few tokens") == 1
