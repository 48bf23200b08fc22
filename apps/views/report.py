"""What became of each view: for `report.json`, and as a line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from apps.views.combine import Combined
from apps.views.files import FILES
from apps.views.model import Model
from runtime.errors import OutputError
from runtime.there import exists

_GENERATOR = "lotus-edge scene --views"
_LONGEST_STEM = 60  # characters of a picture's name in that of its depth


def describe(
    model: Model, combined: Combined, left_out: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """A row for each view of the model, by its name, in the model's order."""
    used = {
        view.view.name: (view, mask)
        for view, mask in zip(combined.views, combined.masks, strict=True)
    }
    rows: dict[str, dict[str, Any]] = {}
    for number, view in enumerate(model.views):
        if view.name not in used:
            rows.setdefault(
                view.name, {"used": False, "reason": left_out[view.name], "depth": None}
            )
            continue
        found, mask = used[view.name]
        stem = re.sub(r"[^\w.-]", "_", Path(view.name).stem)[:_LONGEST_STEM]
        alignment, known = found.alignment, int(np.isfinite(found.depth).sum())
        rows[view.name] = {
            "used": True,
            "reason": None,
            "points": alignment.candidates,
            "inliers": alignment.inliers,
            "residual": alignment.residual,
            "space": alignment.space,
            "scale": alignment.scale,
            "shift": alignment.shift,
            "method": alignment.method,
            "pixels": known,
            "confirmed": int(mask.sum()),
            "compared_with": combined.compared[view.name],
            "height": found.depth.shape[0],
            "width": found.depth.shape[1],
            "matrix": found.camera.matrix.tolist(),
            "camera_from_world": found.camera_from_world.tolist(),
            "depth": f"depth/{number:04d}-{stem}.npz",
        }
    return rows


def line_of(row: Mapping[str, Any]) -> str:
    """A row in words."""
    if not row["used"]:
        return f"left out: {row['reason']}"
    return (
        f"{row['points']} points, off by {row['residual']:.1%} in the median; "
        f"{row['confirmed'] / max(row['pixels'], 1):.0%} of its pixels confirmed"
    )


def encode_report(
    model: Model,
    combined: Combined,
    rows: Mapping[str, Mapping[str, Any]],
    unit: str,
    settings: Mapping[str, Any],
) -> bytes:
    """report.json."""
    used = sum(row["used"] for row in rows.values())
    body = {
        "generator": _GENERATOR,
        "model": {"kind": model.kind, "known_by": model.known_by},
        "unit": unit,
        "settings": settings,
        "views_used": used,
        "views_left_out": len(rows) - used,
        "surface": {
            "voxel": combined.voxel,
            "vertices": len(combined.mesh.vertices),
            "triangles": len(combined.mesh.faces),
            "points": len(combined.cloud.vertices),
        },
        "views": [{"name": name, **row} for name, row in rows.items()],
    }
    return (json.dumps(body, indent=2, allow_nan=False) + "\n").encode()


def check_free(folder: Path, known_by: str, overwrite: bool) -> None:
    """Refuse to write over files that are not of this model's scene. Raises: OutputError."""
    there = [name for name in FILES if exists(folder / name)]
    if not there or overwrite:
        return
    ours = _report(folder)
    if ours.get("generator") != _GENERATOR:
        what = "is not of a scene of several views"
    elif ours.get("model", {}).get("known_by") != known_by:
        what = "is of the scene of another model, or of this one before it was changed"
    else:
        return
    raise OutputError(
        f"{folder / there[0]} exists, and {what}. Choose another folder, or replace it with "
        "--overwrite."
    )


def previous_depths(folder: Path) -> set[Path]:
    """The depth files of the scene that lies in the folder already."""
    views = _report(folder).get("views")
    names = [row.get("depth") for row in views if isinstance(row, dict)] if views else []
    return {
        folder / name
        for name in names
        if isinstance(name, str) and re.fullmatch(r"depth/\d{4,}-[\w.-]+\.npz", name)
    }


def _report(folder: Path) -> dict[str, Any]:
    try:
        body = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    ours = isinstance(body, dict) and isinstance(body.get("model"), dict)
    return body if ours and isinstance(body.get("views"), list) else {}
