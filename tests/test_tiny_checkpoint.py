"""The stored checkpoints: small, free of pickle, of Lotus's class, one autoencoder, as accurate as
their rows say.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the checkpoints are PyTorch networks")
pytest.importorskip("diffusers", reason="the checkpoints are diffusers folders")

from benchmarks.datasets import synthetic  # noqa: E402
from benchmarks.ground_truth import GROUND_TRUTHS  # noqa: E402
from benchmarks.pytorch_baseline import values_of  # noqa: E402
from benchmarks.rows import RESULTS  # noqa: E402
from export.families import known_ids  # noqa: E402
from runtime.engine import draw_noise  # noqa: E402
from runtime.tasks import TASKS, Task  # noqa: E402
from tiny import models  # noqa: E402
from tiny.data import TASKS as LEARNED  # noqa: E402
from tiny.data import image_map  # noqa: E402
from tiny.render import render  # noqa: E402
from tiny.scene import HELD_OUT_SEEDS  # noqa: E402

CHECKPOINTS = Path(models.__file__).parent / "checkpoints"
NAMES = [f"{task}-{mode}" for task in LEARNED for mode in models.MODES]
SCENES = 10  # of each half


def test_the_family_is_complete_and_known_to_the_exporter():
    assert sorted(path.name for path in CHECKPOINTS.iterdir()) == sorted([*NAMES, "taesd", "vae"])
    assert {name for name in known_ids() if name.startswith("tiny/")} == {
        f"tiny/{name}" for name in NAMES
    }


@pytest.mark.parametrize("name", NAMES)
def test_each_folder_is_under_12_mb_of_safetensors_and_json_with_the_autoencoder(name: str):
    files = [
        path
        for folder in (name, "vae")
        for path in (CHECKPOINTS / folder).rglob("*")
        if path.is_file()
    ]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert 5e6 < sum(path.stat().st_size for path in files) < 12e6
    assert not (CHECKPOINTS / name / "vae").exists(), "the autoencoder is stored once"


def test_no_folder_of_the_training_machine_is_in_them():
    for path in CHECKPOINTS.rglob("*.json"):
        assert '"/' not in path.read_text(), path


@pytest.mark.parametrize("name", NAMES)
def test_the_networks_are_of_the_class_of_lotus(name: str):
    model = models.load_checkpoint(CHECKPOINTS / name)
    unet, vae = model.unet.config, model.vae.config
    assert (unet.in_channels, unet.out_channels) == (models.MODES[name[-1]], 4)
    assert (unet.class_embed_type, unet.projection_class_embeddings_input_dim) == ("projection", 4)
    assert unet.use_linear_projection
    assert unet.cross_attention_dim == model.prompt.shape[2]
    assert (vae.latent_channels, vae.use_quant_conv, vae.use_post_quant_conv) == (4, True, True)
    assert tuple(model.prompt.shape[:2]) == (1, 2)


def test_the_task_embedding_is_the_sine_and_the_cosine_of_the_switch():
    torch.testing.assert_close(
        models.PREDICT, torch.tensor([np.sin(1), 0, np.cos(1), 1], dtype=torch.float32)
    )
    torch.testing.assert_close(
        models.RECONSTRUCT, torch.tensor([0, np.sin(1), 1, np.cos(1)], dtype=torch.float32)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_accuracy_is_what_the_committed_rows_say(name: str):
    """PyTorch on the first scenes of each half, against the rows of ONNX Runtime for the same
    scenes.
    """
    model = models.load_checkpoint(CHECKPOINTS / name)
    task = TASKS[name.split("-")[0]]
    measured, recorded = measure(model, task, f"accuracy-{name}-256x256-fp32-onnxruntime-synthetic")
    assert measured == pytest.approx(recorded, rel=0.02)


def measure(model: models.TinyLotus, task: Task, title: str) -> tuple[float, float]:
    """Means over the first and the last scenes of the metric that ranks images: of the model now,
    and of the committed rows.
    """
    ground_truth = GROUND_TRUTHS[str(task.truth)]
    data = synthetic(str(task.truth))
    rows = json.loads((RESULTS / f"{title}.json").read_text())["rows"]
    by_scene = {row["name"]: row["metrics"] for row in rows if row["images"] == 1}
    accuracy = ground_truth.accuracy(task, data.nearest, data.farthest)
    measured, recorded = [], []
    for scene in [*data.names[:SCENES], *data.names[-SCENES:]]:
        sample = data.read(scene)
        values = predict(model, task, sample.image)
        metrics = accuracy.update(values, sample.truth, sample.mask)
        measured.append(metrics[ground_truth.ranked_by])
        recorded.append(by_scene[scene][ground_truth.ranked_by])
    return float(np.mean(measured)), float(np.mean(recorded))


def predict(model: models.TinyLotus, task: Task, image: np.ndarray) -> np.ndarray:
    planes = torch.from_numpy(image_map(image)).permute(2, 0, 1)[None]
    noise = None
    if model.unet.config.in_channels == models.MODES["g"]:
        noise = torch.from_numpy(draw_noise(0, (1, 4, *(edge // 8 for edge in image.shape[:2]))))
    with torch.no_grad():
        return values_of(model(planes, noise), task)[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_reconstruction_switch_returns_the_image(name: str):
    model = models.load_checkpoint(CHECKPOINTS / name)
    image = torch.from_numpy(image_map(render(HELD_OUT_SEEDS[0], 256, 256).image)).permute(2, 0, 1)[
        None
    ]
    with torch.no_grad():
        latents = model.encode(image)
        noise = (
            torch.from_numpy(draw_noise(0, tuple(latents.shape))) if name.endswith("g") else None
        )
        errors = [
            (model.decode(model.predict_latents(latents, noise, task)) - image).abs().mean()
            for task in (models.RECONSTRUCT, models.PREDICT)
        ]
    assert errors[0] < 0.15
    assert errors[0] < errors[1] / 2


@pytest.mark.parametrize("task", LEARNED)
def test_mode_g_answers_differently_for_another_seed_and_alike_for_the_same(task: str):
    model = models.load_checkpoint(CHECKPOINTS / f"{task}-g")
    image = torch.from_numpy(image_map(render(HELD_OUT_SEEDS[3], 256, 256).image)).permute(2, 0, 1)[
        None
    ]
    with torch.no_grad():
        first, again, other = (
            model(image, torch.from_numpy(draw_noise(seed, (1, 4, 32, 32)))) for seed in (0, 0, 1)
        )
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert 1e-3 < float((first - other).abs().mean()) < 0.2
