"""From a checkpoint to a bundle: the straight path.

The order is by construction. Hash and reference need the untouched modules of the checkpoints; the
single pass takes these modules over, and a checkpoint refuses to answer after that.
"""

from __future__ import annotations

import dataclasses
import datetime
import gc
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from export.bundle.finalize import finalize
from export.bundle.golden import GOLDEN, write_golden
from export.bundle.write import staged
from export.folds import apply_folds
from export.graph.write_graphs import write_graphs
from export.network.checkpoint import Checkpoint
from export.network.joint import load_together
from export.network.single_pass import SinglePass
from export.plan import Plan, make_plan
from export.progress import say
from export.quantize.int8 import choose_int8
from export.quantize.layers import Ranges
from export.settings import BuildSettings
from export.versions import tool_versions
from runtime.engine import draw_noise
from runtime.manifest import Checkpoint as CheckpointEntry
from runtime.manifest import Golden, Manifest, Quantisation, Source, required_features

_TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime", "openvino")


def build(settings: BuildSettings) -> Path:
    """Build a bundle and return its path.

    Raises: CheckpointError, BuildError, VerificationError, OutputError. Nothing is left behind
    then but what a killed int8 search has measured (`.NAME.search` beside the bundle), for the
    next build of that name.
    """
    return Build(plan=make_plan(settings)).run()


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """Where the weights came from: the checkpoints, and what stands in for their autoencoder."""

    checkpoints: list[CheckpointEntry]
    encoder: CheckpointEntry | None
    decoder: CheckpointEntry | None

    @property
    def entries(self) -> list[object]:
        """All of it."""
        return [*self.checkpoints, self.encoder, self.decoder]


@dataclass(frozen=True, kw_only=True)
class Build:
    """One build of a plan."""

    plan: Plan

    def run(self) -> Path:
        """Do what the plan says; as `build`."""
        plan = self.plan
        if plan.fallback_remark is not None:
            say(plan.fallback_remark)
        checkpoints = load_together(
            plan.checkpoints, plan.encoder, plan.decoder, seed=plan.noise_seed
        )
        needed = plan.disk_need(_weight_bytes(checkpoints))
        with staged(plan.output, overwrite=plan.overwrite, needed_bytes=needed) as stage:
            sources = self._identify(checkpoints)
            write_golden(checkpoints, plan, stage)
            network = SinglePass(
                *checkpoints, noises=self._fixed_noises(), batched=plan.recipe.decodes_batched
            )
            folds = apply_folds(network, plan.recipe) if plan.folds else []
            ranges: Ranges = {}
            quantisation = None
            if plan.recipe.quantizes_layers:
                ranges, quantisation = choose_int8(network, plan, stage, sources.entries)
            memory, opset = write_graphs(network, plan, stage, ranges)
            del network  # the engine builder and the golden run need the memory
            gc.collect()
            description = self._describe(sources, folds, quantisation)
            description = dataclasses.replace(description, memory=memory, opset=opset)
            finalize(stage, description, engine="if possible" if plan.engine else "later")
        shutil.rmtree(plan.search_cache, ignore_errors=True)
        return plan.output

    def _identify(self, checkpoints: list[Checkpoint]) -> _Sources:
        """Names and hashes of the untouched weights."""
        plan, modules = self.plan, checkpoints[0].modules
        encoder, decoder = modules.small_encoder, modules.small_decoder
        entries: dict[str, CheckpointEntry | None] = {"encoder": None, "decoder": None}
        for half, vae, description in (
            ("encoder", encoder, plan.encoder),
            ("decoder", decoder, plan.decoder),
        ):
            if vae is not None and description is not None:
                entries[half] = CheckpointEntry(id=description.public_id, sha256=vae.sha256(half))
        own = [
            CheckpointEntry(id=description.public_id, sha256=checkpoint.sha256())
            for description, checkpoint in zip(plan.checkpoints, checkpoints, strict=True)
        ]
        return _Sources(checkpoints=own, encoder=entries["encoder"], decoder=entries["decoder"])

    def _describe(
        self, sources: _Sources, folds: list[str], quantisation: Quantisation | None
    ) -> Manifest:
        """The manifest, without what `finalize` finds out."""
        plan = self.plan
        largest, mean = plan.tolerance
        now = datetime.datetime.now(datetime.timezone.utc)
        first, *others = (
            Source(
                checkpoint=checkpoint,
                family=description.family.name,
                licence=description.family.licence,
            )
            for description, checkpoint in zip(plan.checkpoints, sources.checkpoints, strict=True)
        )
        names = [task.name for task in plan.tasks]
        manifest = Manifest(
            name=plan.name,
            checkpoint=first.checkpoint,
            family=first.family,
            licence=first.licence,
            beside=dict(zip(names[1:], others, strict=True)),
            mode="g" if plan.takes_noise else "d",
            tasks=names,
            outputs={task.name: task.meaning for task in plan.tasks},
            precision=plan.precision,
            target=plan.target.name,
            opset=plan.opset,
            buckets=list(plan.buckets),
            latent=plan.latent,
            noise_seed=plan.noise_seed,
            fixed_noise=plan.fixed_noise,
            folds=folds,
            golden=Golden(file=GOLDEN, tolerance=largest, mean_tolerance=mean, measured=[]),
            files=[],
            tools=tool_versions((*_TOOLS, "numpy")),
            command=plan.command,
            created=now.isoformat(timespec="seconds"),
            preprocess=plan.preprocess,
            quantisation=quantisation,
            vae_encoder=sources.encoder,
            vae_decoder=sources.decoder,
        )
        return dataclasses.replace(manifest, requires=required_features(manifest))

    def _fixed_noises(self) -> list[torch.Tensor]:
        """Mode G's noise for each size of latent, where it is part of the graph."""
        plan = self.plan
        if not plan.fixed_noise:
            return []
        shapes = {plan.noise_shape(bucket) for bucket in plan.buckets}
        return [torch.from_numpy(draw_noise(plan.noise_seed, shape)) for shape in shapes]


def _weight_bytes(checkpoints: list[Checkpoint]) -> int:
    modules = (checkpoints[0].vae, *(checkpoint.unet for checkpoint in checkpoints))
    count: int = sum(p.numel() for module in modules for p in module.parameters())
    return 4 * count
