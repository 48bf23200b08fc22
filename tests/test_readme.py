"""What README and docs/ tell people to type works. Blocks after `<!-- not run: REASON -->` are left
out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT

README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DEMO = ROOT / "engines" / "demo"
_BLOCK = re.compile(
    r"(?P<skip>^ *<!-- not run: [^>]+ -->\n)?"
    r"^ *```(?P<language>bash|python)\n(?P<code>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
_LINK = re.compile(r"\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


class Block(NamedTuple):
    """A code block of a page; `skip` where it is not run."""

    language: str
    code: str
    skip: bool


def blocks(page: Path) -> list[Block]:
    return [
        Block(match["language"], textwrap.dedent(match["code"]), match["skip"] is not None)
        for match in _BLOCK.finditer(page.read_text())
    ]


RUN = {
    page.name: [block for block in blocks(page) if not block.skip]
    for page in PAGES
    if page.name != "README.md"
}


def run(block: Block) -> None:
    """In the checkout, with this test's own virtual environment in place of a new one."""
    environment = dict(
        os.environ, VENV=sys.prefix, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    command = ["bash", "-euc"] if block.language == "bash" else [sys.executable, "-c"]
    done = subprocess.run(
        [*command, block.code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{block.code}\n{done.stdout}\n{done.stderr}"


def test_readme_is_short_and_most_of_its_blocks_are_run() -> None:
    found = blocks(README)
    assert len(README.read_text().splitlines()) <= 150
    assert sum(not block.skip for block in found) >= 4
    assert sum(block.skip for block in found) <= 1


@pytest.mark.slow
def test_blocks_of_the_readme_in_order() -> None:
    if not (Path(sys.prefix) / ".ready").exists():
        pytest.skip("this virtual environment was not made by `make`; `make test` runs this")
    for block in blocks(README):
        if not block.skip:
            run(block)


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name, found in RUN.items() if found])
def test_blocks_of_the_docs_in_order(page: str) -> None:
    """They use the bundle that `make demo` builds, which the README's first block runs."""
    if not DEMO.is_dir():
        pytest.skip("needs engines/demo (`make demo`)")
    for block in RUN[page]:
        run(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_heading_that_a_page_names_exists(page: Path) -> None:
    for link in _LINK.finditer(page.read_text()):
        target = (page.parent / link["path"]).resolve()
        assert target.exists(), f"{page.name} names {link['path']}"
        if link["anchor"] and target.suffix == ".md":
            assert link["anchor"] in anchors(target), f"{page.name} names {link[0]}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {
        "#" + re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles
    }
