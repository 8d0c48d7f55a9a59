"""Each rule of the linter for prose finds what it is for, and accepts what is right."""

from __future__ import annotations

import subprocess
from pathlib import Path
from textwrap import dedent

import pytest

from tests import prose

pytestmark = pytest.mark.once


def found(path: Path, text: str, name: str) -> list[str]:
    """The violations in *text*, if it is the file *name* of the repository."""
    path.write_text(dedent(text), encoding="utf-8")
    return [f"{line}: {message}" for line, message in prose.check_file(path, name)]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "text"


def in_page(path: Path, text: str) -> list[str]:
    return found(path, text, "docs/fleet.md")


def in_module(path: Path, text: str) -> list[str]:
    return found(path, text, "bgpool/core/module.py")


def test_a_banned_word_is_reported_with_its_line_and_advice(page: Path) -> None:
    text = "# Fleet\n\nThe monitor reports.\nNobody waits.\n"
    assert in_page(page, text) == ['4: \'Nobody\': write the noun: "no caller", "no process", …']


def test_a_banned_phrase_is_found_across_lines(page: Path) -> None:
    assert in_page(page, "The interval is\nto be short.\n") == ['1: \'is to be\': write "must be", "is due", "will be"']


@pytest.mark.parametrize(
    "text",
    [
        "A pool opens no more connections than `max_size`.",
        "Rows that cannot be told apart.",
        "The nobody-else rule, besides.",
        "The account `nobody`, and [a page](beside.md), and <a href='nobody'>this</a>, and http://nobody/.",
        "``let go\nof it``",
        "```sh\nnobody\n```",
        "- item\n\n    ```sh\n    nobody\n    ```\n",
        "---\ntitle: nobody\n---\n",
        "[nobody]: http://example.org\n",
        "<!-- figures: storm -->\nNobody.\n\nNobody.\n<!-- end -->\n",
    ],
)
def test_code_links_and_plain_words_are_accepted(page: Path, text: str) -> None:
    assert in_page(page, text) == []


def test_words_are_found_in_every_part_of_a_module(page: Path) -> None:
    lines = in_module(
        page,
        '''
        """The module. Nobody."""
        # Nobody.
        #: Nobody.
        x = 1  # nobody
        raise ValueError(f"{x} is for nobody at all")
        raise ValueError("that is for nobody" " at all")
        def test_nobody_waits():
            """Check that nobody waits."""
        ''',
    )
    assert [line.partition(":")[0] for line in lines] == ["2", "3", "4", "5", "6", "7", "8", "9"]


def test_data_is_not_prose(page: Path) -> None:
    assert in_module(page, 'user = "nobody"\nscript = """\n  for nobody at all: pass\n"""\nhash = "# nobody"\n') == []


@pytest.mark.parametrize("name", ["Makefile", "tox.ini", "findings/a.sh", ".ci/run", "mkdocs.yml"])
def test_only_comments_count_in_other_files(page: Path, name: str) -> None:
    text = "#!/bin/nobody\n# nobody\nnobody: x#nobody\nx: 1  # nobody\n"
    assert [line[0] for line in found(page, text, name)] == ["2", "4"]


def test_files_of_other_forms_are_not_read(tmp_path: Path) -> None:
    assert prose.check_file(tmp_path / "missing", "docs/images/a.svg") == []


@pytest.mark.parametrize(
    "clause", ["What it does.", "Whether it does.", "As before.", "Those that wait.", "When it began."]
)
def test_docstrings_do_not_begin_with_a_clause(page: Path, clause: str) -> None:
    begin = f"'{clause.split()[0]} …': begin the"
    text = f'"""{clause}\n\nArgs:\n    one: {clause}\n    two (int): {clause}\n"""\n#: {clause}\nx = 1\n# {clause}\n'
    expected = [(1, "docstring"), (4, "docstring entry"), (5, "docstring entry"), (7, "#: comment")]
    assert in_module(page, text) == [f"{line}: {begin} {kind} with a noun phrase or a verb" for line, kind in expected]


def test_noun_phrases_and_verbs_begin_a_docstring(page: Path) -> None:
    text = '"""Return whether it waits.\n\nWhat follows is free.\n\nArgs:\n    x: The first:\n        What is.\n"""\n'
    assert in_module(page, text) == []


def test_headings_and_cells_may_be_questions(page: Path) -> None:
    text = "## What to expect\n\n| How | Where |\n|---|---|\n| What \\| it | When |\n"
    assert in_page(page, text) == []


def test_headings_and_cells_are_no_other_clauses(page: Path) -> None:
    text = "## Whether it waits\n\n| variable | use |\n|---|---|\n| x | Those that wait |\n"
    assert in_page(page, text) == [
        "1: 'Whether …': begin the heading with a noun phrase or a verb",
        "5: 'Those …': begin the table cell with a noun phrase or a verb",
    ]


def test_long_sentences_are_reported_in_pages_and_docstrings(page: Path) -> None:
    sentence = "word " * 40 + "end."
    message = "a sentence of 41 words: split it, at most 40"
    assert in_page(page, f"Short.\n{sentence.replace(' ', chr(10))}\n") == [f"2: {message}"]
    assert in_page(page, sentence.replace("word ", "word;\n")) == [f"1: {message}"]
    assert in_page(page, f"| x |\n|---|\n| {sentence} |\n") == [f"3: {message}"]
    assert in_module(page, f'"""Short.\n\n{sentence}\n"""\n# {sentence}\n') == [f"3: {message}"]


def test_sentences_of_40_words_are_accepted(page: Path) -> None:
    sentence = "word\n" * 39 + "end. "
    assert in_page(page, sentence * 2) == []
    assert in_page(page, "word\n" * 30 + "colon: " + "word\n" * 30) == []
    assert in_page(page, "- " + "word\n  " * 30 + "\n- " + "word\n  " * 30) == []


def test_the_first_paragraph_of_a_docstring_ends_with_a_period(page: Path) -> None:
    message = "the first paragraph of a docstring ends with a period"
    assert in_module(page, '"""One\ntwo\n\nThree.\n"""\n') == [f"1: {message}"]
    assert in_module(page, '"""One\ntwo.\n\n- three\n\nArgs:\n    x: four\n"""\n') == []


def test_long_lines_of_prose_are_reported(page: Path) -> None:
    line = "word " * 23 + "words"
    assert in_page(page, f"{line}\n\n- {line}\n") == ["3: a line of 122 columns: wrap it, at most 120"]


@pytest.mark.parametrize(
    "text",
    [
        "| " + "word " * 30 + " |",
        "- [x](" + 120 * "x" + ")",
        "`" + "word " * 30 + "`",
        "https://" + 120 * "x",
        "```\n" + 121 * " x" + "\n```",
    ],
)
def test_lines_that_cannot_be_broken_may_be_long(page: Path, text: str) -> None:
    assert in_page(page, text + "\n") == []


def test_literal_blocks_of_docstrings_are_code(page: Path) -> None:
    text = '"""The module::\n\n    nobody waits\n\n        nobody\n\n>>> "nobody"\n\nNobody.\n"""\n'
    assert [line[0] for line in in_module(page, text)] == ["9"]


def test_the_command_prints_violations_and_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs/fleet.md"
    page.write_text("Nobody.\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("Good.\n", encoding="utf-8")
    assert prose.main([]) == prose.main([str(page)]) == prose.main([str(page.parent)]) == 1
    line, *others = capsys.readouterr().out.splitlines()
    assert line.startswith("docs/fleet.md:1: 'Nobody': ")
    assert others == [line] * 2
    assert prose.main([str(tmp_path / "README.md")]) == 0
    assert capsys.readouterr().out == ""
