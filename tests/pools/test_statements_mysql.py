"""What the text of a MySQL statement says about the transaction it runs in."""

from __future__ import annotations

import pytest

from bgpool.pools.mysql.statements import first_words


@pytest.mark.parametrize(
    ("statement", "word"),
    [
        ("insert into t values (1)", b"INSERT"),
        ("  /* a hint */ -- and\n (select 1)", b"SELECT"),
        ("# note\nUPDATE t SET n = 1", b"UPDATE"),
        ("/*! COMMIT */", b""),
        ("/*M! COMMIT */", b""),
        ("COMMIT WORK", b"COMMIT"),
        ("", b""),
    ],
)
def test_first_word(statement: str, word: bytes) -> None:
    assert first_words(statement.encode())[0] == word


def test_savepoints_are_no_end() -> None:
    assert first_words(b"ROLLBACK TO SAVEPOINT s") == (b"ROLLBACK", True)
    assert first_words(b"rollback work to s") == (b"ROLLBACK", True)
    assert first_words(b"ROLLBACK") == (b"ROLLBACK", False)
