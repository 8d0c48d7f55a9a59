"""Parse the pages: fenced blocks, and commands in running text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks", "inline_commands"]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(
    r"^```(?P<language>\w*)(?: title=\"(?P<title>[^\"]*)\")?\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
_HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
_INLINE = re.compile(r"`(bgpool [^`]+|pip install [^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        heading: The heading of the section that contains the block.
        title: The name of the file if the block is a file; otherwise empty.
        place: The page and the line, for messages.
    """

    heading: str
    language: str
    title: str
    text: str
    place: str


def blocks(page: Path, *languages: str) -> list[Block]:
    """Return the blocks of *page*; only those in *languages* if any are given."""
    source = page.read_text(encoding="utf-8")
    found = [
        Block(
            ["", *_HEADING.findall(source, 0, match.start())][-1],
            match["language"],
            match["title"] or "",
            match["text"],
            f"{page.name}:{source.count(chr(10), 0, match.start()) + 1}",
        )
        for match in _FENCE.finditer(source)
    ]
    return [block for block in found if not languages or block.language in languages]


def inline_commands(page: Path) -> Iterator[str]:
    """Yield the commands in running text, such as ``bgpool lab run [NAME...]``."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    yield from (match[1] for match in _INLINE.finditer(text))
