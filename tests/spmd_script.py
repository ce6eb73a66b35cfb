"""Run by torchrun in a test: the calls of one process, made by all of them."""

import torch
import torch.distributed as dist
from parallel_layouts import main, without_cache
from tiny_models import tiny_llama, tiny_mlp

import tauten
from tauten.parallel import profile
from tauten.parallel.plan import Layout, Plan
from tauten.parallel.tensor_parallel import tensor_plan

TOKENS = torch.arange(5 * 12).view(5, 12) * 5 % 256


def inference() -> None:
    model = without_cache(tiny_llama())
    with torch.inference_mode():
        expected = main(model(TOKENS))
        first = main(model(TOKENS[:1]))
    chain = profile.measure(model, ((TOKENS,), {}), tensor_plan(model), [1])[0].chain
    layouts = [(Layout(data=2), ()), (Layout(tensor=2), ()), (Layout(pipeline=2), (1, 3))]
    for layout, ends in layouts:
        plan = Plan("", "throughput", 0, {}, layout, ends, chain)
        parallel = tauten.parallelize(tiny_llama(), plan=plan)
        for x, whole in ((TOKENS, expected), (TOKENS[:1], first)):
            made = main(parallel(x))
            assert torch.allclose(made, whole, atol=1e-5), layout
    profile._REPEAT_S = 1e-9 + 0.3 * dist.get_rank()  # they differ in how often they would time
    planned = tauten.parallelize(tiny_llama(), TOKENS)
    assert torch.allclose(main(planned(TOKENS)), expected, atol=1e-5)
    layouts_found: list[object] = [None, None]
    dist.all_gather_object(layouts_found, planned.plan.layout)
    assert layouts_found[0] == layouts_found[1], "all processes follow one plan"


def training() -> None:
    x = torch.randn(4, 10, generator=torch.manual_seed(0))
    alone = tiny_mlp()
    alone(x).square().mean().backward()
    parallel = tauten.parallelize(tiny_mlp(), train=True)
    parallel(x.chunk(2)[dist.get_rank()]).square().mean().backward()
    for ours, theirs in zip(parallel.parameters(), alone.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


inference()
training()
print("all equal", flush=True)
dist.destroy_process_group()
