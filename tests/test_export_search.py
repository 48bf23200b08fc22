"""Int8: the search for the layers that stay in higher precision."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BUCKET, build_bundle, image_inputs

from export.network.checkpoint import load_checkpoint
from export.network.single_pass import SinglePass
from export.plan import make_plan
from export.quantize import int8
from export.quantize.layers import (
    FakeQuant,
    Layer,
    Range,
    Ranges,
    find_layers,
)
from export.quantize.search import CachedErrors, ErrorMetric, rank, search
from export.settings import BuildSettings
from runtime.tasks import TASKS


def test_search_keeps_the_fewest() -> None:
    """Made-up groups: `bad` alone costs more than the limit, `worse` most for its work."""
    layers = [
        Layer(name=name, group=name, multiply_adds=work)
        for name, work in (("a", 50), ("bad", 30), ("worse", 10))
    ]
    errors = {"a": 0.001, "bad": 0.02, "worse": 0.015}
    asked: list[set[str]] = []

    def measure(ranges: Mapping[str, Range]) -> dict[str, float]:
        asked.append(set(ranges))
        return {"depth": sum(errors[name] for name in ranges)}

    ranges = dict.fromkeys(errors, Range(low=-1.0, high=1.0))
    for max_error, high_precision in (
        (1.0, []),
        (0.025, ["worse"]),
        (0.01, ["worse", "bad"]),
        (1e-9, ["worse", "bad", "a"]),
    ):
        choice = search(measure, layers, ranges, lambda: of_depth(errors), {"depth": max_error})
        assert choice.high_precision == high_precision
        assert choice.final.errors["depth"] <= max_error
        assert (
            choice.final.int8_share
            == sum(layer.multiply_adds for layer in layers if layer.name not in high_precision) / 90
        )


def test_the_order_is_by_squares_and_what_saves_nothing_comes_first() -> None:
    """`large` is less far off for its work than `small`, and its square is further; `residual` has
    no work at all.
    """
    work = {"small": 1, "large": 100, "residual": 0}
    layers = [Layer(name=name, group=name, multiply_adds=count) for name, count in work.items()]
    errors = {"small": 0.001, "large": 0.02, "residual": 0.0001}

    def measure(ranges: Mapping[str, Range]) -> dict[str, float]:
        return {"depth": sum(errors[name] for name in ranges)}

    ranges = dict.fromkeys(work, Range(low=-1.0, high=1.0))
    choice = search(measure, layers, ranges, lambda: of_depth(errors), {"depth": 1e-9})
    assert choice.high_precision == ["residual", "large", "small"]


def test_each_task_has_its_budget_and_one_within_it_keeps_its_layers_in_int8() -> None:
    """`both` moves both maps; of the two UNets only depth's is beyond its limit."""
    alone = {
        "both": {"depth": 0.004, "normal": 0.1},
        "depth-1": {"depth": 0.02, "normal": 0.0},
        "depth-2": {"depth": 0.001, "normal": 0.0},
        "normal-1": {"depth": 0.0, "normal": 0.5},
        "normal-2": {"depth": 0.0, "normal": 0.2},
    }
    layers = [Layer(name=name, group=name, multiply_adds=1) for name in alone]

    def measure(ranges: Mapping[str, Range]) -> dict[str, float]:
        return {task: sum(alone[name][task] for name in ranges) for task in ("depth", "normal")}

    ranges = dict.fromkeys(alone, Range(low=-1.0, high=1.0))
    for limits, high_precision in (
        ({"depth": 1.0, "normal": 1.0}, []),
        ({"depth": 0.01, "normal": 1.0}, ["depth-1"]),
        ({"depth": 1.0, "normal": 0.2}, ["normal-1", "normal-2"]),
        ({"depth": 0.01, "normal": 0.5}, ["depth-1", "normal-1"]),
    ):
        choice = search(measure, layers, ranges, lambda: alone, limits)
        assert choice.high_precision == high_precision
        assert all(choice.final.errors[task] <= limit for task, limit in limits.items())


def of_depth(errors: dict[str, float]) -> dict[str, dict[str, float]]:
    return {group: {"depth": error} for group, error in errors.items()}


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed at its third measurement; the next build asks for that one and what comes after it
    alone.
    """
    layers = [Layer(name=name, group=name, multiply_adds=1) for name in "abc"]
    ranges = dict.fromkeys("abc", Range(low=-1.0, high=1.0))
    calls: list[str] = []

    def measure(ranges: Mapping[str, Range]) -> dict[str, float]:
        calls.append("".join(ranges))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"depth": 0.5 * len(ranges)}

    def build() -> list[str]:
        cached = CachedErrors(measure, tmp_path / "cache.json")
        ranked = partial(rank, cached, layers, ranges)
        return search(cached, layers, ranges, ranked, {"depth": 0.5}).high_precision

    (tmp_path / "cache.json").write_text("{damaged")
    with pytest.raises(KeyboardInterrupt):
        build()
    assert build() == ["a", "b"]
    assert calls == ["abc", "a", "b", "b", "c", "bc"]


@pytest.mark.slow
def test_a_build_ranks_with_fixed_noise_and_forgets_what_it_measured(
    checkpoint_g: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket larger than ranking's: a network that has its noise inside takes no other size."""
    monkeypatch.setattr(int8, "_RANKING_EDGE", BUCKET // 2)
    asked: list[tuple[str, int]] = []

    class Spy(ErrorMetric):
        def __call__(self, ranges: Ranges) -> dict[str, float]:
            (image, *_), *_ = self._feeds()
            asked.append(("all" if len(ranges) > 2 else "one", image.shape[-1]))
            (tmp_path / "seen").write_text(
                " ".join(path.name for path in tmp_path.glob(".bundle.search/*"))
            )
            return {"normal": float(len(ranges) > 2)}

    monkeypatch.setattr(int8, "ErrorMetric", Spy)
    for fixed, edge in ((True, BUCKET), (False, BUCKET // 2)):
        asked.clear()
        settings = {
            "task": "normal",
            "resolutions": ((BUCKET, BUCKET),),
            "precision": "int8",
            "budget": (0.5,),
        }
        build_bundle(
            checkpoint_g,
            tmp_path / "bundle",
            **settings,
            fixed_noise=fixed,
            calibration_images=1,
            overwrite=True,
        )
        assert asked[0] == ("all", BUCKET)
        assert set(asked) == {("all", BUCKET), ("one", BUCKET), ("one", edge)}
        assert [name.split("-")[0] for name in sorted((tmp_path / "seen").read_text().split())] == [
            "alone",
            "together",
        ]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "seen"]


def test_cache_is_of_one_task_and_network(checkpoint_g: Path) -> None:
    others = (
        {"task": "normal"},
        {"target": "openvino"},
        {"seed": 1},
        {"fixed_noise": True},
        {"folds": False},
        {"resolutions": ((64, 72),)},
    )
    request = {"task": "depth", "precision": "int8", "resolutions": ((64, 64),)}
    plans = [
        make_plan(BuildSettings(checkpoint=str(checkpoint_g), **(request | changes)))
        for changes in ({}, *others)
    ]
    keys = {int8._cache_key(plan, ["weights"], "pixels", {}) for plan in plans}
    assert len(keys) == 1 + len(others)
    ranges = {"layer": Range(low=-1.0, high=1.0)}
    keys.add(int8._cache_key(plans[0], ["other weights"], "pixels", {}))
    keys.add(int8._cache_key(plans[0], ["weights"], "other pixels", {}))
    keys.add(int8._cache_key(plans[0], ["weights"], "pixels", ranges))
    assert len(keys) == 4 + len(others)
    assert int8._cache_key(plans[0], ["weights"], "pixels", {}) in keys


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["d", "g"])
def test_stages_that_nothing_rounded_has_touched_are_not_run_again(
    mode: str, request: pytest.FixtureRequest
) -> None:
    """The error is that of the whole module's predictions, from whichever stage on it runs."""
    module = SinglePass(
        load_checkpoint(str(request.getfixturevalue(f"checkpoint_{mode}")), task="depth")
    )
    generator = torch.Generator().manual_seed(1)
    noises = [
        (torch.randn(1, 4, BUCKET // 8, BUCKET // 8, generator=generator),) * (mode == "g")
        for _ in range(2)
    ]
    inputs = [(*image, *noise) for image, noise in zip(image_inputs(), noises, strict=True)]
    metric = ErrorMetric(module, [TASKS["depth"]], lambda: inputs)
    stages = dict(module.named_children())
    ran: list[str] = []
    for name, part in stages.items():
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    first: dict[str, str] = {}
    for layer in find_layers(module, inputs[0]):
        first.setdefault(layer.name.partition("/")[0], layer.name)
    with torch.inference_mode():
        exact = [module(*one)[0][0].numpy() for one in inputs]
    metric({})  # what is exact is kept from here on
    for rounded in (
        ["encoder"],
        ["unet"],
        ["decoder"],
        ["encoder", "decoder"],
        ["unet", "decoder"],
        list(stages),
    ):
        ranges = {first[stage]: Range(low=-12.7, high=12.7) for stage in rounded}
        with torch.inference_mode(), FakeQuant(module, ranges):
            wanted = [
                TASKS["depth"].error(module(*one)[0][0].numpy(), was)
                for one, was in zip(inputs, exact, strict=True)
            ]
        ran.clear()
        assert metric(ranges) == {"depth": np.mean(wanted)}
        assert np.mean(wanted) > 0
        assert ran == list(stages)[list(stages).index(rounded[0]) :] * 2


def test_error_is_absrel_after_alignment_or_degrees() -> None:
    random = np.random.default_rng(0)
    exact = random.uniform(0.2, 1, (1, 8, 8)).astype(np.float32)
    assert TASKS["depth"].error(0.3 * exact + 0.1, exact) < 1e-6
    shifted = exact.copy()
    shifted[0, ::2] += 0.1
    assert 0.01 < TASKS["depth"].error(shifted, exact) < 0.5
    angle = np.radians(20)
    flat = np.zeros((3, 4, 4), np.float32)
    flat[2] = 1
    turned = np.stack(
        [np.full((4, 4), np.sin(angle)), np.zeros((4, 4)), np.full((4, 4), np.cos(angle))]
    )
    assert TASKS["normal"].error(turned.astype(np.float32), flat) == pytest.approx(20, abs=1e-4)
