"""What can be opened, and what is refused with which words."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama, tiny_mlp
from torch import nn

import tauten
from tauten.core.errors import CorruptError, InputError
from tauten.data.tensors import main_output
from tauten.models import reader
from tauten.models.source import open_source
from tauten.models.structure import find_structure

TOKENS = torch.arange(20)[None]


def run(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return main_output(model(TOKENS))


@pytest.mark.parametrize("build", [tiny_llama, tiny_gpt2, tiny_bert])
@pytest.mark.parametrize("stream", [False, True])
def test_folder_gives_the_saved_model(tmp_path: Path, build, stream: bool) -> None:
    model = build()
    model.save_pretrained(tmp_path / "m")
    source = open_source(tmp_path / "m")
    blocks = find_structure(source.skeleton()).blocks
    assert len(blocks) == 3
    assert torch.equal(run(source.open(blocks, stream)), run(model))


def test_streaming_holds_one_block_at_a_time(llama_folder: Path) -> None:
    source = open_source(llama_folder)
    blocks = find_structure(source.skeleton()).blocks
    model = source.open(blocks, stream=True)
    loaded = []

    def count(*_: object) -> None:
        parts = [model.get_submodule(b) for b in blocks]
        loaded.append(sum(not next(part.parameters()).is_meta for part in parts))

    for block in blocks:
        model.get_submodule(f"{block}.mlp").register_forward_hook(count)
    run(model)
    assert loaded == [1, 1, 1]
    count()
    assert loaded[-1] == 0


@pytest.mark.parametrize("drop_prefix", [True, False])
def test_checkpoint_with_or_without_base_prefix(tmp_path: Path, drop_prefix: bool) -> None:
    model = tiny_gpt2() if drop_prefix else tiny_bert()
    model.save_pretrained(tmp_path / "m")
    file = tmp_path / "m/model.safetensors"
    state = load_file(file)
    if drop_prefix:
        state = {k.removeprefix("transformer."): v for k, v in state.items()}
    else:
        state = {f"bert.{k}": v for k, v in state.items()}
    save_file(state, file, {"format": "pt"})
    assert torch.equal(run(open_source(tmp_path / "m").open()), run(model))


def test_tied_weights_are_one_tensor(llama_folder: Path) -> None:
    model = open_source(llama_folder).open()
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_whole_file_comes_before_a_stale_index(llama_folder: Path) -> None:
    assert (llama_folder / "model.safetensors.index.json").is_file()
    other = tiny_llama()
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    save_file(
        {k: v.clone() for k, v in other.state_dict().items() if k != "lm_head.weight"},
        llama_folder / "model.safetensors",
    )
    expected = type(other).from_pretrained(llama_folder, dtype=torch.float32)
    assert torch.equal(run(open_source(llama_folder).open()), run(expected.eval()))


def test_a_folder_says_how_its_model_generates(llama_folder: Path, tmp_path: Path) -> None:
    free = tauten.quantize(llama_folder).generate(TOKENS, max_new_tokens=8, do_sample=False)
    stop, file = int(free[0, 22]), llama_folder / "generation_config.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"eos_token_id": [300, stop], "max_new_tokens": 9}))
    made = tauten.quantize(llama_folder, out=tmp_path / "out")
    first = free[0].tolist().index(stop, 20)
    for model in (made, tauten.load(tmp_path / "out")):
        assert model.generation_config.max_new_tokens == 9
        assert torch.equal(model.generate(TOKENS, do_sample=False), free[:, : first + 1])


def test_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("my_models.py").write_text("from tiny_models import tiny_mlp as build\nnumber = 3\n")
    source = open_source("my_models:build")
    assert source.kind == "factory"
    x = torch.ones(1, 10)
    assert torch.equal(source.open()(x), tiny_mlp()(x))
    with pytest.raises(InputError, match="returned a int"):
        open_source("my_models:number")
    with pytest.raises(InputError, match="can't import it"):
        open_source("my_models:missing")


def truncate(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    file.write_bytes(file.read_bytes()[:-100])


def remove_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].unlink()


def poison(folder: Path) -> None:
    file = next(f for f in folder.glob("*.safetensors") if "model.norm.weight" in load_file(f))
    state = load_file(file)
    state["model.norm.weight"][3] = torch.nan
    save_file(state, file, {"format": "pt"})


def lose_tensor(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        state = {k: v for k, v in load_file(file).items() if "layers.1.mlp.up_proj" not in k}
        save_file(state, file, {"format": "pt"})


def reshape_tensor(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        state = {k: v[:-1] if "up_proj" in k else v for k, v in load_file(file).items()}
        save_file({k: v.contiguous() for k, v in state.items()}, file, {"format": "pt"})


def index_outside(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], "../secret.safetensors")
    index.write_text(json.dumps(content))
    save_file({"x": torch.ones(2)}, folder.parent / "secret.safetensors")


def break_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[1, 2")


def something_else_of_transformers(folder: Path) -> None:
    change_config(folder, architectures=["Trainer"])


def kernels_of_the_hub(folder: Path) -> None:
    change_config(folder, vision_config={"_attn_implementation": {"": "someone/their-kernels"}})


def name_a_shard_with_nul(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "a\0.safetensors")
    file.write_text(json.dumps(index))


def name_an_endless_shard(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "9" * 5000 + ".safetensors")
    file.write_text(json.dumps(index))


def unknown_architecture(folder: Path) -> None:
    change_config(folder, architectures=["MyOwnForCausalLM"])


def already_quantized(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def unknown_type(folder: Path) -> None:
    change_config(folder, model_type="my_own", auto_map={"AutoConfig": "evil.Config"})


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def only_pickle(folder: Path) -> None:
    for file in folder.glob("*safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04never read")


def break_generation(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [1,')


DAMAGE = {
    break_generation: "generation_config.json: damaged",
    truncate: "not a whole safetensors file",
    remove_shard: "is missing, though the index names it",
    name_a_shard_with_nul: "is missing, though the index names it",
    name_an_endless_shard: "is missing, though the index names it",
    poison: "'model.norm.weight' holds NaN or infinity",
    lose_tensor: r"lacks tensor 'model.layers.1.mlp.up_proj.weight'",
    reshape_tensor: r"up_proj.weight' is 95x64 .*needs 96x64",
    index_outside: r"names '../secret.safetensors'",
    break_index: "index.json: damaged",
    something_else_of_transformers: r"unknown architecture \(Trainer\)",
    kernels_of_the_hub: "names 'someone/their-kernels', code of the hub, which is never run",
    unknown_architecture: r"unknown architecture \(MyOwnForCausalLM\)",
    already_quantized: r"already quantized \(gptq\)",
    unknown_type: "can't read this configuration",
    only_pickle: "is a pickle checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda d: d.__name__)
def test_damaged_folder_is_refused(llama_folder: Path, tmp_path: Path, damage) -> None:
    damage(llama_folder)
    before = {f: f.read_bytes() for f in llama_folder.iterdir()}
    with pytest.raises(InputError, match=DAMAGE[damage]):
        tauten.quantize(llama_folder, 4, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert {f: f.read_bytes() for f in llama_folder.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.bin", b"x", "is a pickle checkpoint"),
        ("a.pt", b"x", "is a pickle checkpoint"),
        ("a.safetensors", b"x", "holds weights only"),
        ("a.txt", b"x", "not a model"),
        ("a.gguf", b"GGUF\x03\0\0\0" + b"\xff" * 40, "not a whole GGUF"),
        ("b.gguf", b"nothing", "not a whole GGUF"),
    ],
)
def test_wrong_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_source(tmp_path / name)


def test_truncated_gguf_is_refused(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("token_embd.weight", torch.ones(64, 64).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = tmp_path / "a.gguf"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CorruptError, match="not a whole GGUF"):
        open_source(file)


def test_missing_model_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*_: object, **__: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(InputError, match="pass the path of a model folder"):
        open_source("someone/some-model")
    with pytest.raises(InputError, match="no such file or folder"):
        open_source("/no/such/folder")


def test_nan_in_module_is_refused() -> None:
    model = tiny_mlp()
    with torch.no_grad():
        model[1].weight[0, 0] = torch.inf
    with pytest.raises(CorruptError, match=r"'1.weight' holds NaN or infinity"):
        tauten.quantize(model)


def test_artifact_of_a_module_asks_for_it(tmp_path: Path) -> None:
    tauten.quantize(tiny_mlp(), out=tmp_path / "out")
    with pytest.raises(InputError, match="pass it too"):
        tauten.load(tmp_path / "out")
    with pytest.raises(InputError, match=r"isn't what .* was made from: .* is built the same"):
        tauten.load(tmp_path / "out", model=nn.Linear(10, 10))


def test_changed_artifact_is_refused(llama_folder: Path, tmp_path: Path) -> None:
    tauten.quantize(llama_folder, 4, out=tmp_path / "out")
    weights = tmp_path / "out/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CorruptError, match="changed since it was written"):
        tauten.load(tmp_path / "out")
    shutil.copy(llama_folder / "config.json", tmp_path / "out/tauten.json")
    with pytest.raises(CorruptError, match="damaged"):
        tauten.load(tmp_path / "out")


def test_a_header_is_read_once_however_many_tensors_follow(tmp_path, monkeypatch) -> None:
    """Loading takes time in proportion to the layers; that of a header grows with them too."""
    headers, opened = [], []
    check, plain = reader.safe_open, Path.open
    monkeypatch.setattr(reader, "safe_open", lambda *a, **k: (headers.append(a), check(*a, **k))[1])
    monkeypatch.setattr(Path, "open", lambda *a, **k: (opened.append(a), plain(*a, **k))[1])
    found = []
    for layers in (4, 12):
        model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(layers)))
        tauten.quantize(model, 8, out=tmp_path / str(layers))
        headers.clear(), opened.clear()
        packed = tauten.load(tmp_path / str(layers), model=model)
        tensors = [t for t in (*packed.buffers(), *packed.parameters()) if t.numel()]
        found.append((len(headers), len(opened) - len(tensors)))
    assert found[0] == found[1]


CALLS = {
    "out": lambda: tauten.quantize(tiny_mlp(), out=3),  # type: ignore[arg-type]
    "path": lambda: tauten.load(3),  # type: ignore[arg-type]
    "pillars": lambda: tauten.optimize(tiny_mlp(), pillars=3),  # type: ignore[arg-type]
    "goal": lambda: tauten.optimize(tiny_mlp(), goal="small"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_of_another_kind_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}.*(3|'small').*: expected"):
        CALLS[name]()


def test_every_byte_of_a_folder_tells_it_from_others(llama_folder: Path) -> None:
    def known() -> str:
        return open_source(llama_folder).fingerprint

    first = known()
    assert known() == first
    shard = max(llama_folder.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    for file in (shard, llama_folder / "tokenizer.json"):
        whole = file.read_bytes()
        # Neither the ends nor the length nor the time say it.
        at, times = len(whole) * 2 // 3, (file.stat().st_atime_ns, file.stat().st_mtime_ns)
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        os.utime(file, ns=times)
        assert known() != first, file.name
        file.write_bytes(whole)
    assert known() == first


def test_attention_that_only_gpus_have_is_that_of_the_default(llama_folder: Path) -> None:
    expected = open_source(llama_folder).open().config._attn_implementation
    change_config(llama_folder, _attn_implementation="flash_attention_2")
    assert open_source(llama_folder).open().config._attn_implementation == expected


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00003.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_on(llama_folder: Path, name: str) -> None:
    file = llama_folder / name
    assert file.is_file()
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(InputError, match=re.escape(name)):
        open_source(llama_folder).open()


def test_a_folder_that_lost_its_manifest_says_so(llama_folder: Path, tmp_path: Path) -> None:
    tauten.quantize(llama_folder, out=tmp_path / "out")
    (tmp_path / "out" / "tauten.json").unlink()
    with pytest.raises(CorruptError, match=r"tauten\.json is missing"):
        open_source(tmp_path / "out")
