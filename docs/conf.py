"""The documentation as a site: ``scripts/docs --site`` builds it with Sphinx.

The pages are those that a reader of the repository sees. Two things are added here: the table of contents, which is
made of the links of ``README.md``, and the pages of the API, which are made of the docstrings.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from importlib import import_module
from inspect import getdoc, isclass, isroutine
from pathlib import Path
from types import ModuleType

from sphinx.application import Sphinx

import agentlightning

HERE = Path(__file__).resolve().parent
API = HERE / "api"
"""Where the pages of the API are written before each build; git does not see them."""

PACKAGES = (
    *(
        "tracer",
        "emitter",
        "store",
        "types",
        "rows",
        "adapter",
        "exchange",
        "training",
        "training.trl",
        "verify",
        "pipeline",
        "testing",
        "logging",
    ),
    *("instrumentation", "integrations.agentops", "integrations.agentops.server"),
    *("semconv", "errors", "env_var"),
)
TRAINERS = ("trl", "verl", "tinker", "skyrl", "verifiers", "openenv", "sft", "triplets")
DOCUMENTED = (*PACKAGES, *(f"exporters.{name}" for name in TRAINERS))
"""What has a page, without the package: all that users import from."""

SECTION = re.compile(r"^\*\*(?P<title>[\w ]+)\*\*$")
LINK = re.compile(r"\]\((?P<page>[\w/.-]+)\.md\)")

# Nodes of a page refer to each other, and nearly all stay until the end: a search for garbage finds none, and takes a
# quarter of the time of a build.
gc.disable()

project = "agentlightning"
author = "The agentlightning founders"
release = agentlightning.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "index"
exclude_patterns = ["README.md"]  # index.md includes it
highlight_language = "none"  # blocks that name no language are pictures and output

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_title = f"agentlightning {release}"
html_theme_options = {
    "source_repository": "https://github.com/agentlightning-otel/agentlightning/",
    "source_branch": "main",
    "source_directory": "docs/",
}

myst_heading_anchors = 4
smartquotes = False  # they make a dash of the two hyphens of an option, and copied commands fail

toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True


def contents(index: str) -> Iterator[str]:
    """Yield the toctrees of the site: one for each heading of the index, of the pages that it links to."""
    titles: dict[str, list[str]] = {"Tutorial": []}
    title = "Tutorial"
    for line in index.splitlines():
        if heading := SECTION.match(line):
            title = heading["title"]
        titles.setdefault(title, []).extend(LINK.findall(line))
    titles["API"] = ["api/agentlightning", *(f"api/agentlightning.{name}" for name in DOCUMENTED)]
    for title, pages in titles.items():
        yield "\n".join(["```{toctree}", ":hidden:", f":caption: {title}", "", *pages, "```"])


def add_contents(_: Sphinx, page: str, source: list[str]) -> None:
    """Append the table of contents to the first page."""
    if page == root_doc:
        index = (HERE / "README.md").read_text(encoding="utf-8")
        source[0] += "\n\n" + "\n\n".join(contents(index))


def write_api(_: Sphinx) -> None:
    """Write a page for each package that users import from, and one for the names that the root has."""
    API.mkdir(exist_ok=True)
    homes: dict[int, str] = {}
    pages = {}
    for name in DOCUMENTED:
        module = import_module(f"agentlightning.{name}")
        names = {each: getattr(module, each) for each in public(module)}
        elsewhere = [each for each, value in names.items() if id(value) in homes]
        homes.update((id(value), name) for value in names.values() if id(value) not in homes)
        pages[f"agentlightning.{name}"] = members(f"agentlightning.{name}", elsewhere)
    pages["agentlightning"] = root_names(homes)
    for name, body in pages.items():
        text = f"{name}\n{'=' * len(name)}\n\n{body}\n"
        path = API / f"{name}.rst"
        if (
            not path.exists() or path.read_text(encoding="utf-8") != text
        ):  # what is unchanged is not read again
            path.write_text(text, encoding="utf-8")
    for path in API.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()


def members(module: str, elsewhere: list[str]) -> str:
    """Return the directive for the public names of a module, without those that are described elsewhere."""
    options = [":members:", ":show-inheritance:"]
    options += [f":exclude-members: {', '.join(elsewhere)}"] if elsewhere else []
    return f".. automodule:: {module}\n" + "".join(f"   {option}\n" for option in options)


def root_names(homes: dict[int, str]) -> str:
    """Return the names of ``agentlightning``, each with a link to where it is described, or with its description."""
    listed, own = [], []
    for name in agentlightning.__all__:
        value = getattr(agentlightning, name)
        if id(value) in homes:
            listed.append(f"* :py:obj:`~agentlightning.{homes[id(value)]}.{name}`{summary(value)}")
        else:
            own.append(f".. autoclass:: agentlightning.{name}\n   :members:\n")
    head = (
        ".. py:module:: agentlightning\n\nEvery name here can be imported from ``agentlightning`` itself.\n"
    )
    return "\n".join([head, *listed, "", *own])


def summary(value: object) -> str:
    """Return the first sentence of a class or function, after a colon; a type alias has none of its own."""
    if not (isclass(value) or isroutine(value)):
        return ""
    return ": " + (getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")


def public(module: ModuleType) -> list[str]:
    """Return the public names of a module: those that it lists, or those that it defines."""
    defined = [
        name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
    ]
    return [name for name in getattr(module, "__all__", defined) if not name.startswith("_")]


def keep_colons(_: Sphinx, what: str, _name: str, _value: object, _options: object, lines: list[str]) -> None:
    """Keep a colon in the first line of what stands under a field: Napoleon takes the words before it for a type."""
    if what in {"attribute", "data", "property"}:
        lines[:0] = ["..", ""]  # an empty comment, which is not shown


def setup(app: Sphinx) -> None:
    """Connect what is added."""
    app.connect("autodoc-process-docstring", keep_colons, priority=400)  # before Napoleon's, which is 500
    app.connect("builder-inited", write_api)
    app.connect("source-read", add_contents)
