"""What the folds are worth in PyTorch, on the CPU, and that no tensor stays behind on a GPU."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT, save_checkpoint

from benchmarks.on_device.folded import Clock, folded, inputs_of
from export.folds import apply_folds
from export.graph.stages import STAGES
from export.network.checkpoint import load_checkpoint
from export.network.single_pass import SinglePass
from export.targets import TARGETS

IMAGE = str(ROOT / "tiny" / "samples" / "room.png")


@pytest.fixture(scope="module", params=["d", "g"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("checkpoint"), mode=request.param))


def test_folded_and_plain_answer_the_same_and_every_stage_is_timed(checkpoint: str) -> None:
    found = folded(
        checkpoint=checkpoint,
        task="depth",
        resolution="64x64",
        image=IMAGE,
        target="tensorrt",
        seconds=0.01,
    )
    assert found["precision"] == "fp32"
    assert "fold-prompt" in found["folds"]
    assert found["plain_from_fp32"]["largest"] == 0
    assert 0 < found["difference"]["largest"] < 1e-4
    for times in found["times_s"].values():
        assert set(times) == {*STAGES, "all"}
        assert min(times.values()) > 0
    assert found["ratio"] == found["times_s"]["plain"]["all"] / found["times_s"]["folded"]["all"]


def test_the_folded_network_moves_to_a_device_and_to_half_as_a_whole(checkpoint: str) -> None:
    """On the device "meta" any tensor that stayed behind is an error, as on a GPU."""
    network = SinglePass(load_checkpoint(checkpoint, task="depth")).eval()
    inputs = inputs_of(network, IMAGE, "64x64")
    apply_folds(network, TARGETS["tensorrt"].recipe("fp16"))
    network.to("meta", torch.float16)
    clock = Clock(network, torch.device("cpu"))
    with torch.inference_mode():
        (answer,) = network(*(each.to("meta", torch.float16) for each in inputs))
    assert answer.device.type == "meta"
    assert answer.dtype == torch.float16
    assert answer.shape == (1, 1, 64, 64)
    assert set(clock.read()) == {*STAGES, "all"}
