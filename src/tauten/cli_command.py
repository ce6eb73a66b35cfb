"""How a command is registered, what it prints to, and how it ends."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer
from rich.logging import RichHandler
from rich.text import Text

from tauten.core.console import SafeConsole
from tauten.core.errors import TautenError
from tauten.core.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = SafeConsole()
errors = SafeConsole(stderr=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        console.print(__version__)
        raise typer.Exit


def _print_error(said: str) -> None:
    errors.print(Text.assemble(("error: ", "bold red"), said), soft_wrap=True)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Make PyTorch models smaller and faster, and prove that they still work."""


def command(function: Callable[..., None], **settings: Any) -> Callable[..., None]:
    """Register a command whose expected errors end in one line and exit code 2.

    Args:
        function: Named as the command.
        settings: For typer.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> None:
        handler: logging.Handler = logging.StreamHandler()  # a line each, however long
        if errors.is_terminal:
            handler = RichHandler(
                console=errors, show_time=False, show_path=False, show_level=False
            )
        logging.getLogger("tauten").addHandler(handler)
        logging.getLogger("tauten").setLevel(logging.INFO)
        try:
            function(*args, **kwargs)
        except TautenError as error:
            _print_error(str(error))
            raise typer.Exit(2) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _print_error(f"{where}{error.strerror or error}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stop:
            errors.print("stopped; the same command goes on from here")
            raise typer.Exit(stop.args[0] if stop.args else 130) from None
        finally:
            logging.getLogger("tauten").removeHandler(handler)

    app.command(function.__name__.rstrip("_"), **settings)(run)
    return run
