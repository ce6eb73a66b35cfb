"""Calls cut along their first dimension among copies of a model, where that changes nothing.

Whether the first dimension is a batch of independent rows is proved, not assumed: the outputs of a
call are compared with those of its parts, a first row and the rest. So parts are other than those
that calls are cut into later, and no pairs or groups of neighbouring rows stay together.
"""

import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten

from tauten.core.errors import InputError
from tauten.parallel.comparison import difference
from tauten.parallel.rows import count_rows, cut_rows, even_sizes, join_rows

_log = logging.getLogger(__name__)
Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments
# Computes calls; the flag says that outputs may be views that hold until the next.
Compute = Callable[[Sequence[Call], bool], list[Any]]


class RowCuts:
    """What is known of cutting a model's calls.

    Args:
        name: Of the model.
        tolerance: The largest `difference` of outputs that are the same; see `comparison`.
    Attributes:
        name: Of the model.
        refusal: Why calls aren't cut; empty while no proof has failed.
    """

    def __init__(self, name: str, tolerance: float):
        self.name, self._tolerance = name, tolerance
        self._proved: dict[Hashable, int] = {}  # the most rows, by forms of calls
        self.refusal = ""

    def known(self, call: Call) -> bool | None:
        """Whether a call may be cut; None where it must be proved first.

        Once a proof has failed, no other form of call is tried. Calls of more rows than were
        proved are proved anew: what groups rows by four can't be told by two.
        """
        if _rows(call) < 2:
            return False
        if _rows(call) <= self._proved.get(form_of(call), 0):
            return True
        return False if self.refusal else None

    def verdict(self, call: Call, whole: Any, compute: Compute) -> str:
        """Why a call can't be cut; empty if its parts make up the whole.

        Args:
            call: Of two rows or more.
            whole: Its outputs.
            compute: Computes calls, each whole.
        """
        sizes = [1, _rows(call) - 1]
        try:
            joined = join_rows(compute(cut_rows(call, sizes), False), sizes)
            off = difference(joined, whole)
        except Exception as error:  # whatever the model raises of parts, where it took the whole
            return f"its parts can't be computed alone ({error})"
        return "" if off <= self._tolerance else f"outputs of its parts differ by {off:.2g}"

    def settle(self, call: Call, why: str) -> None:
        """Take note of a verdict; a refusal is said once."""
        if not why:
            self._proved[form_of(call)] = _rows(call)
        elif not self.refusal:
            self.refusal = f"a batch of {self.name} can't be cut by rows: {why}"
            _log.warning("%s; each call runs whole", self.refusal)


def call_in_parts(
    cuts: RowCuts, compute: Compute, call: Call, copies: int, is_whole: bool = True
) -> Any:
    """Outputs of a call, cut among copies of a model where that is proved to change nothing.

    Args:
        cuts: What is known of the model.
        compute: Computes calls side by side, each by one copy.
        call: To compute.
        copies: Of the model.
        is_whole: A copy doesn't cut its calls itself, into micro-batches.
    Raises:
        InputError: A copy cuts its calls, which was proved to change outputs.
    """
    known = cuts.known(call) if copies > 1 or not is_whole else False
    if known and copies > 1:
        sizes = [size for size in even_sizes(_rows(call), copies) if size]
        made = compute(cut_rows(call, sizes), True)
        try:
            return join_rows(made, sizes)
        except InputError as error:  # of this data alone: parts padded to other lengths, say
            _log.warning("%s: %s; the call runs whole on one worker", cuts.name, error)
    (whole,) = compute([call], False)
    if known is None:
        cuts.settle(call, cuts.verdict(call, whole, compute))
    if not is_whole and _rows(call) > 1 and not cuts.known(call):
        raise InputError(f"{cuts.refusal}; make another plan: parallel.plan(example)")
    return whole


def form_of(call: Call) -> Hashable:
    """What calls have in common that are cut alike: their tree, and which tensors have the rows."""
    rows = _rows(call)
    leaves, tree = tree_flatten(call)

    def form(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.dtype, leaf.dim(), leaf.dim() > 0 and len(leaf) == rows
        return leaf if isinstance(leaf, bool | str | None) else type(leaf)

    return str(tree), tuple(form(leaf) for leaf in leaves)


def _rows(call: Call) -> int:
    try:
        return count_rows(call)
    except InputError:
        return 0
