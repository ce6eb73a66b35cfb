"""Blocks of a recipe, assigned to workers: what is packed apart hangs on no other block.

Each worker brings the calibration data to its own blocks by itself, through the original ones
before them. So nothing travels but packed blocks, and they are the very bytes of one machine.
Recipes that calibrate each block behind the packed ones before it share out the data instead (see
`distributed.calibration`).
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from tauten.core.recipe import Recipe
from tauten.core.technique import PruningTechnique
from tauten.core.temporary import TemporaryFolder
from tauten.distributed.blueprint import model_of, source_of
from tauten.distributed.cluster import Cluster
from tauten.distributed.crew import dealt_out
from tauten.distributed.job import Job
from tauten.distributed.start import engine_for
from tauten.models.batch import CalibrationBatch
from tauten.models.structure import find_structure
from tauten.search.observations import can_share
from tauten.search.techniques import TECHNIQUES
from tauten.search.workspace import Workspace

KIND = "tauten.search.blocks:BlockWorker"


class BlockWorker:
    """The job of packing some parts of a model.

    Args:
        model: As `source_of` takes it.
        batches: Calibration data, as `vars` of each batch.
    """

    def __init__(self, model: Any, batches: Sequence[dict[str, Any]]):
        source = source_of(model)
        self._folder = TemporaryFolder()
        structure = find_structure(source.skeleton())
        seen = [CalibrationBatch(**batch) for batch in batches]
        self._workspace = Workspace(self._folder.path, source, structure, {}, seen)

    def __call__(self, payload: Any) -> Any:
        """Pack parts.

        Args:
            payload: The recipe as a dict, and names of parts.
        Returns:
            As `Workspace.handed_out`.
        """
        raw, parts = payload
        recipe, count = Recipe.from_dict(raw, TECHNIQUES), len(self._workspace.journal.entries)
        self._workspace.pack(recipe, parts)
        made = self._workspace.handed_out(count)
        self._workspace.discard(recipe)
        return made


def can_assign(recipe: Recipe, model: nn.Module) -> bool:
    """Whether blocks can be packed on different machines.

    Args:
        recipe: To be applied.
        model: Perhaps with empty tensors.
    """
    if not can_share(recipe, model) or any(
        isinstance(step.technique, PruningTechnique) for step in recipe.steps
    ):
        return False  # zeros are shared out over all layers
    known = all(TECHNIQUES.get(s.technique.name) is type(s.technique) for s in recipe.steps)
    structure = find_structure(model)
    blocks_of = ({structure.block_of(n) for n in unit.names} for unit in structure.units)
    return known and all(len(blocks) == 1 for blocks in blocks_of)


def pack_on_workers(
    workspace: Workspace,
    recipe: Recipe,
    batches: Sequence[CalibrationBatch],
    workers: int | str,
) -> None:
    """Have workers pack the parts of a model, and take them into the workspace.

    A part is journaled as it comes in; a run that was killed gives out those that are missing.

    Args:
        workspace: Of the run.
        recipe: That can be assigned.
        batches: Calibration data.
        workers: On this machine, or the name of a cluster.
    """
    missing = workspace.missing(recipe)
    if not missing:
        return
    with engine_for(model_of(workspace.source), workers) as (reference, engine):
        job = Job(KIND, {"model": reference, "batches": [vars(batch) for batch in batches]})
        looks = any(step.technique.looks_at_inputs for step in recipe.steps)
        # Each task brings data from the first block to its own: then few tasks are better.
        most = min(engine.size, len(missing)) if looks else len(missing)
        shares = dealt_out(len(missing), most)
        payloads = ((recipe.to_dict(), missing[at.start : at.stop]) for at in shares)
        for made in Cluster(engine).run(job, payloads, ahead=False):
            workspace.adopt(made)
