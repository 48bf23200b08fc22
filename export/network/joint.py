"""Checkpoints that share their autoencoder, loaded to be one network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from export.errors import CheckpointError
from export.network.autoencoder import SmallVaeDescription, replace_vae
from export.network.checkpoint import Checkpoint, Description, load


def load_together(
    descriptions: Sequence[Description],
    encoder: SmallVaeDescription | None = None,
    decoder: SmallVaeDescription | None = None,
    *,
    seed: int = 0,
) -> list[Checkpoint]:
    """The described checkpoints with one autoencoder, the first one's, in memory once.

    `encoder` and `decoder` stand in for its halves; `seed` draws random weights. Raises:
    CheckpointError, also where the autoencoders differ: compared by content, unless both halves
    are replaced.
    """
    first = replace_vae(load(descriptions[0], seed=seed), encoder, decoder, seed=seed)
    checkpoints = [first]
    for description in descriptions[1:]:
        other = load(description, seed=seed)
        if encoder is None or decoder is None:
            _check_same(first, other)
        shared = dataclasses.replace(first.modules, unet=other.unet, prompt=other.prompt)
        checkpoints.append(
            Checkpoint(id=other.id, family=other.family, task=other.task, modules=shared)
        )
    return checkpoints


def _check_same(first: Checkpoint, other: Checkpoint) -> None:
    """Refuse autoencoders that compute something else. Raises: CheckpointError."""
    names = f"the autoencoders of {first.id!r} and {other.id!r} differ"
    advice = (
        "One bundle has one encoder and one decoder: build a bundle of each, or let one small "
        "autoencoder stand in for both (--vae)"
    )
    ours, theirs = (dict(checkpoint.vae.config) for checkpoint in (first, other))
    settings = sorted(
        name
        for name in ours.keys() | theirs.keys()
        if not name.startswith("_") and ours.get(name) != theirs.get(name)
    )
    if settings := [name for name in settings if name not in _NO_MATTER]:
        found = ", ".join(f"{name} {ours.get(name)} and {theirs.get(name)}" for name in settings)
        raise CheckpointError(f"{names} in their configs: {found}. {advice}")
    left, right = first.vae.state_dict(), other.vae.state_dict()
    unequal = [
        name
        for name in sorted(left.keys() | right.keys())
        if name not in left or name not in right or not torch.equal(left[name], right[name])
    ]
    if unequal:
        raise CheckpointError(
            f"{names} in {len(unequal)} of {len(left)} tensors, the first is {unequal[0]!r}. "
            f"{advice}"
        )


# Of an autoencoder's config: what no pass of its halves reads.
_NO_MATTER = frozenset(("sample_size", "force_upcast"))
