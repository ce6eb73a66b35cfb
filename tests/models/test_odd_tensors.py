"""Checkpoints whose tensors are of unusual dtypes, or stand in several files: right or refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_conformance import TABLE
from torch import Tensor, nn

import tauten
from tauten.core.errors import CorruptError, InputError
from tauten.data.tensors import main_output
from tauten.models.packing import packed_modules
from tauten.models.source import open_source

TOKENS = torch.arange(20)[None]
INDEX = "model.safetensors.index.json"
NAME = "model.layers.1.mlp.up_proj.weight"  # 96 x 64
Make = Callable[[Tensor], Tensor]


def run(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return main_output(model(TOKENS))


def shard_of(folder: Path, name: str) -> Path:
    return next(f for f in sorted(folder.glob("*.safetensors")) if name in load_file(f))


def change(folder: Path, name: str, make: Make, **more: Tensor) -> Path:
    """Put another tensor in the place of one, and more beside it; the file."""
    file = shard_of(folder, name)
    state = load_file(file)
    state |= {name: make(state[name])} | {f"{name}_{key}": t for key, t in more.items()}
    save_file(state, file, {"format": "pt"})
    return file


def with_value(value: float, row: int = 5, dtype: torch.dtype = torch.float32) -> Make:
    def make(tensor: Tensor) -> Tensor:
        tensor = tensor.to(dtype)
        tensor[row, 3] = value
        return tensor

    return make


FLOATS = (torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_of_any_width_are_read_as_what_they_are(
    llama_folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = open_source(llama_folder).open()
    with torch.no_grad():
        weight = model.get_parameter(NAME)
        weight.copy_(weight.to(dtype).float())
    change(llama_folder, NAME, lambda t: t.to(dtype))
    assert torch.equal(run(open_source(llama_folder).open()), run(model))
    packed = tauten.quantize(llama_folder, technique=tauten.RTN(8, 32), out=tmp_path / "out")
    error = run(tauten.load(tmp_path / "out")) - run(model)
    assert error.norm() < 0.02 * run(model).norm()
    assert torch.equal(run(packed), run(tauten.load(tmp_path / "out")))


@pytest.mark.parametrize("name", TABLE)
def test_every_technique_packs_what_is_stored_in_float8(llama_folder: Path, name: str) -> None:
    change(llama_folder, NAME, lambda t: t.to(torch.float8_e4m3fn))
    exact = run(open_source(llama_folder).open())
    packed = tauten.quantize(llama_folder, technique=TABLE[name][0])
    assert 0 < (run(packed) - exact).norm() <= TABLE[name][1] * exact.norm()


def test_a_layer_that_is_in_float8_itself_stays() -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 64)).eval()
    model[1].weight = nn.Parameter(model[1].weight.to(torch.float8_e4m3fn), requires_grad=False)
    packed = tauten.quantize(model, 4)
    assert [n for n, _ in packed_modules(packed)] == ["0"]


# What becomes of one weight, and what is said of it.
REFUSED: dict[str, tuple[Make, str]] = {
    "int64": (lambda t: t.long(), "is 96x64 int64, but the model needs 96x64 float32"),
    "int32": (lambda t: t.int(), "is 96x64 int32, but"),
    "bool": (lambda t: t > 0, "is 96x64 bool, but"),
    "complex": (lambda t: t.to(torch.complex64), "is 96x64 complex64, but"),
    "four bits of others": (
        lambda t: t[:, ::2].to(torch.uint8),
        r"is 96x32 \w+, but the model needs 96x64",
    ),
    "other sizes": (lambda t: t[:-1].contiguous(), r"is 95x64 \w+, but the model needs 96x64"),
    "nan": (with_value(torch.nan), r"NaN or infinity in row 5 \(1 row of 96\)"),
    "-inf": (with_value(-torch.inf, 95), r"NaN or infinity in row 95"),
    "float8 nan": (
        lambda t: with_value(torch.nan)(t).to(torch.float8_e4m3fn),
        r"NaN or infinity in row 5",
    ),
    "beyond float32": (
        with_value(-1e300, 7, torch.float64),
        r"holds -1e\+300 in row 7 \(1 row of 96\): more than float32",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_weight_is_refused_by_file_and_tensor(
    llama_folder: Path, tmp_path: Path, kind: str
) -> None:
    make, message = REFUSED[kind]
    file = change(llama_folder, NAME, make)
    with pytest.raises(CorruptError, match=f"{file.name}: tensor '{NAME}' .*{message}") as refused:
        tauten.quantize(llama_folder, technique=tauten.RTN(8, 32), out=tmp_path / "out")
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_float8_with_scales_of_its_own_is_refused(llama_folder: Path) -> None:
    change(llama_folder, NAME, lambda t: t.to(torch.float8_e4m3fn), scale_inv=torch.ones(1, 1))
    with pytest.raises(CorruptError, match=f"'{NAME}' is float8 with scales .*'{NAME}_scale_inv'"):
        tauten.quantize(llama_folder, 8)


def test_dtypes_that_torch_lacks_are_refused(llama_folder: Path) -> None:
    file = change(llama_folder, NAME, lambda t: t.to(torch.float8_e4m3fn))
    file.write_bytes(file.read_bytes().replace(b'"F8_E4M3"', b'"F6_E9M9"'))
    with pytest.raises(CorruptError, match=f"{file.name}.*F6_E9M9"):
        tauten.quantize(llama_folder, 8)


@pytest.mark.parametrize("stored", [torch.float32, torch.int32, torch.uint8])
def test_buffers_of_whole_numbers_get_the_dtype_of_the_model(stored: torch.dtype) -> None:
    from tauten.models.loader import Loader

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.arange(5))

    class Stored:
        def __init__(self, tensor: Tensor):
            self.tensor = tensor

        def names(self) -> list[str]:
            return ["seen"]

        def read(self, name: str) -> Tensor:
            return self.tensor

        def where(self, name: str) -> str:
            return "file"

    model = Model()
    Loader(model, Stored(torch.arange(5).to(stored)), ()).load_all()
    assert model.seen.dtype == torch.int64 and model.seen.tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(CorruptError, match="'seen' is 5 float32, but the model needs 5 int64"):
        Loader(Model(), Stored(torch.arange(5) + 0.5), ()).load_all()


def test_a_tensor_in_two_files_counts_where_both_agree(llama_folder: Path) -> None:
    expected = run(open_source(llama_folder).open())
    one = shard_of(llama_folder, NAME)
    other = next(f for f in sorted(llama_folder.glob("*.safetensors")) if f != one)
    tensor, state = load_file(one)[NAME], load_file(other)
    save_file(state | {NAME: tensor}, other, {"format": "pt"})
    assert torch.equal(run(open_source(llama_folder).open()), expected)
    save_file(state | {NAME: tensor + 1e-3}, other, {"format": "pt"})
    with pytest.raises(CorruptError, match=f"{one.name}.*other values for tensor '{NAME}'") as said:
        open_source(llama_folder)
    assert other.name in str(said.value)


def change_index(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    content = json.loads((folder / INDEX).read_text())
    change(content["weight_map"])
    (folder / INDEX).write_text(json.dumps(content))


def test_files_count_not_what_the_index_says_of_tensors(llama_folder: Path) -> None:
    """transformers, too, takes all tensors of all files that an index names."""
    expected = run(open_source(llama_folder).open())
    files = sorted(f.name for f in llama_folder.glob("*.safetensors"))
    other = next(f for f in files if f != shard_of(llama_folder, NAME).name)
    change_index(llama_folder, lambda places: places.update({NAME: other, "more": other}))
    assert torch.equal(run(open_source(llama_folder).open()), expected)
    theirs = type(open_source(llama_folder).open()).from_pretrained(
        llama_folder, dtype=torch.float32
    )
    assert torch.equal(run(theirs.eval()), expected)


def test_a_file_that_no_tensor_is_said_to_be_in_is_not_read(llama_folder: Path) -> None:
    own = shard_of(llama_folder, NAME).name
    others = sorted(f.name for f in llama_folder.glob("*.safetensors") if f.name != own)
    change_index(
        llama_folder,
        lambda places: places.update({n: others[0] for n, f in places.items() if f == own}),
    )
    with pytest.raises(InputError, match="lacks tensor"):
        tauten.quantize(llama_folder, 8)
