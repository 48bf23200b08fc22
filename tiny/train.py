"""Train the tiny Lotus: the autoencoder once, then one UNet for each task and mode.

    python -m tiny.train vae
    python -m tiny.train trunk
    python -m tiny.train unet --task depth --mode d
    python -m tiny.train unet --task depth --mode g --start tiny/checkpoints/depth-d

The trunk is a UNet that predicts the maps of all tasks at once. Every task's own UNet starts from
its weights.

A killed run goes on from its last saved state when the same command is given again. The result is
that of an unbroken run, because every step draws from a random stream of its own.
"""

from __future__ import annotations

import argparse
import copy
import functools
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from runtime.extras import explain_missing_packages

    explain_missing_packages()

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from tiny.data import TASKS, Scenes, draw_views, load_latents, load_scenes
from tiny.models import (
    MODES,
    PREDICT,
    RECONSTRUCT,
    TIMESTEP,
    TinyLotus,
    new_prompt,
    new_unet,
    new_vae,
    save_checkpoint,
)
from tiny.state import Training

HERE = Path(__file__).parent
CACHE = HERE / "cache"
VAE_BATCHES = (((128, 128), 3), ((96, 128), 4), ((128, 128), 3), ((128, 192), 2), ((256, 256), 1))
"""(height, width) and number of pairs of the steps in turn. Small views are cheap; large ones keep
the statistics of whole pictures.
"""
MAP_SHARES = {"disparity": 0.4, "normal": 0.35, "depth": 0.25}
"""How often the autoencoder sees each kind of map; every map comes with its image."""
KL_WEIGHT = 1e-5
EDGE_WEIGHT = 0.5
COLOUR_WEIGHT = 1.0
GUIDED = 0.4
"""During this share of the training, three latent channels are pulled towards the mean colours of
their 8x8 pixels, less and less. Otherwise all four learn the structure of brightness first. Colour,
which normals are made of, then comes too late.
"""
LATENT_BATCHES = ((4, 12), (0, 32), (4, 12), (1, 32), (4, 12), (3, 24), (4, 12), (2, 32))
"""An index into LATENT_VIEWS and the number of samples, of the steps in turn. Latents of small
views are cheap, but they lack much of what a 256x256 picture shows.
"""
LATENT_BETA = 0.2  # of the smooth L1 loss on latents, whose deviation is about 1
RECONSTRUCTION_SHARE = 0.125
SPREAD = 0.5
"""Mode G: weight of the difference between two draws. At 1 the loss is the energy score, whose
optimum draws from the whole posterior; at 0 it is plain regression, which ignores the noise.
"""


def train_vae(steps: int, seed: int = 1) -> None:
    """Train the shared autoencoder on images and on every task's maps. The averaged weights go to
    cache/vae.
    """
    scenes = load_scenes(CACHE, "motley")
    vae = new_vae(seed).to(memory_format=torch.channels_last)  # 1.7 times as fast
    training = Training(vae, CACHE / "vae.safetensors", steps=steps, peak_rate=1.5e-3)

    def prepare(step: int) -> torch.Tensor:
        return draw_pairs(scenes, step_rng(seed, step), step)

    def loss_of(target: torch.Tensor) -> torch.Tensor:
        posterior = vae.encode(target).latent_dist
        decoded = vae.decode(posterior.sample()).sample
        loss = (
            map_loss(decoded, target)
            + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        )
        guide = (
            (posterior.mean[:, :3].float() - 2 * nn.functional.avg_pool2d(target, 8)).abs().mean()
        )
        return loss + max(0.0, 1 - training.spent / GUIDED) * guide

    run(training, prepare, loss_of, lambda: _save_vae(training, scenes, seed))


def draw_pairs(scenes: Scenes, rng: np.random.Generator, step: int) -> torch.Tensor:
    """The autoencoder's batch of a step: images at the even indices, each followed by one of its
    maps.

    float32 [2 N, 3, H, W] in [-1, 1], channels last; sizes as in VAE_BATCHES, maps as in
    MAP_SHARES.
    """
    size, count = VAE_BATCHES[step % len(VAE_BATCHES)]
    kinds = rng.choice(list(MAP_SHARES), count, p=list(MAP_SHARES.values()))
    # Small batches show small windows, so that textures keep the size that they have in a whole
    # picture.
    low, high = (0.4, 0.75) if size[0] < 256 else (0.6, 1)
    views = [draw_views(scenes, rng, [str(kind)], size, rng.uniform(low, high)) for kind in kinds]
    return torch.cat(views).contiguous(memory_format=torch.channels_last)


def train_trunk(steps: int, scenes: int, seed: int = 2) -> None:
    """Train one UNet on the latents of every task's map at once, of the first `scenes`. The
    averaged weights go to cache/trunk/unet.
    """
    latents = load_latents(CACHE)
    unet = new_unet(seed, "d", len(TASKS))
    # Plain products: twice as fast to train as torch's fused attention here.
    unet.set_attn_processor(AttnProcessor())
    prompt = new_prompt()
    training = Training(
        unet, CACHE / "trunk.safetensors", steps=steps, peak_rate=1.5e-3, matrix_rate=4e-3
    )

    def prepare(step: int) -> _Batch:
        rng = step_rng(seed, step)
        rows = _latent_rows(latents, rng, step, scenes)
        images, reconstruct = rows[:, 0], _reconstruct(rng, len(rows))
        wanted = torch.where(
            reconstruct, images.repeat(1, len(TASKS), 1, 1), rows[:, 1:].flatten(1, 2)
        )
        return _Batch(latents=images, wanted=wanted, switch=_switch(reconstruct))

    def loss_of(batch: _Batch) -> torch.Tensor:
        count = len(batch)
        labels = batch.switch.to(batch.latents)
        predicted = unet(
            batch.latents, TIMESTEP, prompt.expand(count, -1, -1), class_labels=labels
        ).sample
        return nn.functional.smooth_l1_loss(predicted.float(), batch.wanted, beta=LATENT_BETA)

    def save() -> None:
        with training.averaged():
            unet.save_pretrained(CACHE / "trunk" / "unet")

    run(training, prepare, loss_of, save)


def train_unet(
    task: str, mode: str, steps: int, scenes: int, output: Path, start: Path, seed: int = 3
) -> None:
    """Train one UNet on the latents of cache/vae, of the first `scenes`, and write the checkpoint's
    folder.

    The UNet begins with the weights in `start`: the folder of the trunk, or of a checkpoint of any
    task and mode.
    """
    latents = load_latents(CACHE)
    unet = new_unet(seed, mode)
    take_weights(
        unet, UNet2DConditionModel.from_pretrained(start / "unet"), list(TASKS).index(task)
    )
    unet.set_attn_processor(AttnProcessor())
    model = TinyLotus(
        vae=AutoencoderKL.from_pretrained(CACHE / "vae").eval(), unet=unet, prompt=new_prompt()
    )
    path = CACHE / f"{output.name}.safetensors"
    training = Training(unet, path, steps=steps, peak_rate=5e-4, matrix_rate=2e-3)

    def prepare(step: int) -> _Batch:
        rng = step_rng(seed, step)
        rows = _latent_rows(latents, rng, step, scenes)
        images, maps, reconstruct = (
            rows[:, 0],
            rows[:, 1 + list(TASKS).index(task)],
            _reconstruct(rng, len(rows)),
        )
        noise = None
        if mode == "g":  # two draws for each image
            noise = torch.from_numpy(
                rng.standard_normal((2 * len(rows), *images.shape[1:]), np.float32)
            )
        wanted = torch.where(reconstruct, images, maps)
        return _Batch(latents=images, wanted=wanted, switch=_switch(reconstruct), noise=noise)

    def loss_of(batch: _Batch) -> torch.Tensor:
        # With a loss that is quadratic near zero, two draws would have no reason to differ.
        beta = LATENT_BETA if batch.noise is None else 0.0
        difference = functools.partial(nn.functional.smooth_l1_loss, beta=beta)
        if batch.noise is None:
            return difference(
                model.predict_latents(batch.latents, task=batch.switch).float(), batch.wanted
            )
        both = model.predict_latents(
            batch.latents.repeat(2, 1, 1, 1), batch.noise, batch.switch.repeat(2, 1)
        ).float()
        first, second = both.chunk(2)
        error = (difference(first, batch.wanted) + difference(second, batch.wanted)) / 2
        return error - SPREAD / 2 * difference(first, second)

    def save() -> None:
        with training.averaged():
            save_checkpoint(model, output)

    run(training, prepare, loss_of, save)


def take_weights(unet: UNet2DConditionModel, trained: UNet2DConditionModel, task: int) -> None:
    """Copy a trained UNet's weights; of a trunk's maps only that of the task, an index into TASKS.

    Mode G keeps its own small weights for noise where mode D has none.
    """
    state = trained.state_dict()
    if trained.config.out_channels > unet.config.out_channels:
        kept = slice(4 * task, 4 * task + 4)
        state |= {name: state[name][kept] for name in ("conv_out.weight", "conv_out.bias")}
    missing = unet.config.in_channels - trained.config.in_channels
    if missing > 0:
        state["conv_in.weight"] = torch.cat(
            [state["conv_in.weight"], 0.3 * unet.conv_in.weight[:, -missing:]], dim=1
        )
    unet.load_state_dict(state)


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Latents of one step [N, C, h, w], in and out; `noise` has two draws for each."""

    latents: torch.Tensor
    wanted: torch.Tensor
    switch: torch.Tensor
    noise: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.latents)


def _latent_rows(
    latents: list[np.ndarray], rng: np.random.Generator, step: int, scenes: int
) -> torch.Tensor:
    """Latents [N, 4, 4, h, w] of N random scenes, of the first `scenes`, in the step's view: of the
    image, then of its maps.
    """
    view, count = LATENT_BATCHES[step % len(LATENT_BATCHES)]
    drawn = np.sort(rng.choice(scenes, count, replace=False))
    return torch.from_numpy(latents[view][drawn].astype(np.float32))


def _reconstruct(rng: np.random.Generator, count: int) -> torch.Tensor:
    """Which samples ask for the image, bool [N, 1, 1, 1]."""
    return torch.from_numpy(rng.random((count, 1, 1, 1)) < RECONSTRUCTION_SHARE)


def _switch(reconstruct: torch.Tensor) -> torch.Tensor:
    return torch.where(reconstruct[:, 0, 0], RECONSTRUCT, PREDICT)


def run(
    training: Training,
    prepare: Callable[[int], Any],
    loss_of: Callable[[Any], torch.Tensor],
    save: Callable[[], None],
) -> None:
    """Train until all steps are done. A second thread prepares the next batch meanwhile.

    Shows progress, and saves state and result about every two minutes.
    """

    def prepared(step: int) -> Any:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return prepare(step)

    training.restore()
    shown = saved = time.monotonic()
    losses: list[float] = []
    images = 0
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        upcoming = pool.submit(prepared, training.step)
        while training.spent < 1:
            batch = upcoming.result()
            upcoming = pool.submit(prepared, training.step + 1)
            with torch.autocast("cpu", torch.bfloat16):  # 1.3 to 1.7 times as fast as fp32 here
                loss = loss_of(batch)
            training.apply(loss)
            losses.append(float(loss.detach()))
            images += len(batch)
            now = time.monotonic()
            if now - shown > 10:
                left = (training.steps - training.step) * (now - shown) / len(losses)
                mean, rate = sum(losses) / len(losses), images / (now - shown)
                sys.stderr.write(
                    f"step {training.step}/{training.steps}  "
                    f"loss {mean:.4f}  {rate:.1f} images/s  {left / 60:.1f} min left\n"
                )
                shown, losses, images = now, [], 0
            if now - saved > 120:
                training.save()
                save()
                saved = now
    training.save()
    save()


def _save_vae(training: Training, scenes: Scenes, seed: int) -> None:
    """Write the averaged autoencoder with the scaling factor that gives its latents unit
    deviation.
    """
    vae = training.network
    rng = step_rng(seed, -1)
    views = torch.cat([draw_views(scenes, rng, list(TASKS), (256, 256), 1.0) for _ in range(12)])
    with training.averaged(), torch.no_grad():
        deviation = vae.encode(views).latent_dist.mode().std()
        vae.register_to_config(scaling_factor=round(1 / float(deviation), 5))
        copy.deepcopy(vae).to(memory_format=torch.contiguous_format).save_pretrained(CACHE / "vae")


def map_loss(decoded: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 on values, on their differences to the right and below, and on means of 8x8 pixels and
    their colour.
    """
    difference = decoded.float() - target
    across, down = difference.diff(dim=-1), difference.diff(dim=-2)
    coarse = nn.functional.avg_pool2d(difference, 8)
    colour = coarse - coarse.mean(dim=1, keepdim=True)
    edges = across.abs().mean() + down.abs().mean()
    return (
        difference.abs().mean()
        + EDGE_WEIGHT * edges
        + coarse.abs().mean()
        + COLOUR_WEIGHT * colour.abs().mean()
    )


def step_rng(seed: int, step: int) -> np.random.Generator:
    """A random stream for each step, so that a resumed run draws what an unbroken one would."""
    return np.random.default_rng([seed, step + 1])


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m tiny.train", description=__doc__.splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    vae = commands.add_parser("vae", help="the shared autoencoder")
    vae.add_argument("--steps", type=int, default=5000)
    trunk = commands.add_parser("trunk", help="where every UNet begins; needs the autoencoder")
    trunk.add_argument("--steps", type=int, default=4200)
    unet = commands.add_parser("unet", help="one checkpoint; needs the autoencoder and the trunk")
    unet.add_argument("--task", choices=TASKS, required=True)
    unet.add_argument("--mode", choices=MODES, required=True)
    unet.add_argument("--steps", type=int, default=1000)
    unet.add_argument(
        "--start",
        type=Path,
        default=CACHE / "trunk",
        metavar="CHECKPOINT",
        help="default: the trunk",
    )
    unet.add_argument("--threads", type=int, default=2)
    unet.add_argument("--output", type=Path, help="default: tiny/checkpoints/TASK-MODE")
    for subcommand in (trunk, unet):
        subcommand.add_argument(
            "--scenes", type=int, default=3200, help="how many of the training scenes it sees"
        )
    options = parser.parse_args(arguments)
    torch.set_num_threads(2)
    if options.command == "vae":
        train_vae(options.steps)
    elif options.command == "trunk":
        train_trunk(options.steps, options.scenes)
    else:
        output = options.output or HERE / "checkpoints" / f"{options.task}-{options.mode}"
        torch.set_num_threads(options.threads)
        train_unet(options.task, options.mode, options.steps, options.scenes, output, options.start)


if __name__ == "__main__":
    main()
