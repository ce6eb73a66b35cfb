"""The same call on a Ray cluster with a token; only where Ray is installed."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")
PORT = 29871


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("ray")
    token = folder / "token"
    token.write_text("0123456789abcdef" * 4)
    token.chmod(0o600)
    paths = [str(Path(__file__).parents[1]), *(p for p in sys.path if p)]
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    command = [sys.executable, "-m", "ray.scripts.scripts"]
    options = ["--node-ip-address=127.0.0.1", f"--port={PORT}", "--num-cpus=2"]
    options += ["--include-dashboard=false", "--disable-usage-stats"]
    subprocess.run([*command, "start", "--head", *options], check=True, capture_output=True)
    yield f"127.0.0.1:{PORT}"
    subprocess.run([*command, "stop", "--force"], check=False, capture_output=True)


def run(cluster: str, code: str, token: Path | None = None) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Ray reads a token once."""
    environment = {**os.environ, "RAY_ADDRESS": cluster}
    if token is not None:
        environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=150, check=False
    )


def test_outputs_are_those_of_the_model(cluster: str) -> None:
    code = """
        import torch
        from tiny_models import tiny_llama
        from tauten.distributed.start import Access, start
        model = tiny_llama()
        batches = [torch.randint(0, 256, (2, 16)) for _ in range(12)]
        with torch.no_grad():
            expected = [model(x, use_cache=False).logits for x in batches]
        with start(model, "auto", 2, Access()) as many:
            outputs = [output.logits for output in many.map(batches)]
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
        print("equal")
    """
    ended = run(cluster, code)
    assert "equal" in ended.stdout, ended.stderr


def test_a_driver_without_the_token_is_refused(cluster: str, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    wrong.write_text("f" * 64)
    code = """
        from tauten.distributed.start import Access, start
        start("any.module:factory", "auto", 1, Access())
    """
    ended = run(cluster, code, wrong)
    assert ended.returncode != 0
    assert "InputError: no Ray cluster answers" in ended.stderr
