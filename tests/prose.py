"""Check the prose of the docs, docstrings, comments and messages: ``python -m tests.prose [FILES...]``.

The rules:

- No word or phrase of ``prose_words.txt``, which also has what to write instead.
- A docstring, an entry of its sections, and a ``#:`` comment do not begin with a noun clause ("What the caller does").
  A heading or a table cell may be a reader's question ("What to expect"), but no other noun clause.
- A sentence of a page or a docstring has at most 40 words. A colon ends a sentence, too; a semicolon does not.
- The first paragraph of a docstring ends with a period.
- A line of Markdown prose has at most 120 columns. A table, and a line that cannot be broken, may be longer.

Code is exempt everywhere: fenced blocks, words between backticks, addresses, targets of links. So is what is generated.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

__all__ = ["check_file", "main"]

ROOT = Path(__file__).parents[1]
MAX_COLUMNS = 120
MAX_WORDS = 40


class Kind(Enum):
    """The place of a text, which decides what rules apply to it."""

    HEADING = "heading"
    CELL = "table cell"
    PARAGRAPH = "paragraph"
    DOCSTRING = "docstring"
    DOCSTRING_PART = "paragraph of a docstring"
    ENTRY = "docstring entry"
    ATTRIBUTE = "#: comment"
    COMMENT = "comment"
    STRING = "string"
    TEST_NAME = "test name"


class Text(NamedTuple):
    """A piece of prose, without the code in it.

    Attributes:
        line: The number of its first line in the file.
        text: The prose. Each newline in it is a newline of the file.
    """

    line: int
    kind: Kind
    text: str


class Violation(NamedTuple):
    """A place that breaks a rule."""

    line: int
    message: str


# The rules for a text.


def _load_words() -> dict[re.Pattern[str], str]:
    lines = (Path(__file__).parent / "prose_words.txt").read_text(encoding="utf-8").splitlines()
    rows = (line.split(" = ") for line in lines if line and not line.startswith("#"))
    return {
        re.compile(rf"(?<![\w-])(?:{words})(?![\w-])".replace(" ", r"\s+"), re.IGNORECASE): f"write {instead}"
        for words, instead in rows
    }


_WORDS = _load_words()
# Most texts have no such word: one search for all of them comes first.
_ANY_WORD = re.compile("|".join(pattern.pattern for pattern in _WORDS), re.IGNORECASE)

_CLAUSE = re.compile(r"(What|Whether|Who|Whoever|Whose|How|Where|Why|Which|Those|That|As|When)\b")
_CLAUSE_NO_QUESTION = re.compile(r"(Whether|Whoever|Whose|Those|That)\b")
_CLAUSE_OF = {
    Kind.DOCSTRING: _CLAUSE,
    Kind.ENTRY: _CLAUSE,
    Kind.ATTRIBUTE: _CLAUSE,
    Kind.HEADING: _CLAUSE_NO_QUESTION,
    Kind.CELL: _CLAUSE_NO_QUESTION,
}
_HAS_SENTENCES = {Kind.PARAGRAPH, Kind.CELL, Kind.DOCSTRING, Kind.DOCSTRING_PART, Kind.ENTRY}
_SENTENCE = re.compile(r"\S.*?(?:[.!?…:][\"')\]*_]*(?=\s)|\Z)", re.DOTALL)


def check_text(text: Text) -> Iterator[Violation]:
    """Yield the violations in *text*."""

    def violation(offset: int, message: str) -> Violation:
        return Violation(text.line + text.text.count("\n", 0, offset), message)

    if _ANY_WORD.search(text.text):
        for pattern, instead in _WORDS.items():
            for match in pattern.finditer(text.text):
                yield violation(match.start(), f"'{' '.join(match[0].split())}': {instead}")
    clause = text.kind in _CLAUSE_OF and _CLAUSE_OF[text.kind].match(text.text)
    if clause:
        yield violation(0, f"'{clause[0]} …': begin the {text.kind.value} with a noun phrase or a verb")
    if text.kind is Kind.DOCSTRING and not text.text.endswith((".", "?", "!", ":")):
        yield violation(0, "the first paragraph of a docstring ends with a period")
    if text.kind in _HAS_SENTENCES:
        for match in _SENTENCE.finditer(text.text):
            words = sum(any(map(str.isalnum, word)) for word in match[0].split())
            if words > MAX_WORDS:
                yield violation(match.start(), f"a sentence of {words} words: split it, at most {MAX_WORDS}")


# What is not prose.

_FRONT_MATTER = re.compile(r"\A---\n.*?^---$", re.DOTALL | re.MULTILINE)
# The figures of the benchmarks; their words are strings in benchmarks/.
_GENERATED = re.compile(r"<!-- figures: .*?<!-- end -->", re.DOTALL)
_FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1 *$", re.DOTALL | re.MULTILINE)
_DEFINITION = re.compile(r"^ *\[[^\]]+\]: \S+.*$", re.MULTILINE)
_HTML = re.compile(r"<!--.*?-->|</?[a-zA-Z][^<>]*>", re.DOTALL)
_TARGET = re.compile(r"(?<=\])\([^()\s]*(?:\s+\"[^\"]*\")?\)")
_CODE = re.compile(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+]*://\S+")
_ITEM = re.compile(r"\s*(?:[-*+]|\d+[.)])\s+")


def _newlines(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def _without_code(text: str) -> str:
    """Put a letter in place of code and addresses; lines keep their numbers."""
    return _ADDRESS.sub("x", _CODE.sub(lambda match: "x" + _newlines(match), text))


# Markdown.


def markdown(source: str) -> Iterator[Text | Violation]:
    """Yield the prose of a Markdown page, and its lines that are too long."""
    for pattern in (_FRONT_MATTER, _GENERATED, _FENCE, _DEFINITION):
        source = pattern.sub(_newlines, source)
    originals = source.split("\n")
    source = _TARGET.sub(_newlines, _HTML.sub(_newlines, _without_code(source)))
    start, block = 0, ""
    for number, line in enumerate([*source.split("\n"), ""], 1):
        item = _ITEM.match(line)
        text = line[item.end() :].strip() if item else line.strip()
        if block and (item or not text or text.startswith(("#", "|", "!!!", "???"))):
            yield Text(start, Kind.PARAGRAPH, block)
            block = ""
        if text.startswith("#"):
            yield Text(number, Kind.HEADING, text.lstrip("# "))
        elif text.startswith("|"):
            for cell in re.split(r"(?<!\\)\|", text.strip("|")):
                yield Text(number, Kind.CELL, cell.strip())
        elif text:
            start, block = (start, f"{block}\n{text}") if block else (number, text)
            columns = len(originals[number - 1])
            if columns > MAX_COLUMNS and " " in text:
                yield Violation(number, f"a line of {columns} columns: wrap it, at most {MAX_COLUMNS}")


# Python.

# This takes a tenth of the time of `tokenize`.
_LEXEME = re.compile(
    r"(?P<comment>\#[^\n]*)"
    r"|\"\"\"(?:\\.|[^\\])*?\"\"\"|'''(?:\\.|[^\\])*?'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'",
    re.DOTALL,
)
_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Examples?|Notes?|Warnings?):$")
_ENTRY_NAME = re.compile(r"[*\w.,/ ]+(?: \([^)]*\))?:\s+")


def docstring(line: int, source: str) -> Iterator[Text]:
    """Yield the paragraphs of a docstring, and the entries of its sections. It begins at *line* of the file."""
    start, block, kind = line, "", Kind.DOCSTRING
    # The columns at which a section and a literal block began; -1 outside of them.
    section = literal = -1
    for number, raw in enumerate([*_without_code(source).split("\n"), ""], line):
        text = raw.strip()
        indent = len(raw) - len(raw.lstrip())
        if literal >= 0 and (not text or indent > literal):
            continue
        literal = -1
        is_section = _SECTION.match(text) is not None
        is_entry = section >= 0 and indent == section + 4
        if block and (not text or is_section or is_entry or _ITEM.match(raw)):
            yield Text(start, kind, block)
            literal = indent if block.endswith("::") else -1
            block, kind = "", Kind.DOCSTRING_PART
        if is_section:
            section = indent
        elif block:
            block += "\n" + text
        elif text and not text.startswith((">>>", "...")):
            section = section if indent > section else -1
            start, block = number, _ENTRY_NAME.sub("", text, count=1) if is_entry else text
            kind = Kind.ENTRY if is_entry else kind


def python(source: str) -> Iterator[Text]:
    """Yield the prose of a Python file: docstrings, comments, strings of several words, and the names of tests."""
    yield from _joined(_python_comments(source))
    done: set[ast.AST] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str(text)) as constant), *_]:
                    done.add(constant)
                    yield from docstring(constant.lineno, text)
            if not isinstance(node, ast.Module) and node.name.startswith("test_"):
                yield Text(node.lineno, Kind.TEST_NAME, node.name.replace("_", " "))
        elif isinstance(node, ast.JoinedStr):
            done.update(node.values)
            parts = [str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values]
            yield from _string(node.lineno, "".join(parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in done:
            yield from _string(node.lineno, node.value)


def _string(line: int, text: str) -> Iterator[Text]:
    # A shorter string is a key, a name or data. A string of several lines is a script.
    if text.count(" ") >= 3 and "\n" not in text.rstrip():
        yield Text(line, Kind.STRING, _without_code(text))


# Comments.


class Comment(NamedTuple):
    """A comment to the end of its line.

    Attributes:
        alone: True if the line has no code.
        text: The comment, with its ``#``.
    """

    line: int
    alone: bool
    text: str


def commented(source: str) -> Iterator[Text]:
    """Yield the comments of a file in a language whose comments begin with ``#``."""
    lines = enumerate(source.split("\n"), 1)
    found = ((number, re.search(r"(?:^|\s)(#(?!!).*)", line)) for number, line in lines)
    yield from _joined(Comment(number, not m.string[: m.start(1)].strip(), m[1]) for number, m in found if m)


def _python_comments(source: str) -> Iterator[Comment]:
    line, at = 1, 0
    for match in _LEXEME.finditer(source):
        if match["comment"]:
            line, at = line + source.count("\n", at, match.start()), match.start()
            yield Comment(line, not source[source.rfind("\n", 0, at) + 1 : at].strip(), match[0])


def _joined(comments: Iterable[Comment]) -> Iterator[Text]:
    """Join the comments of consecutive lines: a phrase may begin on one and end on the next."""
    start, last, kind, block = 0, 0, Kind.COMMENT, ""
    for comment in comments:
        this = Kind.ATTRIBUTE if comment.text.startswith("#:") else Kind.COMMENT
        text = comment.text.lstrip("#: ")
        if comment.alone and comment.line == last + 1 and this is kind:
            block += "\n" + text
        else:
            yield Text(start, kind, _without_code(block))
            start, kind, block = comment.line, this, text
        last = comment.line
    yield Text(start, kind, _without_code(block))


# The command.

#: The reader for each form of file. The pattern is for the whole path from the root of the repository.
#: The tests of this module contain the words that it looks for.
READERS: dict[str, Callable[[str], Iterator[Text | Violation]]] = {
    r"(docs/.+|findings/README|[A-Z]+)\.md": markdown,
    r"(bgpool|tests(?!/test_prose)|benchmarks|docs/examples)/.+\.py": python,
    r"(findings|tests)/[^/]+\.sh|docs/examples/.+\.yaml|Makefile|\.ci/run|[^/]+\.(ini|toml|ya?ml)": commented,
}


def check_file(path: Path, name: str) -> list[Violation]:
    """The violations in the file at *path*, sorted; none if *name*, its path in the repository, has no reader."""
    for pattern, reader in READERS.items():
        if re.fullmatch(pattern, name):
            found = reader(path.read_text(encoding="utf-8"))
            return sorted(v for item in found for v in ([item] if isinstance(item, Violation) else check_text(item)))
    return []


def main(arguments: list[str] | None = None) -> int:
    """Check files, print the violations, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.prose", description="Check the prose of the repository.")
    parser.add_argument("files", nargs="*", type=Path, help="files and directories; the whole repository by default")
    options = parser.parse_args(arguments)
    listed = subprocess.run(
        [
            "git",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
            "--",
            *map(Path.resolve, options.files),
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    status = 0
    for name in sorted(set(filter(None, listed.stdout.split("\0")))):
        if (ROOT / name).is_file():
            for line, message in check_file(ROOT / name, name):
                print(f"{name}:{line}: {message}")
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
