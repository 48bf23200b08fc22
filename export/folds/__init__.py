"""Exact rewrites of the network: the same function with less work, float rounding aside.

Lotus runs one step with a constant prompt, timestep and task, so that much of the network is known when it is built.
A fold is one file: its docstring is the algebra, `fold` rewrites every place where the algebra holds and says why it
leaves the others alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from export.folds import (
    constant_attention,
    constant_embedding,
    constant_noise,
    latent_in,
    latent_out,
    lean_transformer,
    merged_projections,
    small_ranges,
    subpixel,
    winograd,
)
from export.folds.report import Folded
from export.single_pass import SinglePass

FOLDS: dict[str, Callable[[SinglePass], Folded]] = {
    "constant-embedding": constant_embedding.fold,
    "constant-attention": constant_attention.fold,
    "constant-noise": constant_noise.fold,
    "latent-in": latent_in.fold,
    "latent-out": latent_out.fold,
    "small-ranges": small_ranges.fold,
    "subpixel": subpixel.fold,
    "merged-projections": merged_projections.fold,
    "lean-transformer": lean_transformer.fold,
    "winograd": winograd.fold,
}
"""Every fold, in the order in which they are applied: later ones rewrite what earlier ones leave."""


def apply_folds(
    module: SinglePass, progress: Callable[[str], None], upsampling: str = subpixel.FORMS[0], wide: bool = False
) -> list[str]:
    """Rewrite `module` in place with all of FOLDS. Returns the names of those that found a place.

    `upsampling` is the form that the target runs fastest, of `subpixel.FORMS`; `wide` says whether wide convolutions
    gain by `winograd` there.
    """
    applied = []
    folds = FOLDS | {"subpixel": functools.partial(subpixel.fold, form=upsampling)}
    if not wide:
        del folds["winograd"]
    for name, fold in folds.items():
        folded = fold(module)
        progress(f"fold {name}: {folded.places} places")
        for reason in sorted(set(folded.refused)):
            progress(f"fold {name} leaves {folded.refused.count(reason)}: {reason}")
        if folded.places:
            applied.append(name)
    return applied
