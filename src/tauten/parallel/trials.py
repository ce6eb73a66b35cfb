"""Try layouts out: are their outputs the model's, and how long does a call take?"""

import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import nn

from tauten.core.rows import count_rows, cut_rows
from tauten.parallel.comparison import difference, tolerance
from tauten.parallel.cost_model import Links, stage_ends
from tauten.parallel.pipeline_parallel import ChainShape
from tauten.parallel.plan import Layout, Option
from tauten.parallel.profile import Profile, fastest_s, with_threads
from tauten.parallel.row_cuts import RowCuts
from tauten.parallel.rows import twice

_CLOSE = 1.15  # times the best: timed once more, as chance may have decided


class Bench(Protocol):
    """Where layouts are tried out.

    Attributes:
        cuts: What is known of cutting the model's calls.
    """

    cuts: RowCuts

    def links(self) -> Links:
        """How fast its workers reach each other."""
        ...

    def load(self, layout: Layout, ends: tuple[int, ...], chain: ChainShape | None) -> None:
        """Take up a layout."""
        ...

    def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute a call by it."""
        ...

    def agree(self, value: Any) -> Any:
        """The first process' value, where several plan side by side."""
        ...


class Trials:
    """Layouts of one model on one bench.

    Args:
        bench: Where they are loaded.
        model: In this process: the single worker.
        inputs: Of the call that is timed.
        profile: Of the model on it.
        outputs: Of the model on it.
    Attributes:
        longest_s: That a trial has taken.
    """

    def __init__(
        self,
        bench: Bench,
        model: nn.Module,
        inputs: tuple[Any, Any],
        profile: Profile,
        outputs: Any,
    ):
        self._bench, self._model, self._inputs, self._profile = bench, model, inputs, profile
        self._expected = [(inputs, outputs), *self._second_shape()]
        self._loaded: Layout | None = None
        self.longest_s = 0.0

    def first(self, option: Option) -> Option:
        """The option, checked at two shapes and timed; or refused, and why."""
        start_s = time.perf_counter()
        try:
            return self._first(option)
        finally:
            self.longest_s = max(self.longest_s, time.perf_counter() - start_s)

    def _first(self, option: Option) -> Option:
        try:
            self.load(option.layout)
            found = [
                difference(self._bench.call("forward", *inputs), outputs)
                for inputs, outputs in self._expected
            ]
        except Exception as error:  # whatever a worker raises where this process did not
            self._loaded = None
            return replace(option, refusal=str(error) or type(error).__name__)
        worst = self._bench.agree(max(found))
        if not worst <= tolerance(self._model):
            return replace(option, difference=worst, refusal=f"outputs differ by {worst:.2g}")
        return replace(option, measured_s=self._time_s(option.layout), difference=worst)

    def again(self, option: Option) -> Option:
        """The option, timed once more; what other work on the machine added falls away."""
        assert option.measured_s is not None, "it was timed before"
        if option.layout.workers > 1 and option.layout != self._loaded:
            self.load(option.layout)
            self._bench.call("forward", *self._inputs)
        return replace(option, measured_s=min(option.measured_s, self._time_s(option.layout)))

    def load(self, layout: Layout) -> None:
        """Have the bench take up a layout, unless it has."""
        if layout != self._loaded:
            ends = stage_ends(self._profile, layout.pipeline)
            self._bench.load(layout, ends, self._profile.chain)
            self._loaded = layout

    def _time_s(self, layout: Layout) -> float:
        args, kwargs = self._inputs
        if layout.workers > 1:
            call = functools.partial(self._bench.call, "forward", args, kwargs)
            seconds = fastest_s(call, self._bench.agree)
        else:
            with torch.inference_mode(), with_threads(layout.threads):
                seconds = fastest_s(lambda: self._model(*args, **kwargs))
        return float(self._bench.agree(seconds))

    def _second_shape(self) -> Sequence[tuple[Any, Any]]:
        """Other inputs, fewer rows or twice as many, and what the model makes of them.

        None where its calls can't be cut by rows, nor doubled.
        """
        rows = count_rows(self._inputs)
        if self._bench.cuts.known(self._inputs):
            few = rows // 2
            inputs = cut_rows(self._inputs, [few, rows - few])[0]
        elif rows == 1:
            inputs = twice(self._inputs)
        else:
            return ()
        try:
            with torch.inference_mode():
                return ((inputs, self._model(*inputs[0], **inputs[1])),)
        except Exception:  # whatever a model raises that takes this shape alone
            return ()


def better_than_predicted(options: Sequence[Option]) -> Option | None:
    """A layout that wasn't timed and may be the best, by how its relatives did; None if none may.

    Those that differ only in micro-batches are relatives: predictions are wrong for them alike.
    """
    timed = [option for option in options if option.measured_s is not None and not option.refusal]
    ratios = {_family(o.layout): (o.measured_s or 0) / o.predicted_s for o in timed}
    corrected = [
        (option.predicted_s * ratios[_family(option.layout)], number, option)
        for number, option in enumerate(options)
        if option.measured_s is None and not option.refusal and _family(option.layout) in ratios
    ]
    best_s = min((option.measured_s or 0 for option in timed), default=0.0)
    found = min(corrected, default=None)
    return found[2] if found is not None and found[0] < best_s else None


def finalists(options: Sequence[Option]) -> list[Option]:
    """Layouts so close to the fastest that another turn may decide, the fastest last."""
    timed = [option for option in options if option.measured_s is not None and not option.refusal]
    timed.sort(key=lambda option: -(option.measured_s or 0))
    return [o for o in timed if (o.measured_s or 0) <= _CLOSE * (timed[-1].measured_s or 0)]


def _family(layout: Layout) -> tuple[int, int, int]:
    return layout.data, layout.tensor, layout.pipeline
