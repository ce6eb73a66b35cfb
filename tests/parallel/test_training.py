"""Training by several workers: the losses and weights of one process, within rounding."""

import os
import signal
from typing import Any

import pytest
import torch
from tiny_models import tiny_llama, tiny_mlp
from torch import nn

import tauten
from tauten.core.errors import InputError, WorkerError

TOKENS = torch.randint(256, (5, 12), generator=torch.manual_seed(0))
STEPS = 4


def losses_of(model: nn.Module, optimizer: Any, steps: int = STEPS) -> list[float]:
    """An ordinary loop over batches of 5 down to 1 rows."""
    found = []
    for step in range(steps):
        batch = TOKENS[: 5 - step % 5]
        optimizer.zero_grad()
        logits = model(batch).logits
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("goal", ["throughput", "memory"])
def test_losses_and_weights_are_those_of_one_process(goal: str) -> None:
    model = tiny_llama().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    alone = tiny_llama().train()
    expected = losses_of(alone, torch.optim.AdamW(alone.parameters(), lr=1e-2), 5)
    with tauten.parallelize(model, workers=2, train=True, goal=goal) as parallel:
        assert ("FSDP2" if goal == "memory" else "DDP") in parallel.plan.reason
        optimizer = parallel.optimizer(torch.optim.AdamW, lr=1e-2)
        assert losses_of(parallel, optimizer, 5) == pytest.approx(expected, rel=1e-4)
        trained = parallel.state_dict()
    assert trained.keys() == before.keys()
    for name, tensor in alone.state_dict().items():
        assert torch.equal(model.state_dict()[name], before[name]), "the user's model stays"
        assert torch.allclose(trained[name], tensor, rtol=1e-2, atol=1e-4), name
    model.load_state_dict(trained)


def test_schedules_norms_and_evaluation() -> None:
    x, y = torch.randn(6, 10), torch.randn(6, 10)
    alone = tiny_mlp().train()
    own = torch.optim.SGD(alone.parameters(), lr=0.1)
    with tauten.parallelize(tiny_mlp().train(), workers=2, train=True) as parallel:
        optimizer = parallel.optimizer(torch.optim.SGD, lr=0.1)
        schedules = [torch.optim.lr_scheduler.StepLR(o, 1, 0.5) for o in (own, optimizer)]
        for _ in range(3):
            for module, stepper in ((alone, own), (parallel, optimizer)):
                stepper.zero_grad()
                (module(x) - y).square().mean().backward()
                if module is alone:
                    nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
                    own.step()
                else:
                    optimizer.step(max_norm=0.1)
            for schedule in schedules:
                schedule.step()
        assert torch.allclose(parallel.eval()(x), alone.eval()(x), atol=1e-6)
        assert not parallel(x).requires_grad
        parallel.train()
        first, _ = parallel(x), parallel(x)
        with pytest.raises(InputError, match="before the next forward"):
            first.sum().backward()


def test_a_worker_that_ends_is_an_error_with_the_remedy() -> None:
    with tauten.parallelize(tiny_mlp(), workers=2, train=True) as parallel:
        os.kill(parallel.worker_pids[1], signal.SIGKILL)
        with pytest.raises(WorkerError, match="start again from a checkpoint"):
            parallel(torch.randn(4, 10))


def test_what_cannot_be_trained_is_refused() -> None:
    for model, options, message in (
        (tauten.quantize(tiny_mlp()), {}, "pass the original"),
        (tiny_mlp(), {"mode": "task"}, "leave out the others"),
        ("some/folder", {}, "takes a module"),
    ):
        with pytest.raises(InputError, match=message):
            tauten.parallelize(model, train=True, **options)
