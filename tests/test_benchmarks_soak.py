"""The soak: its judgement, its pictures, and a short one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak import LARGE, LARGEST, SMALLEST, Sample, judge, picture, soak


def samples(*memory: float, descriptors: int = 9, threads: int = 4) -> list[Sample]:
    return [Sample(rss_mb=mb, descriptors=descriptors, threads=threads) for mb in memory]


def test_flat_memory_passes_and_the_warm_up_is_not_judged() -> None:
    run = judge("null", samples(50, 70, *[100.0] * 18), 20, 1.0)
    assert run.problems(0.02) == []
    assert (run.rss_mb, run.highest_mb) == (100, 100)


def test_memory_that_grows_fails() -> None:
    run = judge("null", samples(*np.linspace(100, 110, 20)), 20, 1.0)
    assert 0.05 < run.growth < 0.1
    assert "memory grew" in run.problems(0.02)[0]
    assert run.problems(0.1) == []


@pytest.mark.parametrize("name", ["descriptors", "threads"])
def test_a_descriptor_or_a_thread_more_fails(name: str) -> None:
    run = judge("null", [*samples(*[100.0] * 19), *samples(100.0, **{name: 10})], 20, 1.0)
    assert run.problems(0.02) == [
        f"the number of {name} changed: {[9, 10] if name == 'descriptors' else [4, 10]}"
    ]


def test_pictures_differ_in_size_and_content() -> None:
    assert picture(0).shape[:2] == (LARGEST - 1, LARGEST - 1)
    pictures = {index: picture(index) for index in range(LARGE, LARGE + 20)}
    assert len({rgb.shape for rgb in pictures.values()}) == 20
    assert all(SMALLEST <= edge < LARGEST for rgb in pictures.values() for edge in rgb.shape[:2])
    assert all(rgb.dtype == np.uint8 for rgb in pictures.values())
    assert np.array_equal(picture(LARGE + 3), pictures[LARGE + 3])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc, as Linux has it")
def test_a_short_soak_is_flat(bundle_d: Path) -> None:
    """150 pictures, and the bound of 5,000. A leak of one map for each would be 2 MB of 100."""
    run = soak(bundle_d, "onnxruntime", 150)
    assert run.pictures == 150
    assert run.problems(0.02) == []
