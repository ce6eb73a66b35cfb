"""Calibration whose data lies on several workers: their sums join to the bits of one machine."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tauten.core.dtypes import dtype_name
from tauten.core.errors import InputError
from tauten.distributed.crew import Crew, dealt_out
from tauten.distributed.engine import Engine
from tauten.distributed.job import Job
from tauten.models import packing
from tauten.models.batch import CalibrationBatch, first_tokens
from tauten.models.calibration import Calibration, Filled
from tauten.models.chain import BlockChain
from tauten.models.input_sums import SHARDS, ShardSums, shard_of
from tauten.models.loader import tensor_slots


class DistributedCalibration(Calibration):
    """The batches of one walk, dealt out to workers in shards that don't depend on how many.

    Args:
        engine: The workers; closed by the caller.
        model: As workers open it.
        batches: At least one.
        correct, counted: As for `Calibration`.
    Attributes:
        crew: The workers.
    """

    def __init__(
        self,
        engine: Engine,
        model: Any,
        batches: Sequence[CalibrationBatch],
        correct: bool = False,
        counted: bool = False,
    ):
        super().__init__(batches, correct, counted=counted)
        shards = min(SHARDS, len(batches))
        self._parts = list(dealt_out(shards, min(shards, engine.size)))
        settings = {"model": model, "correct": correct, "counted": counted}
        settings["dtype"] = dtype_name(self.dtype)
        job = Job("tauten.distributed.calibration_shard:CalibrationShards", settings)
        self._is_remembered = False  # the workers have the block as it was
        self.crew = Crew(engine, job, len(self._parts))

    def start(
        self, model: nn.Module, blocks: Sequence[str], filled: Filled, names: Sequence[str]
    ) -> None:
        """As `Calibration.start`, on all workers."""
        self._model, self._filled = model, filled
        self._chain = BlockChain(model, blocks)
        if blocks:
            with filled(["", blocks[0]]), torch.no_grad():
                first = first_tokens(self.batches[0])
                self._probe = self._chain.trace(first)
        found = self.crew.ask([self._first_message(shards, names) for shards in self._parts])
        if any(sums is not None for sums in found):
            self.whole = ShardSums.of_trees(found)
            return
        assert self._probe is not None, "all batches go through a chain of blocks"
        self._blocks = list(blocks)
        self.calls = {block: [call] for block, call in self._probe[0].items()}

    def gather(self, part: str, names: Sequence[str]) -> ShardSums:
        """As `Calibration.gather`, of all workers' batches."""
        if not names and not self._carries_originals:
            return ShardSums()
        return self._joined("gather", part=part, names=list(names))

    def gather_starved(self, part: str, tokens: Mapping[str, int]) -> ShardSums:
        """As `Calibration.gather_starved`, of all workers' batches."""
        return self._joined("gather_starved", part=part, tokens=dict(tokens))

    def remember(self, part: str) -> None:
        """As `Calibration.remember`."""
        if part in self._blocks:
            self._ask("remember", part=part)
            self._is_remembered = True

    def advance(self, part: str) -> None:
        """Send a block as it is now to the workers, who bring their states through it."""
        if part not in self._blocks:
            return
        if self._is_remembered:
            self._is_remembered = False
            self._ask("step", part=part)
            return
        specs, tensors = self._block_now(part)
        self._ask("advance", part=part, specs=specs, tensors=tensors)

    def _first_message(self, shards: range, names: Sequence[str]) -> Any:
        total = len(self.batches)
        own = [number for number in range(total) if shard_of(number, total) in shards]
        batches = [vars(self.batches[number]) for number in own]
        return "start", {"batches": batches, "names": list(names), "place": (own[0], total)}

    def _joined(self, verb: str, **arguments: Any) -> ShardSums:
        return ShardSums.of_trees(self._ask(verb, **arguments))

    def _ask(self, verb: str, **arguments: Any) -> list[Any]:
        return self.crew.ask([(verb, arguments)] * len(self._parts))

    def _block_now(self, part: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Descriptions of a block's packed layers, and all its tensors, by names in the model."""
        block = self._model.get_submodule(part)
        named = {f"{part}.{name}": layer for name, layer in packing.packed_modules(block)}
        owners: dict[int, str] = {}
        specs = {}
        for name, layer in named.items():
            owner = owners.setdefault(id(layer.packed), name)
            specs[name] = packing.module_spec(layer, None if owner == name else owner)
        with self._filled([part]):
            slots = tensor_slots(block)
            tensors = {f"{part}.{slot.names[0]}": slot.empty.detach() for slot in slots}
        return specs, tensors


def check_distributable(recipe: Any, model: nn.Module) -> None:
    """Refuse recipes whose calibration can't be dealt out.

    Raises:
        InputError: A technique needs all data in one place, or changes the model before.
    """
    for step in recipe.steps:
        technique = step.technique
        fits = getattr(technique, "fits_blocks", False) or hasattr(technique, "tune_block")
        prepares = getattr(technique, "prepares", None)
        if fits or hasattr(technique, "reshape") or (prepares is not None and prepares(model)):
            raise InputError(
                f"{technique.name} needs all calibration data on one machine: leave workers out, "
                "or use gptq, awq, smoothquant or prune_sparsegpt"
            )
