"""Which products a GPU gets, seen on tensors without data: this needs neither GPU nor Triton."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tauten.core.errors import InputError
from tauten.formats.codebook import CodebookWeight
from tauten.formats.integer import IntegerWeight
from tauten.formats.packed import PackedWeight
from tauten.runtime import kernels
from tauten.runtime.gpu import ops as gpu_ops

SHAPE = (33, 70)


class OpNames(TorchDispatchMode):
    """Records the names of the ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(gpu_ops, "TRITON", True)
    with FakeTensorMode():
        yield


def integer(group_size: int = 32) -> IntegerWeight:
    spec = {"bits": 4, "group_size": group_size, "zero": "none", "scale_dtype": "float16"}
    return fill(IntegerWeight.empty({"shape": SHAPE, **spec}))


def codebook() -> CodebookWeight:
    spec = {"shape": SHAPE, "bits": 3, "books": 1, "codebook_dtype": "float16"}
    return fill(CodebookWeight.empty(spec))


def fill(weight):  # type: ignore[no-untyped-def]
    for name, buffer in weight.named_buffers():
        setattr(weight, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda"))
    return weight


def ops_of(x: Tensor, weight: PackedWeight, activation: str = "float") -> list[str]:
    with OpNames() as names:
        y = kernels.linear(x, weight, None, activation)
    assert y.shape == (*x.shape[:-1], SHAPE[0]) and y.dtype == x.dtype and y.device == x.device
    return names.seen


@pytest.mark.parametrize("activation", ["float", "int8"])
def test_products_go_to_the_ops(activation: str) -> None:
    x = torch.empty(2, 3, 70, dtype=torch.bfloat16, device="cuda")
    assert ops_of(x, integer(), activation) == ["tauten::integer_linear"]
    name = "codebook_linear" if activation == "int8" else "codebook_linear_float"
    assert f"tauten::{name}" in ops_of(x, codebook(), activation)


def test_the_kernels_refuse_what_they_cannot_compute() -> None:
    x = torch.empty(2, 70, device="cuda")
    assert gpu_ops.serves(x, integer(0)) and gpu_ops.serves(x.half(), codebook())
    assert not gpu_ops.serves(x, integer(48))
    assert not gpu_ops.serves(x.double(), integer())
    assert not gpu_ops.serves(x.cpu(), integer())


def test_one_notice_without_triton(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu_ops, "TRITON", False)
    for _ in range(2):
        assert not gpu_ops.serves(torch.empty(2, 70, device="cuda"), integer())
    assert [record.message for record in caplog.records] == [gpu_ops.NOTICE]


def test_x_and_weight_on_different_devices_raise() -> None:
    for weight in (integer(), codebook()):
        with pytest.raises(InputError, match="x is on cpu, the weight on cuda"):
            kernels.linear(torch.empty(2, 70), weight)


def test_the_gpu_has_kernels_for_the_ops() -> None:
    for name in ("integer_linear", "codebook_linear", "codebook_linear_float"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"tauten::{name}", "CUDA")


def test_no_file_imports_triton_before_a_product_on_a_gpu() -> None:
    """But those that only the GPU ops import, when they run."""
    root = Path(gpu_ops.__file__).parents[2]
    behind = {root / "runtime" / "gpu" / f"{name}.py" for name in ("launch", "products", "tiles")}
    assert all("triton" in file.read_text() for file in behind)
    for file in set(root.rglob("*.py")) - behind:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                statement = ast.unparse(node)
                assert not re.search(r"triton|gpu.*(launch|products|tiles)", statement), file


@pytest.mark.skipif(not gpu_ops.TRITON, reason="Triton isn't installed (it needs Linux)")
def test_kernels_compile_for_absent_gpus() -> None:
    program = Path(__file__).with_name("compile_products.py")
    subprocess.run([sys.executable, program, "80", "90"], check=True)
