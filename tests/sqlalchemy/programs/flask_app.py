"""A Flask application as Flask-SQLAlchemy's documentation has it: one changed URL, and nothing for forks.

``/plain`` writes a row in the request's session; ``/run`` writes one in a unit of work.
"""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import BigInteger, Integer
from sqlalchemy.orm import mapped_column

from bgpool.integrations.sqlalchemy import run
from tests.sqlalchemy.programs.common import url

db: Any = SQLAlchemy()


class Entry(db.Model):  # type: ignore[misc]  # the class is made by the extension
    """A row of the ledger."""

    __tablename__ = "ledger"
    seq = mapped_column(BigInteger, primary_key=True)
    worker = mapped_column(Integer, nullable=False)
    thread = mapped_column(Integer, nullable=False)
    n = mapped_column(Integer, nullable=False)


class Draft(db.Model):  # type: ignore[misc]  # the class is made by the extension
    """A table that the application creates."""

    __tablename__ = "draft"
    id = mapped_column(Integer, primary_key=True)


app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = url()
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 2, "max_overflow": 2, "pool_pre_ping": True}
db.init_app(app)

# As many applications do. With a preloading server, the master has connections from here on.
with app.app_context():
    db.create_all()


def entry() -> Entry:
    """The row that the request asks for."""
    worker, thread, n = map(int, request.args["key"].split("."))
    return Entry(worker=worker, thread=thread, n=n)


@app.get("/plain")
def plain() -> str:
    """Write a row; what interrupts it is the client's affair."""
    db.session.add(entry())
    db.session.commit()
    return str(os.getpid())


@app.get("/run")
def unit() -> str:
    """Write a row, again where a switchover interrupts it."""
    run(db.session.session_factory, lambda session: session.add(entry()))
    return str(os.getpid())
