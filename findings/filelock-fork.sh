#!/usr/bin/env bash
# filelock: an import of it makes os.fork() raise RuntimeError in one thread while another thread is forking.
#
# Versions: filelock 3.30.0 (every Python) and 4.3.1 (Python 3.12 and later), Python 3.10.13 to 3.13.0 (PYTHON=...).
# Behaviour: the import installs an audit hook for forks. No lock is created or acquired here.
# Expected: a library that is imported and not used changes nothing about fork.
# Seen: about 2,080 of 2,400 forks fail.
set -eu
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/forks.py" <<'PROGRAM'
import os, sys, threading, warnings
from importlib.metadata import version

import filelock

warnings.simplefilter("ignore", DeprecationWarning)
errors, go = [], threading.Event()

def fork_and_wait():
    go.wait()
    for _ in range(300):
        try:
            if not (pid := os.fork()):
                os._exit(0)
            os.waitpid(pid, 0)
        except RuntimeError as error:
            errors.append(str(error))

threads = [threading.Thread(target=fork_and_wait) for _ in range(8)]
for thread in threads:
    thread.start()
go.set()
for thread in threads:
    thread.join()
print(f"Python {sys.version.split()[0]}, filelock {version('filelock')}: {len(errors)} of 2400 forks failed", *set(errors))
sys.exit(not errors)
PROGRAM
versions=3.30.0
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' && versions="$versions 4.3.1"
for version in $versions; do
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$work/$version" "filelock==$version"
    PYTHONPATH="$work/$version" "$python" "$work/forks.py"
done
