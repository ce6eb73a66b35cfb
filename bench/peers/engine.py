"""What takes part in a race: a runtime that holds one model and one sequence."""

import time
from abc import ABC, abstractmethod
from typing import Protocol


class Engine(Protocol):
    """Greedy decoding, timed where it runs, so that talking to a process isn't counted."""

    def prefill(self, ids: list[int]) -> float:
        """Seconds from a prompt to the token after it."""

    def decode(self, ids: list[int], count: int) -> tuple[float, list[int]]:
        """Seconds of `count` tokens after the first one behind a prompt, and all the tokens."""


class Stepwise(ABC):
    """An `Engine` of a runtime that computes when it is asked for the next token."""

    @abstractmethod
    def start(self, ids: list[int]) -> int:
        """Forget the sequence, compute a new one and give its most likely next token."""

    @abstractmethod
    def step(self, token: int) -> int:
        """Append a token and give the most likely next one."""

    def prefill(self, ids: list[int]) -> float:
        begin = time.perf_counter()
        self.start(ids)
        return time.perf_counter() - begin

    def decode(self, ids: list[int], count: int) -> tuple[float, list[int]]:
        tokens = [self.start(ids)]
        begin = time.perf_counter()
        for _ in range(count):
            tokens.append(self.step(tokens[-1]))
        return time.perf_counter() - begin, tokens
