"""Unpack the sdist of a directory, without the package: ``python unpack_sdist.py DIST TARGET``."""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path

if __name__ == "__main__":
    (sdist,) = Path(sys.argv[1]).glob("*.tar.gz")
    target = Path(sys.argv[2])
    shutil.rmtree(target, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(target.parent, filter="data")
    (target.parent / sdist.name.removesuffix(".tar.gz")).rename(target)
    shutil.rmtree(target / "bgpool")
