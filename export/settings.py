"""The request of a build, as it is typed; export/plan.py checks it. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """A request, as it is typed.

    `checkpoint`: a local diffusers folder, a hub id (ID or ID@REVISION), `tiny/...` or `random/...`
        (`@N`: another UNet, drawn from N).
    `beside`: more checkpoints, of other tasks, that share its autoencoder.
    `task`: what each predicts, by commas; None where its id implies it.
    `family`: which kind of network it is, one for all or one for each by commas; None where its id
        or its configs say it.
    `base`: for a UNet alone, the folder or hub id of the rest.
    `resolutions`: (height, width) in pixels; empty for the size the UNet was trained at.
    `batches`: how many pictures one run takes; each makes a bucket of every resolution.
    `ensemble`: mode G: a bucket of every resolution that takes so many noises of one picture; 1 for
        none.
    `precision`, `target`: what to build, and where it runs.
    `opset`: the ONNX opset; None is the target's own.
    `output`: the bundle's folder; None is `engines/<name>`. `overwrite` replaces an old bundle.
    `seed`: draws the golden's noise (mode G), is the bundle's default noise seed, and draws the
        weights of `random/...`. `fixed_noise` makes that noise part of the graph.
    `engine`: False leaves the engine of the target to the device it is for.
    `folds`: False builds the plain graph, for comparison.
    `vae`: a small autoencoder that stands in for the checkpoint's; `vae_encoder`, `vae_decoder`:
        the same for one half, and before `vae`.
    `calibration`: a folder of images or a published data set, None for rendered ones, of which
        `calibration_images` show what a lower precision cannot hold.
    `budget`: int8: the largest error of each task's prediction, in its unit; None is its default.
    `policy`: int8: the policy.json of another bundle, whose choice is taken over without a search.
    `command`: the command line, for the manifest.
    """

    checkpoint: str
    beside: tuple[str, ...] = ()
    task: str | None = None
    family: str | None = None
    base: str | None = None
    resolutions: tuple[tuple[int, int], ...] = ()
    batches: tuple[int, ...] = (1,)
    ensemble: int = 1
    precision: str = "fp32"
    target: str = "onnxruntime"
    opset: int | None = None
    output: Path | None = None
    seed: int = 0
    engine: bool = True
    folds: bool = True
    fixed_noise: bool = False
    vae: str | None = None
    vae_encoder: str | None = None
    vae_decoder: str | None = None
    overwrite: bool = False
    calibration: Path | None = None
    calibration_images: int = 8
    budget: tuple[float, ...] | None = None
    policy: Path | None = None
    command: str = ""
