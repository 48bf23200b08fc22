"""What a prediction is sent as: the media types of `Accept`, and their contents."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from apps.serve.errors import NotAcceptableError, UnusableError
from runtime.encoding import png
from runtime.marker import MARKER, TASK
from runtime.prediction import Prediction
from runtime.tasks import TASKS


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to write a prediction. `encode` gets it with the task that was asked for (None: all
    of them) and what else there is to say.
    """

    media_type: str
    meaning: str
    encode: Callable[[Prediction, str | None, Mapping[str, Any]], bytes]


def _json(prediction: Prediction, task: str | None, about: Mapping[str, Any]) -> bytes:
    maps = {}
    for name in [task] if task else prediction:
        values = prediction[name].values
        maps[name] = {
            "shape": list(values.shape),
            "dtype": "float32, little-endian, row by row",
            "low": TASKS[name].low,
            "high": TASKS[name].high,
            "near": TASKS[name].near,
            "min": float(values.min()),
            "max": float(values.max()),
            "data": base64.b64encode(values.astype("<f4").tobytes()).decode(),
        }
    return json.dumps({**about, "maps": maps}).encode()


def _npz(prediction: Prediction, task: str | None, about: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    names = [task] if task else [*prediction]
    arrays: dict[str, Any] = {name: prediction[name].values for name in names}
    np.savez(file, **arrays)
    return file.getvalue()


def _png(prediction: Prediction, task: str | None, about: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(prediction[_one(prediction, task)].colorize()).save(file, format="PNG")
    return file.getvalue()


def _png16(prediction: Prediction, task: str | None, about: Mapping[str, Any]) -> bytes:
    name = _one(prediction, task)
    texts = {MARKER[0]: MARKER[1], TASK: name}
    return png(TASKS[name].encode16(prediction[name].values), texts)


def _one(prediction: Prediction, task: str | None) -> str:
    return task or next(iter(prediction))


JSON = Form(
    media_type="application/json",
    meaning="the maps as base64 of float32, with their ranges",
    encode=_json,
)
NPZ = Form(
    media_type="application/x-npz",
    meaning="the maps as float32 arrays by task, for numpy.load",
    encode=_npz,
)
PNG = Form(media_type="image/png", meaning="one map in colours", encode=_png)
PNG16 = Form(
    media_type="image/png;depth=16",
    meaning="one map in 16 bits: 0 is the task's lowest value, 65535 its highest",
    encode=_png16,
)
FORMS = (JSON, NPZ, PNG, PNG16)
_ONE_MAP = (PNG, PNG16)


def choose_form(accept: str | None) -> Form:
    """The form that `Accept` wants most: by its q, then in its order; JSON where it wants anything.

    Raises: NotAcceptableError.
    """
    best, most = None, 0.0
    for wanted in (accept or "*/*").lower().split(","):
        media, *rest = (part.strip().replace(" ", "") for part in wanted.split(";"))
        try:
            quality = float(next((part[2:] for part in rest if part.startswith("q=")), 1))
        except ValueError:
            continue
        named = ";".join([media, *(part for part in rest if not part.startswith("q="))])
        form = next((form for form in FORMS if _fits(form, named)), None)
        if form is not None and quality > most:
            best, most = form, quality
    if best is None:
        forms = ", ".join(form.media_type for form in FORMS)
        raise NotAcceptableError(f"Accept is {accept!r}; written are {forms}")
    return best


def _fits(form: Form, named: str) -> bool:
    return named in (form.media_type, "*/*", form.media_type.partition("/")[0] + "/*")


def check_task(form: Form, task: str | None, tasks: list[str]) -> None:
    """Raises: UnusableError for a task that the bundle does not answer, and where a form takes one
    map and there are several.
    """
    if task is not None and task not in tasks:
        raise UnusableError(f"task is {task!r}; this bundle answers {', '.join(tasks)}")
    if task is None and len(tasks) > 1 and form in _ONE_MAP:
        raise UnusableError(
            f"{form.media_type} holds one map, and this bundle answers {' and '.join(tasks)}: "
            f"add ?task={tasks[0]}"
        )
