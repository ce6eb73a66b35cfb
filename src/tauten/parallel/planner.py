"""Choose a layout: enumerate, predict, time the best few, check outputs, keep what wins."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tauten.core.errors import InputError
from tauten.core.figures import format_bytes, format_seconds
from tauten.core.progress import track
from tauten.core.rows import count_rows, cut_rows
from tauten.core.trees import Watched
from tauten.models.packing import packed_modules
from tauten.parallel.cost_model import Division, Links, call_s, stage_ends
from tauten.parallel.footprint import weight_bytes
from tauten.parallel.plan import Option, Plan, layouts, single_threads
from tauten.parallel.profile import Profile, measure
from tauten.parallel.rows import describe_call
from tauten.parallel.tensor_parallel import TensorPlan, tensor_plan
from tauten.parallel.trials import Bench, Trials, better_than_predicted, finalists

_TIME_S = 25.0  # for a plan, as far as calls that take seconds allow
_TIMED = 3  # layouts, the single worker besides
_HOPELESS = 3.0  # times the best prediction: isn't timed
_LEAST_GAIN = 0.03  # of a call's time, for which more processes are worth having


@dataclass(frozen=True)
class Task:
    """What is to be planned.

    Attributes:
        name: Of the model.
        model: Called in this process, or, where it doesn't fit, streamed from disk.
        fits: Whether one worker can hold it.
        inputs: Positional and keyword arguments of a call.
        workers: Most processes, or exactly so many of torchrun's.
        threads: Of all of them together.
        mode: One of `plan.MODES`.
        goal: One of `plan.GOALS`.
        limit_bytes: Weights that a worker may hold; None for no limit.
    """

    name: str
    model: nn.Module
    fits: bool
    inputs: tuple[Any, Any]
    workers: int
    threads: int
    mode: str
    goal: str
    limit_bytes: int | None


class Planner:
    """Plans one task.

    Args:
        task: What to plan.
        bench: Where layouts are timed.
        exact: Only layouts of exactly `task.workers` besides the single worker.
    """

    def __init__(self, task: Task, bench: Bench, exact: bool = False):
        self._task, self._bench, self._exact = task, bench, exact
        self._inputs, self._cuts = task.inputs, bench.cuts
        self._changed: list[str] = []  # arguments, in place
        self._tensor: TensorPlan = tensor_plan(task.model)
        self._start_s = time.perf_counter()

    def run(self) -> Plan:
        """Make the plan; the bench is left with its layout loaded, unless that is one worker."""
        rows = count_rows(self._inputs)
        if self._task.goal == "latency" and self._is_cuttable():  # it is of a single request
            self._inputs = cut_rows(self._inputs, [1, rows - 1])[0]
        self._rows = count_rows(self._inputs)
        links = self._bench.agree(self._bench.links())  # first: what it starts takes processors
        profile, outputs = self._profile()
        options = self._predicted(profile, links)
        trials = Trials(self._bench, self._task.model, self._inputs, profile, outputs)
        tried = self._tried(options, trials)
        best, reason = self._choose(tried)
        if best.layout.workers > 1:
            trials.load(best.layout)
        ends = stage_ends(profile, best.layout.pipeline)
        ranked = [o for o in sorted(tried, key=self._rank) if o.layout != best.layout]
        plan = Plan(
            model=self._task.name,
            goal=self._task.goal,
            rows=self._rows,
            inputs=describe_call(self._inputs),
            layout=best.layout,
            ends=ends,
            chain=profile.chain if ends else None,
            options=(best, *ranked),
            reason=reason,
            facts=self._facts(),
        )
        agreed: Plan = self._bench.agree(plan)
        return agreed

    def _is_cuttable(self, whole: Any = None) -> bool:
        """Whether the call may be cut by rows, proved at the price of one more.

        Args:
            whole: Its outputs; None where it wasn't computed yet.
        """

        def compute(calls: Any, lend: bool) -> list[Any]:
            return [self._task.model(*args, **kwargs) for args, kwargs in calls]

        if self._cuts.known(self._inputs) is None:
            with torch.inference_mode():
                whole = compute([self._inputs], False)[0] if whole is None else whole
                verdict = self._cuts.verdict(self._inputs, whole, compute)
            self._cuts.settle(self._inputs, self._bench.agree(verdict))
        return bool(self._cuts.known(self._inputs))

    def _facts(self) -> dict[str, Any]:
        return {
            "workers": self._task.workers,
            "threads": self._task.threads,
            "torch": torch.__version__,
            "planning_s": time.perf_counter() - self._start_s,
            "obstacles": list(self._tensor.obstacles) if self._tensor.most_workers == 1 else [],
        }

    def _tried(self, options: Sequence[Option], trials: Trials) -> list[Option]:
        """The options, those timed that may be the best."""
        done = {option.layout: option for option in options}
        for option in track(self._worth_timing(options), "timing layouts", _TIMED):
            if self._has_time(trials):
                done[option.layout] = trials.first(option)
        if self._task.goal == "memory":
            return list(done.values())
        more = better_than_predicted(list(done.values()))
        if more is not None and self._has_time(trials):
            done[more.layout] = trials.first(more)
        close = finalists(list(done.values()))
        one = [o for o in done.values() if o.layout.workers == 1 and o.measured_s is not None]
        # The single worker was timed first, when all was cold.
        for option in [*(o for o in one if o not in close), *close]:
            if self._has_time(trials):
                done[option.layout] = trials.again(option)
        return list(done.values())

    def _has_time(self, trials: Trials) -> bool:
        """Whether another trial is likely to end in time; there is always time for one."""
        spent_s = time.perf_counter() - self._start_s
        within: bool = self._bench.agree(spent_s + trials.longest_s < _TIME_S)
        return within or not trials.longest_s

    def _profile(self) -> tuple[Profile, Any]:
        counts = {max(1, self._task.threads // n) for n in self._sizes()}
        counts |= set(single_threads(self._task.threads))
        task = self._task
        wanted = (self._tensor, sorted(counts), self._is_cuttable)
        watched = Watched(*self._inputs)
        profile, outputs = measure(task.model, self._inputs, *wanted)
        self._changed = watched.changed()
        return self._bench.agree(profile), outputs

    def _sizes(self) -> list[int]:
        """Numbers of workers that are thought of."""
        return [self._task.workers] if self._exact else list(range(2, self._task.workers + 1))

    def _predicted(self, profile: Profile, links: Links) -> list[Option]:
        task = self._task
        blocks = len(profile.chain.blocks) if profile.chain is not None else 0
        most = self._tensor.most_workers
        division = Division(_dealt_out(task.model, self._tensor), most)
        options = []
        for layout in layouts(task.workers, self._rows, blocks, most, task.threads, task.mode):
            if layout.workers > 1 and (layout.workers not in self._sizes() or self._changed):
                continue
            if layout.data > 1 and not self._cuts.known(self._inputs):
                continue
            if layout.microbatches > 1 and not self._cuts.serves_microbatches(self._inputs):
                continue
            ends = stage_ends(profile, layout.pipeline)
            size = weight_bytes(task.model, layout, ends, profile.chain, self._tensor)
            option = Option(layout, call_s(layout, profile, links, division), size)
            if layout.workers == 1 and task.fits:
                option = replace(option, measured_s=option.predicted_s, difference=0.0)
            too_large = task.limit_bytes is not None and size > task.limit_bytes
            if too_large or (layout.workers == 1 and not task.fits):
                room = format_bytes(task.limit_bytes or 0)
                refusal = f"{format_bytes(size)} of weights; a worker has room for {room}"
                option = replace(option, refusal=refusal)
            options.append(option)
        return options

    def _worth_timing(self, options: Sequence[Option]) -> list[Option]:
        split = [o for o in options if o.layout.workers > 1 and not o.refusal]
        if not split and any(o.refusal for o in options if o.layout.workers == 1):
            raise self._impossible(options)
        split.sort(key=self._rank)
        if self._task.goal == "memory":
            return split[:_TIMED]
        best = min((o.predicted_s for o in options if not o.refusal), default=0.0)
        return [o for o in split if o.predicted_s <= _HOPELESS * best][:_TIMED]

    def _choose(self, options: Sequence[Option]) -> tuple[Option, str]:
        able = [o for o in options if o.measured_s is not None and not o.refusal]
        if not able:
            raise self._impossible(options)
        best = min(able, key=self._rank)
        single = [option for option in able if option.layout.workers == 1]
        one = min(single, key=self._rank, default=None)
        if one is None:
            return best, f"one worker can't hold it; {best.layout} takes {_took(best)} a call"
        if self._task.goal == "memory":
            beside = f"{format_bytes(best.memory_bytes)} of weights in the fullest worker"
            return best, f"{beside}, of {format_bytes(one.memory_bytes)} in one"
        assert best.measured_s is not None and one.measured_s is not None, "they are able"
        if best.layout.workers > 1 and best.measured_s < (1 - _LEAST_GAIN) * one.measured_s:
            gain = one.measured_s / best.measured_s
            times = f"{_took(best)} a call, {_took(one)} on one worker"
            return best, f"{times}: {gain:.2f} times as fast"
        others = [option for option in able if option.layout.workers > 1]
        if not others:
            why = self._cuts.refusal or "no split was predicted to come near"
            if self._changed:
                why = f"calls change {', '.join(self._changed)} in place, and workers have copies"
            return one, f"{_took(one)} a call; {why}"
        rival = min(others, key=self._rank)
        return one, (
            f"splitting doesn't pay: {_took(one)} a call on {one.layout}, "
            f"{_took(rival)} with {rival.layout}"
        )

    def _rank(self, option: Option) -> tuple[Any, ...]:
        known_s = option.predicted_s if option.measured_s is None else option.measured_s
        late = bool(option.refusal), option.measured_s is None
        if self._task.goal == "memory":
            return (late[0], option.memory_bytes, late[1], known_s)
        return (*late, known_s)

    def _impossible(self, options: Sequence[Option]) -> InputError:
        why = "; ".join(f"{o.layout}: {o.refusal}" for o in options if o.refusal)
        return InputError(
            f"{self._task.name}: no layout of up to {self._task.workers} workers serves ({why}); "
            "use more workers, or compress the model first"
        )


def _dealt_out(model: nn.Module, plan: TensorPlan) -> float:
    """Share of the multiplications that tensor parallel deals out."""
    cut = {cut.layer for cut in plan.cuts}
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or name in cut:
            sizes[name] = module.weight.numel()
    for name, packed in packed_modules(model):
        sizes[name] = packed.packed.out_features * packed.packed.in_features
    total = sum(sizes.values())
    return sum(size for name, size in sizes.items() if name in cut) / total if total else 0.0


def _took(option: Option) -> str:
    return format_seconds(option.measured_s or 0.0)
