"""How far off a golden may be: on the target's own backend, and on another."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from conftest import write_null_bundle

from runtime import LotusEngine
from runtime.backends import BACKENDS
from runtime.backends.null import BackendSession
from runtime.backends.session import Arrays, Session
from runtime.errors import VerificationError
from runtime.golden import golden_on
from runtime.manifest import Manifest

RGB = np.full((64, 96, 3), 127, np.uint8)
OWN, OTHER = "null", "onnxruntime"  # the target of a bundle that the null backend opens
A_PIXEL, ALL = np.s_[..., :1, :1], np.s_[...]


def make_wrong(patch: pytest.MonkeyPatch, amount: float, where: tuple[object, ...]) -> None:
    """From now on answers are off by so much, there, and bundles prove themselves."""
    answered = BackendSession._run

    def run(self: Session, runner: None, inputs: Arrays) -> Arrays:
        answer = answered(self, runner, inputs)
        answer["disparity"][where] += np.float32(amount)
        return answer

    entry = dataclasses.replace(BACKENDS["null"], package="numpy", threads=True)
    patch.setitem(BACKENDS, "null", entry)
    patch.setattr(BackendSession, "_run", run)


@pytest.mark.parametrize(
    ("target", "amount", "where", "tolerance", "right"),
    [
        (OWN, 5e-5, A_PIXEL, 1e-4, True),
        (OWN, 5e-4, A_PIXEL, 1e-4, False),
        (OTHER, 5e-4, A_PIXEL, 1e-3, True),
        (OTHER, 2e-3, A_PIXEL, 1e-3, False),
        (OTHER, 5e-4, ALL, 1e-3, False),  # the bound of the mean stays, 1e-5
    ],
)
def test_verify_and_the_proof_at_opening_agree(
    target: str,
    amount: float,
    where: tuple[object, ...],
    tolerance: float,
    right: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = write_null_bundle(tmp_path / "bundle", target=target)
    monkeypatch.setenv("LOTUS_EDGE_CACHE", str(tmp_path / "cache"))
    make_wrong(monkeypatch, amount, where)
    with LotusEngine(bundle, "null") as engine:
        if right:
            engine(RGB)
            assert engine.verify().tolerance == tolerance
            return
        said = rf"tolerance is {tolerance:g} \(mean 1e-05\)"
        with pytest.raises(VerificationError, match=said):
            engine(RGB)
        with pytest.raises(VerificationError, match=said):
            engine.verify()


def test_wider_bounds_stay_as_they_are(tmp_path: Path) -> None:
    manifest = Manifest.load(write_null_bundle(tmp_path, target="openvino"))
    wide = dataclasses.replace(manifest.golden, tolerance=0.4, mean_tolerance=0.02)
    manifest = dataclasses.replace(manifest, golden=wide)
    assert golden_on(manifest, "onnxruntime") == golden_on(manifest, "openvino") == wide
