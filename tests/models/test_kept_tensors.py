"""What a run keeps for itself is read back as it was, or refused."""

from pathlib import Path

import pytest
import torch

from tauten.core.errors import CorruptError
from tauten.models.kept_tensors import read_tensors, write_tensors
from tauten.models.targets import Targets

TENSORS = {
    "a": torch.tensor([[1.0, float("nan")]], dtype=torch.bfloat16),
    "b": torch.tensor(3.0),
    "c": torch.arange(6).view(2, 3).t(),
    "d": torch.empty(0),
}
FACTS = {"state": "{}", "plain": "[1]"}


def assert_same(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].nan_to_num(7), tensor.nan_to_num(7))


def test_no_byte_of_a_file_changes_unnoticed(tmp_path: Path) -> None:
    file = tmp_path / "kept.safetensors"
    write_tensors(file, TENSORS, FACTS)
    whole, refused = file.read_bytes(), 0
    for place in range(len(whole)):
        for bits in (0x01, 0x20, 0x80):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :])
            try:
                tensors, facts = read_tensors(file, "delete it")
            except CorruptError as error:
                refused += 1
                assert str(file) in str(error) and str(error).endswith("delete it")
            else:  # such as a space of the header
                assert_same(tensors)
                assert facts == FACTS
    assert refused > 2.5 * len(whole)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, size: int) -> None:
    file = tmp_path / "kept.safetensors"
    write_tensors(file, TENSORS)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(CorruptError, match=r"kept\.safetensors: damaged"):
        read_tensors(file, "delete it")


def test_answers_of_a_teacher_that_were_changed_are_refused(tmp_path: Path) -> None:
    targets = Targets(tmp_path)
    targets.put(0, TENSORS)
    assert_same(targets.get(0, dict))
    file = tmp_path / "0.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(CorruptError, match="not what its digest says"):
        targets.get(0, dict)
