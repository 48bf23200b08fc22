"""Distil a small autoencoder (diffusers' AutoencoderTiny, the class of TAESD) from that of a Lotus
checkpoint.

    python -m tiny.distill --vae tiny/checkpoints/vae --output tiny/checkpoints/taesd

The student's encoder learns the teacher's scaled latents of images. Its decoder learns what the
teacher decodes from the latents of maps, of a few images, and of blurred and noisy latents such as
an unsure UNet predicts. `--start` begins with the weights and the widths of another
AutoencoderTiny, for example the folder of `madebyollin/taesd` for a Lotus of full size. A killed
run goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    from runtime.extras import explain_missing_packages

    explain_missing_packages()

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from tiny.data import Scenes, load_scenes
from tiny.models import save_network
from tiny.state import Training
from tiny.train import CACHE, HERE, draw_pairs, map_loss, run, step_rng

STYLES = ("mixed", "motley")
"""Scenes of the steps in turn: what the UNets learned from, and what the autoencoder did."""
IMAGE_SHARE = 0.15
"""How often the decoder sees the latent of an image in place of a map's."""
UNSURE_SHARE = 0.5
UNSURE_NOISE = 0.4
"""For this share of its latents, up to all of the detail is blurred away and noise of up to this
deviation is added.
"""
LATENT_WEIGHT = 2.0
LATENT_BETA = 0.2  # of the smooth L1 loss on latents, whose deviation is about 1


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One step's pairs: `images` [N, 3, H, W] in [-1, 1] with the teacher's scaled `latents`
    [N, 4, H/8, W/8], and `unsure` latents with the pictures that the teacher `decoded` from them.
    """

    images: torch.Tensor
    latents: torch.Tensor
    unsure: torch.Tensor
    decoded: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)


def new_student(seed: int) -> AutoencoderTiny:
    """An untrained autoencoder of 24 channels: 0.27 M parameters, a third of the tiny teacher's
    multiply-adds.

    Most of its blocks are where pixels are few: none at full size, one at half of it.
    """
    torch.manual_seed(seed)
    return AutoencoderTiny(
        encoder_block_out_channels=(24,) * 4,
        decoder_block_out_channels=(24,) * 4,
        num_encoder_blocks=(0, 1, 2, 4),
        num_decoder_blocks=(4, 3, 1, 0),
    )


def distil(vae: Path, output: Path, steps: int, start: Path | None = None, seed: int = 4) -> None:
    """Train the student of the autoencoder in the folder `vae`. Its averaged weights go to
    `output`, as fp16.
    """
    scenes = [load_scenes(CACHE, style) for style in STYLES]
    teacher = (
        AutoencoderKL.from_pretrained(vae, low_cpu_mem_usage=False)
        .float()
        .eval()
        .requires_grad_(False)
    )
    teacher = teacher.to(memory_format=torch.channels_last)
    student = new_student(seed)
    if start is not None:
        student = AutoencoderTiny.from_pretrained(start, low_cpu_mem_usage=False).float()
    student = student.to(memory_format=torch.channels_last)
    training = Training(student, CACHE / f"{output.name}.safetensors", steps=steps, peak_rate=2e-3)

    def save() -> None:
        with training.averaged():
            save_network(student, output)

    run(
        training,
        lambda step: prepare_lesson(
            teacher, scenes[step % len(scenes)], step_rng(seed, step), step // len(scenes)
        ),
        lambda lesson: lesson_loss(student, lesson),
        save,
    )


def prepare_lesson(
    teacher: AutoencoderKL, scenes: Scenes, rng: np.random.Generator, step: int
) -> Lesson:
    """What the teacher makes of the images of a step."""
    pairs = draw_pairs(scenes, rng, step)
    scaling = teacher.config.scaling_factor
    latents = teacher.encode(pairs).latent_dist.mode().float() * scaling
    shown = 2 * np.arange(len(pairs) // 2) + (rng.random(len(pairs) // 2) >= IMAGE_SHARE)
    unsure = blur_and_disturb(latents[torch.from_numpy(shown)], rng)
    decoded = teacher.decode(unsure / scaling).sample.float()
    return Lesson(images=pairs[::2], latents=latents[::2], unsure=unsure, decoded=decoded)


def blur_and_disturb(latents: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Latents [N, C, h, w], some of them blurred and noisy. That is how an unsure UNet predicts
    them: as a mean of what is possible.
    """
    chosen, blur, noise = rng.random((3, len(latents), 1, 1, 1), np.float32)
    blur, noise = (
        torch.from_numpy(part * (chosen < UNSURE_SHARE)) for part in (blur, noise * UNSURE_NOISE)
    )
    padded = nn.functional.pad(latents, (1, 1, 1, 1), mode="replicate")
    smooth = nn.functional.avg_pool2d(padded, 3, stride=1)
    drawn = torch.from_numpy(rng.standard_normal(tuple(latents.shape), np.float32))
    return torch.lerp(latents, smooth, blur) + noise * drawn


def lesson_loss(student: AutoencoderTiny, lesson: Lesson) -> torch.Tensor:
    """Smooth L1 on the encoder's latents, and `map_loss` on what the decoder makes of the teacher's
    latents.
    """
    latents = student.encode(lesson.images).latents.float()
    decoded = student.decode(lesson.unsure).sample
    encoding = nn.functional.smooth_l1_loss(latents, lesson.latents, beta=LATENT_BETA)
    return LATENT_WEIGHT * encoding + map_loss(decoded, lesson.decoded)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m tiny.distill", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--vae", type=Path, required=True, metavar="FOLDER", help="the teacher: a Lotus's vae/"
    )
    parser.add_argument(
        "--output", type=Path, default=HERE / "checkpoints" / "taesd", metavar="FOLDER"
    )
    parser.add_argument(
        "--start", type=Path, metavar="FOLDER", help="an AutoencoderTiny; default: a new, small one"
    )
    parser.add_argument("--steps", type=int, default=5000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the teacher prepares the next step on the other core
    distil(options.vae, options.output, options.steps, options.start)


if __name__ == "__main__":
    main()
