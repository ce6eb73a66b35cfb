"""Quantization: fewer bits a weight. One file a technique; this registry has a row for each."""

from tauten.core.technique import Technique
from tauten.quantization.adaround import AdaRound
from tauten.quantization.autoround import AutoRound
from tauten.quantization.awq import AWQ
from tauten.quantization.binary import Binary
from tauten.quantization.codebook import Codebook
from tauten.quantization.gptq import GPTQ
from tauten.quantization.hqq import HQQ
from tauten.quantization.int8 import Int8
from tauten.quantization.kquant import KQuant
from tauten.quantization.rtn import RTN
from tauten.quantization.smoothquant import SmoothQuant
from tauten.quantization.static_int8 import StaticInt8
from tauten.quantization.ternary import Ternary
from tauten.quantization.tune_blocks import TuneBlocks
from tauten.quantization.tune_scales import TuneScales

__all__ = [
    "AWQ",
    "GPTQ",
    "HQQ",
    "RTN",
    "TECHNIQUES",
    "AdaRound",
    "AutoRound",
    "Binary",
    "Codebook",
    "Int8",
    "KQuant",
    "SmoothQuant",
    "StaticInt8",
    "Ternary",
    "TuneBlocks",
    "TuneScales",
]

TECHNIQUES: dict[str, type[Technique]] = {
    technique.name: technique
    for technique in (
        RTN,
        Int8,
        GPTQ,
        AWQ,
        SmoothQuant,
        Binary,
        Ternary,
        HQQ,
        Codebook,
        KQuant,
        StaticInt8,
        AdaRound,
        AutoRound,
        TuneBlocks,
        TuneScales,
    )
}
