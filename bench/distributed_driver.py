"""What the driver on the first host does; started by distributed.py, answers in JSON."""

import hashlib
import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from hosts import address, cut_off, end_all
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import tauten
from tauten.distributed.blueprint import blueprint
from tauten.distributed.remote_pool import RemotePool
from tauten.distributed.start import Access, open_engine
from tauten.parallel.benches import PoolBench
from tauten.parallel.pipeline_parallel import ChainShape
from tauten.parallel.plan import Layout
from tauten.parallel.profile import fastest_s
from tauten.parallel.row_cuts import RowCuts

Row = dict[str, Any]
ITEMS, KILLED_AT = 90, 20
EVERY = [Layout(data=2), Layout(tensor=2), Layout(pipeline=2)]
EVERY += [Layout(pipeline=2, microbatches=n) for n in (2, 4, 8)]


def folder(where: Path, hidden: int = 256, layers: int = 6) -> str:
    """A language model with random weights, and a tokenizer of bytes."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(where)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.pad_token = fast.convert_ids_to_tokens(0)
    fast.save_pretrained(where)
    return str(where)


def hosts_file(where: Path, count: int) -> str:
    """The first hosts."""
    file = where / f"hosts{count}"
    file.write_text("".join(f"tauten{number}\n" for number in range(1, count + 1)))
    return str(file)


def access(where: Path) -> Access:
    """Namespaces instead of a remote shell."""
    token = where / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    return Access(address(1), str(token), "ip netns exec {host}")


def inference(where: Path, ending: str) -> Row:
    """Batch inference over three hosts, of which the third is lost; outputs beside the model's."""
    model = transformers.LlamaForCausalLM.from_pretrained(folder(where / "model")).eval()
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, 256, (8, 128), generator=generator) for _ in range(ITEMS)]
    with torch.inference_mode():
        expected = [model(x, use_cache=False).logits for x in batches]
    lose = {"killed": end_all, "cut off": cut_off, "kept": lambda name: []}[ending]
    outputs, times, lost_s = [], [], 0.0
    with tauten.distribute(
        str(where / "model"), hosts_file(where, 3), access=access(where)
    ) as many:
        many.wait_for(3)
        begun = time.perf_counter()
        killed = begun
        for number, output in enumerate(many.map(batches)):
            outputs.append(output.logits)
            times.append(time.perf_counter())
            if number == KILLED_AT:
                killed = time.perf_counter()
                lose("tauten3")
            if many.cluster.lost and not lost_s:
                lost_s = time.perf_counter() - killed
        done = dict(many.cluster.done)
    after = [t for t in times if t >= killed]
    gaps = [b - a for a, b in itertools.pairwise(after)]
    equal = [torch.equal(a, b) for a, b in zip(outputs, expected, strict=True)]
    return {
        "items": len(outputs),
        "in_order_and_bit_equal": all(equal) and len(equal) == ITEMS,
        "noticed_s": lost_s,
        "longest_wait_for_a_result_s": max(gaps),
        "total_s": times[-1] - begun,
        "by_worker": done,
    }


def calibration(where: Path, count: str) -> Row:
    """4-bit GPTQ with the data on some hosts; 0: on this one, without workers."""
    hosts = int(count)
    workers = hosts_file(where, hosts) if hosts else None
    if workers is not None:
        set_environment(access(where))
    texts = [f"Document {i}: " + f"the number {i * i} is a square. " * 12 for i in range(48)]
    options: dict[str, Any] = {"bits": 4, "technique": "gptq", "data": texts, "workers": workers}
    begun = time.perf_counter()
    tauten.quantize(folder(where / "model"), out=where / "packed", **options)
    taken_s = time.perf_counter() - begun
    weights = (where / "packed" / "model.safetensors").read_bytes()
    return {"sha256": hashlib.sha256(weights).hexdigest(), "seconds": taken_s}


def planner(where: Path, rows: str, length: str) -> Row:
    """The plan for two hosts, and every layout of two workers timed besides."""
    model, given = folder(where / "model"), access(where)
    inputs = {"input_ids": torch.randint(0, 256, (int(rows), int(length)))}
    cluster = hosts_file(where, 2)
    options: dict[str, Any] = {"access": given, "mode": "auto", "example_inputs": inputs}
    with tauten.distribute(model, cluster, **options) as planned:
        plan = planned.plan
    reference = blueprint(model, False)
    remote: Any = RemotePool(open_engine(cluster, None, given), reference)
    bench, times = PoolBench(remote, RowCuts("model", 1e-3)), {}
    ends = (plan_blocks(model) // 2, plan_blocks(model))
    for layout in EVERY:
        cut = ends if layout.pipeline > 1 else ()
        bench.load(layout, cut, chain_of(model) if cut else None)
        call = {**inputs, "use_cache": False}
        times[str(layout)] = fastest_s(lambda call=call: bench.call("forward", (), call))
    bench.close()
    one = transformers.LlamaForCausalLM.from_pretrained(model).eval()
    with torch.inference_mode():
        times["one worker"] = fastest_s(lambda: one(**inputs, use_cache=False))
    chosen = str(plan.layout) if plan.layout.workers > 1 else "one worker"
    return {
        "batch": [int(rows), int(length)],
        "chosen": chosen,
        "reason": plan.reason,
        "measured_s": times,
        "regret": times[chosen] / min(times.values()),
        "predicted_s": {str(o.layout): o.predicted_s for o in plan.options},
    }


def plan_blocks(model: str) -> int:
    """Blocks of a model."""
    return int(transformers.AutoConfig.from_pretrained(model).num_hidden_layers)


def chain_of(model: str) -> ChainShape:
    """How the model uses them."""
    config = transformers.AutoConfig.from_pretrained(model)
    blocks = tuple(f"model.layers.{number}" for number in range(config.num_hidden_layers))
    first = (("model.embed_tokens", config.hidden_size),)
    return ChainShape(blocks, False, first, ("model.norm", "lm_head"))


def set_environment(given: Access) -> None:
    """For calls that take the access from the environment."""
    os.environ |= {"TAUTEN_INTERFACE": given.interface, "TAUTEN_SHELL": given.shell}
    os.environ["TAUTEN_TOKEN_PATH"] = str(given.token)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        sections = {"inference": inference, "calibration": calibration, "planner": planner}
        print("JSON" + json.dumps(sections[sys.argv[1]](Path(temporary), *sys.argv[2:])))
