"""From calibration images and a budget to the int8 layers and their ranges: the straight path of `--precision int8`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from export.errors import BuildError
from export.golden import golden_image
from export.precision.calibration import Calibration
from export.precision.layers import RESIDUAL, Layer, Ranges, find_layers
from export.precision.ranges import choose_ranges
from export.precision.search import BUDGETS, Choice, Measure, Meter, Remembered, Step, rank, search
from export.precision.smooth import smooth
from export.single_pass import SinglePass
from export.targets import TARGETS
from runtime.manifest import Bucket, Manifest, Quantisation

POLICY = "policy.json"
# Which group is costlier shows on few and small images too, at a fraction of the time.
_RANKING_IMAGES = 2
_RANKING_EDGE = 256  # pixels


@dataclass(frozen=True, kw_only=True)
class Int8Settings:
    """How int8 is chosen. `budget` is the largest distance (see export/precision/search.py), None the task's default;
    `policy` is the policy.json of another bundle, whose kept groups are taken over without a search.

    Raises: BuildError for a budget that is no positive number, or a policy that is no file.
    """

    calibration: Calibration
    budget: float | None = None
    policy: Path | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < float("inf"):
            raise BuildError(f"the budget must be a positive number, found {self.budget}")
        if self.policy is not None and not self.policy.is_file():
            raise BuildError(f"no policy {self.policy}; a bundle of --precision int8 holds one (policy.json)")


def choose_int8(
    module: SinglePass,
    manifest: Manifest,
    settings: Int8Settings,
    folder: Path,
    memory: Path,
    progress: Callable[[str], None],
) -> tuple[Ranges, Quantisation]:
    """The range of each int8 layer, and what the manifest says; writes `policy.json` into `folder`.

    Measurements go into the folder `memory` too, where those of a killed build wait for the next one.
    Raises: BuildError for a policy of another network, or images that cannot be calibrated with; ImageError.
    """
    bucket, calibration = manifest.buckets[0], settings.calibration
    budget = BUDGETS[manifest.task.channels] if settings.budget is None else settings.budget

    feeds = functools.partial(calibration.feeds, manifest, bucket)
    target = TARGETS[manifest.target]
    layers = find_layers(module, next(feeds()), target.int8_beside)
    progress(f"{smooth(module, feeds)} linear layers smoothed")
    # The golden's image is no photograph of the calibration's kind; ranges that cut it would make the proof prove less.
    proof = [golden_image(bucket.height, bucket.width, seed=manifest.noise_seed)]
    names, seen = [layer.name for layer in layers], functools.partial(feeds, proof)
    ranges = choose_ranges(module, names, seen, progress, symmetric=not target.int8_affine)
    meter = Meter(module, manifest.task, feeds)
    pixels = calibration.sha256(bucket)
    if settings.policy is None:
        few = dataclasses.replace(calibration, count=min(calibration.count, _RANKING_IMAGES))
        ranker = Meter(module, manifest.task, functools.partial(few.feeds, manifest, _ranking_bucket(manifest)))
        key = _key(manifest, pixels, ranges)
        alone = Remembered(ranker, memory / f"alone-{key}.json")
        together = Remembered(meter, memory / f"together-{key}.json")
        ranked = functools.partial(rank, alone, layers, ranges, progress)
        choice = search(together, layers, ranges, ranked, budget, progress)
    else:
        choice = _taken_over(settings.policy, meter, layers, ranges, progress)
    taken = [layer for layer in layers if layer.group not in choice.kept]
    described = Quantisation(
        policy=POLICY,
        calibration_sha256=pixels,
        images=len(calibration),
        budget=budget,
        distance=choice.final.distance,
        multiply_adds=sum(layer.multiply_adds for layer in taken),
    )
    _write(folder / POLICY, layers, ranges, choice, described)
    return {layer.name: ranges[layer.name] for layer in taken}, described


def _taken_over(
    path: Path, meter: Measure, layers: list[Layer], ranges: Ranges, progress: Callable[[str], None]
) -> Choice:
    """The kept groups of another policy, measured here; residuals that it was not asked about are kept too."""
    try:
        policy = json.loads(path.read_text(encoding="utf-8"))
        wanted, asked = set(policy["kept"]), {layer["group"] for layer in policy.get("layers", [])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"{path} is not a policy: {error!r}; a bundle of --precision int8 holds one") from error
    groups = dict.fromkeys(layer.group for layer in layers)
    residuals = {f"{group}/{RESIDUAL}" for group in groups}  # of this target or of another
    if odd := sorted(map(str, wanted - residuals - groups.keys()))[:3]:
        raise BuildError(
            f"the policy {path} keeps groups that this network does not have: {odd}; if these are blocks, it is of a "
            "version that did not search single layers"
        )
    kept = [group for group in groups if group in wanted or (group in residuals and group not in asked)]
    taken = [layer for layer in layers if layer.group not in kept]
    share = sum(layer.multiply_adds for layer in taken) / sum(layer.multiply_adds for layer in layers)
    measured = meter({layer.name: ranges[layer.name] for layer in taken})
    progress(f"policy of {path.name}: {share:.1%} of these layers in int8, {measured:.3g} off")
    return Choice(kept=kept, alone={}, steps=[Step(kept=len(kept), int8_share=share, distance=measured)])


def _ranking_bucket(manifest: Manifest) -> Bucket:
    """The first bucket's shape, no longer than _RANKING_EDGE, unless its noise is part of the network."""
    bucket, cell = manifest.buckets[0], manifest.latent.downscale
    shrink = 1.0 if manifest.fixed_noise else min(1.0, _RANKING_EDGE / max(bucket.height, bucket.width))
    height, width = (max(1, round(edge * shrink / cell)) * cell for edge in (bucket.height, bucket.width))
    return dataclasses.replace(bucket, height=height, width=width)


def _key(manifest: Manifest, pixels: str, ranges: Ranges) -> str:
    """What a distance depends on, but for the layers that are quantised."""
    network = [manifest.checkpoint.sha256, manifest.vae_encoder, manifest.vae_decoder, manifest.tasks, manifest.folds]
    rounded = sorted((name, one.method, *one.widest) for name, one in ranges.items())
    what = [*network, manifest.fixed_noise, manifest.noise_seed, manifest.target, manifest.buckets[0], pixels, rounded]
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def _write(path: Path, layers: list[Layer], ranges: Ranges, choice: Choice, described: Quantisation) -> None:
    rows = []
    for layer in layers:
        low, high = ranges[layer.name].widest
        span = {"method": ranges[layer.name].method, "low": low, "high": high}
        rows.append(dataclasses.asdict(layer) | {"int8": layer.group not in choice.kept, "range": span})
    body = dataclasses.asdict(described) | dataclasses.asdict(choice) | {"layers": rows}
    path.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
