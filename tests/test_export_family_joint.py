"""Two families with one autoencoder in one bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import build_bundle
from family_checkpoints import save_family

from export.errors import BuildError
from export.plan import make_plan
from export.settings import BuildSettings
from runtime import LotusEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("family") / "mine", "e2e")


@pytest.mark.slow
def test_depth_from_zeros_and_normals_from_noise(
    folder: Path, photo: np.ndarray, tmp_path: Path
) -> None:
    """The build itself runs the golden, the references of both families."""
    joint = build_bundle(
        folder,
        tmp_path / "joint",
        beside=(str(folder),),
        task="depth,normal",
        family="diffusion-e2e-ft,marigold",
        resolutions=((64, 64),),
    )
    with LotusEngine(joint) as engine:
        engine.verify()
        first, second = (engine(photo, seed=seed) for seed in (1, 2))
    assert np.array_equal(first["depth"].values, second["depth"].values)
    assert not np.allclose(first["normal"].values, second["normal"].values, atol=1e-3)


def test_as_many_families_as_checkpoints(folder: Path) -> None:
    settings = BuildSettings(
        checkpoint=str(folder),
        beside=(str(folder),),
        task="depth,normal",
        family="marigold,marigold,marigold",
    )
    with pytest.raises(BuildError, match=r"--family names .* for 2 checkpoints"):
        make_plan(settings)
