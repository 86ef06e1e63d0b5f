"""Draw the pictures of ``agl`` in ``docs/images`` anew, of the agent in ``tests/cli/picture_sample.py``.

SVG by rich's export, in a frame of ours: no font is loaded from another host, and colours are those of the live view.
"""

from __future__ import annotations

import asyncio
import io
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from agentlightning.cli import lookup, receipts, show

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "cli"))

import picture_sample  # noqa: E402 - found by the line above

WIDTHS = (60, 80, 160)
THEME = TerminalTheme(
    (22, 25, 31),
    (214, 218, 226),
    [
        (22, 25, 31),
        (242, 139, 130),
        (108, 196, 161),
        (240, 180, 90),
        (139, 160, 240),
        (200, 150, 230),
        (110, 200, 215),
        (214, 218, 226),
    ],
    [
        (110, 116, 130),
        (242, 139, 130),
        (108, 196, 161),
        (240, 180, 90),
        (139, 160, 240),
        (200, 150, 230),
        (110, 200, 215),
        (255, 255, 255),
    ],
)
FRAME = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
    font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
    font-size: {char_height}px; line-height: {line_height}px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def picture(lines: list[Text], width: int, command: str) -> str:
    """Return lines of a terminal as SVG."""
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)
    return console.export_svg(
        title=command, theme=THEME, code_format=FRAME, unique_id=f"agl-{width}", font_aspect_ratio=0.602
    )


async def found_in(url: str, rollout_id: str) -> show.Found:
    """Return the attempt of the sample under an id that is the same each time."""
    async with lookup.open_existing(url) as store:
        rollout = await lookup.find_rollout(store, rollout_id)
        attempt = await lookup.find_attempt(store, rollout, lookup.LATEST)
        found = await show.read(store, rollout, attempt)
    rollout.rollout_id = picture_sample.PLACEHOLDER
    return found


def main() -> None:
    """Write the pictures."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(found_in(*picture_sample.fill(Path(folder))))
    for width in WIDTHS:
        lines = [
            *show.page(found, show.view_of(found, width)),
            Text(f"receipt  {receipts.line(found.receipt)}"),
        ]
        target = ROOT / "docs" / "images" / f"show-{width}.svg"
        target.write_text(picture(lines, width, "agl show"), encoding="utf-8")
        print(target.relative_to(ROOT))


if __name__ == "__main__":
    main()
