"""Steady maps: scale and shift that wander are found, by what stands still, and cuts are seen."""

from __future__ import annotations

import numpy as np
import pytest

from runtime.steady import Causal, Step, plan_clip, solve_chain
from runtime.tasks import TASKS
from runtime.thumbnails import Thumbnail, color_distance, shrink, tie

COUNT, HEIGHT, WIDTH = 60, 40, 56


def scene(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A map in [0,1] and a picture of as many pixels."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(0, 1, (5, 7)).astype(np.float32)
    values = np.kron(coarse, np.ones((8, 8), np.float32)) + 0.1 * random.random(
        (HEIGHT, WIDTH), np.float32
    )
    colors = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return values / values.max(), np.kron(colors, np.ones((8, 8, 1), np.uint8))


def clip(
    seed: int = 0, count: int = COUNT, moving: bool = True
) -> tuple[list[Thumbnail], np.ndarray, np.ndarray]:
    """A scene that stands still but for a square that crosses it; each frame's map has a scale and
    a shift of its own. Returns the thumbnails, the true maps [T,H,W] and the frames' [T,2].
    """
    random = np.random.default_rng(seed + 100)
    values, colors = scene(seed)
    thumbnails, truth, wander = [], [], []
    for number in range(count):
        exact, rgb = values.copy(), colors.copy()
        if moving:
            place = slice(5, 20), slice(number % 40, number % 40 + 12)
            exact[place], rgb[place] = 0.95, (250, 30, 30)
        scale, shift = np.exp(random.normal(0, 0.08)), random.normal(0, 0.04)
        noisy = exact + random.normal(0, 0.003, exact.shape)
        thumbnails.append(
            Thumbnail(
                values=((noisy - shift) / scale).astype(np.float32), rgb=rgb, time=number / 30
            )
        )
        truth.append(exact)
        wander.append((scale, shift))
    return thumbnails, np.stack(truth), np.array(wander)


def applied(steps: list[Step], thumbnails: list[Thumbnail]) -> np.ndarray:
    return np.stack([step(each.values) for step, each in zip(steps, thumbnails, strict=True)])


def flicker(maps: np.ndarray) -> float:
    """How much a pixel that stands still changes from frame to frame."""
    return float(np.abs(np.diff(maps[:, 25:], axis=0)).mean())


def test_causal_and_clip_take_the_flicker_away() -> None:
    thumbnails, _, _ = clip()
    off = flicker(np.stack([each.values for each in thumbnails]))
    causal = Causal()
    assert flicker(applied([causal(each) for each in thumbnails], thumbnails)) < off / 5
    assert flicker(applied(plan_clip(thumbnails), thumbnails)) < off / 8


def test_a_whole_clip_differs_from_the_truth_by_one_scale_and_shift() -> None:
    thumbnails, truth, _ = clip()
    steady = applied(plan_clip(thumbnails), thumbnails)
    scale, shift = np.polyfit(steady.ravel(), truth.ravel(), 1)
    assert np.abs(scale * steady + shift - truth).mean() < 0.005
    assert 0.7 < scale < 1.4  # it did not collapse
    off = np.stack([each.values for each in thumbnails])
    scale, shift = np.polyfit(off.ravel(), truth.ravel(), 1)
    assert np.abs(scale * off + shift - truth).mean() > 0.02


def test_a_long_clip_does_not_shrink() -> None:
    """Least squares would make each frame a little flatter than the one before."""
    thumbnails, _, _ = clip(count=300)
    causal = Causal()
    spread = applied([causal(each) for each in thumbnails], thumbnails).std((1, 2))
    assert spread[-50:].mean() / spread[:50].mean() == pytest.approx(1, abs=0.1)


def test_a_cut_begins_anew() -> None:
    first, second = clip(0, 30)[0], clip(5, 30)[0]
    both = first + second
    causal = Causal()
    steps = [causal(each) for each in both]
    assert [number for number, step in enumerate(steps) if step.cut] == [0, 30]
    assert (steps[30].scale, steps[30].shift) == (1, 0)
    planned = plan_clip(both)
    assert [number for number, step in enumerate(planned) if step.cut] == [0, 30]
    # Each shot is what it would be alone.
    alone = plan_clip(first) + plan_clip(second)
    assert [vars(step) for step in planned] == [vars(step) for step in alone]


def test_another_size_is_a_cut() -> None:
    small = [Thumbnail(values=e.values[:20], rgb=e.rgb[:20], time=e.time) for e in clip(0, 3)[0]]
    causal = Causal()
    assert [causal(each).cut for each in clip(0, 3)[0] + small] == [True, False, False] * 2
    assert [step.cut for step in plan_clip(clip(0, 3)[0] + small)] == [True, False, False] * 2


def test_without_a_fit_only_colours_follow() -> None:
    thumbnails = clip()[0]
    causal = Causal(fit=False)
    steps = [causal(each) for each in thumbnails]
    assert all((step.scale, step.shift) == (1, 0) for step in steps)
    own = np.array([np.percentile(each.values, [2, 98]) for each in thumbnails])
    followed = np.array([(step.low, step.high) for step in steps])
    assert np.abs(np.diff(followed, axis=0)).mean() < np.abs(np.diff(own, axis=0)).mean() / 5


def test_the_range_follows_in_time_not_in_frames() -> None:
    values, rgb = scene()

    def after(rate: float) -> float:
        causal = Causal(fit=False)
        causal(Thumbnail(values=values, rgb=rgb, time=0))
        steps = [
            causal(Thumbnail(values=values + 1, rgb=rgb, time=(number + 1) / rate))
            for number in range(round(rate / 3))
        ]
        return steps[-1].low

    assert after(60) == pytest.approx(after(15), rel=1e-6)


def test_one_range_holds_for_a_shot() -> None:
    thumbnails = clip()[0]
    steps = plan_clip(thumbnails)
    assert len({(step.low, step.high) for step in steps}) == 1
    for step, each in zip(steps, thumbnails, strict=True):
        steady = step(each.values)
        assert (steady < step.low - 1e-6).mean() <= 0.021
        assert (steady > step.high + 1e-6).mean() <= 0.021
    colors = TASKS["disparity"].colorize(steps[0](thumbnails[0].values), (0.2, 0.3))
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) > 3
    assert (colors[0, 0] == TASKS["disparity"].colorize(np.array([[0.0, 1.0]], np.float32))).any()


def test_another_process_goes_on_where_one_stopped() -> None:
    thumbnails = clip()[0]
    whole, first, second = Causal(), Causal(), Causal()
    expected = [whole(each) for each in thumbnails]
    for each in thumbnails[:23]:
        first(each)
    second.restore(first.state())
    assert [second(each) for each in thumbnails[23:]] == expected[23:]


def test_a_tie_is_found_although_much_moves() -> None:
    values, rgb = scene()
    other, colors = values.copy(), rgb.copy()
    other[:, :25], colors[:, :25] = 0.5, 9  # 45 % of the picture is something else
    first = Thumbnail(values=values, rgb=rgb, time=0)
    found = tie(first, Thumbnail(values=(other - 0.1) / 1.3, rgb=colors, time=0))
    assert found.scale == pytest.approx(1.3, rel=2e-3)
    assert found.shift == pytest.approx(0.1, abs=2e-3)
    flat = Thumbnail(values=np.full_like(values, 0.4), rgb=rgb, time=0)
    assert tie(flat, flat).scale == 1


def test_a_camera_that_turns_is_followed() -> None:
    """On a floor a pixel stays as near as it was, while all that it shows moves down."""
    y, x = np.mgrid[:60, :60].astype(np.float32)

    def frame(down: float) -> Thumbnail:
        rows = y + down
        waves = 60 * np.sin(rows / 5) + 60 * np.sin((x + rows) / 6) + 127
        return Thumbnail(values=rows / 80, rgb=np.stack([waves.astype(np.uint8)] * 3, -1), time=0)

    first, second = frame(5), frame(6.6)
    found = tie(first, second)
    assert found.move == (pytest.approx(1.6, abs=0.1), pytest.approx(0, abs=0.1))
    assert (found.scale, found.shift) == (pytest.approx(1, abs=0.02), pytest.approx(0, abs=0.01))


def test_a_steady_pan_is_tied_while_frames_have_enough_in_common() -> None:
    """The camera turns by 3 of 60 columns a frame: those 10 and 25 apart have half a picture in
    common, and nothing.
    """
    y, x = np.mgrid[:60, :60].astype(np.float32)
    random = np.random.default_rng(0)
    thumbnails = []
    for number in range(30):
        columns = x + 3 * number
        waves = 50 * np.sin(columns / 9) + 50 * np.sin((y + columns) / 11) + 127
        exact = y / 80 + 0.1 * np.sin(columns / 7)
        scale, shift = np.exp(random.normal(0, 0.08)), random.normal(0, 0.04)
        rgb = np.stack([waves.astype(np.uint8)] * 3, -1)
        values = ((exact - shift) / scale).astype(np.float32)
        thumbnails.append(Thumbnail(values=values, rgb=rgb, time=number / 30))
    steps = plan_clip(thumbnails)
    assert [number for number, step in enumerate(steps) if step.cut] == [0]

    def changes(maps: np.ndarray) -> float:
        return float(np.abs(maps[1:, :, :-3] - maps[:-1, :, 3:]).mean())

    off = np.stack([each.values for each in thumbnails])
    assert changes(applied(steps, thumbnails)) < changes(off) / 8


def test_chains_are_solved_as_dense_least_squares_are() -> None:
    random = np.random.default_rng(0)
    count = 40
    pairs = np.array([(i, i + d) for d in (1, 5) for i in range(count - d)])
    differences = random.normal(0, 1, len(pairs))
    trust = random.uniform(0.5, 2, len(pairs))
    found = solve_chain(count, pairs, differences, trust)
    design = np.zeros((len(pairs), count))
    design[np.arange(len(pairs)), pairs[:, 0]] = -1
    design[np.arange(len(pairs)), pairs[:, 1]] = 1
    x = np.zeros(count)
    for _ in range(10):
        off = np.abs(design @ x - differences)
        weight = trust * np.minimum(1, max(1.5 * np.median(off), 2e-3) / np.maximum(off, 1e-12))
        matrix = design.T @ (weight[:, None] * design) + 1e-5 * np.eye(count)
        x = np.linalg.solve(matrix, design.T @ (weight * differences))
    np.testing.assert_allclose(found, x, atol=1e-9)
    assert solve_chain(1, np.empty((0, 2), int), np.empty(0), np.empty(0)).tolist() == [0]


def test_thumbnails_are_means_and_colours_count_wherever_they_are() -> None:
    values, rgb = scene()
    small = shrink(np.kron(values, np.ones((4, 4), np.float32)), rgb, 2.5)
    assert small.values.shape == small.rgb.shape[:2]
    assert max(small.values.shape) <= 96
    assert small.values.mean() == pytest.approx(values.mean(), rel=5e-3)  # an edge is left out
    for height, width in ((1, 1), (1, 500), (97, 3), (200, 333)):
        odd = shrink(np.ones((height, width), np.float32), rgb, 0)
        assert odd.rgb.shape[:2] == odd.values.shape
        assert (odd.values == 1).all()

    def frame(colors: np.ndarray) -> Thumbnail:
        return Thumbnail(values=values, rgb=colors, time=0)

    assert color_distance(frame(rgb), frame(rgb[::-1])) == pytest.approx(0, abs=1e-9)
    assert color_distance(frame(rgb * 0), frame(rgb * 0 + 255)) == pytest.approx(1)
