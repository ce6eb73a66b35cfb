"""The techniques that a recipe may name: those that change weights, of both their pillars."""

from tauten import compression, quantization
from tauten.core.technique import Technique

TECHNIQUES: dict[str, type[Technique]] = {**quantization.TECHNIQUES, **compression.TECHNIQUES}
