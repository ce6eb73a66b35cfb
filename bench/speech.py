"""Whisper within a goal in words: `tauten optimize` on sentences that espeak-ng speaks.

    apt install espeak-ng sox
    pip install 'tauten[speech]'
    python bench/speech.py WHISPER_FOLDER    # about 15 minutes for the base model

The sentences are of the Brown corpus, six to fourteen plain words each. The certificate is about
the word error rate on those that nothing was chosen on.
"""

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from texts import brown

import tauten

RESULTS = Path(__file__).parent / "results/speech.json"
RATE = 16_000


def sentences(texts: list[str], count: int) -> list[str]:
    """The first of each document that is short and all words."""
    plain = re.compile(r"^[A-Z][a-z']*( [a-z']+){5,13}\.$")
    firsts = (next(filter(plain.match, re.split(r"(?<=[.?!]) ", t)), None) for t in texts)
    found = dict.fromkeys(sentence for sentence in firsts if sentence)
    return list(found)[:count]


def spoken(text: str) -> np.ndarray[Any, Any]:
    """A sentence as sound, (samples,) float32."""
    voice = ["espeak-ng", "-v", "en-us", "-s", "140", "--stdout", text]
    raw = subprocess.run(voice, capture_output=True, check=True).stdout
    form = ["-r", str(RATE), "-c", "1", "-b", "16", "-e", "signed", "-t", "raw", "-"]
    cut = subprocess.run(["sox", "-t", "wav", "-", *form], input=raw, capture_output=True).stdout
    return np.frombuffer(cut, np.int16).astype(np.float32) / 32768


def examples(folder: Path, texts: list[str]) -> list[dict[str, torch.Tensor]]:
    """Batches of eight: features of the sound, and labels, the tokens of what was said."""
    extract = transformers.WhisperFeatureExtractor()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    batches = []
    for start in range(0, len(texts), 8):
        part = texts[start : start + 8]
        sound = extract([spoken(t) for t in part], sampling_rate=RATE, return_tensors="pt")
        labels = tokenizer(part, padding=True, return_tensors="pt")
        ids = labels.input_ids.masked_fill(labels.attention_mask == 0, -100)
        batches.append({"input_features": sound.input_features, "labels": ids})
    longest = max(batch["labels"].shape[1] for batch in batches)
    for batch in batches:
        short = longest - batch["labels"].shape[1]
        batch["labels"] = torch.nn.functional.pad(batch["labels"], (0, short), value=-100)
    return batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--goal", default="3 points")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        texts = sentences(brown(Path(name)), options.sentences)
        folder = Path(name) / "whisper"  # a copy that knows the language
        shutil.copytree(options.folder, folder)
        file = folder / "generation_config.json"
        settings = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(settings | {"language": "en", "task": "transcribe"}))
        goal, out = tauten.Goal(max_drop=options.goal), Path(name) / "out"
        data = examples(folder, texts)
        print(f"{len(texts)} sentences, such as {texts[:3]}", flush=True)
        result = tauten.optimize(folder, data, goal, out=out, effort="quick")
        written = (out / "model.safetensors").stat().st_size
    assert result.test is not None
    facts = {
        "sentences": len(texts),
        "goal": options.goal,
        "certified": result.certified,
        "original": result.test.original,
        "value": result.test.value,
        "drop": [result.test.drop.low, result.test.drop.value, result.test.drop.high],
        "original_bytes": result.original["size_bytes"],
        "size_bytes": written,
        "recipe": str(result.recipe),
        "reason": result.reason,
    }
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
