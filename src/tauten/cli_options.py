"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="A Hugging Face folder or id, a .gguf file, a folder that Tauten wrote, "
        "or package.module:factory.",
        show_default=False,
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="Text to measure on: a file or folder (.txt, .md, .json, .jsonl, .csv, .tsv or "
        ".parquet, also compressed), a name of the datasets library, or python-docs (the language "
        "reference that comes with Python)."
    ),
]
Calibration = Annotated[
    str | None, typer.Option("--data", help="Text to calibrate on, for techniques that look at it.")
]
TextColumn = Annotated[
    str | None,
    typer.Option(help="Column of the data's rows to read; by default text, or the only one."),
]
Tokenizer = Annotated[
    str | None, typer.Option(help="Folder of the tokenizer, where the model has none of its own.")
]
Folder = Annotated[Path, typer.Argument(help="A folder that Tauten wrote.")]
Bits = Annotated[
    int | None,
    typer.Option(
        help="Bits a weight, 1 to 8; by default 8, or those of a technique that is named.",
        min=1,
        max=8,
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", help="Folder to write; it must not exist yet.")]
Base = Annotated[
    str | None,
    typer.Option("--model", help="What the folder was made from, if that was a module factory."),
]
Tokens = Annotated[int, typer.Option(help="Most tokens of text a split.", min=64)]
Coding = Annotated[
    bool,
    typer.Option("--entropy-coding", help="Code the file losslessly into fewer bytes."),
]
Seed = Annotated[int, typer.Option(help="Deals documents out to calibration, development, test.")]
Workers = Annotated[
    str | None,
    typer.Option(help="Work on so many processes, or on a hosts file, ray://host:port or auto."),
]
