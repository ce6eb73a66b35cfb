"""Calls cut along their first dimension among copies of a model, where that changes nothing.

Whether the first dimension is a batch of independent rows is proved, not assumed: the outputs of a
call are compared with those of its parts, a first row and the rest. So parts are other than those
that calls are cut into later, and no pairs or groups of neighbouring rows stay together.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tauten.core.errors import InputError
from tauten.core.printing import logger
from tauten.core.rows import count_rows, cut_rows, has_rows
from tauten.core.trees import flatten
from tauten.parallel.comparison import difference
from tauten.parallel.rows import NO_JOINS, Joins, even_sizes, join_rows, joins_of

_log = logger(__name__)
Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments
# Computes calls; the flag says that outputs may be views that hold until the next.
Compute = Callable[[Sequence[Call], bool], list[Any]]


@dataclass(frozen=True)
class Verdict:
    """Of a proof.

    Attributes:
        refusal: Why the call can't be cut; empty where it can.
        joins: How outputs of its parts make up those of the whole.
    """

    refusal: str = ""
    joins: Joins = NO_JOINS


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
        # By forms of calls: the most rows, and what was found of these.
        self._proved: dict[Hashable, tuple[int, Verdict]] = {}
        self.refusal = ""

    def known(self, call: Call) -> bool | None:
        """Whether a call may be cut; None where it must be proved first.

        Once a proof has failed, no other form of call is tried. Calls of more rows than were
        proved are proved anew: what groups rows by four can't be told by two.
        """
        if _rows(call) < 2:
            return False
        if _rows(call) <= self._proved.get(form_of(call), (0,))[0]:
            return True
        return False if self.refusal else None

    def serves_microbatches(self, call: Call) -> bool:
        """Whether a pipeline may cut a call: it joins outputs by the rows of tensors alone."""
        proved, verdict = self._proved.get(form_of(call), (0, Verdict()))
        return 0 < _rows(call) <= proved and verdict.joins == NO_JOINS

    def joined(self, call: Call, made: Sequence[Any], sizes: Sequence[int]) -> Any:
        """One output of those of a call's parts.

        Args:
            call: That may be cut.
            made: Outputs of its parts.
            sizes: Rows of each.
        Raises:
            InputError: These can't be joined.
        """
        return join_rows(made, sizes, self._proved[form_of(call)][1].joins)

    def verdict(self, call: Call, whole: Any, compute: Compute) -> Verdict:
        """Whether a call's parts make up the whole.

        Args:
            call: Of two rows or more.
            whole: Its outputs.
            compute: Computes calls, each whole.
        """
        sizes = [1, _rows(call) - 1]
        try:
            made = compute(cut_rows(call, sizes), False)
            joins = joins_of(whole, made, sizes)
            off = difference(join_rows(made, sizes, joins), whole)
        except Exception as error:  # whatever the model raises of parts, where it took the whole
            return Verdict(f"its parts can't be computed alone ({error})")
        if off <= self._tolerance:
            return Verdict(joins=joins)
        return Verdict(f"outputs of its parts differ by {off:.2g}")

    def settle(self, call: Call, verdict: Verdict) -> None:
        """Take note of a verdict; a refusal is said once."""
        if not verdict.refusal:
            self._proved[form_of(call)] = _rows(call), verdict
        elif not self.refusal:
            self.refusal = f"a batch of {self.name} can't be cut by rows: {verdict.refusal}"
            _log.warning("%s; each call runs whole", self.refusal)


def call_in_parts(
    cuts: RowCuts,
    compute: Compute,
    call: Call,
    copies: int,
    is_whole: bool = True,
    trial: Compute | None = None,
) -> Any:
    """Outputs of a call, cut among copies of a model where that is proved to change nothing.

    Args:
        cuts: What is known of the model.
        compute: Computes calls side by side, each by one copy.
        call: To compute.
        copies: Of the model.
        is_whole: A copy doesn't cut its calls itself, into micro-batches.
        trial: As `compute`, for a proof, whose calls change no state of the model.
    Raises:
        InputError: A copy cuts its calls, which was proved to change outputs.
    """
    known = cuts.known(call) if copies > 1 or not is_whole else False
    if known and copies > 1 and (is_whole or cuts.serves_microbatches(call)):
        sizes = [size for size in even_sizes(_rows(call), copies) if size]
        made = compute(cut_rows(call, sizes), True)
        try:
            return cuts.joined(call, made, sizes)
        except InputError as error:  # of this data alone: parts padded to other lengths, say
            _log.warning("%s: %s; the call runs whole on one worker", cuts.name, error)
    (whole,) = compute([call], False)
    if known is None:
        cuts.settle(call, cuts.verdict(call, whole, trial or compute))
    if not is_whole and _rows(call) > 1 and not cuts.serves_microbatches(call):
        why = cuts.refusal or f"outputs of {cuts.name} aren't all tensors of rows"
        raise InputError(f"{why}; make another plan: parallel.plan(example)")
    return whole


def form_of(call: Call) -> Hashable:
    """What calls have in common that are cut alike: their tree, and which tensors have the rows."""
    rows = _rows(call)

    def of_tree(tree: Any) -> Hashable:
        leaves, form = flatten(tree, lambda value: type(value) is list and len(value) == rows)
        return str(form), tuple(of_leaf(leaf) for leaf in leaves)

    def of_leaf(leaf: Any) -> Hashable:
        if isinstance(leaf, Tensor):
            return leaf.dtype, leaf.dim(), has_rows(leaf, rows)
        if isinstance(leaf, list):  # of any length
            return frozenset(of_leaf(x) if isinstance(x, list) else of_tree(x) for x in leaf)
        return leaf if isinstance(leaf, bool | str) else str(type(leaf))

    return of_tree(call)


def _rows(call: Call) -> int:
    try:
        return count_rows(call)
    except InputError:
        return 0
