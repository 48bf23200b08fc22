"""What a wheel has other than a clone; pyproject.toml says the rest. CONTRIBUTING.md explains it.

In a clone the packages `runtime`, `export` and `apps` lie at the top. As installed names they would
collide with those of others, so a wheel has them inside `lotus_edge`. Its files are those of the
clone with two things rewritten: imports of these packages, and what messages tell people to type.
"""

from __future__ import annotations

import ast
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

MOVED = {room: f"lotus_edge.{room}" for room in ("runtime", "export", "apps")}
RENAMED = MOVED | {"tiny": "lotus_edge_tiny"}
"""What a clone's packages are called where they are installed; `tiny` is a wheel of its own."""

TYPED = {
    '`pip install -e ".[{extra}]"` in the clone': '`pip install "lotus-edge[{extra}]"`',
    "python -m runtime": "lotus-edge",
    "python export/build_engine.py": "lotus-edge-build",
    "python export/inspect_bundle.py": "python -m lotus_edge.export.inspect_bundle",
}
"""What people type in a clone, and what they type where a wheel is installed."""


def installed_source(source: str) -> str:
    """The source of a module as the wheel has it.

    Raises: ValueError for `import runtime.x`, which binds a name that the wheel does not have.
    """
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            _rename(lines, node, node.module, node.module)
        elif isinstance(node, ast.Import):
            for name in node.names:
                if "." in name.name and not name.asname and name.name.split(".")[0] in RENAMED:
                    raise ValueError(f"write `import {name.name} as ...` or `from ... import`")
                _rename(lines, name, name.name, name.asname or name.name)
    text = "".join(lines)
    for clone, installed in TYPED.items():
        text = text.replace(clone, installed)
    return text


def _rename(lines: list[str], node: ast.ImportFrom | ast.alias, module: str, bound: str) -> None:
    """Write the installed name over `module` in the line of its import, and keep what it binds."""
    room, dot, rest = module.partition(".")
    if room not in RENAMED:
        return
    new = f"{RENAMED[room]}{dot}{rest}"
    if isinstance(node, ast.alias) and bound == module:
        new += f" as {bound}"
    number, column = node.lineno - 1, node.col_offset
    line = lines[number].encode()  # columns of the syntax tree count bytes
    lines[number] = (
        line[:column] + line[column:].replace(module.encode(), new.encode(), 1)
    ).decode()


class BuildWheel(build_py):
    """Copies a clone's packages to where a wheel has them; an editable install stays a clone."""

    def finalize_options(self) -> None:
        if not self.editable_mode:
            rooms = {name: name.partition(".") for name in find_packages(include=self._rooms())}
            self.distribution.packages = ["lotus_edge", "runtime"]
            self.distribution.package_dir = {"runtime": "lotus_edge"}
            for name, (room, dot, rest) in rooms.items():
                moved = f"{MOVED[room]}{dot}{rest}"
                self.distribution.packages.append(moved)
                self.distribution.package_dir[moved] = name.replace(".", "/")
        super().finalize_options()

    @staticmethod
    def _rooms() -> list[str]:
        return [pattern for room in MOVED for pattern in (room, f"{room}.*")]

    def run(self) -> None:
        if not self.editable_mode:  # what an earlier build left there would go into the wheel
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        outfile, copied = super().build_module(module, module_file, package)
        if not self.editable_mode:
            path = Path(outfile)
            path.write_text(installed_source(path.read_text("utf-8")), "utf-8")
        return outfile, copied


setup(cmdclass={"build_py": BuildWheel})
