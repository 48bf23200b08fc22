"""Of the modules in this folder the wheel has the renderer; training stays in a clone."""

from __future__ import annotations

from setuptools import setup
from setuptools.command.build_py import build_py

MODULES = ("__init__", "render", "scene")


class BuildWheel(build_py):
    """Finds fewer modules than there are."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        found = super().find_package_modules(package, package_dir)
        return [entry for entry in found if entry[1] in MODULES]


setup(cmdclass={"build_py": BuildWheel})
