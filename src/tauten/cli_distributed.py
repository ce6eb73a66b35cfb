"""The command line's part for many machines."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tauten.cli_command import command, console

EXTRA = {"allow_extra_args": True, "ignore_unknown_options": True}
Interface = Annotated[
    str | None, typer.Option(help="Network interface of this machine, by name or address.")
]
Token = Annotated[Path | None, typer.Option(help="File of the cluster's token.")]
Shell = Annotated[
    str | None, typer.Option(help="What runs a command on a host, such as 'ssh {host}'.")
]


@partial(command, context_settings=EXTRA)
def launch(
    context: typer.Context,
    nodes: Annotated[
        str, typer.Option(help="A hosts file, a Ray cluster, or a number of machines for a script.")
    ],
    interface: Interface = None,
    rendezvous: Annotated[
        str | None, typer.Option(help="host:port where the machines of a script meet.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Of each machine, for a script.", min=1)] = 1,
    token: Token = None,
    shell: Shell = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command only.")] = False,
) -> None:
    """Run optimize, quantize or a script on many machines: launch --nodes hosts optimize MODEL."""
    from tauten.distributed.launch import plan_launch
    from tauten.faces_distributed import run_launch

    reached = (interface, rendezvous, processes, token, shell)
    run_launch(plan_launch(nodes, context.args, *reached), console, dry_run)


@command
def cluster(
    action: Annotated[str, typer.Argument(help="status")],
    nodes: Annotated[
        str | None, typer.Option(help="A hosts file or a Ray cluster; by default this machine.")
    ] = None,
    interface: Interface = None,
    token: Token = None,
    shell: Shell = None,
) -> None:
    """Show the workers of a cluster: cluster status --nodes hosts."""
    from tauten.core.errors import InputError
    from tauten.faces_distributed import print_status

    if action != "status":
        raise InputError(f"cluster {action}: expected status")
    print_status(nodes, interface, token, shell, console)
