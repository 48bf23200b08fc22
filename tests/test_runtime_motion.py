"""Smoothing along motion: noise goes, edges stay, and what was hidden is not mixed in."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from runtime.motion import Smoother, find_motion, to_grey
from runtime.vectors import unit_vectors

pytest.importorskip("cv2", reason="extra `flow`")
COUNT, HEIGHT, WIDTH, STEP = 12, 96, 128, 3
NOISE = 0.03


def texture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Soft spots of some pixels, uint8 [H,W]."""
    random = np.random.default_rng(seed)
    coarse = random.integers(20, 236, (height // 5 + 1, width // 5 + 1), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def moving(noise: float = NOISE) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """A textured square that crosses another texture, STEP pixels a frame: grey pictures, the exact
    maps [T,H,W] (the square is 0.8, all else 0.2) and noisy ones.
    """
    random = np.random.default_rng(1)
    background, square = texture(2), texture(3, 60, 60)
    greys, exact = [], []
    for number in range(COUNT):
        grey, values = background.copy(), np.full((HEIGHT, WIDTH), 0.2, np.float32)
        place = slice(25, 85), slice(20 + STEP * number, 80 + STEP * number)
        grey[place], values[place] = square, 0.8
        greys.append(grey)
        exact.append(values)
    truth = np.stack(exact)
    return greys, truth, truth + random.normal(0, noise, truth.shape).astype(np.float32)


def smoothed(greys: list[np.ndarray], maps: np.ndarray, task: str = "disparity") -> np.ndarray:
    smoother = Smoother()
    return np.stack(
        [smoother(g, {task: m}, cut=False)[task] for g, m in zip(greys, maps, strict=True)]
    )


def test_the_motion_of_a_picture_is_found() -> None:
    wide = texture(0, HEIGHT, WIDTH + 8)
    motion = find_motion(wide[:, 4 : WIDTH + 4], wide[:, 1 : WIDTH + 1])  # moved 3 to the right
    inside = np.s_[16:-16, 16:-16]
    columns = motion.x - np.arange(WIDTH)
    rows = motion.y - np.arange(HEIGHT)[:, None]
    assert columns[inside].mean() == pytest.approx(-3, abs=0.3)
    assert np.abs(rows[inside]).mean() < 0.1
    assert motion.trust[inside].mean() > 0.9
    assert not motion.trust[:, 0].any()  # it came from outside
    values = np.random.default_rng(0).random((HEIGHT, WIDTH, 3)).astype(np.float32)
    motion.x[:], motion.y[:] = np.arange(WIDTH) - 3, np.arange(HEIGHT)[:, None]
    np.testing.assert_allclose(motion.bring(values)[:, 3:], values[:, :-3], atol=1e-6)


def test_noise_goes_and_moving_edges_stay() -> None:
    greys, exact, noisy = moving()
    result = smoothed(greys, noisy)
    np.testing.assert_array_equal(result[0], noisy[0])
    still = np.s_[-1, 2:16, 20:-20]
    # An exponential mean with 0.8 of the past leaves sqrt(0.2 / 1.8) = 0.33 of independent noise.
    assert result[still].std() < 0.5 * NOISE
    square = np.s_[-1, 40:70, 35 + STEP * 11 : 65 + STEP * 11]
    assert result[square].std() < 0.75 * NOISE  # it moved by 33 pixels
    assert result[square].mean() == pytest.approx(0.8, abs=0.01)
    # Without noise nothing changes at all: the edges neither blur nor lag.
    clean = smoothed(greys, exact)
    assert np.abs(clean - exact).max() < 0.02
    assert np.abs(clean - exact).mean() < 2e-4


def test_what_was_hidden_is_not_mixed_with_what_hid_it() -> None:
    greys, exact, noisy = moving()
    result = smoothed(greys, noisy)
    for number in range(1, COUNT):
        left = 20 + STEP * number  # of the square; what lies before it is seen for the first time
        uncovered = np.s_[number, 35:65, left - STEP : left]
        assert np.abs(result[uncovered] - exact[uncovered]).max() < 5 * NOISE
        off = np.abs(result[number] - exact[number])
        assert off.max() < 5.5 * NOISE  # no ghost anywhere


def test_what_appears_is_not_mixed_in_although_its_values_are_near() -> None:
    grey, maps = texture(2), np.random.default_rng(0).random((2, HEIGHT, WIDTH), np.float32)
    other = grey.copy()
    other[30:70, 50:90] = texture(9, 40, 40)
    same = smoothed([grey, other], maps)[1] == maps[1]
    assert same[35:65, 55:85].mean() > 0.7
    assert same[:25].mean() < 0.02


def test_the_weights_are_those_of_the_formula() -> None:
    """Of a picture that stands still: 0.8 of what came before up to half the limit, which is 8
    times the usual difference, and nothing of it from there on.
    """
    grey = texture(4)
    before = np.zeros((HEIGHT, WIDTH), np.float32)
    now = np.full_like(before, 0.01)  # the usual difference
    for row, value in ((5, 0.04), (25, 0.06), (45, 0.0801), (65, 1)):
        now[row : row + 15, 5:20] = value
    smoother = Smoother()
    smoother(grey, {"disparity": before}, cut=True)
    result = smoother(grey, {"disparity": now}, cut=False)["disparity"]
    wanted = {(50, 80): 0.002, (12, 12): 0.008, (32, 12): 0.06 - 0.8 * 0.5 * 0.06}
    for place, value in wanted.items():
        assert result[place] == pytest.approx(value, abs=1e-5)
    for row in (45, 65):
        np.testing.assert_array_equal(result[row : row + 15, 5:20], now[row : row + 15, 5:20])


def test_both_ways_of_the_flow_must_agree() -> None:
    """A faint square moves by 10 pixels: what it uncovers differs by few levels, so that only the
    flow tells. Without the flow back all of it would count as seen before.
    """
    faint = [(texture(2) // 12 + 120).astype(np.uint8) for _ in range(2)]
    for number, grey in enumerate(faint):
        grey[20:80, 20 + 10 * number : 80 + 10 * number] = texture(3, 60, 60) // 12 + 120
    trust = find_motion(*faint).trust
    assert (trust[26:74, 20:30] == 0).mean() > 0.3
    assert (trust[:15] > 0).mean() > 0.9


def test_the_past_fades_out_where_it_ends() -> None:
    """Else one would see a line there."""
    grey = texture(2)
    other = grey.copy()
    other[30:70, 50:90] = 255 - grey[30:70, 50:90]
    trust = find_motion(grey, other).trust
    assert not trust[34:66, 54:86].any()
    assert (trust[:20] > 0.99).mean() > 0.9
    assert trust.max() <= 1.0001
    row = trust[50, :50]
    assert row[:20].mean() > 0.9
    assert np.abs(np.diff(row[10:])).max() < 0.35


def test_vectors_keep_unit_length() -> None:
    greys, exact, _ = moving()
    random = np.random.default_rng(5)
    clean = np.stack([exact - 0.5, np.full_like(exact, 0.3), np.full_like(exact, 0.7)], -1)
    clean = np.stack([unit_vectors(each) for each in clean])
    noisy = clean + random.normal(0, NOISE, clean.shape).astype(np.float32)
    noisy = np.stack([unit_vectors(each) for each in noisy])
    result = smoothed(greys, noisy, "normal")
    assert np.abs(np.linalg.norm(result, axis=-1) - 1).max() < 1e-5
    angles = [
        np.degrees(np.arccos((m[-1] * clean[-1]).sum(-1).clip(-1, 1))) for m in (noisy, result)
    ]
    assert angles[1].mean() < 0.6 * angles[0].mean()
    same = (result[-1] == noisy[-1]).all(-1)  # where nothing is mixed in, bit by bit
    assert same[35:65, 20 + STEP * 10 : 20 + STEP * 11].any()


def test_shares_stay_shares() -> None:
    """Bicubic interpolation alone goes beyond 1 beside an edge."""
    wide, masks = texture(0, HEIGHT, WIDTH + 8), []
    greys = [wide[:, 4 : WIDTH + 4], wide[:, 3 : WIDTH + 3], wide[:, 2 : WIDTH + 2]]
    for number in range(3):
        soft = np.linspace(-3, 4, WIDTH) - number * 7 / WIDTH
        masks.append(np.tile(soft, (HEIGHT, 1)).clip(0, 1).astype(np.float32))
    result = smoothed(greys, np.stack(masks), "matting")
    assert (result[1:] != np.stack(masks)[1:]).any()
    assert result.min() == 0
    assert result.max() == 1


def test_tasks_share_one_motion() -> None:
    greys, _, noisy = moving()
    both = Smoother()
    for grey, values in zip(greys[:4], noisy, strict=False):
        result = both(grey, {"disparity": values, "depth": 1 - values}, cut=False)
    np.testing.assert_array_equal(result["disparity"], smoothed(greys[:4], noisy[:4])[-1])
    alone = smoothed(greys[:4], 1 - noisy[:4], "depth")[-1]
    np.testing.assert_array_equal(result["depth"], alone)


def test_a_cut_and_another_size_begin_anew() -> None:
    greys, _, noisy = moving()
    smoother = Smoother()
    smoother(greys[0], {"disparity": noisy[0]}, cut=False)
    for grey, values, cut in ((greys[1], noisy[1], True), (greys[2][:50], noisy[2][:50], False)):
        result = smoother(grey, {"disparity": values}, cut=cut)["disparity"]
        np.testing.assert_array_equal(result, values)
    result = smoother(greys[3][:50], {"disparity": noisy[3][:50]}, cut=False)["disparity"]
    assert (result != noisy[3][:50]).mean() > 0.5


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (80, 80)])
def test_another_process_goes_on_where_one_stopped(size: tuple[int, int]) -> None:
    """Also at 80x80: there an object of OpenCV's that has seen a picture treats the next
    otherwise.
    """
    place = np.s_[:, : size[0], : size[1]]
    greys, noisy = ([*each[place]] for each in map(np.stack, moving()[::2]))
    expected = smoothed(greys, noisy)
    first, second = Smoother(), Smoother()
    assert first.state() == {}
    for number in range(5):
        first(greys[number], {"disparity": noisy[number]}, cut=False)
    second.restore({name: array.copy() for name, array in first.state().items()})
    for number in range(5, COUNT):
        result = second(greys[number], {"disparity": noisy[number]}, cut=False)
        np.testing.assert_array_equal(result["disparity"], expected[number])


def test_any_size_and_any_number_of_threads() -> None:
    """In a process of its own, since OpenCV ends it where a picture is wide and low, as 16x128."""
    code = """
import cv2, numpy as np
from runtime.motion import Smoother
random = np.random.default_rng(0)
sizes = [(1, 1), (1, 500), (500, 1), (7, 9), (8, 128), (16, 128), (20, 300), (24, 500), (16, 2000),
         (80, 80), (64, 90), (33, 51), (63, 65), (127, 129)]
for size in sizes:
    greys = random.integers(0, 256, (3, *size), dtype=np.uint8)
    maps = random.random((3, *size), np.float32)
    results = []
    for threads in (1, 2, 5):
        cv2.setNumThreads(threads)
        smoother = Smoother()
        for number in range(3):
            result = smoother(greys[number], {"disparity": maps[number]}, cut=False)["disparity"]
        results.append(result)
        assert result.shape == size and np.isfinite(result).all()
    assert all((result == results[0]).all() for result in results), size
    strided = np.stack([greys, greys], -1)[..., 0]
    again = Smoother()
    for grey, values in zip(strided, np.stack([maps, maps], -1)[..., 0]):
        result = again(grey, {"disparity": values}, cut=False)["disparity"]
    assert (result == results[0]).all(), size
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_grey_levels_have_the_size_of_the_map() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        to_grey(rgb, 40, 60), np.asarray(Image.fromarray(rgb).convert("L"))
    )
    assert to_grey(rgb, 20, 31).shape == (20, 31)
