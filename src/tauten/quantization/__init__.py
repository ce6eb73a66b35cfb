"""Quantization: fewer bits a weight. One file a technique; this registry has a row for each."""

from tauten.core.technique import Technique
from tauten.quantization.codebook import Codebook
from tauten.quantization.gptq import GPTQ
from tauten.quantization.hqq import HQQ
from tauten.quantization.int8 import Int8
from tauten.quantization.rtn import RTN

__all__ = ["GPTQ", "HQQ", "RTN", "TECHNIQUES", "Codebook", "Int8"]

TECHNIQUES: dict[str, type[Technique]] = {
    technique.name: technique
    for technique in (
        RTN,
        Int8,
        GPTQ,
        HQQ,
        Codebook,
    )
}
