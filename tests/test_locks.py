"""The locks: one version of each package for every Python and system, all with hashes, and the
constraints say the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

from tools import audit, demo, install, lock

PYTHONS = ("3.10.12", "3.11.7", "3.12.1", "3.13.0", "3.14.0")
SYSTEMS = {
    ("linux", "Linux", "x86_64"),
    ("linux", "Linux", "aarch64"),
    ("darwin", "Darwin", "arm64"),
    ("win32", "Windows", "AMD64"),
}


def entries(path: Path) -> list[str]:
    """Each requirement of a lock with its hashes, in one line."""
    text = path.read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def locked(path: Path, python: str, system: tuple[str, str, str]) -> dict[str, Version]:
    """What a lock installs there."""
    environment = {
        "python_version": ".".join(python.split(".")[:2]),
        "python_full_version": python,
        **dict(zip(("sys_platform", "platform_system", "platform_machine"), system, strict=True)),
    }
    found: dict[str, Version] = {}
    for line in entries(path):
        requirement = Requirement(line.partition("--hash")[0])
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name not in found, "two versions for one environment"
            (pin,) = requirement.specifier
            found[requirement.name] = Version(pin.version)
    return found


def constraints() -> dict[str, Requirement]:
    lines = lock.CONSTRAINTS.read_text().splitlines()
    parsed = [Requirement(line) for line in lines if not line.startswith("#")]
    assert len({entry.name for entry in parsed}) == len(parsed)
    return {entry.name: entry for entry in parsed}


@pytest.mark.parametrize("path", [lock.LOCK, lock.TOOLS, lock.TRITON], ids=lambda path: path.name)
def test_every_entry_has_a_hash(path: Path) -> None:
    assert len(entries(path)) > 20
    assert [line for line in entries(path) if "--hash=sha256:" not in line] == []


@pytest.mark.parametrize("system", sorted(SYSTEMS), ids=" ".join)
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_meets_the_project_and_its_constraints(
    python: str, system: tuple[str, str, str]
) -> None:
    tomllib = pytest.importorskip("tomllib", reason="in Python since 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = locked(lock.LOCK, python, system)
    limits = constraints()
    for name, version in found.items():
        assert version in limits[name].specifier
    here = {"python_version": ".".join(python.split(".")[:2]), "sys_platform": system[0]}
    here["platform_machine"] = system[2]
    wanted = [
        Requirement(line)
        for lines in (
            project["dependencies"],
            *(project["optional-dependencies"][extra] for extra in lock.EXTRAS),
        )
        for line in lines
    ]
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate(here):
            name = requirement.name.lower().replace("_", "-")
            if name == "torch":
                (pin,) = limits["torch"].specifier
                assert pin.operator == "=="
                assert pin.version in requirement.specifier
            else:
                assert found[name] in requirement.specifier, requirement


def test_constraints_are_a_version_or_the_range_of_the_locked_ones() -> None:
    text = "a==1.0 \\\n    --hash=x\nb==2.0 ; python_full_version < '3.11' \\\nb==3.1 ; x\n"
    assert lock.constraints(text) == ["a==1.0\n", "b>=2.0,<=3.1\n"]
    assert lock.pins(lock.LOCK.read_text())
    numpy = constraints()["numpy"].specifier
    assert "2.2.6" in numpy  # Python 3.10's last
    assert sorted(lock.constraints("".join(_lines()))) == sorted(
        line
        for line in lock.CONSTRAINTS.read_text().splitlines(keepends=True)
        if not line.startswith("#") and not lock.TORCH.match(line)
    )


def _lines() -> list[str]:
    return [f"{line}\n" for line in entries(lock.LOCK)]


def test_constraints_resolve_for_another_python(tmp_path: Path) -> None:
    """pip judges markers by the Python that it runs in, so there are none."""
    assert all(entry.marker is None for entry in constraints().values())
    target = ["--python-version", "3.10", "--implementation", "cp", "--target", str(tmp_path)]
    platforms = ["--platform", "manylinux_2_28_aarch64", "--platform", "manylinux2014_aarch64"]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, *target, *platforms, "-c", str(lock.CONSTRAINTS), "numpy", "pillow"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "from versions: none" in done.stderr:
        pytest.skip("no package index in reach")
    assert done.returncode == 0, done.stderr
    assert "numpy-2.2.6" in done.stdout


def test_an_audit_that_hears_of_no_hole_at_all_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(**known: str) -> None:
        def asked(requirements: list[str]) -> list[dict]:
            pairs = (line.split("==") for line in requirements)
            return [
                {"name": name, "version": version, "vulns": [{"id": known[name]}]}
                if name in known and (name != "pillow" or version == "10.0.0")
                else {"name": name, "version": version, "vulns": []}
                for name, version in pairs
            ]

        monkeypatch.setattr(audit, "_audit", asked)

    def silent(requirements: list[str]) -> list[dict]:
        raise OSError("no route")

    answer()
    assert audit.main() == audit.UNREACHABLE
    assert "not audited" in capsys.readouterr().out
    monkeypatch.setattr(audit, "_audit", silent)
    assert audit.main() == audit.UNREACHABLE
    assert "no route" in capsys.readouterr().out
    answer(pillow="A-1")
    assert audit.main() == 0
    assert "0 of " in capsys.readouterr().out
    answer(pillow="A-1", numpy="A-2")
    assert audit.main() == audit.HOLES
    said = capsys.readouterr().out
    assert "numpy==2.2.6: A-2" in said
    assert "numpy==2.4.6: A-2" in said


def test_an_environment_is_ready_until_its_sources_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "lock.txt"
    source.write_text("")
    monkeypatch.setattr(install, "SOURCES", (source,))
    assert not install.is_ready(tmp_path)
    (tmp_path / ".ready").touch()
    assert install.is_ready(tmp_path)
    later = (tmp_path / ".ready").stat().st_mtime + 1
    os.utime(source, (later, later))
    assert not install.is_ready(tmp_path)


def test_the_demo_ends_with_the_first_step_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's test runs it whole."""
    run: list[list[str]] = []

    def fake(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        run.append(command)
        return subprocess.CompletedProcess(command, 1 if "verify" in command else 0)

    monkeypatch.setattr(demo, "is_ready", lambda venv: True)
    monkeypatch.setattr(demo.subprocess, "run", fake)
    assert demo.main(["--venv", str(tmp_path)]) == 1
    assert [command[0] for command in run] == [str(install.python_of(tmp_path))] * 2
    assert run[-1][1:] == ["-m", "runtime", "verify", "engines/demo"]
