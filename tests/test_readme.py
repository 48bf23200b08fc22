"""What the README tells people to type works. Blocks after `<!-- not run: REASON -->` are left out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

BLOCK = re.compile(r"(?P<skip><!-- not run: [^>]+ -->\n)?```(?P<language>bash|python)\n(?P<code>.*?)```", re.DOTALL)
BLOCKS = [match.groupdict() for match in BLOCK.finditer((ROOT / "README.md").read_text())]
RUN = [block for block in BLOCKS if not block["skip"]]


def test_most_blocks_are_run() -> None:
    assert len(RUN) >= 4
    assert len(RUN) >= len(BLOCKS) - len(RUN)


@pytest.mark.slow
def test_blocks_in_order(tmp_path: Path) -> None:
    """In the checkout, with this test's own virtual environment in place of a new one."""
    environment = dict(os.environ, VENV=sys.prefix, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    ready = Path(sys.prefix) / ".ready"
    if not ready.exists():
        pytest.skip("this virtual environment was not made by `make`; `make test` runs this")
    for block in RUN:
        command = (
            ["bash", "-euc", block["code"]] if block["language"] == "bash" else [sys.executable, "-c", block["code"]]
        )
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{block['code']}\n{done.stdout}\n{done.stderr}"


def test_every_file_the_readme_names_exists() -> None:
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"\]\(([^)#:]+)\)", text)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []
