"""The straight path of `--precision int8`: from calibration images and a limit on the error of each
task to the int8 layers and their ranges.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from pathlib import Path

from export.bundle.golden import golden_image
from export.errors import BuildError
from export.network.single_pass import SinglePass
from export.plan import Plan
from export.progress import say
from export.quantize.layers import RESIDUAL, Layer, Ranges, find_layers
from export.quantize.policy import POLICY, LayerChoice, Policy, Step
from export.quantize.ranges import choose_ranges
from export.quantize.search import (
    CachedErrors,
    Choice,
    ErrorMetric,
    Measure,
    in_words,
    rank,
    search,
)
from export.quantize.smooth import smooth
from runtime.manifest import Bucket, Quantisation, Spent

# Which group is costlier shows on few and small images too, at a fraction of the time.
_RANKING_IMAGES = 2
_RANKING_EDGE = 256  # pixels


def choose_int8(
    network: SinglePass, plan: Plan, stage: Path, sources: list[object]
) -> tuple[Ranges, Quantisation]:
    """The range of each int8 layer, and what the manifest says; writes `policy.json` into `stage`.

    Linear layers of `network` are smoothed in place. `sources` identify the weights. Measurements
    go into the plan's `search_cache` too, where those of a killed build wait for the next one.
    Raises: BuildError for a policy of another network, or images that cannot be calibrated with;
    ImageError.
    """
    bucket = dataclasses.replace(plan.buckets[0], batch=1)
    calibration, int8 = plan.calibration, plan.recipe.int8
    extra, zero_points = (int8.extra_tensors, int8.zero_points) if int8 else ((), False)
    feeds = functools.partial(calibration.feeds, plan, bucket)
    layers = find_layers(network, next(feeds()), extra)
    say(f"{smooth(network, feeds)} linear layers smoothed")
    # Calibrated on the golden's image too: it is no photograph, and clipping would inflate its
    # error.
    proof = [golden_image(bucket.height, bucket.width, seed=plan.noise_seed)]
    ranges = choose_ranges(
        network,
        [layer.name for layer in layers],
        functools.partial(feeds, proof),
        symmetric=not zero_points,
        images=len(calibration) + len(proof),
    )
    pixels = calibration.sha256(bucket)
    metric = ErrorMetric(network, plan.tasks, feeds)
    if plan.policy is not None:
        choice = _take_over(plan.policy, metric, layers, ranges)
        errors = choice.final.errors
        if beyond := [task for task, limit in plan.budgets.items() if errors[task] > limit]:
            say(f"the policy was taken as it is: {', '.join(beyond)} beyond the limit of the error")
    else:
        key = _cache_key(plan, sources, pixels, ranges)
        choice = _search(network, plan, metric, layers, ranges, key)
    int8_layers = [layer for layer in layers if layer.group not in choice.high_precision]
    policy = Policy(
        high_precision=choice.high_precision,
        max_errors=dict(plan.budgets),
        errors=choice.final.errors,
        units={task.name: task.error_unit for task in plan.tasks},
        multiply_adds=sum(layer.multiply_adds for layer in int8_layers),
        images=len(calibration),
        calibration_sha256=pixels,
        alone={group: dict(errors) for group, errors in choice.alone.items()},
        steps=choice.steps,
        layers=_choices(layers, ranges, choice),
    )
    policy.write(stage / POLICY)
    return {layer.name: ranges[layer.name] for layer in int8_layers}, _describe(policy)


def _search(
    network: SinglePass,
    plan: Plan,
    metric: ErrorMetric,
    layers: list[Layer],
    ranges: Ranges,
    key: str,
) -> Choice:
    few = dataclasses.replace(plan.calibration, count=min(plan.calibration.count, _RANKING_IMAGES))
    small_feeds = functools.partial(few.feeds, plan, _ranking_bucket(plan))
    alone = CachedErrors(
        ErrorMetric(network, plan.tasks, small_feeds), plan.search_cache / f"alone-{key}.json"
    )
    together = CachedErrors(metric, plan.search_cache / f"together-{key}.json")
    ranked = functools.partial(rank, alone, layers, ranges)
    return search(together, layers, ranges, ranked, plan.budgets)


def _take_over(path: Path, measure: Measure, layers: list[Layer], ranges: Ranges) -> Choice:
    """The groups that another policy keeps in higher precision, measured here. Residuals that it
    did not decide about stay in higher precision too.
    """
    policy = Policy.read(path)
    wanted, decided = set(policy.high_precision), policy.groups
    groups = dict.fromkeys(layer.group for layer in layers)
    residuals = {f"{group}/{RESIDUAL}" for group in groups}  # of this target or of another
    if unknown := sorted(wanted - residuals - groups.keys())[:3]:
        raise BuildError(
            f"the policy {path} keeps groups that this network does not have: {unknown}; if these "
            "are blocks, it is of a version that did not search single layers"
        )
    kept = [
        group
        for group in groups
        if group in wanted or (group in residuals and group not in decided)
    ]
    int8_layers = [layer for layer in layers if layer.group not in kept]
    work = sum(layer.multiply_adds for layer in layers)
    share = sum(layer.multiply_adds for layer in int8_layers) / work
    errors = measure({layer.name: ranges[layer.name] for layer in int8_layers})
    say(f"policy of {path.name}: {share:.1%} of these layers in int8, error {in_words(errors)}")
    step = Step(high_precision=len(kept), int8_share=share, errors=dict(errors))
    return Choice(high_precision=kept, alone={}, steps=[step])


def _ranking_bucket(plan: Plan) -> Bucket:
    """The first bucket's shape, no longer than _RANKING_EDGE, unless its noise is part of the
    network.
    """
    bucket, multiple = plan.buckets[0], plan.latent.downscale
    longest = max(bucket.height, bucket.width)
    shrink = 1.0 if plan.fixed_noise else min(1.0, _RANKING_EDGE / longest)
    height, width = (
        max(1, round(edge * shrink / multiple)) * multiple for edge in (bucket.height, bucket.width)
    )
    return dataclasses.replace(bucket, height=height, width=width, batch=1)


def _cache_key(plan: Plan, sources: list[object], pixels: str, ranges: Ranges) -> str:
    """What an error depends on, but for the layers that are quantised."""
    tasks = [task.name for task in plan.tasks]
    settings = [tasks, plan.folds, plan.fixed_noise, plan.noise_seed, plan.target.name]
    spans = sorted((name, span.method, *span.widest) for name, span in ranges.items())
    everything = [*sources, *settings, plan.buckets[0], pixels, spans]
    return hashlib.sha256(repr(everything).encode()).hexdigest()[:16]


def _choices(layers: list[Layer], ranges: Ranges, choice: Choice) -> list[LayerChoice]:
    chosen = []
    for layer in layers:
        low, high = ranges[layer.name].widest
        chosen.append(
            LayerChoice(
                **dataclasses.asdict(layer),
                int8=layer.group not in choice.high_precision,
                method=ranges[layer.name].method,
                low=low,
                high=high,
            )
        )
    return chosen


def _describe(policy: Policy) -> Quantisation:
    """What the manifest says of a policy."""
    first, *others = (
        Spent(max_error=limit, error=policy.errors[task], unit=policy.units[task])
        for task, limit in policy.max_errors.items()
    )
    return Quantisation(
        policy=POLICY,
        calibration_sha256=policy.calibration_sha256,
        images=policy.images,
        max_error=first.max_error,
        error=first.error,
        unit=first.unit,
        multiply_adds=policy.multiply_adds,
        beside=dict(zip(list(policy.max_errors)[1:], others, strict=True)),
        fits_16_bits=True,
    )
