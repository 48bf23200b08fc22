"""Pictures of a result: the best, the median and the worst of a set, and its errors as bars."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from benchmarks.evaluation.protocol import Record
from benchmarks.evaluation.run import Evaluation, Result, pixel_counts, predict, ranked
from benchmarks.plots import open_pyplot

_WIDEST, _TALLEST = 400, 320  # pixels of one picture on a sheet
_NARROWEST = 160  # of its column, for the text above it
_GAP, _TEXT = 8, 20
_COLUMNS = ("picture", "truth", "prediction", "error")


def write_sheet(evaluation: Evaluation, result: Result) -> Path | None:
    """`sheet.png`: a row for the best, the median and the worst picture. None where no picture has
    a pixel that counts.
    """
    order = ranked(result)
    if not order:
        return None
    places = {"best": 0, "median": len(order) // 2, "worst": len(order) - 1}
    lines = [
        _line(evaluation, result, order[place], word)
        for word, place in places.items()
        if list(places.values()).index(place) == list(places).index(word)  # each picture once
    ]
    width = max(line.width for line in lines)
    sheet = Image.new("RGB", (width, sum(line.height for line in lines)), "white")
    top = 0
    for line in lines:
        sheet.paste(line, (0, top))
        top += line.height
    path = result.folder / "sheet.png"
    sheet.save(path)
    return path


def write_histogram(result: Result) -> Path:
    """`histogram.png`: how many pictures have which error, and how many pixels."""
    plots = open_pyplot()
    protocol = result.data.protocol
    figure, (left, right) = plots.subplots(1, 2, figsize=(10, 3.4))
    figure.subplots_adjust(left=0.06, right=0.985, bottom=0.16, top=0.9, wspace=0.16)
    values = [_rank(result, record) for record in ranked(result)]
    left.hist(values, bins=min(40, max(5, len(values) // 4)), color="#4477aa")
    left.set_xlabel(f"of a picture: {protocol.titles[protocol.ranked_by]}")
    left.yaxis.get_major_locator().set_params(integer=True)
    left.set_ylabel("pictures")
    counts, edges = pixel_counts(result), protocol.edges
    share = 100 * counts / max(counts.sum(), 1)
    right.stairs(share, edges, fill=True, color="#4477aa")
    if edges[0] > 0:
        right.set_xscale("log")
    else:
        last = int(np.flatnonzero(counts).max(initial=0))
        right.set_xlim(edges[0], edges[min(len(edges) - 1, last + 2)])
    right.set_xlabel(protocol.error_name)
    right.set_ylabel("% of the pixels")
    figure.suptitle(
        f"{result.data.title}, {result.task.name}: {len(values)} pictures, {counts.sum():,} pixels"
    )
    path = result.folder / "histogram.png"
    figure.savefig(path, dpi=110)
    plots.close(figure)
    return path


def _line(evaluation: Evaluation, result: Result, record: Record, word: str) -> Image.Image:
    """One row of a sheet, with what it shows above it."""
    item = next(item for item in result.opened.items if item.name == record["name"])
    sample, protocol, task = result.opened.read(item), result.data.protocol, result.task
    values = predict(evaluation.engine, evaluation.settings, protocol.feed(sample.image))
    truth, guess, errors = protocol.show(task, values[task.name], sample.truth, sample.mask)
    # Coloured together, so that one value has one colour in both.
    both = task.colorize(np.concatenate([truth, guess], axis=1).astype(np.float32))
    colours, rest = both[:, : truth.shape[1]], both[:, truth.shape[1] :]
    whole = np.ones_like(sample.mask)
    shown = [
        _small(rgb, mask)
        for rgb, mask in (
            (sample.image, whole),
            (colours, sample.mask),
            (rest, whole),
            (_heat(errors), sample.mask),
        )
    ]
    step = max(shown[0].width, _NARROWEST) + _GAP
    line = Image.new("RGB", (4 * step + _GAP, shown[0].height + 2 * _TEXT + 2 * _GAP), "white")
    draw, font = ImageDraw.Draw(line), ImageFont.load_default(13)
    metric = f"{protocol.titles[protocol.ranked_by]}: {_rank(result, record):.3g}"
    title = f"{word}. {metric}. {record['name']}"
    draw.text((_GAP, 3), title, "black", font)
    for number, (name, picture) in enumerate(zip(_COLUMNS, shown, strict=True)):
        left = _GAP + number * step
        what = name if name != "error" else f"error, white: {protocol.shown_error}"
        draw.text((left, _TEXT + 2), what, "black", font)
        line.paste(picture, (left, 2 * _TEXT + 2))
    return line


def _rank(result: Result, record: Record) -> float:
    """What orders pictures, in the unit of the paper's table."""
    name = result.data.protocol.ranked_by
    return float(record["metrics"][name] * result.data.protocol.headline[name])


def _heat(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[H,W] in [0,1] from black over red and yellow to white."""
    steps = np.clip(share[..., None] * 3 - np.arange(3), 0, 1)
    return np.rint(steps * 255).astype(np.uint8)


def _small(rgb: NDArray[np.uint8], mask: NDArray[np.bool_]) -> Image.Image:
    """At a size that fits a sheet: the mean of those pixels that count, so that sparse ones can be
    seen; black where none does.
    """
    height, width = mask.shape
    scale = min(_WIDEST / width, _TALLEST / height, 1.0)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    planes = (np.where(mask, rgb[..., band], 0) for band in range(3))
    *bands, weight = (
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BOX))
        for plane in (*planes, mask)
    )
    means = np.stack(bands, axis=-1) / np.maximum(weight, 1e-6)[..., None]
    return Image.fromarray(np.rint(means).clip(0, 255).astype(np.uint8))
