"""Exact rewrites of the network: the same function with less work, float rounding aside.

A single-step model runs with a constant prompt, timestep and class vector, so that much of the
network is known when it is built. A fold is one file. Its docstring is the algebra; its `fold`
rewrites every place where the algebra holds, and says why it leaves the others alone. Adding one
takes a file here and an entry of FOLDS.
"""

from __future__ import annotations

from collections.abc import Callable

from export.folds import (
    flatten_tokens,
    fold_latent_factor,
    fold_noise,
    fold_post_quant_conv,
    fold_prompt,
    fold_quant_conv,
    fold_taesd_scaling,
    fold_time_embedding,
    fold_zeros,
    fuse_qkv_and_norms,
    subpixel,
    winograd,
)
from export.folds.report import Folded
from export.network.single_pass import SinglePass
from export.progress import say
from export.targets import Recipe

Fold = Callable[[SinglePass, Recipe], Folded]
"""Rewrites the network in place, in the form that the recipe asks for."""

FOLDS: dict[str, Fold] = {
    module.__name__.rpartition(".")[2].replace("_", "-"): module.fold
    for module in (
        fold_time_embedding,
        fold_prompt,
        fold_noise,
        fold_zeros,
        fold_quant_conv,
        fold_latent_factor,
        fold_post_quant_conv,
        fold_taesd_scaling,
        subpixel,
        fuse_qkv_and_norms,
        flatten_tokens,
        winograd,
    )
}
"""Every fold by its name, in the order in which they are applied: later ones rewrite what earlier
ones leave."""


def apply_folds(network: SinglePass, recipe: Recipe) -> list[str]:
    """Rewrite `network` in place with all of FOLDS. Returns the names of those that applied."""
    applied = []
    for name, fold in FOLDS.items():
        folded = fold(network, recipe)
        say(f"fold {name}: {folded.places} places")
        for reason in sorted(set(folded.refused)):
            say(f"fold {name} leaves {folded.refused.count(reason)}: {reason}")
        if folded.places:
            applied.append(name)
    return applied
