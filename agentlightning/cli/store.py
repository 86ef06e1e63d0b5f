"""``agl store``: what is done to a store as a whole."""

from __future__ import annotations

from . import options, store_check, store_migrate


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the subcommands."""
    parser = subparsers.add_parser(
        "store", help=options.COMMANDS["store"], description=options.COMMANDS["store"]
    )
    inner = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    store_check.add_parser(inner)
    store_migrate.add_parser(inner)
