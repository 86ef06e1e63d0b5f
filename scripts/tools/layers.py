"""Check imports with import-linter: the contracts stand in ``.importlinter``, and those that it lacks are made here.

Every import counts, also inside functions, and those under ``if TYPE_CHECKING`` as well: a cycle is not ended by hiding
it. Only what a contract says of run time leaves the latter out.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import cast

import grimp
from importlinter import Contract, ContractCheck, fields, output
from importlinter.cli import lint_imports

PACKAGE = "agentlightning"
Reason = tuple[str, str, str]
"""Importing module, imported module, why it may not."""


class EachImport(Contract):
    """A contract that looks at one import after the other."""

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:  # noqa: ARG002 - import-linter's
        """Look at all imports of the package."""
        executed = grimp.build_graph(
            PACKAGE, include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
        )
        found = sorted({*self.refused(graph), *self.refused_when_executed(executed)})
        return ContractCheck(kept=not found, metadata={"found": found, "graph": graph})

    def refused(self, graph: grimp.ImportGraph) -> Iterator[Reason]:  # noqa: ARG002 - for subclasses
        """Yield what is refused among all imports."""
        yield from ()

    def refused_when_executed(self, graph: grimp.ImportGraph) -> Iterator[Reason]:  # noqa: ARG002 - for subclasses
        """Yield what is refused among the imports that are executed."""
        yield from ()

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each import, with its lines."""
        graph = cast("grimp.ImportGraph", check.metadata["graph"])
        for importer, imported, reason in cast("list[Reason]", check.metadata["found"]):
            details = graph.get_import_details(importer=importer, imported=imported)
            lines = ", ".join(f"l.{detail['line_number']}" for detail in details)
            output.print_error(f"- {importer} -> {imported} ({lines}): {reason}", bold=False)
        output.new_line()


def imports(graph: grimp.ImportGraph) -> Iterator[tuple[str, str]]:
    """Yield (importing module of ours, imported module)."""
    for module in graph.modules:
        if module.partition(".")[0] == PACKAGE:
            for imported in graph.find_modules_directly_imported_by(module):
                yield module, imported


class OwnPackage(EachImport):
    """No module imports a name from a package that it lies in.

    ``acyclic_siblings`` sees no cycle between a package and what is in it; with this there is none.
    """

    type_name = "own_package"

    def refused(self, graph: grimp.ImportGraph) -> Iterator[Reason]:
        """Yield imports of a package from inside."""
        for module, imported in imports(graph):
            if module.startswith(f"{imported}."):
                yield module, imported, "import the module that defines the name"


class LazyTables(EachImport):
    """Tables of names that are resolved on first use execute no imports but ``allowed``; nobody inside imports them."""

    type_name = "lazy_tables"
    tables = fields.ListField(subfield=fields.StringField())
    allowed = fields.SetField(subfield=fields.StringField())

    def _is_table(self, module: str) -> bool:
        return any(fnmatch(module, table) for table in cast("list[str]", self.tables))

    def refused(self, graph: grimp.ImportGraph) -> Iterator[Reason]:
        """Yield imports of tables; those of the root are ``OwnPackage``'s."""
        for module, imported in imports(graph):
            if self._is_table(imported) and not self._is_table(module) and imported != PACKAGE:
                yield module, imported, "an old import path; import from the new one"

    def refused_when_executed(self, graph: grimp.ImportGraph) -> Iterator[Reason]:
        """Yield what a table loads by itself."""
        for module, imported in imports(graph):
            ours = imported.partition(".")[0] == PACKAGE
            if self._is_table(module) and ours and imported not in cast("set[str]", self.allowed):
                yield module, imported, "a lazy table of names, and no more"


class AllowedPackages(EachImport):
    """Each part imports the standard library and what stands beside it; parts that are not named are free."""

    type_name = "allowed_packages"
    allowed = fields.ListField(subfield=fields.StringField())

    def refused_when_executed(self, graph: grimp.ImportGraph) -> Iterator[Reason]:
        """Yield imports of packages that are not in the line of their part."""
        lines = (line.partition(":") for line in cast("list[str]", self.allowed))
        parts = {part.strip(): names.split() for part, _, names in lines}
        for module, imported in imports(graph):
            part = (*module.split("."), PACKAGE)[1]
            package = imported.partition(".")[0]
            if part in parts and package not in {PACKAGE, *sys.stdlib_module_names, *parts[part]}:
                yield (
                    module,
                    imported,
                    f"{part} may import {', '.join(parts[part]) or 'the standard library'}",
                )


def main() -> int:
    """Check the package that lies in a folder; return 1 if an import is against a contract."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[2], help="repository")
    os.chdir(parser.parse_args().root)  # import-linter looks for the package and its settings here first
    return lint_imports(config_filename=".importlinter", no_cache=True, no_logo=True)


if __name__ == "__main__":
    sys.exit(main())
