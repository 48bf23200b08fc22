"""Distillation: what the student is taught, that a killed run goes on, and that the stored one is
worth its rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="distillation is PyTorch")
pytest.importorskip("diffusers", reason="teacher and student are diffusers networks")

from diffusers import AutoencoderKL, AutoencoderTiny  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from test_tiny_checkpoint import CHECKPOINTS, measure  # noqa: E402

from runtime.tasks import TASKS  # noqa: E402
from tiny import distill, models  # noqa: E402
from tiny.data import Scenes  # noqa: E402
from tiny.render import render  # noqa: E402
from tiny.state import Training  # noqa: E402

STEPS = 4


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    """Two rendered scenes, as the cache holds them."""
    rendered = [render(seed, 256, 256) for seed in (1_000_000, 1_000_001)]
    return Scenes(
        images=np.stack([picture.image for picture in rendered]),
        depth=np.stack([picture.depth for picture in rendered]).astype(np.float16),
        normals=np.stack([np.round(picture.normals * 127) for picture in rendered]).astype(np.int8),
    )


@pytest.fixture(scope="module")
def teacher() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(CHECKPOINTS / "vae").float().eval().requires_grad_(False)


def lesson_of(teacher: AutoencoderKL, scenes: Scenes, step: int = 0) -> distill.Lesson:
    with torch.no_grad():
        return distill.prepare_lesson(teacher, scenes, np.random.default_rng(step), step)


def test_a_lesson_is_what_the_teacher_says(teacher: AutoencoderKL, scenes: Scenes) -> None:
    lesson = lesson_of(teacher, scenes)
    scaling = teacher.config.scaling_factor
    assert len(lesson) == 3
    assert lesson.images.shape == (3, 3, 128, 128)
    with torch.no_grad():
        latents = teacher.encode(lesson.images).latent_dist.mode() * scaling
        decoded = teacher.decode(lesson.unsure / scaling).sample
    torch.testing.assert_close(lesson.latents, latents, rtol=0, atol=1e-4)
    torch.testing.assert_close(lesson.decoded, decoded, rtol=0, atol=1e-4)
    assert 0.5 < float(lesson.latents.std()) < 2, "scaled latents have a deviation of about 1"


def test_some_latents_stay_and_some_become_unsure() -> None:
    latents = torch.randn(64, 4, 8, 8)
    moved = (
        (distill.blur_and_disturb(latents, np.random.default_rng(0)) - latents)
        .flatten(1)
        .abs()
        .amax(dim=1)
    )
    assert 0.3 < float((moved == 0).float().mean()) < 0.7
    flat = torch.ones(64, 4, 8, 8)
    noise = (distill.blur_and_disturb(flat, np.random.default_rng(0)) - flat).flatten(1).std(dim=1)
    assert 0.2 < float(noise.max()) < 1.1 * distill.UNSURE_NOISE, (
        "blurring leaves what is flat, at the border too"
    )


def test_the_loss_is_zero_for_the_teachers_own_answers(
    teacher: AutoencoderKL, scenes: Scenes
) -> None:
    class Parrot:
        def encode(self, images: torch.Tensor) -> object:
            return type("Encoded", (), {"latents": lesson.latents})

        def decode(self, latents: torch.Tensor) -> object:
            return type("Decoded", (), {"sample": lesson.decoded})

    lesson = lesson_of(teacher, scenes)
    assert float(distill.lesson_loss(Parrot(), lesson)) == 0
    assert float(distill.lesson_loss(distill.new_student(0), lesson).detach()) > 1


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_it_had_never_stopped(
    teacher: AutoencoderKL, scenes: Scenes, tmp_path: Path
) -> None:
    def learn(path: Path, until: int) -> Training:
        student = distill.new_student(4)
        training = Training(student, path, steps=STEPS, peak_rate=2e-3)
        training.restore()
        while training.step < until:
            training.apply(distill.lesson_loss(student, lesson_of(teacher, scenes, training.step)))
        training.save()
        return training

    whole = learn(tmp_path / "whole.safetensors", STEPS)
    learn(tmp_path / "parts.safetensors", STEPS // 2)
    parts = learn(tmp_path / "parts.safetensors", STEPS)
    for name, weight in whole.network.named_parameters():
        torch.testing.assert_close(
            weight, parts.network.get_parameter(name), rtol=1e-4, atol=1e-6, msg=name
        )


@pytest.mark.slow
def test_the_command_trains_goes_on_and_begins_with_another_student(
    scenes: Scenes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(distill, "load_scenes", lambda folder, style: scenes)
    threads = torch.get_num_threads()
    command = ["--vae", str(CHECKPOINTS / "vae"), "--output", str(tmp_path / "student")]
    begun = distill.new_student(9)
    begun.save_pretrained(tmp_path / "begun")
    try:
        distill.main([*command, "--steps", "2"])
        first = weights_of(tmp_path / "student")
        distill.main([*command, "--steps", "3"])
        again = weights_of(tmp_path / "student")
        distill.main(
            [
                *command[:3],
                str(tmp_path / "other"),
                "--start",
                str(tmp_path / "begun"),
                "--steps",
                "1",
            ]
        )
    finally:
        torch.set_num_threads(threads)
    assert not all(torch.equal(value, again[name]) for name, value in first.items()), (
        "the third step"
    )
    assert {value.dtype for value in first.values()} == {torch.float16}
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "other.safetensors",
        "student.safetensors",
    ]
    # The first step of Adam moves no weight further than its rate, 2e-3.
    for name, value in weights_of(tmp_path / "other").items():
        torch.testing.assert_close(value.float(), begun.state_dict()[name], rtol=1e-3, atol=2.5e-3)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def test_the_stored_student_is_small_and_of_the_teachers_latents() -> None:
    folder = CHECKPOINTS / "taesd"
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2e6
    config = json.loads((folder / "config.json").read_text())
    assert config["_class_name"] == "AutoencoderTiny"
    assert (config["latent_channels"], config["scaling_factor"], config["shift_factor"]) == (
        4,
        1.0,
        0.0,
    )
    student, shape = AutoencoderTiny.from_pretrained(folder), distill.new_student(0)
    assert {name: value.shape for name, value in student.state_dict().items()} == {
        name: value.shape for name, value in shape.state_dict().items()
    }


class Swapped(models.TinyLotus):
    """A checkpoint with the stored student for its autoencoder."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(images).latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(latents).sample


@pytest.mark.slow
@pytest.mark.parametrize("task", ["disparity", "normal"])
def test_the_accuracy_is_what_the_committed_rows_say(task: str) -> None:
    """PyTorch on the first scenes of each half, against the rows of ONNX Runtime for the same
    scenes.
    """
    own = models.load_checkpoint(CHECKPOINTS / f"{task}-d")
    student = AutoencoderTiny.from_pretrained(CHECKPOINTS / "taesd").float().eval()
    model = Swapped(vae=student, unet=own.unet, prompt=own.prompt)
    title = f"accuracy-{task}-d-vae-taesd-256x256-fp32-onnxruntime-synthetic"
    measured, recorded = measure(model, TASKS[task], title)
    assert measured == pytest.approx(recorded, rel=0.02)
