"""Readers of single files: recipes, journals, plans, checkpoints, streams, results, texts."""

import bz2
import csv
import gzip
import importlib.util
import io
import json
import lzma
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tauten
from fuzz import models
from fuzz.reader import Reader, plain
from tauten.core.errors import CorruptError
from tauten.core.journal import Journal, line_of
from tauten.data.texts import read_texts
from tauten.distributed.hosts import read_hosts
from tauten.distributed.record import Record
from tauten.faces import read_recipe
from tauten.formats import bits, entropy
from tauten.models.checkpoint import Checkpoint
from tauten.models.training import Position
from tauten.parallel.plan import Layout, Option, Plan

RUN = {"source": "a model", "seed": 0, "goal": {"max_drop": 0.01}, "version": "1"}


def record_readers() -> Iterator[Reader]:
    """All of them."""
    yield Reader("recipe", _make_recipe, _recipe)
    yield Reader("journal", _make_journal, _journal, vouched=True, same=_known)
    yield Reader(
        "forged journal", _make_journal, _journal, seal=lambda place: seal_journal(_only(place))
    )
    yield Reader("plan", _make_plan, _plan)
    yield Reader("checkpoint", _make_checkpoint, _checkpoint, vouched=True)
    yield Reader("results", _make_record, _record, vouched=True, same=_begins)
    yield Reader(
        "hosts", partial(_make_text, "a.hosts", "node1 slots=2\nlocalhost # this\n"), _hosts
    )
    for kind in ("codes", "floats"):
        yield Reader(f"stream {kind}", partial(_make_stream, kind), _stream, vouched=True)
    for name, write in TEXTS.items():
        yield Reader(f"text {name}", partial(_make_texts, name, write), _texts)


def _make_text(name: str, text: str, place: Path) -> None:
    place.mkdir()
    (place / name).write_text(text)


def _only(place: Path) -> Path:
    """The one file of a folder."""
    return next((path for path in place.iterdir() if path.is_file()), place / "gone")


def _make_recipe(place: Path) -> None:
    step = tauten.Step(tauten.KQuant(5), "*mlp*, *up*")
    recipe = tauten.Recipe(
        (step, tauten.Step(tauten.GPTQ(4, 32)), tauten.Step(tauten.TuneScales()))
    )
    _make_text("recipe.yaml", recipe.to_yaml(), place)


def _recipe(place: Path) -> Any:
    return read_recipe(_only(place)).to_dict()


def _make_journal(place: Path) -> None:
    place.mkdir()
    journal = Journal(place / "journal.jsonl", RUN)
    for number in range(4):
        part = {"part": f"layers.{number}", "sha256": f"{number:064x}"}
        journal.add("block", trial="a1", **part, specs={"a": {"layer": "Identity"}}, layers=[])
    journal.add("scores", of="a1", total=[1.0, 2.0], weight=[3.0, 4.0])


def _journal(place: Path) -> Any:
    return [json.dumps(entry, sort_keys=True) for entry in Journal(_only(place), RUN).entries]


def seal_journal(file: Path) -> None:
    """Put the digests before the lines of a journal right; what is no line of JSON stays."""
    lines: list[bytes] = []
    for line in file.read_bytes().splitlines(keepends=True) if file.exists() else ():
        try:
            lines.append(line_of(json.loads(line[line.index(b"{") :])))
        except (ValueError, RecursionError):
            lines.append(line)
    if lines:
        file.write_bytes(b"".join(lines))


def _seal(place: Path) -> None:
    seal_journal(_only(place))


def _known(seen: list[Any], expected: list[Any]) -> bool:
    """What a line told that is missing is done again; none tells anything else."""
    return seen[:1] == expected[:1] and set(seen) <= set(expected)


def _begins(seen: list[Any], expected: list[Any]) -> bool:
    """A file that ends at an earlier line is one of a run that hadn't come further."""
    return seen == expected[: len(seen)]


def _make_plan(place: Path) -> None:
    place.mkdir()
    shapes = {"input_ids": {"shape": [8, 64], "dtype": "int64"}}
    options = (
        Option(Layout(2), 0.5, 1000, 0.4, 1e-6),
        Option(Layout(1, 2), 0.7, 500, refusal="no"),
    )
    facts = {"cores": 2, "block_s": 0.25}
    plan = Plan("m", "latency", 8, shapes, Layout(2), (1, 2), None, options, "why", facts)
    plan.save(place / "plan.json")


def _plan(place: Path) -> Any:
    return plain(Plan.read(_only(place)))


def _trained() -> tuple[nn.Linear, torch.optim.Optimizer]:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    return model, torch.optim.AdamW(model.parameters(), 0.1)


def _make_checkpoint(place: Path) -> None:
    place.mkdir()
    model, optimizer = _trained()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state = {"step": 7, "elapsed_s": 1.5, "first_loss": 2.0, "loss": 1.0}
    Checkpoint(place / "checkpoint.safetensors", dict(model.named_parameters()), optimizer).save(
        state, {}
    )


def _checkpoint(place: Path) -> Any:
    model, optimizer = _trained()
    file = place / "checkpoint.safetensors"
    state = Checkpoint(file, dict(model.named_parameters()), optimizer).restore(Position)
    if state is None:  # nothing was saved
        raise CorruptError("gone")
    return plain([state, list(model.parameters()), [*optimizer.state.values()]])


def _make_record(place: Path) -> None:
    record = Record(place, RUN)
    for number in range(4):
        record.add(str(number), {"x": torch.full((2,), number)}, (torch.arange(number + 2), "done"))


def _record(place: Path) -> Any:
    record = Record(place, RUN)
    held = [record.holds(str(n), {"x": torch.full((2,), n)}) for n in range(4)]
    if not all(held):  # the others are computed again
        return []
    return plain([record.read(str(number)) for number in range(4)])


def _hosts(place: Path) -> Any:
    return [vars(host) for host in read_hosts(_only(place))]


def _make_stream(kind: str, place: Path) -> None:
    place.mkdir()
    generator = torch.Generator().manual_seed(0)
    if kind == "floats":
        coded = entropy.encode(torch.randn(6, 20, generator=generator))
    else:
        codes = torch.randint(0, 8, (6, 50), generator=generator, dtype=torch.uint8)
        coded = entropy.encode(bits.pack(codes, 3), (3, 50))
    (place / "stream").write_bytes(coded.numpy().tobytes())


def _stream(place: Path) -> Any:
    content = (place / "stream").read_bytes() if (place / "stream").exists() else b""
    held = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0)
    return plain(entropy.decode(held))


_ROWS = [{"id": i, "text": text} for i, text in enumerate(models.TEXTS)]


def _lines() -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in _ROWS)


def _table() -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ("id", "text"))
    writer.writeheader()
    writer.writerows(_ROWS)
    return out.getvalue().encode()


def _parquet() -> bytes:
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(_ROWS), out)
    return out.getvalue()


TEXTS: dict[str, Callable[[], bytes]] = {
    "a.txt": lambda: "\n\n".join(models.TEXTS).encode(),
    "a.json": lambda: json.dumps(_ROWS).encode(),
    "a.jsonl": _lines,
    "a.csv": _table,
    "a.txt.gz": lambda: gzip.compress("\n\n".join(models.TEXTS).encode(), mtime=0),
    "a.csv.bz2": lambda: bz2.compress(_table()),
    "a.jsonl.xz": lambda: lzma.compress(_lines()),
}
if importlib.util.find_spec("pyarrow"):
    TEXTS["a.parquet"] = _parquet


def _make_texts(name: str, write: Callable[[], bytes], place: Path) -> None:
    place.mkdir()
    (place / name).write_bytes(write())


def _texts(place: Path) -> Any:
    return [(d.name, d.text) for d in read_texts(_only(place)).documents]
