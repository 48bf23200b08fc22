"""Families as values: what they recognise, what they refuse, and what a new one costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from export.errors import CheckpointError
from export.families import FAMILIES, Configs, find_family, known_ids, resolve_task
from export.families.lotus import LOTUS_D, LOTUS_G, to_map
from export.network.checkpoint import Checkpoint, load_checkpoint
from export.network.single_pass import SinglePass
from runtime.tasks import TASKS, Task

UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 4,
}
VAE = {"latent_channels": 4}
ALBEDO = Task(name="albedo", channels=3, low=0.0, high=1.0, near=None, meaning="reflectance")


def test_the_mode_is_read_from_the_channels() -> None:
    assert find_family("mine", Configs(unet=UNET, vae=VAE)) is LOTUS_D
    assert find_family("mine", Configs(unet=UNET | {"in_channels": 8}, vae=VAE)) is LOTUS_G


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 9}, r"lotus-d: channels into the UNet 4 \(here 9\)\n  lotus-g: .* 8 \("),
        ({"out_channels": 8}, r"channels out of the UNet 4 \(here 8\)"),
        ({"class_embed_type": None}, r"class embedding 'projection' \(here None\)"),
        ({"projection_class_embeddings_input_dim": 2}, r"width of the class vector 4 \(here 2\)"),
    ],
)
def test_a_refusal_says_what_each_family_has(changes: dict[str, object], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        find_family("mine", Configs(unet=UNET | changes, vae=VAE))


def test_known_ids_name_tasks_that_exist_and_belong_to_one_family() -> None:
    assert {task for _, task in known_ids().values()} <= set(TASKS)
    assert sum(len(family.known_ids) for family in FAMILIES.values()) == len(known_ids())
    lotus = [(name, f) for name, (f, _) in known_ids().items() if f.name.startswith("lotus-")]
    assert all(f"-{family.mode}" in name for name, family in lotus)


def test_a_task_is_implied_asked_for_or_refused() -> None:
    assert resolve_task("tiny/normal-d", None) is TASKS["normal"]
    assert resolve_task("./mine", "depth") is TASKS["depth"]
    assert resolve_task("random/lotus-d", "normal") is TASKS["normal"]
    with pytest.raises(CheckpointError, match="pass --task"):
        resolve_task("./mine", None)
    with pytest.raises(CheckpointError, match="known to predict normal"):
        resolve_task("tiny/normal-d", "depth")


def test_a_map_lies_in_the_range_of_its_task() -> None:
    """The clamp comes before the mean, as in the reference."""
    picture = torch.tensor([-3.0, 0.0, 0.5]).view(1, 3, 1, 1)
    assert to_map(picture, TASKS["normal"]).flatten().tolist() == [-1.0, 0.0, 0.5]
    assert to_map(picture, ALBEDO).flatten().tolist() == [0.0, 0.5, 0.75]
    assert to_map(picture, TASKS["depth"]).item() == pytest.approx((0 + 0.5 + 0.75) / 3)


@pytest.mark.parametrize("task", [TASKS["depth"], TASKS["normal"], ALBEDO])
def test_a_new_family_or_task_is_a_value(checkpoint_d: Path, task: Task) -> None:
    """Another timestep and another sign of the UNet's output: single pass and reference agree."""
    loaded = load_checkpoint(str(checkpoint_d), task="depth")
    other = dataclasses.replace(LOTUS_D, name="other", timestep=1, latent_factor=-1.0)
    negated = Checkpoint(id="other", family=other, task=task, modules=loaded.modules)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    unet = loaded.modules.unet
    image = torch.from_numpy(picture.transpose(2, 0, 1)[None] / np.float32(127.5)) - 1
    network = SinglePass(negated.copy())
    with torch.inference_mode():
        found = network(image)[0][0].numpy()
        latent = loaded.vae.encode(image).latent_dist.mode() * 0.18215
        output = -unet(
            latent, 1, encoder_hidden_states=loaded.prompt, class_labels=other.class_labels()
        ).sample
        unit = (loaded.vae.decode(output / 0.18215).sample[0].numpy() / 2 + 0.5).clip(0, 1)
    if task.channels == 1:
        unit = unit.mean(axis=0, keepdims=True)
    np.testing.assert_allclose(found, unit * (task.high - task.low) + task.low, atol=1e-4)
