"""The stored checkpoint: small, free of pickle, of Lotus's class, and better than a guess on held-out scenes."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the checkpoint is a PyTorch network")
pytest.importorskip("diffusers", reason="the checkpoint is a diffusers folder")

from tiny import evaluate, models  # noqa: E402
from tiny.render import render  # noqa: E402
from tiny.scene import HELD_OUT_SEEDS  # noqa: E402

CHECKPOINT = Path(models.__file__).parent / "checkpoints" / "disparity-d"
SCENES = 8
SHARE_OF_CONSTANT = 0.75
"""The model's AbsRel is at most this share of the constant predictor's."""


def test_the_folder_is_under_12_mb_of_safetensors_and_json():
    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert 5e6 < sum(path.stat().st_size for path in files) < 12e6


def test_no_folder_of_the_training_machine_is_in_it():
    for path in CHECKPOINT.rglob("*.json"):
        assert '"/' not in path.read_text(), path.name


@pytest.fixture(scope="module")
def model():
    return models.load_checkpoint(CHECKPOINT)


def test_the_networks_are_of_the_class_of_lotus(model):
    unet, vae = model.unet.config, model.vae.config
    assert (unet.in_channels, unet.out_channels, unet.class_embed_type) == (4, 4, "projection")
    assert unet.projection_class_embeddings_input_dim == 4
    assert unet.use_linear_projection
    assert unet.cross_attention_dim == model.prompt.shape[2]
    assert (vae.latent_channels, vae.use_quant_conv, vae.use_post_quant_conv) == (4, True, True)
    assert tuple(model.prompt.shape[:2]) == (1, 77)


def test_the_task_embedding_is_the_sine_and_the_cosine_of_the_switch():
    torch.testing.assert_close(models.PREDICT, torch.tensor([np.sin(1), 0, np.cos(1), 1], dtype=torch.float32))
    torch.testing.assert_close(models.RECONSTRUCT, torch.tensor([0, np.sin(1), 1, np.cos(1)], dtype=torch.float32))


def test_the_model_beats_the_constant_predictor_on_held_out_scenes():
    """The constant here is the mean of these very truths, which no constant known beforehand can beat by much."""
    scenes = [render(seed, 256, 256) for seed in HELD_OUT_SEEDS[:SCENES]]
    mean = np.mean([evaluate.truth("disparity", scene) for scene in scenes], axis=0)
    constant = evaluate.accuracy("disparity", [mean] * SCENES, scenes)
    predicted = evaluate.accuracy("disparity", evaluate.predict(CHECKPOINT, scenes), scenes)
    assert predicted["abs_rel"] < SHARE_OF_CONSTANT * constant["abs_rel"]
    assert predicted["delta1"] > constant["delta1"]


def test_the_reconstruction_switch_returns_the_image(model):
    image = torch.from_numpy(evaluate.image_map(render(HELD_OUT_SEEDS[0], 256, 256).image)).permute(2, 0, 1)[None]
    with torch.no_grad():
        latents = model.encode(image)
        errors = [
            (model.decode(model.predict_latents(latents, task=task)) - image).abs().mean()
            for task in (models.RECONSTRUCT, models.PREDICT)
        ]
    assert errors[0] < 0.15
    assert errors[0] < errors[1] / 2


def test_alignment_undoes_a_scale_and_a_shift_of_disparity():
    depth = render(HELD_OUT_SEEDS[1], 64, 64).depth
    aligned = evaluate.align("disparity", 0.3 / depth + 0.2, depth)
    np.testing.assert_allclose(aligned, depth, rtol=1e-3)
