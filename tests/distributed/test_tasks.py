"""The task table and the sizes of shards, without any process."""

import itertools
import random
from pathlib import Path

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutput

from tauten.core.errors import BusyError, CorruptError, InputError, WorkerError
from tauten.distributed.cluster import Cluster
from tauten.distributed.crew import Crew
from tauten.distributed.engine import Answered, Event, Failed, Joined, Lost
from tauten.distributed.job import Job
from tauten.distributed.partition import Pace, shard_size
from tauten.distributed.record import Record
from tauten.distributed.task_table import TaskTable, numbered
from tauten.distributed.wire import decode, encode


def table(count: int, record: Record | None = None, window: int = 100) -> TaskTable:
    return TaskTable(numbered(range(count)), record, window)


@pytest.mark.parametrize("seed", range(5))
def test_every_task_counts_once_and_in_order_whoever_is_lost(seed: int) -> None:
    """Random workers take, finish, duplicate and die; results are those of a plain loop."""
    chance = random.Random(seed)
    tasks, given = table(40), []
    held: dict[str, list[str]] = {name: [] for name in "abc"}
    for step in itertools.count():
        if tasks.is_finished:
            break
        worker = chance.choice("abc")
        held[worker] += [t.id for t in tasks.take(worker, chance.randint(1, 4), float(step))]
        if chance.random() < 0.1:
            tasks.release(worker, None, "")
            held[worker] = []
        elif held[worker]:
            id = held[worker].pop(0)
            tasks.finish(id, worker, int(id) ** 2, float(step))
        given += tasks.give_back()
    assert given == [number**2 for number in range(40)]


def test_the_first_result_wins() -> None:
    tasks = table(2)
    tasks.take("a", 1, 0.0)
    assert tasks.finish("0", "a", "quick", 1.0)
    tasks.take("a", 1, 1.0)
    assert not tasks.take("b", 1, 3.0)  # three times the usual time haven't passed
    assert [task.id for task in tasks.take("b", 1, 4.5)] == ["1"]
    assert tasks.finish("1", "b", "first", 5.0)
    assert not tasks.finish("1", "a", "second", 6.0)
    assert list(tasks.give_back()) == ["quick", "first"]


def test_a_task_that_ends_its_workers_is_given_up_and_named() -> None:
    tasks = table(1)
    for worker in "ab":
        tasks.take(worker, 1, 0.0)
        tasks.release(worker, "0", "killed")
    tasks.take("c", 1, 0.0)
    with pytest.raises(WorkerError, match="task 0 ended its worker 3 times; killed"):
        tasks.release("c", "0", "killed")


def test_results_wait_in_a_window_of_bounded_size() -> None:
    drawn = []
    tasks = TaskTable(numbered(drawn.append(i) or i for i in range(100)), None, window=5)
    tasks.take("slow", 1, 0.0)
    for step in range(50):
        for task in tasks.take("fast", 1, float(step)):
            if task.id != "0":
                tasks.finish(task.id, "fast", None, float(step))
    assert len(drawn) == 5


def test_recorded_tasks_are_not_done_again(tmp_path: Path) -> None:
    record = Record(tmp_path, {"model": "m"})
    record.add("1", 1, {"x": torch.arange(3)})
    record.add("2", 2, "lost")
    (tmp_path / "results" / "2.bin").write_bytes(b"damaged")
    tasks = table(3, Record(tmp_path, {"model": "m"}))
    assert [task.id for task in tasks.take("a", 9, 0.0)] == ["0", "2"]
    for id in "02":
        tasks.finish(id, "a", id, 0.0)
    zero, one, two = tasks.give_back()
    assert (zero, one["x"].tolist(), two) == ("0", [0, 1, 2], "2")
    with pytest.raises(BusyError, match="another model"):
        Record(tmp_path, {"model": "other"})


def test_a_result_is_never_that_of_another_input(tmp_path: Path) -> None:
    record = Record(tmp_path, {"model": "m"})
    record.add("0", {"x": torch.ones(2)}, "kept")
    again = Record(tmp_path, {"model": "m"})
    assert again.holds("0", {"x": torch.ones(2)}) and not again.holds("1", {"x": torch.ones(2)})
    for other in ({"x": torch.zeros(2)}, {"y": torch.ones(2)}, {"x": torch.ones(2).half()}):
        with pytest.raises(InputError, match="other inputs, from number 1 on"):
            again.holds("0", other)


def test_shards_follow_speed_and_end_together() -> None:
    """Simulated: one worker four times as fast as the other."""
    paces, clock = {"fast": Pace(), "slow": Pace()}, {"fast": 0.0, "slow": 0.0}
    speed, remaining, sizes = {"fast": 0.01, "slow": 0.04}, 400, []
    while remaining:
        worker = min(clock, key=clock.__getitem__)
        size = min(remaining, shard_size(paces[worker], list(paces.values()), remaining))
        remaining -= size
        sizes.append(size)
        clock[worker] += size * speed[worker]
        paces[worker].add(speed[worker])
    assert sizes[:2] == [1, 1]
    assert max(sizes) > 30 > 2 >= sizes[-1]
    assert max(clock.values()) < 1.03 * (400 / (1 / 0.01 + 1 / 0.04))


class Instant:
    """An engine whose workers answer each task when they are waited for."""

    is_hopeless = False

    def __init__(self, workers: list[str]):
        self._names, self.given = workers, dict.fromkeys(workers, 0)
        self.size = len(workers)
        self._events: list[Event] = []

    def load(self, job: Job) -> None:
        self._events = [Joined(name) for name in self._names]

    def submit(self, worker: str, id: str, payload: object) -> None:
        self.given[worker] += 1
        self._events.append(Answered(worker, id, payload))

    def wait(self, timeout_s: float) -> list[Event]:
        events, self._events = self._events, []
        return events


@pytest.mark.parametrize("tasks", [3, 6])
def test_few_tasks_are_spread_over_all_workers(tasks: int) -> None:
    """Also when speeds are known: nobody takes tasks ahead that another could start on now."""
    engine = Instant(["a", "b", "c"])
    cluster, job = Cluster(engine), Job("any:thing")  # type: ignore[arg-type]
    cluster.load(job, 3)
    for _ in range(2):
        engine.given = dict.fromkeys("abc", 0)
        assert list(cluster.run(job, range(tasks), tasks)) == list(range(tasks))
        assert set(engine.given.values()) == {tasks // 3}


class Scripted(Instant):
    """An engine in which what was written happens."""

    script: list[list[Event]]

    def wait(self, timeout_s: float) -> list[Event]:
        events, self._events = self._events, []
        if events and isinstance(events[0], Joined):
            return events
        assert self.script, "waits for what never happens"
        return self.script.pop(0)


def test_a_worker_whose_tasks_failed_is_given_others() -> None:
    engine = Scripted(["a"])
    engine.script = [[Failed("a", f"{run}/0", ValueError("bad"), "")] for run in range(3)]
    engine.script.append([Answered("a", "3/0", "good")])
    cluster, job = Cluster(engine), Job("any:thing")  # type: ignore[arg-type]
    for _ in range(3):
        with pytest.raises(ValueError, match="bad"):
            list(cluster.run(job, ["payload"], 1))
    assert list(cluster.run(job, ["payload"], 1)) == ["good"]


def test_a_run_ends_though_its_last_worker_is_lost_with_its_last_answers() -> None:
    """Nobody was there to ask for another task and find that there is none."""
    engine = Scripted(["a"])
    answers: list[Event] = [Answered("a", "0/0", 0), Answered("a", "0/1", 1)]
    engine.script = [[*answers, Lost("a", "killed")], [Joined("a")]]
    cluster, job = Cluster(engine), Job("any:thing")  # type: ignore[arg-type]
    assert list(cluster.run(job, range(2), 2)) == [0, 1]


def test_a_loss_is_known_beside_the_failure_that_comes_of_it() -> None:
    """Both are heard of at once where the machine is busy."""
    engine = Scripted(["a", "b"])
    crew = Crew(engine, Job("any:thing"), 2)  # type: ignore[arg-type]
    reset = Failed("b", "", RuntimeError("connection reset by peer"), "")
    engine.script = [[reset, Lost("a", "killed")]]
    with pytest.raises(RuntimeError, match="reset by peer"):
        crew.ask(["message", "message"])
    assert crew.has_lost(0)
    crew.close()


def test_trees_travel_as_they_are() -> None:
    rows = torch.arange(6.0).view(2, 3)
    tree = {"a": [rows, rows[0], rows.t()], "b": (None, True, 2, 0.1, "x"), "c": {"d": rows.half()}}
    again = decode(encode(tree))
    assert again["b"] == tree["b"]
    for one, other in zip(again["a"], tree["a"], strict=True):
        assert torch.equal(one, other)
    assert again["c"]["d"].dtype == torch.float16


def test_what_cannot_travel_is_refused() -> None:
    with pytest.raises(InputError, match="a function can't travel"):
        encode({"f": test_trees_travel_as_they_are})
    for damaged in (b"", b"\x05", encode([torch.ones(3)])[:-4]):
        with pytest.raises(CorruptError, match="damaged"):
            decode(damaged)
    with pytest.raises(CorruptError, match="no output of transformers"):
        decode(encode(CausalLMOutput()).replace(b"CausalLMOutput", b"CausalLMOutpux"))
