"""Brings the packages of `sources` onto the disk: `python -m pretrain.fetch`.

Through the npm client, so that whatever registry the machine is set up for is used.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from deltaw.errors import DeltawError
from pretrain.sources import PACKAGES, Package

FOLDER = Path("runs/pretrain/packages")


def fetch(package: Package, folder: Path) -> Path:
    """Downloads and unpacks one package, unless it is there; returns its folder.

    Raises:
        DeltawError: npm is missing or could not bring the package.
    """
    target = folder / package.folder
    if (target / "package.json").exists():
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise DeltawError(
            "npm is not installed", where=package.spec, advice="install Node.js, whose client brings the art"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        done = subprocess.run(
            [npm, "pack", "--silent", package.spec], cwd=scratch, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise DeltawError(
                f"npm could not bring it: {done.stderr.strip()}",
                where=package.spec,
                advice="check the network, then run again",
            )
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            archive.extractall(Path(scratch) / "out", filter="data")
        next((Path(scratch) / "out").iterdir()).rename(target)  # last, so that a folder that exists is complete
    return target


def main() -> None:
    """Fetches every package and says its licence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=FOLDER, help="where to unpack them")
    args = parser.parse_args()
    for package in PACKAGES:
        fetch(package, args.packages)
        print(f"{package.spec:50} {package.licence}")


if __name__ == "__main__":
    main()
