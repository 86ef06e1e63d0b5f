"""Write the parts of the documentation that the code knows better: tables of settings, commands, codes, names.

A part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``; ``PARTS`` maps names to functions that
return Markdown. A test runs this with ``--check``.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import getdoc, getsource
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import sync_stub

from agentlightning import _absent, env_var, errors, semconv
from agentlightning.cli import columns as export_columns
from agentlightning.cli.entry import build_parser
from agentlightning.cli.options import COMMANDS
from agentlightning.integrations.agentops.table import KEPT_OFF, TABLE
from agentlightning.rows.reasons import ALL_CODES
from agentlightning.store.primitives import PRIMITIVES
from agentlightning.types import NamedResources
from agentlightning.verify.verdicts import Verdict

ROOT = Path(__file__).resolve().parents[2]
EVERYWHERE = {"help", "store", "log_level"}
"""Arguments of every command; the page says so once."""
PART = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rendered = [headings, ["---"] * len(headings), *lines]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in rendered)


def prose(text: str) -> str:
    """Return a docstring as one line of Markdown."""
    flat = " ".join(text.split())
    return re.sub(r":\w+:`([^`]+)`", r"`\1`", flat.replace("``", "`"))


def members(module: ModuleType, name: str) -> Iterator[tuple[str, str, str]]:
    """Yield (member, value, docstring) of an enum; a docstring is the string that follows the assignment."""
    body = ast.parse(getsource(getattr(module, name))).body[0]
    assert isinstance(body, ast.ClassDef)
    pairs = zip(body.body, [*body.body[1:], None], strict=True)
    for statement, after in pairs:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = after.value.value if is_text else ""  # type: ignore[union-attr]
            yield statement.targets[0].id, ast.literal_eval(statement.value), prose(str(text))


def settings() -> str:
    """Return the environment variables."""
    return table(
        ("variable", "meaning"),
        [(f"`{value}`", text) for _, value, text in members(env_var, "LightningEnvVar")],
    )


def names(enum: str, headings: tuple[str, str] = ("name", "meaning")) -> Callable[[], str]:
    """Return what renders one enum of ``semconv``."""
    return lambda: table(headings, [(f"`{value}`", text) for _, value, text in members(semconv, enum)])


def span_names() -> str:
    """Return the names of the spans that emitters make."""
    constants = {key: value for key, value in vars(semconv).items() if key.startswith("AGL_")}
    return table(("constant", "span name"), [(f"`{key}`", f"`{value}`") for key, value in constants.items()])


def error_classes() -> str:
    """Return every error with its code."""
    lines = []
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, errors.LightningError):
            builtins = [base.__name__ for base in value.__mro__ if base.__module__ == "builtins"]
            also = next(name for name in builtins if name not in {"BaseException", "object"})
            status = errors.HTTP_STATUS.get(value.code)
            lines.append(
                (
                    f"`{value.code}`",
                    f"`{value.__name__}`",
                    f"`{also}`",
                    str(status or ""),
                    prose(getdoc(value) or "").partition(". ")[0],
                )
            )
    return table(("code", "class", "is also", "HTTP", "meaning"), lines)


def columns(kind: str) -> Callable[[], str]:
    """Return what renders the columns of an export."""
    parquet = {
        "text": "string",
        "integer": "int64",
        "number": "double",
        "integers": "list<int64>",
        "numbers": "list<double>",
        "json": "string (JSON)",
    }
    json = {"text": "string", "integer": "number", "number": "number", "json": "object or list"}

    def render() -> str:
        found: dict[str, export_columns.Kind] = getattr(export_columns, kind)
        return table(
            ("column", "Parquet", "JSON Lines"),
            [
                (f"`{name}`", parquet[type_], json.get(type_, "list of numbers"))
                for name, type_ in found.items()
            ],
        )

    return render


def commands() -> str:
    """Return every command with its arguments."""
    text = []
    for name in COMMANDS:
        for title, parser in described(name):
            text.append(f"### `{title}`\n\n{prose(parser.description or '')}\n\n")
            found = list(arguments(parser))
            text.append(table(("argument", "meaning"), found) + "\n" if found else "")
    return "".join(text)


def described(name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield (``agl name``, its parser), or those of its subcommands."""
    parser = subcommands(build_parser(name))[name]
    inner = subcommands(parser)
    if not inner:
        yield f"agl {name}", parser
    for below, found in inner.items():
        yield f"agl {name} {below}", found


def actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return what a parser takes; argparse has no public way to ask."""
    return parser._actions  # noqa: SLF001 - see above


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return name → parser of the subcommands, if there are any."""
    for action in actions(parser):
        if action.nargs == argparse.PARSER:
            return cast("dict[str, argparse.ArgumentParser]", action.choices)
    return {}


def arguments(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Yield (how it is written, what it means)."""
    for action in actions(parser):
        if action.dest in EVERYWHERE:
            continue
        choices = "{" + ",".join(action.choices) + "}" if action.choices else ""
        metavar = action.metavar or choices or action.dest.upper()
        shown = metavar if isinstance(metavar, str) else " ".join(metavar)
        if not action.option_strings:
            yield f"`{shown}`", action.help or ""
            continue
        value = "" if action.nargs == 0 else f" {shown}"
        yield f"`{', '.join(action.option_strings)}{value}`", action.help or ""


def reason_codes() -> str:
    """Return why an attempt gives no row, or an odd one, and the cure."""
    return table(
        ("code", "what it says", "what to do"),
        [(f"`{code.code}`", code.sentence, code.cure) for code in ALL_CODES.values()],
    )


def verdicts() -> str:
    """Return what ``verify_onpolicy`` can say, and the cure."""
    return table(
        ("verdict", "what it says", "what to do"),
        [(f"`{verdict.code}`", verdict.sentence, verdict.cure) for verdict in Verdict],
    )


def agentops_releases() -> str:
    """Return what is done with each range of ``agentops``."""
    return table(
        ("agentops", "what is done", "managed", "started by its user"),
        [
            (row.releases, row.support.verdict, row.support.sentence, "; ".join(row.support.unmanaged))
            for row in TABLE
        ],
    )


def agentops_frameworks() -> str:
    """Return the agent frameworks whose instrumentation by AgentOps stays off in managed mode."""
    return table(("module", "why"), [(f"`{name}`", why) for name, why in KEPT_OFF.items()])


def kept_lines(page: str) -> list[dict[str, Any]]:
    """Return what a script that measures or tries something has kept beside a page."""
    kept = ROOT / "docs" / "reference" / f"{page}.jsonl"
    return [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]


def agentops_matrix() -> str:
    """Return what came of each cell: a line for each agentops and OpenTelemetry, a column for each openai."""
    said = {"captured": "exact", "absent": "exact, by our capture alone", "refused": "refused"}
    found = {tuple(told["cell"]): told for told in kept_lines("agentops-matrix")}
    columns = dict.fromkeys(openai for _, _, openai in found)
    lines = []
    for agentops, opentelemetry in dict.fromkeys(key[:2] for key in found):
        row = [found.get((agentops, opentelemetry, openai)) for openai in columns]
        verdicts = [said.get(told["verdict"], "**failed**") if told else "not run" for told in row]
        lines.append((agentops, opentelemetry, *verdicts))
    return table(("agentops", "OpenTelemetry", *(f"openai {name}" for name in columns)), lines)


def agentops_changes() -> str:
    """Return what each agentops changes for an agent by itself, as its cells saw it."""
    seen: dict[tuple[str, str], tuple[dict[str, None], dict[str, None]]] = {}
    for told in kept_lines("agentops-matrix"):
        for note in told["notes"]:
            style, _, change = note.partition(": ")
            styles, clients = seen.setdefault((told["cell"][0], change), ({}, {}))
            styles[f"`{style}`"] = clients[told["cell"][2]] = None
    return table(
        ("agentops", "what the agent gets", "from", "with openai"),
        [
            (agentops, f"`{change}`", ", ".join(styles), ", ".join(clients))
            for (agentops, change), (styles, clients) in seen.items()
        ],
    )


def agentops_clients() -> str:
    """Return what came of each client's session with the local server; neighbours that are alike share a line."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for told in kept_lines("agentops-clients"):
        requests = ", ".join(f"`{request.removeprefix('POST ')}`" for request in told.get("requests", ()))
        kept = ", ".join(told.get("kept", ()))
        verdict = told["verdict"] if told["verdict"] == "complete" else "**failed**"
        lines.setdefault((verdict, requests, kept, "; ".join(told["notes"])), []).append(told["agentops"])
    return table(
        ("agentops", "session", "its requests (POST)", "what is kept", "what it warns of by itself"),
        [(", ".join(releases), *line) for line, releases in lines.items()],
    )


def installs() -> str:
    """Return what ``scripts/release --sizes`` has measured."""
    about, *found = kept_lines("install")
    where = f"with Python {about['python']} on {about['machine']}, the newest of everything on {about['day']}"
    note = f"Measured {where}; PyTorch is its build for {about['torch']}."
    lines = [
        (
            f"`{each['extra']}`" if each["extra"] else "none",
            each["purpose"],
            str(each["distributions"]),
            f"{each['megabytes']:g}",
        )
        for each in found
    ]
    return table(("extra", "what for", "distributions", "MB"), lines) + "\n" + note


def type_name(kind: Any) -> str:
    """Return a type as a reader writes it, without its modules."""
    if kind is None:
        return ""
    if kind is NamedResources:  # an alias, which knows no name
        return "`NamedResources`"
    name = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    plain = re.sub(r"[A-Za-z_.]+[.]", "", name)
    plain = re.sub(r"Union.(\w+), (\w+).", r"\1 | \2", plain)  # pydantic spells unions in the old way
    return f"`{plain}`"


def primitives() -> str:
    """Return the table of what a store is asked."""
    headings = ("method", "takes", "answers", "writes", "may be repeated")
    marks = {True: "yes", False: "no"}
    return table(
        headings,
        [
            (
                f"`{row.method}`",
                type_name(row.takes),
                type_name(row.answers),
                marks[row.writes],
                marks[row.repeatable],
            )
            for row in PRIMITIVES.values()
        ],
    )


def names_of_0_3() -> str:
    """Return each module of Agent Lightning 0.3 with its names, and what they are here."""
    folder = ROOT / "tests" / "compatibility"
    modules = json.loads((folder / "names_of_0_3.json").read_text(encoding="utf-8"))
    differences = json.loads((folder / "differences_from_0_3.json").read_text(encoding="utf-8"))

    def row(module: str, name: str) -> tuple[str, str, str]:
        if absent := _absent.attribute(module, name):
            today = f"{absent.what}; {'today ' * absent.comes}{absent.today}"
            return f"`{name}`", "not yet" if absent.comes else "never", today
        return f"`{name}`", "differs" if name in differences else "same", differences.get(name, "")

    return "\n".join(
        f"## `{module}`\n\n{table(('name', 'state', 'how, why'), [row(module, name) for name in found])}"
        for module, found in modules.items()
    )


PARTS: dict[str, Callable[[], str]] = {
    "names-of-0-3": names_of_0_3,
    "installs": installs,
    "primitives": primitives,
    "settings": settings,
    "commands": commands,
    "errors": error_classes,
    "drop-reasons": names("DropReason", ("reason", "meaning")),
    "model-call-attributes": names("ModelCallAttributes"),
    "flag-attributes": names("SpanFlagAttributes"),
    "emitter-attributes": names("LightningSpanAttributes"),
    "exchange-attributes": names("ExchangeAttributes"),
    "place-attributes": names("LightningResourceAttributes"),
    "span-names": span_names,
    "triplet-columns": columns("TRIPLET_COLUMNS"),
    "training-columns": columns("TRAINING_COLUMNS"),
    "span-columns": columns("SPAN_COLUMNS"),
    "reason-codes": reason_codes,
    "verdicts": verdicts,
    "agentops-releases": agentops_releases,
    "agentops-frameworks": agentops_frameworks,
    "agentops-matrix": agentops_matrix,
    "agentops-changes": agentops_changes,
    "agentops-clients": agentops_clients,
}


def rewritten(text: str) -> str:
    """Return a page with its generated parts anew."""
    return PART.sub(lambda match: f"{match[1]}\n{PARTS[match['name']]().strip()}\n\n{match[3]}", text)


def main() -> int:
    """Write the pages and the stub, or check them; return 1 if a check fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if something is out of date"
    )
    check = parser.parse_args().check
    stale = []
    for path in sorted((ROOT / "docs").rglob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = rewritten(before)
        if after != before:
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                path.write_text(after, encoding="utf-8")
    if not sync_stub.STUB.exists() or sync_stub.STUB.read_text(encoding="utf-8") != sync_stub.text():
        stale.append(str(sync_stub.STUB))
        if not check:
            sync_stub.STUB.write_text(sync_stub.text(), encoding="utf-8")
    for name in stale:
        print(f"{name} {'is out of date; run scripts/docs' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
