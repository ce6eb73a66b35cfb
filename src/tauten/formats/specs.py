"""What the descriptions of packed weights hold, by kind: the types that files are checked by."""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import Field
from typing_extensions import NotRequired, TypedDict

from tauten.core.description import Count, Shape, Size, exact

Bits = Annotated[int, Ge(1), Le(8)]
ScaleDtype = Literal["float16", "float32"]


class Spec(TypedDict):
    """What most kinds have in common: the shape of the weight, (out, in, ...)."""

    kind: str
    shape: Shape


@exact
class IntegerSpec(Spec):
    """Of `IntegerWeight`."""

    bits: Bits
    group_size: Count
    zero: Literal["none", "integer", "float"]
    scale_dtype: ScaleDtype


@exact
class TernarySpec(Spec):
    """Of `TernaryWeight`."""

    bits: Literal[2]
    group_size: Count
    zero: Literal["none"]
    scale_dtype: ScaleDtype


@exact
class SuperblockSpec(Spec):
    """Of `SuperblockWeight`; the numbers are those of a `TwoLevelGrid`."""

    bits: Bits
    group_size: Size
    superblock: Count
    scale_bits: Annotated[int, Ge(2), Le(8)]
    zero_kind: Literal["none", "float"]
    scale_dtype: ScaleDtype


@exact
class CodebookSpec(Spec):
    """Of `CodebookWeight`."""

    bits: Bits
    books: Size
    codebook_dtype: ScaleDtype
    book_rows: NotRequired[Size]


@exact
class SparseFloatsSpec(Spec):
    """Of a `SparseWeight` that keeps floats."""

    pattern: Literal["any", "2:4"]
    slots: Count
    values: Literal["float32", "float16", "bfloat16"]


@exact
class SparseCodesSpec(IntegerSpec):
    """Of a `SparseWeight` that keeps codes."""

    pattern: Literal["any", "2:4"]
    slots: Count
    values: Literal["codes"]


SparseSpec = Annotated[SparseFloatsSpec | SparseCodesSpec, Field(discriminator="values")]


@exact
class SharedRowsSpec(Spec):
    """Of `SharedRowsWeight`."""

    rows: Size
    dtype: Literal["float32", "float16", "bfloat16"]


@exact
class SumSpec(TypedDict):
    """Of `SumWeight`; each part is checked as what it is."""

    kind: str
    first: dict[str, Any]
    second: dict[str, Any]
