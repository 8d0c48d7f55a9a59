"""Green threads: bgpool refuses, with one sentence, a setup in which a waiting caller would stop the whole process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EVENTLET = "import eventlet\neventlet.monkey_patch({})\n"
GEVENT = "import gevent.monkey\ngevent.monkey.patch_all({})\n"
DSN = "postgresql://app@127.0.0.1:1/app?connect_timeout=2"
#: The steps in which a process uses its pool; the patch is applied before one of them.
STEPS = {
    "get_pool": f"pool = bgpool.get_pool({DSN!r}, min_size=0, max_size=1)",
    "open": "pool.open()",
    "checkout": "pool.getconn(timeout=1)",
}


def need(library: str) -> None:
    """Skip if *library* is not installed. Do not import it: eventlet warns of every fork of its process."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"no {library}")


def run(program: str, run_dir: Path) -> str:
    """Return the text of the program's ConfigurationError, or its output."""
    lines = ["import bgpool", "try:", *(f"    {line}" for line in program.splitlines())]
    lines += ["except bgpool.ConfigurationError as error:", "    print(f'refused at {step}: {error}')"]
    # Skip the interpreter's finalization, which real threads can crash in a process that was patched late.
    lines += ["import os, sys", "sys.stdout.flush()", "os._exit(0)"]
    environment = {**os.environ, "BGPOOL_RUN_DIR": str(run_dir), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(lines)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def patched_before(step: str, patch: str) -> str:
    lines = []
    for name, code in STEPS.items():
        lines += [patch] if name == step else []
        lines += [f"step = {name!r}", code]
    return "\n".join(lines)


def once(*values: str) -> Any:
    """Return a case that runs on one version of Python only."""
    return pytest.param(*values, marks=pytest.mark.once)


@pytest.mark.parametrize(
    "arguments", ["", once("thread=False"), once("os=False, thread=False, time=False, select=False")]
)
def test_eventlet_is_refused(arguments: str, tmp_path: Path) -> None:
    need("eventlet")
    told = run(patched_before("get_pool", EVENTLET.format(arguments)), tmp_path)
    assert told.startswith("refused at get_pool: eventlet.monkey_patch() was called")


@pytest.mark.parametrize("step", [once("open"), "checkout"])
def test_a_late_patch_is_refused_at_the_next_step(step: str, tmp_path: Path) -> None:
    need("eventlet")
    told = run(patched_before(step, EVENTLET.format("")), tmp_path)
    assert told.startswith(f"refused at {step}: eventlet.monkey_patch() was called")


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        once("time=False", "time"),
        once("thread=False", "threading"),
        ("thread=False, time=False", "threading and time"),
    ],
)
def test_a_partial_patch_of_gevent_is_refused(arguments: str, missing: str, tmp_path: Path) -> None:
    need("gevent")
    told = run(patched_before("get_pool", GEVENT.format(arguments)), tmp_path)
    assert told.startswith(f"refused at get_pool: gevent has patched this process, but not {missing}: ")


@pytest.mark.parametrize(
    "patch", [once("import gevent"), once("import gevent.monkey"), once("import eventlet"), GEVENT.format("")]
)
def test_harmless_patches_are_accepted(patch: str, tmp_path: Path) -> None:
    for library in ("gevent", "eventlet"):
        if library in patch:
            need(library)
    assert run(f"{patch}\n{STEPS['get_pool']}\nprint('made')", tmp_path) == "made\n"


@pytest.mark.slow
@pytest.mark.parametrize("patch", [GEVENT.format(""), EVENTLET.format("")], ids=["gevent", "eventlet"])
def test_a_monitor_does_not_run_on_green_threads(patch: str, tmp_path: Path) -> None:
    """The monitor imports the module of a password callable, which may be the application's main module."""
    need(patch.split()[1].partition(".")[0])
    (tmp_path / "greenapp.py").write_text(
        f"{patch}\ndef password(host, port, user):\n    return ''\n", encoding="utf-8"
    )
    told = run(
        f"import sys, time, types\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        # The module as in a worker that was not yet patched when it loaded the module.
        f"sys.modules['greenapp'] = module = types.ModuleType('greenapp')\n"
        f"exec('def password(host, port, user): ...', vars(module))\n"
        f"import logging, threading\n"
        f"told = threading.Event()\n"
        f"logging.basicConfig(stream=sys.stdout)\n"
        f"logging.getLogger('bgpool.monitor').addFilter(lambda record: told.set() or True)\n"
        f"bgpool.get_pool({DSN!r}, min_size=0, max_size=1, password=module.password).open()\n"
        f"told.wait(20)\n"
        f"time.sleep(0.05)\n",
        tmp_path / "run",
    )
    assert "the password callable's module patches threads" in told
    assert "a small module of its own" in told
