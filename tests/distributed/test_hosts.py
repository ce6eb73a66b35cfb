"""Workers that call over sockets: hosts files, tokens, kills."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from losses import losses
from tiny_models import tiny_llama
from torch import nn
from waiting import until

from tauten.core.errors import InputError, TautenError, WorkerError
from tauten.distributed import host_worker
from tauten.distributed.blueprint import blueprint
from tauten.distributed.channel import Channel
from tauten.distributed.cluster import Cluster
from tauten.distributed.host_engine import HostEngine
from tauten.distributed.hosts import Host, address_of, read_hosts
from tauten.distributed.job import Job
from tauten.distributed.remote_pool import RemotePool
from tauten.distributed.start import Access, start
from tauten.distributed.token import RefusedError, read_token
from tauten.distributed.wire import encode
from tauten.parallel.benches import PoolBench
from tauten.parallel.pipeline_parallel import ChainShape
from tauten.parallel.plan import Layout
from tauten.parallel.row_cuts import RowCuts

TOKEN = b"0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module", autouse=True)
def same_imports() -> Iterator[None]:
    """Workers import what this process can."""
    paths = [str(Path(__file__).parents[1]), *(p for p in sys.path if p)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        yield


@pytest.fixture
def access(tmp_path: Path) -> Access:
    file = tmp_path / "token"
    file.write_bytes(TOKEN)
    file.chmod(0o600)
    return Access(token=str(file))


@pytest.fixture
def idle() -> Iterator[HostEngine]:
    """Listens; starts no worker."""
    engine = HostEngine([], TOKEN)
    yield engine
    engine.close()


def test_the_same_call_over_sockets_survives_a_killed_worker(
    tmp_path: Path, access: Access
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# two workers\nlocalhost slots=2\n")
    model = tiny_llama()
    batches = [torch.randint(0, 256, (2, 16)) for _ in range(30)]
    with torch.no_grad():
        expected = [model(x, use_cache=False).logits for x in batches]
    outputs = []
    with start(model, str(hosts), None, access) as many:
        many.wait_for(2)
        for number, output in enumerate(many.map(batches)):
            outputs.append(output.logits)
            if number == 3:
                os.kill(many.cluster.pids[0], signal.SIGKILL)
        with pytest.raises(IndexError, match="out of range"):
            many(torch.full((2, 3), 999))
        assert losses(many, batches[0]) == 1
        pids = many.cluster.pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


def test_a_worker_without_the_token_gets_no_job(
    idle: HostEngine, caplog: pytest.LogCaptureFixture
) -> None:
    idle.load(Job("tauten.distributed.inference:Inference", {"model": {"files": {}}}))
    with caplog.at_level(logging.WARNING), pytest.raises(RefusedError):
        host_worker.serve(idle.address, idle.port, "stranger", b"another token, as long as that")
    until(lambda: "refused a worker at 127.0.0.1" in caplog.text)
    assert not idle.wait(0.0)


def test_a_driver_without_the_token_gets_no_work_done() -> None:
    """A worker that was told a wrong address sends whoever answers there nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        impostor = Connection(theirs.detach())
        impostor.send_bytes(b"n" * 32)
        impostor.send_bytes(b"p" * 32)
        with pytest.raises(RefusedError, match="has another token"):
            Channel(client, TOKEN, is_driver=False)
        impostor.close()


def test_an_own_proof_sent_back_is_no_proof() -> None:
    """Who reflects what it is sent knows nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
        with Connection(theirs.detach()) as mirror, ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: [mirror.send_bytes(mirror.recv_bytes()) for _ in range(2)])
            with pytest.raises(RefusedError, match="has another token"):
                Channel(client, TOKEN, is_driver=True)


def pair() -> tuple[Channel, Channel]:
    """Both ends of a connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with ThreadPoolExecutor() as pool:
        driver = pool.submit(Channel, accepted, TOKEN, True)
        worker = pool.submit(Channel, client, TOKEN, False)
        return driver.result(), worker.result()


@pytest.mark.parametrize("wrong", ["changed", "repeated", "reflected", "unsigned"])
def test_messages_that_are_not_the_other_sides_end_the_connection(wrong: str) -> None:
    driver, worker = pair()
    driver.send("task", torch.arange(3))
    assert torch.equal(worker.receive()[1], torch.arange(3))
    worker.send("answer")
    whole = driver.connection.recv_bytes()
    forged = {
        "changed": whole[:-1] + bytes([whole[-1] ^ 1]),
        "repeated": None,
        "reflected": whole,
        "unsigned": encode(("task", 1)),
    }[wrong]
    if wrong == "repeated":
        driver.send("task", 1)
        repeated = worker.connection.recv_bytes()
        driver.connection.send_bytes(repeated)
        driver.connection.send_bytes(repeated)
        assert worker.receive() == ("task", 1)
    else:
        assert forged is not None
        driver.connection.send_bytes(forged)
    with pytest.raises(ConnectionError, match="isn't from the other side"):
        worker.receive()
    driver.close()
    worker.close()


def test_a_caller_that_talks_nonsense_harms_nobody(idle: HostEngine) -> None:
    for said in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, encode({"x": 1})):
        with socket.create_connection((idle.address, idle.port)) as caller:
            caller.sendall(said)
    assert not idle.wait(0.1)
    channel = Channel(socket.create_connection((idle.address, idle.port)), TOKEN, False)
    channel.send("hello", "late")
    idle.load(Job("tauten.distributed.inference:Inference", {}))

    def is_answered() -> bool:
        idle.wait(0.1)
        return channel.connection.poll()

    until(is_answered)
    assert channel.receive()[0] == "load"
    channel.close()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a\nb slots=x\n", r":2: 'slots=x' after the host: expected slots=N"),
        ("a slots=2\n\n# c\na\n", r":4: a stands there twice"),
        ("-oProxyCommand=sh\n", r":1: '-oProxyCommand=sh' is no host's name"),
        ("a slots=0\n", r":1: 'slots=0'"),
        (f"a slots={'9' * 5000}\n", r":1: 'slots=9+' after the host: expected slots=N, up to 9999"),
        ("# nothing\n", "no host in it"),
    ],
)
def test_a_wrong_hosts_file_is_refused_with_its_line(
    tmp_path: Path, text: str, problem: str
) -> None:
    file = tmp_path / "hosts"
    file.write_text(text)
    with pytest.raises(InputError, match=problem):
        read_hosts(file)


def test_a_hosts_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("10.0.0.1 slots=4  # large\n\nuser@node-2\n")
    assert read_hosts(file) == [Host("10.0.0.1", 4), Host("user@node-2", 1)]


def test_other_machines_need_an_interface(tmp_path: Path, access: Access) -> None:
    file = tmp_path / "hosts"
    file.write_text("node1\n")
    with pytest.raises(InputError, match="can't reach loopback: pass interface="):
        start("any.module:factory", str(file), None, access)
    with pytest.raises(InputError, match="no such interface with an address"):
        address_of("none0")
    assert address_of("lo") == "127.0.0.1"


def test_workers_that_never_start_end_in_an_error_with_their_log(
    tmp_path: Path, access: Access
) -> None:
    file = tmp_path / "hosts"
    file.write_text("node1\n")
    shell = "sh -c 'echo {host}: no route >&2; exit 255' --"
    wrong = Access("127.0.0.2", access.token, shell)
    with pytest.raises(InputError, match="can't reach loopback"):
        start("any.module:factory", str(file), None, wrong)
    engine = HostEngine([Host("localhost")], TOKEN, python="false")
    try:
        with pytest.raises(WorkerError, match="ended with code 1"):
            list(Cluster(engine).run(Job("tauten.distributed.inference:Inference"), [None]))
    finally:
        engine.close()


def test_a_module_of_ones_own_needs_a_factory(tmp_path: Path, access: Access) -> None:
    file = tmp_path / "hosts"
    file.write_text("localhost\n")
    with pytest.raises(InputError, match=r"pass a model folder, or package\.module:factory"):
        start(nn.Linear(2, 2), str(file), None, access)


def test_a_token_that_others_may_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(TOKEN)
    file.chmod(0o644)
    with pytest.raises(InputError, match="run chmod 600"):
        read_token(file)
    file.chmod(0o600)
    assert read_token(file) == TOKEN
    file.write_text("short")
    with pytest.raises(InputError, match="shorter than 16"):
        read_token(file)


def test_a_token_is_made_for_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TAUTEN_TOKEN_PATH", raising=False)
    token = read_token()
    assert token == read_token()
    assert (tmp_path / ".config/tauten/token").stat().st_mode & 0o777 == 0o600


def test_ray_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'tauten\[ray\]'"):
        start("any.module:factory", "ray://10.0.0.1:10001", None, Access())


def test_a_worker_says_that_it_cannot_reach_its_driver() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TautenError, match=rf"can't reach the driver at 127\.0\.0\.1:{port}"):
        host_worker.serve("127.0.0.1", port, "lonely", TOKEN)


LAYOUTS = ((Layout(data=2), ()), (Layout(tensor=2), ()), (Layout(pipeline=2), (1, 3)))
CHAIN = ChainShape(
    tuple(f"model.layers.{i}" for i in range(3)),
    False,
    (("model.embed_tokens", 64),),
    ("model.norm", "lm_head"),
)


@pytest.fixture(scope="module")
def bench(same_imports: None) -> Iterator[PoolBench]:
    """Two workers that parts of a model are loaded on; one that was killed is started again."""
    engine = HostEngine([Host("localhost", 2)], TOKEN)
    pool = RemotePool(engine, blueprint(tiny_llama(), False))
    bench = PoolBench(pool, RowCuts("model", 1e-3))  # type: ignore[arg-type]
    yield bench
    bench.close()


def test_a_model_is_laid_out_over_machines(bench: PoolBench) -> None:
    """Both ways of cutting a model, each beside the model itself."""
    model, x = tiny_llama(), torch.randint(0, 256, (4, 16))
    with torch.no_grad():
        expected = model(x, use_cache=False).logits
    for layout, ends in LAYOUTS:
        bench.load(layout, ends, CHAIN if ends else None)
        made = bench.call("forward", (), {"input_ids": x, "use_cache": False}).logits
        assert torch.allclose(made, expected, atol=1e-5), layout
    links = bench.links()
    assert 0 < links.reduce.latency_s < 60  # seconds, however busy the machine is


@pytest.mark.parametrize(("layout", "ends"), LAYOUTS, ids=str)
def test_a_call_that_loses_a_worker_is_made_again(
    layout: Layout, ends: tuple[int, ...], bench: PoolBench
) -> None:
    model, x = tiny_llama(), torch.randint(0, 256, (4, 16))
    with torch.no_grad():
        expected = model(x, use_cache=False).logits
    call = {"input_ids": x, "use_cache": False}
    bench.load(layout, ends, CHAIN if ends else None)
    bench.call("forward", (), call)
    for lost in bench.pool.pids:  # the first of a group, and the last
        os.kill(lost, signal.SIGKILL)
        made = bench.call("forward", (), call).logits
        assert torch.allclose(made, expected, atol=1e-5)


def test_errors_of_the_model_are_no_losses(bench: PoolBench) -> None:
    bench.load(Layout(data=2), (), None)
    pids = bench.pool.pids
    with pytest.raises((IndexError, RuntimeError), match="index out of range"):
        bench.call("forward", (), {"input_ids": torch.full((2, 4), 999)})
    assert bench.pool.pids == pids


def test_a_layout_that_too_few_workers_are_left_for_says_so(
    access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = HostEngine([Host("localhost", 2)], TOKEN)
    bench = PoolBench(RemotePool(engine, blueprint(tiny_llama(), False)), RowCuts("llama", 1e-3))  # type: ignore[arg-type]
    call = {"input_ids": torch.zeros(2, 4, dtype=torch.long), "use_cache": False}
    try:
        bench.load(Layout(tensor=2), (), None)
        monkeypatch.setattr("tauten.distributed.host_engine._STARTS", 1)  # it isn't started again
        os.kill(engine.pids[1], signal.SIGKILL)
        with pytest.raises(WorkerError, match="takes 2 workers, and 1 are left"):
            bench.call("forward", (), call)
    finally:
        bench.close()
