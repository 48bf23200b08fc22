"""Folds: how many places, what is left, the same numbers in float64, and why a place is refused."""

from __future__ import annotations

import copy
import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from export.folds import (
    FOLDS,
    apply_folds,
    fold_prompt,
    fold_time_embedding,
    subpixel,
    winograd,
)
from export.folds.flatten_tokens import LeanTransformer
from export.folds.fold_noise import ConstantNoiseConv
from export.folds.fold_prompt import (
    ConstantKeyAttention,
    FewTokenAttention,
    TwoTokenAttention,
)
from export.network.checkpoint import Checkpoint, load_checkpoint
from export.network.single_pass import SinglePass
from export.progress import Progress
from export.targets import Recipe
from runtime.backends.onnxruntime import session_options
from runtime.backends.versions import numbers

SIZES = ((1, 72, 40), (2, 64, 64))
"""Batch, height, width; 72x40 leaves odd maps on the UNet's levels, where upsampling does not
double the size.
"""
PLACES = {
    "fold-time-embedding": 22,
    "fold-prompt": 16,
    "fold-noise": 0,
    "fold-zeros": 0,
    "fold-quant-conv": 1,
    "fold-latent-factor": 0,
    "fold-post-quant-conv": 1,
    "fold-taesd-scaling": 0,
    "subpixel": 6,
    "fuse-qkv-and-norms": 16,
    "flatten-tokens": 16,
    "winograd": 0,
}

RECIPE = Recipe(tolerance=(0.0, 0.0), winograd=True)


def load(checkpoint: Path, tokens: int | None = None, fixed_noise: bool = False) -> SinglePass:
    loaded = load_checkpoint(str(checkpoint), task="depth")
    if tokens is not None:
        prompt = torch.randn(1, tokens, 32, generator=torch.Generator().manual_seed(tokens))
        modules = dataclasses.replace(loaded.modules, prompt=prompt)
        loaded = Checkpoint(id=loaded.id, family=loaded.family, task=loaded.task, modules=modules)
    noises = [torch.randn(n, 4, h // 8, w // 8) for n, h, w in SIZES] if fixed_noise else []
    module = SinglePass(loaded, noises=noises).double()
    module.unet.timestep = module.unet.timestep.long()
    module.unet.noises = {size: noise.double() for size, noise in module.unet.noises.items()}
    return module


def answers(
    module: SinglePass, noise: bool = False, sizes: tuple[tuple[int, int, int], ...] = SIZES
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for batch, height, width in sizes:
        image = (
            2 * torch.rand(batch, 3, height, width, dtype=torch.float64, generator=generator) - 1
        )
        drawn = torch.randn(
            batch, 4, height // 8, width // 8, dtype=torch.float64, generator=generator
        )
        with torch.no_grad():
            found.extend(module(image, drawn if noise else None))
    return found


def largest_difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["d", "g"])
def test_every_fold_keeps_the_function(mode: str, request: pytest.FixtureRequest) -> None:
    module = load(request.getfixturevalue(f"checkpoint_{mode}"))
    noise = mode == "g"
    expected = answers(module, noise)
    assert max(float(answer.std()) for answer in expected) > 1e-3, "a constant would prove nothing"
    for name, fold in FOLDS.items():
        assert fold(module, RECIPE).places == PLACES[name], name
        assert largest_difference(answers(module, noise, SIZES[:1]), expected[:1]) < 1e-12, name
    assert largest_difference(answers(module, noise), expected) < 1e-12


def test_the_noise_of_a_fixed_seed_is_a_constant_map(checkpoint_g: Path) -> None:
    module = load(checkpoint_g, fixed_noise=True)
    expected = answers(module)
    assert FOLDS["fold-noise"](module, RECIPE).places == 1
    assert isinstance(module.unet.network.conv_in, ConstantNoiseConv)
    assert module.unet.network.conv_in.conv.weight.shape[1] == 4
    assert largest_difference(answers(module), expected) < 1e-12


def test_what_the_folds_leave(checkpoint_d: Path) -> None:
    module = load(checkpoint_d)
    stream = io.StringIO()
    with Progress(stream):
        applied = apply_folds(module, RECIPE)
    assert applied == [name for name in FOLDS if PLACES[name]]
    assert "subpixel: 6 places" in stream.getvalue()
    kinds = [type(part) for part in module.unet.modules()]
    assert kinds.count(LeanTransformer) == kinds.count(TwoTokenAttention) == 16
    assert Transformer2DModel not in kinds
    assert Attention not in kinds
    assert not [
        norm
        for norm in module.unet.modules()
        if isinstance(norm, nn.LayerNorm) and norm.weight is not None
    ]
    assert all(
        block.time_emb_proj is None
        for block in module.modules()
        if isinstance(block, ResnetBlock2D)
    )
    assert (
        module.encoder.network.conv_out.out_channels == 8
    )  # as the config has it; the weight is what counts
    assert module.encoder.network.conv_out.weight.shape[0] == 4
    assert isinstance(module.encoder.quant, nn.Identity)
    assert isinstance(module.decoder.quant, nn.Identity)


def test_wide_convolutions_by_winograd(checkpoint_d: Path) -> None:
    """No small checkpoint has convolutions wide enough, so that the bounds are lowered here."""
    module = load(checkpoint_d)
    expected = answers(module)
    plain = dataclasses.replace(RECIPE, winograd=False)
    assert winograd.fold(module, plain, fewest_channels=32, fewest_pixels=1).places == 0
    folded = winograd.fold(module, RECIPE, fewest_channels=32, fewest_pixels=1)
    kinds = [type(part) for part in module.modules()]
    assert folded.places == kinds.count(winograd.WinogradConv) == 35
    assert [reason[:6] for reason in folded.refused] == ["stride"] * 3
    assert largest_difference(answers(module), expected) < 1e-12
    conv = next(part for part in module.modules() if isinstance(part, winograd.WinogradConv))
    for size in ((8, 12), (10, 12), (8, 8)):  # tiles fit, do not fit, and several images
        x = torch.randn(1 + (size == (8, 8)), conv.plain.in_channels, *size, dtype=torch.float64)
        assert torch.allclose(conv(x), conv.plain(x), rtol=0, atol=1e-12)
    single = copy.deepcopy(conv).float()
    x = torch.randn(1, conv.plain.in_channels, 64, 64)
    difference = float((single(x) - single.plain(x)).abs().max() / single.plain(x).std())
    assert difference < 1e-4, "fp32 loses about a digit, no more"


def test_wide_maps_by_winograd_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answer from any number of strips, the last of which may be lower."""
    plain = nn.Conv2d(3, 5, 3, padding=1).double()
    x = torch.randn(1, 3, 20, 8, dtype=torch.float64)
    for most in (1000, 6, 4, 1):  # tiles, of which a row has two
        monkeypatch.setattr(winograd, "_MOST_TILES", most)
        assert torch.allclose(
            winograd.WinogradConv(plain, fewest_pixels=1)(x), plain(x), rtol=0, atol=1e-12
        )


@pytest.mark.slow
def test_winograd_stores_no_transformed_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the file nor, opened as the runtime does it, in the process: 36 numbers would
    stand for every 9.
    """
    if numbers(onnxruntime.__version__) < (1, 27):
        pytest.skip("ONNX Runtime before 1.27 cannot be told to leave large constants in the graph")
    monkeypatch.setattr(winograd, "_MOST_TILES", 2)  # two strips
    plain = nn.Conv2d(256, 256, 3, padding=1)
    x, file, opened = torch.randn(1, 256, 8, 8), tmp_path / "graph.onnx", tmp_path / "opened.onnx"
    with torch.no_grad():
        torch.onnx.export(
            winograd.WinogradConv(plain, fewest_pixels=1), (x,), file, dynamo=True, verbose=False
        )
    options = session_options(onnxruntime)
    options.optimized_model_filepath = str(opened)
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    for path in (file, opened):
        assert (
            max(math.prod(tensor.dims) for tensor in onnx.load(path).graph.initializer)
            == 9 * 256 * 256
        )
    answer = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    assert np.abs(answer - plain(x).detach().numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("tokens", "kind"),
    [
        (1, FewTokenAttention),
        (2, TwoTokenAttention),
        (3, FewTokenAttention),
        (77, ConstantKeyAttention),
    ],
)
def test_cross_attention_takes_the_smaller_matrices(
    checkpoint_d: Path, tokens: int, kind: type
) -> None:
    """77 tokens with one or two heads of 32 channels are wider than the square matrices."""
    module = load(checkpoint_d, tokens)
    expected = answers(module, sizes=SIZES[:1])
    FOLDS["fold-prompt"](module, RECIPE)
    found = {type(block.attn2) for block in module.unet.modules() if hasattr(block, "attn2")}
    assert kind in found
    assert largest_difference(answers(module, sizes=SIZES[:1]), expected) < 1e-12


@pytest.mark.parametrize("form", subpixel.FORMS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 5), (6, 3)])
def test_the_forms_of_upsampling_are_exact_at_the_borders_too(
    form: str, height: int, width: int
) -> None:
    torch.manual_seed(0)
    plain = Upsample2D(3, use_conv=True, out_channels=5).double()
    folded = subpixel.SubpixelUpsample(plain, plain.conv, form)
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), plain(x), rtol=0, atol=1e-13)
        odd = torch.Size((2 * height - 1, 2 * width))
        torch.testing.assert_close(folded(x, odd), plain(x, odd), rtol=0, atol=0)


def test_upsampling_multiplies_four_ninths(checkpoint_d: Path) -> None:
    plain = Upsample2D(8, use_conv=True, out_channels=8)
    folded = {form: subpixel.SubpixelUpsample(plain, plain.conv, form) for form in subpixel.FORMS}
    weights = {form: sum(weight.numel() for weight in folded[form].weights) for form in folded}
    # Each of the 4 outputs of a small pixel has 4 taps, where it had 9.
    assert set(weights.values()) == {4 * 4 * 8 * 8}


@pytest.mark.slow
def test_a_place_that_does_not_fit_is_refused_with_a_reason(checkpoint_d: Path) -> None:
    module = load(checkpoint_d)
    before = answers(module)
    blocks = [block for block in module.unet.modules() if isinstance(block, ResnetBlock2D)]
    blocks[0].time_embedding_norm = "scale_shift"
    folded = fold_time_embedding.fold(copy.deepcopy(module), RECIPE)
    assert folded.places == 21
    assert "'scale_shift'" in folded.refused[0]
    blocks[0].time_embedding_norm = "default"

    attention = next(block.attn2 for block in module.unet.modules() if hasattr(block, "attn2"))
    attention.norm_q = nn.Identity()
    folded = fold_prompt.fold(copy.deepcopy(module), RECIPE)
    assert folded.places == 15
    assert "normalised" in folded.refused[0]
    # What later folds need from that one is refused with it, and the rest still agrees.
    stream = io.StringIO()
    with Progress(stream):
        apply_folds(module, RECIPE)
    assert "flatten-tokens leaves 1: its blocks were not folded" in stream.getvalue()
    assert largest_difference(answers(module), before) < 1e-12


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        (
            "fold-quant-conv",
            lambda m: setattr(m.encoder, "quant", nn.Conv2d(8, 8, 3, padding=1)),
            "single pixels",
        ),
        (
            "fold-post-quant-conv",
            lambda m: setattr(m.decoder, "quant", nn.Conv2d(4, 4, 3, padding=1)),
            "single pixels",
        ),
        ("subpixel", lambda m: _set_kernels(m, 5), "(5, 5)"),
        ("fuse-qkv-and-norms", lambda m: None, "was not folded"),
        ("flatten-tokens", lambda m: None, "were not folded"),
    ],
)
def test_refusals(name: str, damage: object, reason: str, checkpoint_d: Path) -> None:
    module = load(checkpoint_d)
    damage(module)
    folded = FOLDS[name](module, RECIPE)
    assert folded.places == 0
    assert folded.refused
    assert all(reason in why for why in folded.refused)


def _set_kernels(module: SinglePass, size: int) -> None:
    for block in module.modules():
        if isinstance(block, Upsample2D):
            channels = block.channels
            block.conv = nn.Conv2d(channels, channels, size, padding=size // 2)


def test_the_noise_fold_refuses_what_is_no_plain_convolution(checkpoint_g: Path) -> None:
    module = load(checkpoint_g, fixed_noise=True)
    module.unet.network.conv_in.padding_mode = "reflect"
    folded = FOLDS["fold-noise"](module, RECIPE)
    assert folded.places == 0
    assert "zeros" in folded.refused[0]
    assert np.isfinite(answers(module)[0].numpy()).all()
