"""OpenVINO GenAI: int4 in groups of 64, the head and embedding too, computing in bfloat16."""

import sys
import time
from pathlib import Path

from . import adapter


def convert(original: Path, out: Path) -> None:
    # optimum-intel pulls in a torchvision that can't be imported beside a torch without CUDA, which
    # transformers would try to.
    sys.modules["torchvision"] = None  # type: ignore[assignment]
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    int4 = OVWeightQuantizationConfig(bits=4, sym=True, group_size=64, ratio=1.0, all_layers=True)
    model = OVModelForCausalLM.from_pretrained(original, export=True, quantization_config=int4)
    model.save_pretrained(out)


class OpenVino:
    """An `Engine` that generates whole sequences; each token's time is read from its records.

    Args:
        folder: The converted model.
        threads: On one stream.
        variant: How it attends: `SDPA` or `PA`.
    """

    def __init__(self, folder: Path, threads: int, variant: str):
        import numpy
        import openvino
        import openvino_genai

        self._native, self._openvino, self._numpy = openvino_genai, openvino, numpy
        settings = {
            "ATTENTION_BACKEND": variant,
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        if variant == "PA":
            scheduler = openvino_genai.SchedulerConfig()
            scheduler.enable_prefix_caching = False  # a prompt seen before would cost nothing
            settings["scheduler_config"] = scheduler
        self._pipeline = openvino_genai.LLMPipeline(str(folder), "CPU", **settings)

    def prefill(self, ids: list[int]) -> float:
        begin = time.perf_counter()
        self.decode(ids, 0)
        return time.perf_counter() - begin

    def decode(self, ids: list[int], count: int) -> tuple[float, list[int]]:
        greedy = self._native.GenerationConfig()
        greedy.max_new_tokens, greedy.ignore_eos = count + 1, True
        prompt = self._openvino.Tensor(self._numpy.array([ids]))
        result = self._pipeline.generate(prompt, greedy)
        times = result.perf_metrics.raw_metrics.m_new_token_times
        return (times[-1] - times[0]) / 1e3, list(result.tokens[0])


if __name__ == "__main__":
    adapter.main(convert, OpenVino)
