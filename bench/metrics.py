"""Whether certificates hold whatever the metric: 44 metrics and tasks, right and wrong ones.

    python bench/metrics.py --out bench/results/metrics.json

Each case is a small trained model and a sample of its world, and is searched twice: by all
techniques (`optimize`), and by those of `compress` with a goal. The truth is a plain figure of the
result on data 20 times larger that no search saw. At least 95 of 100 certificates must be true, and
metrics that are wrong, blind, at chance or of too few examples must be refused, or certify nothing.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from metric_tasks import (
    World,
    classes,
    cosine,
    detection,
    explained,
    labelled,
    losses,
    numbers,
    one_output,
    pixels,
    ranked,
    tokens,
    unlabelled,
)
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

import tauten

EXAMPLES, TIMES, LIMIT = 600, 20, 0.95
PILLARS: dict[str, tuple[str, ...]] = {
    "optimize": ("quantize", "compress"),
    "compress": ("compress",),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One metric on one world.

    Attributes:
        kind: Right, grouped, per token, wrong, blind, at chance or tiny.
        world: Makes it.
        metric: As `optimize` takes it.
        max_drop: As `Goal` takes it.
        lower: Lower figures are better.
        figure: Of a model on a batch, where it isn't the world's; also changes what is drawn.
        sound: A certificate may be given.
    """

    name: str
    kind: str
    world: Callable[[], World]
    metric: Any = None
    max_drop: float | str = 0.05
    lower: bool = False
    figure: Callable[[nn.Module, Any], Tensor] | None = None
    spoil: Callable[[Any], Any] = lambda batch: batch
    sound: bool = True
    examples: int = EXAMPLES


def right(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]).argmax(1) == batch[1]).double()


def wrong(model: nn.Module, batch: Any) -> Tensor:
    return 1 - right(model, batch)


def entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def squared(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean(1)


def sensible(model: nn.Module, batch: Any) -> Tensor:
    """Right answers where the second best counts half."""
    best = model(batch[0]).topk(2).indices == batch[1][:, None]
    return best[:, 0].double() + best[:, 1] / 2


def word_errors(model: nn.Module, batch: Any) -> Tensor:
    """Wrong words of each sentence over its words, as words stand in fixed places here."""
    real = batch[1] >= 0
    return ((model(batch[0]).argmax(-1) != batch[1]) & real).sum(1) / real.sum(1)


def by_token(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]).argmax(-1) == batch[1]).double()


def by_pixel(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def whole(model: nn.Module, batch: Any) -> Tensor:
    """One number a batch."""
    return right(model, batch).mean()


def noise(model: nn.Module, batch: Any) -> Tensor:
    return torch.rand(len(batch[1]))


def saturated(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]).softmax(1).max(1).values > 0.01).double()


def patients(batch: Any) -> Tensor:
    """Ten examples each; they come in a column of their own."""
    return batch[1][:, 1]


def of_patients(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda model, batch: function(model, (batch[0], batch[1][:, 0]))


def with_patients(batch: Any) -> Any:
    """Examples of a patient are alike: one input, and small changes of it."""
    x, y = batch
    ids = torch.arange(len(x)) // 10
    first = ids * 10
    return x[first] + 0.1 * x, torch.stack([y[first], ids], 1)


def shifted(batch: Any) -> Any:
    return batch[0], (batch[1] + 1) % 4


def shuffled(batch: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    return batch[0], batch[1][torch.randperm(len(batch[1]), generator=generator)]


def repeated(batch: Any) -> Any:
    return tuple(part[:12].repeat(50, *[1] * (part.dim() - 1)) for part in batch)


rise = partial(tauten.Metric, higher_is_better=False)
sigmoid = torch.sigmoid
PER_PATIENT: dict[str, Any] = {"spoil": with_patients, "examples": 3000}
BAD: dict[str, Any] = {"sound": False}
CASES = [
    Case("classes", "right", classes),
    Case("one logit (n, 1)", "right", partial(one_output, lambda y: y, 0.0)),
    Case("one logit (n,)", "right", partial(one_output, lambda y: y[:, 0], 0.0)),
    Case("a probability", "right", partial(one_output, sigmoid, 0.5)),
    Case("five labels", "right", partial(one_output, lambda y: y, 0.0, 5)),
    Case("a number", "right", partial(numbers, 1)),
    Case("three numbers", "right", partial(numbers, 3)),
    Case("embeddings", "right", lambda: unlabelled(numbers(8), cosine)),
    Case("scores, no labels", "right", lambda: unlabelled(numbers(1), explained)),
    Case("labels in a dict", "right", labelled),
    Case("a dict of losses", "right", losses, None, 0.2, True),
    Case("boxes and targets", "right", partial(detection, True)),
    Case("boxes alone", "right", partial(detection, False)),
    Case("grades of candidates", "right", partial(ranked, True)),
    Case("accuracy, 4 points", "right", classes, None, "4 points"),
    Case("a function", "right", classes, right, 0.05, figure=right),
    Case("half points", "right", classes, sensible, 0.05, figure=sensible),
    Case("cross entropy", "right", classes, rise(entropy), 0.2, True, entropy),
    Case("negated loss", "right", classes, lambda m, b: -entropy(m, b), 0.2, True, entropy),
    Case("cross entropy, 0.05", "right", classes, rise(entropy), "0.05 absolute", True, entropy),
    Case("error rate", "right", classes, rise(wrong), 0.3, True, wrong),
    Case("error rate, 3 points", "right", classes, rise(wrong), "3 points", True, wrong),
    Case("squared error", "right", partial(numbers, 3), rise(squared), 0.3, True, squared),
    Case("tokens, -100", "per token", partial(tokens, False)),
    Case("tokens, a mask", "per token", partial(tokens, True)),
    Case("pixels", "per token", pixels),
    Case(
        "word errors",
        "per token",
        partial(tokens, False),
        rise(word_errors),
        0.3,
        True,
        word_errors,
    ),
    Case("numbers of tokens", "per token", partial(tokens, False), by_token, 0.05, figure=by_token),
    Case("losses of pixels", "per token", pixels, rise(by_pixel), 0.2, True, by_pixel),
    Case("a number a batch", "per token", classes, whole, 0.1, figure=right, examples=3000),
    Case(
        *("patients", "grouped", classes, tauten.Metric(of_patients(right), groups=patients), 0.1),
        **PER_PATIENT,
        figure=of_patients(right),
    ),
    Case(
        *("losses of patients", "grouped", classes),
        *(rise(of_patients(entropy), groups=patients), 0.4, True, of_patients(entropy)),
        **PER_PATIENT,
    ),
    Case(
        *("queries and grades", "grouped", partial(ranked, False)),
        tauten.Metric("rank_correlation", groups=lambda batch: batch[0]["query"]),
    ),
    Case(
        *("queries, no grades", "grouped", partial(ranked, False, False)),
        tauten.Metric("rank_correlation", groups=lambda batch: batch["query"]),
    ),
    Case("a loss as a score", "wrong", classes, entropy, **BAD),
    Case("accuracy as a loss", "wrong", classes, rise(right), **BAD),
    Case("labels off by one", "wrong", classes, spoil=shifted, **BAD),
    Case("numbers in one row", "wrong", classes, lambda m, b: m(b[0]).flatten(), **BAD),
    Case("not a number", "wrong", classes, lambda m, b: right(m, b) / 0, **BAD),
    Case("a constant", "blind", classes, lambda m, b: 1.0, **BAD),
    Case("of the data alone", "blind", classes, lambda m, b: b[0].norm(dim=1), **BAD),
    Case("noise", "blind", classes, noise, **BAD),
    Case("saturated", "blind", classes, saturated, **BAD),
    Case("random labels", "at chance", classes, spoil=shuffled, **BAD),
    Case("a loose goal", "at chance", classes, right, 0.9, figure=right, **BAD),
    Case("twelve examples", "tiny", classes, examples=12, **BAD),
    Case("twelve, 50 times", "tiny", classes, spoil=repeated, **BAD),
    Case("three groups", "tiny", classes, tauten.Metric(right, groups=lambda b: b[1] % 3), **BAD),
]


@cache
def world_of(case: Case) -> World:
    return case.world()


def run(case: Case, pillar: str, seed: int) -> Row:
    """One search, and what is true of its result."""
    world, row = world_of(case), {"case": case.name, "kind": case.kind, "pillar": pillar}
    data = case.spoil(world.draw(case.examples, 2 * seed))
    torch.manual_seed(seed)
    goal = tauten.Goal(max_drop=case.max_drop)
    options: dict[str, Any] = {"metric": case.metric, "pillars": PILLARS[pillar], "seed": seed}
    began = time.perf_counter()
    try:
        result = tauten.optimize(world.model, world.batches(data), goal, **options)
    except tauten.TautenError as error:
        return row | {"refused": str(error), "certified": False}
    row["time_s"] = time.perf_counter() - began
    assert result.model is not None and result.test is not None
    sealed = case.spoil(world.draw(TIMES * case.examples, 2 * seed + 1))
    with torch.no_grad():
        before, after = (figure(case, world, m, sealed) for m in (world.model, result.model))
    lost = (after - before) * (1 if case.lower else -1)
    scale = {"": 1 / abs(before), "points": 100.0, "absolute": 1.0}[goal.drop_unit]
    return row | {
        "certified": result.certified,
        "units": result.test.drop.examples,
        "metric": result.test.metric,
        "claimed": result.test.drop.high,
        "lost": lost * scale,
        "holds": lost * scale <= result.test.drop.high,
        "true": lost * scale <= goal.max_drop,
        "reason": result.reason,
    }


def figure(case: Case, world: World, model: nn.Module, batch: Any) -> float:
    """What is true of a model."""
    if case.figure is None:
        return world.figure(model, world.model, batch)
    return float(case.figure(model, batch).double().mean())


def told(cases: list[Case], rows: list[Row]) -> Table:
    table = Table("case", "kind", "runs", "metric", "certified", "true", "refused, or why not")
    for case in cases:
        own = [row for row in rows if row["case"] == case.name]
        certified = [row for row in own if row["certified"]]
        true = sum(row["true"] for row in certified)
        metric = next((row["metric"] for row in own if "metric" in row), "-")
        why = next((r.get("refused") or r["reason"] for r in own if not r["certified"]), "")
        cells = (str(len(own)), metric, str(len(certified)), str(true), why[:60])
        table.add_row(case.name, case.kind, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2, help="data sets for each case")
    parser.add_argument("--only", default="", help="part of the names of cases")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.getLogger("tauten").setLevel(logging.ERROR)
    cases = [case for case in CASES if options.only in case.name]
    plans = [(c, p, s) for c in cases for p in PILLARS for s in range(options.runs)]
    rows = [run(*plan) for plan in track(plans, "searches")]
    Console().print(told(cases, rows))
    sound = {case.name for case in CASES if case.sound}
    certified = [row for row in rows if row["certified"]]
    true = sum(row["true"] for row in certified)
    measured = [row for row in rows if "holds" in row and row["case"] in sound]
    held = sum(row["holds"] for row in measured)
    wrongly = {row["case"] for row in certified if row["case"] not in sound}
    Console().print(
        f"{true} of {len(certified)} certificates are true, {held} of {len(measured)} bounds hold; "
        f"{len(CASES) - len(sound)} wrong metrics, certified by {sorted(wrongly) or 'none'}"
    )
    if options.out:
        setting = {"examples": EXAMPLES, "sealed": f"{TIMES} times", "runs": options.runs}
        options.out.write_text(json.dumps({"setting": setting, "rows": rows}, indent=1) + "\n")
    if true < LIMIT * len(certified) or wrongly:
        raise SystemExit("certificates don't hold")


if __name__ == "__main__":
    main()
