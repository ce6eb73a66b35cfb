"""Artifacts as a run on a small language model leaves them, with made-up figures."""

import copy
from typing import Any

import pytest

BLOCKS, HIDDEN, INNER, VOCABULARY = 30, 576, 1536, 49152
_SHAPES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}
_LEADERS = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
# (label, MB, drop, half of its interval, KL), from harmless to broken
_TRIALS = [
    ("int8()", 135.9, 0.0004, 0.0011, 0.0009),
    ("rtn(bits=6)", 109.2, 0.0031, 0.0017, 0.0061),
    ("rtn(bits=5, group_size=32)", 96.7, 0.0092, 0.0028, 0.0176),
    ("rtn(bits=4) on model.layers.*, rtn(bits=8)", 88.3, 0.0158, 0.0033, 0.0381),
    ("rtn(bits=4, group_size=32)", 80.4, 0.0437, 0.0052, 0.0713),
    ("rtn()", 76.2, 0.0689, 0.0071, 0.1020),
    ("rtn(bits=3)", 60.1, 0.871, 0.064, 0.7404),
]


@pytest.fixture
def manifest() -> dict[str, Any]:
    """A certified run: eight trials, the fourth chosen, the last one failed."""
    return copy.deepcopy(_MANIFEST)


@pytest.fixture
def timing() -> dict[str, Any]:
    """Of a model that got slower and needs less memory."""
    return copy.deepcopy(_TIMING)


@pytest.fixture
def plain(manifest: dict[str, Any]) -> dict[str, Any]:
    """What `tauten quantize` without data leaves."""
    manifest.update(goal=None, trials=[], chosen=None, certified=False, test=None, data=None)
    return {**manifest, "reason": "nothing was measured on data, so no drop is claimed"}


@pytest.fixture
def uncertified(manifest: dict[str, Any]) -> dict[str, Any]:
    """The chosen trial held on the development split and failed on the sealed one."""
    manifest["test"] = _quality(0.0188, 0.0041, "test", 42)
    reason = "not certified: on the sealed test split the drop may be 2.29%, above 2.00%"
    return {**manifest, "certified": False, "reason": reason}


@pytest.fixture
def inspect_facts() -> dict[str, Any]:
    """What `tauten inspect` knows of the model."""
    size = 2 * VOCABULARY * HIDDEN
    units = [
        {
            "names": ["model.embed_tokens", "lm_head"],
            "block": "",
            "shapes": [[VOCABULARY, HIDDEN]],
            "size_bytes": size,
        }
    ]
    for block in range(BLOCKS):
        prefix = f"model.layers.{block}"
        for first in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
            members = [n for n in _SHAPES if _leader(n) == first]
            names = [f"{prefix}.{name}" for name in members]
            size = sum(2 * rows * columns for rows, columns in map(_SHAPES.__getitem__, members))
            units.append(
                {"names": names, "block": prefix, "shapes": [_SHAPES[first]], "size_bytes": size}
            )
    return {
        "name": "SmolLM2-135M-Instruct",
        "kind": "huggingface",
        "architecture": "LlamaForCausalLM",
        "parameters": 134_515_008,
        "size_bytes": 269_060_552,
        "blocks": [f"model.layers.{block}" for block in range(BLOCKS)],
        "units": units,
        "tied": [["model.embed_tokens", "lm_head"]],
        "coverage": "82.0% of the weights can be packed; the rest is held by LSTM (18.0%)",
        "covered": False,
        "notes": ["2.1 GB of memory are free"],
    }


def _leader(name: str) -> str:
    parent, _, leaf = name.rpartition(".")
    return f"{parent}.{_LEADERS.get(leaf, leaf)}"


def _layers() -> list[dict[str, Any]]:
    embedding = {"unit": "model.embed_tokens", "shape": [VOCABULARY, HIDDEN], "error": 0.0062}
    embedding |= {"format": "integer 8 bit", "bits_per_weight": 8.5}
    size = VOCABULARY * HIDDEN
    layers = [
        {
            **embedding,
            "name": "model.embed_tokens",
            "original_bytes": 2 * size,
            "size_bytes": size * 17 // 16,
            "reason": "step 2: 8 bit, tied to lm_head",
        },
        {
            **embedding,
            "name": "lm_head",
            "original_bytes": 0,
            "size_bytes": 0,
            "reason": "tied to model.embed_tokens, stored once",
        },
    ]
    for block in range(BLOCKS):
        layers += [_layer(block, name, shape) for name, shape in _SHAPES.items()]
    return layers


def _layer(block: int, name: str, shape: tuple[int, int]) -> dict[str, Any]:
    prefix, size, kept = f"model.layers.{block}", shape[0] * shape[1], block == 0
    return {
        "name": f"{prefix}.{name}",
        "unit": f"{prefix}.{_leader(name)}",
        "shape": list(shape),
        "format": "bfloat16" if kept else "integer 4 bit",
        "bits_per_weight": 16.0 if kept else 4.5,
        "original_bytes": 2 * size,
        "size_bytes": 2 * size if kept else size * 9 // 16,
        "error": 0.0 if kept else 0.07 + 0.0011 * ((block * 7) % 30),
        "reason": "no step matches it: left as it is"
        if kept
        else "step 1: rtn(bits=4), 4.5 bits a weight with scales",
    }


def _quality(drop: float, half: float, split: str, documents: int) -> dict[str, Any]:
    return {
        "metric": "perplexity",
        "value": 17.61 * (1 + drop),
        "original": 17.61,
        "drop": {"value": drop, "low": drop - half, "high": drop + half, "examples": documents},
        "split": split,
    }


def _trial(label: str, megabytes: float, drop: float, half: float, kl: float) -> dict[str, Any]:
    measurement = {
        "quality": _quality(drop, half, "development", 60),
        "size_bytes": int(megabytes * 1e6),
        "memory_bytes": int(megabytes * 1.02e6),
        "kl": kl,
    }
    verdict = "within the goal" if drop + half <= 0.02 else f"bound {drop + half:.1%} is above 2%"
    return {
        "recipe": {},
        "label": label,
        "measurement": measurement,
        "verdict": verdict,
        "error": "",
    }


def _trials() -> list[dict[str, Any]]:
    trials = [_trial(*figures) for figures in _TRIALS]
    trials[3]["verdict"] = "chosen: smallest within the goal"
    error = "rtn: bits=2 on lm_head: scales overflow float16"
    failed = {
        "recipe": {},
        "label": "rtn(bits=2)",
        "measurement": None,
        "verdict": "",
        "error": error,
    }
    return [*trials, failed]


_MANIFEST = {
    "tauten": "0.1.0",
    "format": 1,
    "source": {
        "name": "SmolLM2-135M-Instruct",
        "kind": "gguf",
        "fingerprint": "5c1b8a1f0e",
        "size_bytes": 92_860_416,
        "bf16_bytes": 269_030_016,
        "parameters": 134_515_008,
    },
    "recipe": {
        "tauten": 1,
        "steps": [
            {"technique": "rtn", "where": "model.layers.*", "bits": 4, "group_size": 64},
            {"technique": "rtn", "where": "*", "bits": 8, "group_size": 64},
        ],
    },
    "recipe_text": "rtn() on model.layers.*, rtn(bits=8)",
    "goal": {
        "max_drop": 0.02,
        "max_size_bytes": None,
        "max_latency_s": None,
        "max_memory_bytes": None,
        "minimize": "size",
    },
    "weights": {"file": "model.safetensors", "size_bytes": 88_300_000, "sha256": "9f" * 32},
    "memory_bytes": 90_100_000,
    "modules": {},
    "layers": _layers(),
    "trials": _trials(),
    "chosen": 3,
    "certified": True,
    "reason": "smallest of 8 trials whose bound is within the goal, confirmed on the test split",
    "test": _quality(0.0149, 0.0041, "test", 42),
    "data": {
        "name": "wikitext.txt",
        "documents": {"calibration": 60, "development": 60, "test": 42},
        "tokens": {"calibration": 61440, "development": 58211, "test": 40127},
    },
    "seed": 0,
}

_TIMING = {
    "trials": [{}, {}, {}, {"latency_s": 0.0431, "original_latency_s": 0.0392}, {}],
    "unit": "token",
    "original": {
        "median_s": 0.0392,
        "spread_s": 0.0011,
        "prefill_s": 0.412,
        "tokens_per_s": 25.5,
        "rss_bytes": 912_000_000,
    },
    "chosen": {
        "median_s": 0.0531,
        "spread_s": 0.0015,
        "prefill_s": 0.398,
        "tokens_per_s": 18.8,
        "rss_bytes": 623_000_000,
    },
    "machine": {
        "cpu": "AMD EPYC 7B13",
        "threads": 2,
        "torch": "2.13.0+cpu",
        "python": "3.12.4",
        "tauten": "0.1.0",
    },
    "seconds": 411.0,
}
