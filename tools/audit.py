"""Ask for known holes in what the locks hold: `make audit`. Status 1 where there is one.

Where the advisories cannot be reached it says so, with status 3: that proves nothing. A package
with holes that have long been known is asked for too, since an index that carries no advisories
answers "none" to everything.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tools.install import LOCK
from tools.lock import CONSTRAINTS, TOOLS, TORCH, pins

HOLES, UNREACHABLE = 1, 3
_CANARY = ("pillow", "10.0.0")  # a code execution in its WebP decoder, among others


def main() -> int:
    """Run the command. Returns the exit status."""
    asked = locked()
    try:
        found = holes([*asked, _CANARY])
    except OSError as error:
        print(f"not audited: {error}")
        return UNREACHABLE
    if not found.pop(_CANARY, None):
        print(f"not audited: no advisories come from here, not even for {'=='.join(_CANARY)}")
        return UNREACHABLE
    for (name, version), ids in found.items():
        print(f"{name}=={version}: {', '.join(ids)}")
    print(f"{len(found)} of {len(asked)} locked versions have known holes")
    return HOLES if found else 0


def locked() -> list[tuple[str, str]]:
    """Name and version of all that the locks install on any Python or system, and of PyTorch."""
    unhashed = {pin for pin in pins(CONSTRAINTS.read_text()) if TORCH.match(pin[0])}
    return sorted({*pins(LOCK.read_text()), *pins(TOOLS.read_text()), *unhashed})


def holes(asked: list[tuple[str, str]]) -> dict[tuple[str, str], list[str]]:
    """The advisories for each of these versions that has some.

    Raises: OSError with the last words of pip-audit, where it fails.
    """
    found = {}
    left = asked
    while left:  # pip-audit refuses a file with two versions of one package
        once = dict(reversed(left))
        left = [pin for pin in left if once[pin[0]] != pin[1]]
        for package in _audit([f"{name}=={version}" for name, version in once.items()]):
            if ids := [hole["id"] for hole in package.get("vulns", [])]:
                found[package["name"], package["version"]] = ids
    return found


def _audit(requirements: list[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requirements.txt"
        path.write_text("\n".join(requirements))
        command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format=json"]
        done = subprocess.run(
            [*command, "--progress-spinner=off", f"--requirement={path}"],
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        raise OSError((done.stderr.strip() or "pip-audit said nothing").splitlines()[-1]) from None
    return packages


if __name__ == "__main__":
    sys.exit(main())
