"""Asks a Triton server, over HTTP and gRPC, and writes down what it answered.

`python triton_client.py FOLDER HTTP GRPC MODEL`, in the environment that has `tritonclient`.
FOLDER has `pictures.npz` (RGB uint8 [H,W,3] by name); `answers.npz` and `said.json` are written.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tritonclient import grpc, http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

CLIENTS = 8


def main(folder: Path, http_url: str, grpc_url: str, model: str) -> None:
    """Everything that the test compares."""
    with np.load(folder / "pictures.npz") as stored:
        pictures = dict(stored)
    answers: dict[str, Any] = {}
    said: dict[str, Any] = {}
    for kind, module, url in (("http", http, http_url), ("grpc", grpc, grpc_url)):

        def ask(module: Any = module, url: str = url, **inputs: Any) -> dict[str, Any]:
            with module.InferenceServerClient(url) as client:
                tensors = []
                for name, array in inputs.items():
                    kind = np_to_triton_dtype(array.dtype)
                    tensors.append(module.InferInput(name, array.shape, kind))
                    tensors[-1].set_data_from_numpy(array)
                answer = client.infer(model, tensors)
                description = answer.get_response()
                outputs = description["outputs"] if module is http else description.outputs
                names = [each["name"] if module is http else each.name for each in outputs]
                return {name: answer.as_numpy(name) for name in names}

        for name, rgb in pictures.items():
            path = folder / f"{name}.png"
            Image.fromarray(rgb).save(path)
            for form, inputs in (
                ("array", {"image": rgb[None]}),
                ("encoded", {"encoded": np.array([[path.read_bytes()]], object)}),
            ):
                for task, values in ask(**inputs).items():
                    answers[f"{kind} {form} {name} {task}"] = values
        with ThreadPoolExecutor(CLIENTS) as pool:  # at once, of several sizes
            asked = [*pictures] * CLIENTS
            many = pool.map(lambda name, ask=ask: ask(image=pictures[name][None]), asked)
            for at, (name, answer) in enumerate(zip(asked, many, strict=True)):
                for task, values in answer.items():
                    answers[f"{kind} at-once-{at} {name} {task}"] = values
        first = next(iter(pictures.values()))[None]
        bad = {
            "words": {"encoded": np.array([[b"no picture"]], object)},
            "nothing": {"encoded": np.array([[b""]], object)},
            "both": {"image": first, "encoded": np.array([[b"x"]], object)},
            "grey": {"image": first[..., :1]},
            "floats": {"image": first.astype(np.float32)},
            "none": {},
            "other": {"picture": first},
        }
        for name, inputs in bad.items():
            try:
                ask(**inputs)
                said[f"{kind} {name}"] = "no error"
            except InferenceServerException as error:
                said[f"{kind} {name}"] = f"{error.status()} {error.message()}"
        answers[f"{kind} after {next(iter(pictures))} "] = next(iter(ask(image=first).values()))
    np.savez(folder / "answers.npz", **answers)
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5])
