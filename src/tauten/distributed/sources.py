"""Batches from files, read by the datasets library as they are needed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tauten.core.errors import InputError

_READERS = {".txt": "text", ".md": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
LONGEST = 512  # tokens of a text


def read_batches(
    file: str | Path, rows: int, tokenizer: Callable[..., Any] | None = None, column: str = "text"
) -> Iterator[dict[str, Tensor]]:
    """Batches of a file's rows, in order; memory holds one at a time.

    Args:
        file: `.txt` and `.md` (a row a line), `.jsonl`, `.json` or `.parquet`; or a folder of one
            kind of these.
        rows: Of a batch.
        tokenizer: As transformers makes them, for a column of text; padded on the right.
        column: That is read; other columns are left out.
    Yields:
        Keywords of a model: with a tokenizer what it returns, else the column as a tensor, by its
        name.
    Raises:
        InputError: The file or the column isn't there, or the datasets library isn't.
    """
    if tokenizer is not None and rows > 1 and getattr(tokenizer, "pad_token", "") is None:
        raise InputError("the tokenizer has no padding token: set tokenizer.pad_token")
    for batch in _rows(Path(file), column).iter(batch_size=rows):
        values = batch[column]
        if tokenizer is not None:
            options = {"padding": True, "truncation": True, "max_length": LONGEST}
            yield dict(tokenizer(values, return_tensors="pt", **options))
        elif isinstance(values[0], str):
            raise InputError(f"{file}: {column!r} is text: pass the model's tokenizer")
        else:
            yield {column: torch.tensor(values)}


def _rows(path: Path, column: str) -> Any:
    files = sorted(p for p in path.iterdir() if p.suffix in _READERS) if path.is_dir() else [path]
    kinds = {_READERS.get(file.suffix) for file in files}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None or not all(file.is_file() for file in files):
        raise InputError(f"{path}: expected a file or folder of one kind of {', '.join(_READERS)}")
    try:
        import datasets
    except ImportError:
        raise InputError(f"{path}: reading it needs: pip install 'tauten[datasets]'") from None
    names = [str(file) for file in files]
    try:
        found = datasets.load_dataset(kind, data_files=names, split="train", streaming=True)
        columns = found.column_names or list(next(iter(found), {}))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{path}: the datasets library can't read it ({error})") from None
    if column not in columns:
        raise InputError(f"{path}: has no column {column!r}; it has {', '.join(columns)}")
    return found
