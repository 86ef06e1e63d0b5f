"""Each block of code on a page is run by a test, or says in a comment what it needs; none has a mistake that parsing finds."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest

from agentlightning import OtelTracer, open_store
from agentlightning.cli.entry import build_parser
from agentlightning.cli.options import COMMANDS
from agentlightning.testing import FakeOpenAI

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = (ROOT / "README.md", *(page for page in sorted(DOCS.rglob("*.md")) if page.name != "index.md"))
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)
NEEDS = re.compile(r"^# Needs: \S.*\.$", re.MULTILINE)
FROM = re.compile(r"^# From (?P<file>examples/\S+\.py)$", re.MULTILINE)
"""A part of an example, which has tests of its own."""
INSTALLS = re.compile(r"^(pip|uv|poetry) (un)?(install|add|wheel) \S.*$")
"""``scripts/release`` installs the distribution, with each extra, in an empty environment."""
TOUR = ROOT / "README.md"
"""``tests/first_hour`` follows it, and compares what is printed."""
LANGUAGES = {"python", "sh", "sql", "toml"}
OUTPUT = {"", "text"}
"""Pictures of output, which are no code."""
SHELL = {"|", "||", "&&", "&", ";"}


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    marked: bool
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        source = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(source):
            language, _, mark = match["info"].partition(" ")
            text = re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
            yield Block(page, source[: match.start()].count("\n") + 1, language, bool(mark), text)


BLOCKS = list(blocks())


def test_each_block_is_run_or_says_what_it_needs() -> None:
    missing = []
    for block in BLOCKS:
        lines = [line.split("  #")[0].strip() for line in block.text.splitlines()]
        part = FROM.search(block.text)
        done = (
            block.marked
            or block.language in OUTPUT
            or NEEDS.search(block.text)
            or block.page == TOUR
            or (part and (ROOT / part["file"]).exists())
            or (block.language == "sh" and all(INSTALLS.match(line) for line in lines))
            or (block.language == "toml" and tomllib.loads(block.text))
        )
        if not done:
            missing.append(str(block))
    assert missing == [], "mark it `run`, or begin it with `# Needs: …`"
    assert {block.language for block in BLOCKS} <= LANGUAGES | OUTPUT


@pytest.mark.parametrize("page", sorted(DOCS.glob("*/*.md")), ids=lambda page: page.stem)
def test_a_page_begins_with_what_it_is_for(page: Path) -> None:
    title, _, text = page.read_text(encoding="utf-8").partition("\n\n")
    assert re.fullmatch(r"# .+", title)
    assert re.match(r"[A-Z`\[]", text), "a sentence, before any list, table or block"


def test_a_block_of_python_uses_no_name_that_the_page_does_not_explain() -> None:
    unknown = []
    for block in BLOCKS:
        if block.language != "python" or not (needs := NEEDS.search(block.text)):
            continue
        before = [each.text for each in BLOCKS if each.page == block.page and each.line < block.line]
        explained = {name for text in before if (code := parsed(text)) for name in bound(code)}
        explained |= set(re.findall(r"`(\w+)`", needs[0]))
        code = parsed(block.text)
        assert code, block
        used = {each.id for each in ast.walk(code) if isinstance(each, ast.Name)}
        left = used - bound(code) - explained - set(dir(builtins))
        unknown += [f"{block}: {name}" for name in sorted(left)]
    assert unknown == []


def test_a_part_of_an_example_says_what_the_example_says() -> None:
    """Word by word; a page may leave lines out, and break them elsewhere."""
    shown = [(block, part) for block in BLOCKS if (part := FROM.search(block.text))]
    assert shown
    for block, part in shown:
        words = set(re.findall(r"\w+", block.text.replace(part[0], "")))
        example = set(re.findall(r"\w+", (ROOT / part["file"]).read_text(encoding="utf-8")))
        assert words <= example, f"{block}: {words - example}"


def parsed(text: str) -> ast.Module | None:
    try:
        code = compile(text, "<page>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError:
        return None
    return cast("ast.Module", code)


def bound(code: ast.Module) -> set[str]:
    """Return the names that a block defines anywhere."""
    names: set[str] = set()
    for each in ast.walk(code):
        if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
            names.add(each.id)
        elif isinstance(each, ast.arg):
            names.add(each.arg)
        elif isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(each.name)
        elif isinstance(each, (ast.Import, ast.ImportFrom)):
            names.update((alias.asname or alias.name).partition(".")[0] for alias in each.names)
    return names


def commands(text: str) -> Iterator[list[str]]:
    """Yield the arguments of each ``agl`` of a block of shell."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if word not in SHELL:
                command.append(word)
                continue
            while command and re.match(r"^\w+=", command[0]):
                del command[0]
            if command[:1] == ["agl"]:
                yield command[1 : command.index(">") if ">" in command else None]
            command = []


def test_commands_of_agl_have_arguments_that_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    found = [(block, args) for block in BLOCKS if block.language == "sh" for args in commands(block.text)]
    for block, args in found:
        assert args[0] in COMMANDS, f"{block}: agl {args[0]}"
        try:
            build_parser(args[0]).parse_args(args)
        except SystemExit as end:
            if end.code:
                wrong.append(f"{block}: agl {shlex.join(args)}: {capsys.readouterr().err}")
    assert wrong == []
    assert len(found) > 40


def needing(page: str) -> list[str]:
    """Return the blocks of Python of a page that need something."""
    python = [block for block in BLOCKS if block.page.name == page and block.language == "python"]
    return [block.text for block in python if NEEDS.search(block.text)]


async def run(text: str, **names: Any) -> dict[str, Any]:
    """Run a block, with ``await`` where it has one; return the names that it leaves."""
    found = eval(compile(text, "<page>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
    if inspect.isawaitable(found):
        await found
    return names


@pytest.mark.asyncio
async def test_blocks_that_need_a_rollout_run_with_one() -> None:
    rewards, wait, hand_back = needing("training-rows.md")
    in_a_program = [text for text in needing("export.md") if "rollout_id" in text.partition("\n")[0]]
    tracer = OtelTracer(capture_tokens="request")
    with FakeOpenAI() as model:
        model.enqueue("one two three four five six seven eight")
        async with open_store("memory://") as store, model.async_client() as client:
            with tracer.lifespan(store):
                async with tracer.rollout("a task") as rollout:
                    response = await client.chat.completions.create(
                        model="policy", messages=[{"role": "user", "content": "count"}], temperature=1.0
                    )
                    await run(rewards, response=response, store=store, rollout_id=rollout.rollout_id)
                made = await run(wait, store=store, rollout_ids=[rollout.rollout_id], policy=None)
                (row,) = made["rows"]
                assert [reward.value for reward in row.segments[-1].rewards] == [0.5, -1.0]
                assert row.rewards == {"style": 0.25}
                values = {"ids": row.token_ids, "new_logprobs": [0.0] * len(row)}
                await run(hand_back, store=store, row=row, **values)
                assert len(in_a_program) == 2
                for text in in_a_program:
                    await run(text, store=store, rollout_id=rollout.rollout_id)
