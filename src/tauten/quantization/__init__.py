"""Quantization: fewer bits a weight. One file a technique; this registry has a row for each."""

from tauten.core.technique import Technique
from tauten.quantization.adaround import AdaRound
from tauten.quantization.gptq import GPTQ
from tauten.quantization.int8 import Int8
from tauten.quantization.rtn import RTN
from tauten.quantization.static_int8 import StaticInt8
from tauten.quantization.tune_scales import TuneScales

__all__ = ["GPTQ", "RTN", "TECHNIQUES", "AdaRound", "Int8", "StaticInt8", "TuneScales"]

TECHNIQUES: dict[str, type[Technique]] = {
    technique.name: technique
    for technique in (
        RTN,
        Int8,
        GPTQ,
        StaticInt8,
        AdaRound,
        TuneScales,
    )
}
