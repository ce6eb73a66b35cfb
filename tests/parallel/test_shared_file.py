"""Trees of tensors through a file that two sides map."""

import errno
import mmap
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tauten.core.errors import TautenError
from tauten.parallel.shared_file import SharedFile


def test_trees_of_every_dtype_and_size_come_through_and_grow(tmp_path: Path) -> None:
    ours, theirs = SharedFile(tmp_path / "file"), SharedFile(tmp_path / "file")
    for rows in (1, 0, 5000, 3):
        tree = {
            "x": torch.randn(rows, 3),
            "more": [torch.arange(rows), torch.randn(rows, 2).bfloat16().t()],
            "flag": torch.tensor(rows > 1),
            "name": "text",
            "none": None,
        }
        made = theirs.read(pickle.loads(pickle.dumps(ours.write(tree))))
        assert made["name"] == "text" and made["none"] is None
        assert torch.equal(made["flag"], tree["flag"])
        for got, given in zip([made["x"], *made["more"]], [tree["x"], *tree["more"]], strict=True):
            assert got.dtype == given.dtype and torch.equal(got, given)
            assert not got.numel() or got.data_ptr() % 64 == 0, "as aligned as torch's own"


def test_who_reads_a_copy_changes_nobody_elses(tmp_path: Path) -> None:
    written = SharedFile(tmp_path / "file").write(torch.ones(4))
    first, second = (SharedFile(tmp_path / "file", mmap.ACCESS_COPY) for _ in range(2))
    first.read(written).zero_()
    assert torch.equal(second.read(written), torch.ones(4))


def test_a_full_file_system_is_an_error_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(TautenError, match="--shm-size"):
        SharedFile(tmp_path / "file").write(torch.ones(4))
