"""Diffusion-E2E-FT, Marigold and GenPercept against diffusers' own pipelines, or against their
formula written out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_bundle
from diffusers import DDIMScheduler
from family_checkpoints import ask_pipeline, save_family

from benchmarks import pytorch_baseline
from export.bundle.finalize import finish_on_device
from export.errors import CheckpointError
from export.folds import FOLDS
from export.network.checkpoint import Checkpoint, load_checkpoint
from export.network.single_pass import SinglePass
from export.targets import Recipe
from runtime import LotusEngine
from runtime.engine import draw_noise
from runtime.manifest import Manifest

SHAPE = (1, 4, 8, 12)  # of a latent; pictures are 64 x 96
CASES = {
    "marigold v1-0": ("marigold", "v1-0", "depth"),
    "marigold v1-0 normals": ("marigold", "v1-0", "normal"),
    "marigold v1-1": ("marigold", "v1-1", "depth"),
    "marigold v1-1 normals": ("marigold", "v1-1, another last alpha", "normal"),
    "marigold epsilon": ("marigold", "epsilon", "depth"),
    "marigold sample": ("marigold", "sample", "depth"),
    "marigold lcm": ("marigold", "lcm", "depth"),
    "e2e": ("diffusion-e2e-ft", "e2e", "depth"),
    "e2e normals": ("diffusion-e2e-ft", "e2e, another last alpha", "normal"),
    "genpercept": ("genpercept", "genpercept", "segmentation"),
    "genpercept normals": ("genpercept", "genpercept", "normal"),
}
BUILT = (
    *("marigold v1-0", "marigold v1-1 normals", "marigold epsilon"),
    *("e2e", "e2e normals", "genpercept"),
)
RECIPE = Recipe(tolerance=(0.0, 0.0))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of a case, made once for each scheduler."""
    made: dict[str, Path] = {}

    def make(case: str) -> Path:
        scheduler = CASES[case][1]
        if scheduler not in made:
            channels = 4 if scheduler == "genpercept" else 8
            folder = tmp_path_factory.mktemp("family") / "mine"
            made[scheduler] = save_family(folder, scheduler, channels=channels)
        return made[scheduler]

    return make


@pytest.fixture(scope="session")
def bundles(
    checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The bundle of a case in fp32 for ONNX Runtime at 64x96, built once."""
    built: dict[str, Path] = {}

    def build(case: str) -> Path:
        if case not in built:
            family, _, task = CASES[case]
            built[case] = build_bundle(
                checkpoints(case),
                tmp_path_factory.mktemp("bundle") / "it",
                task=task,
                family=family,
                resolutions=((64, 96),),
            )
        return built[case]

    return build


@pytest.fixture(scope="session")
def photos(photo: np.ndarray) -> list[np.ndarray]:
    """Two cuts of a picture, RGB uint8 [64,96,3]."""
    return [photo[60:124, 40:136].copy(), photo[120:184, 100:196].copy()]


def load(folder: Path, case: str) -> Checkpoint:
    family, _, task = CASES[case]
    return load_checkpoint(str(folder), task=task, family=family)


def noise_for(checkpoint: Checkpoint, seed: int = 3) -> np.ndarray | None:
    return draw_noise(seed, SHAPE) if checkpoint.family.takes_noise else None


def independent(checkpoint: Checkpoint, rgb: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
    """What the authors' pipeline answers: diffusers' own, or for Diffusion-E2E-FT the formula."""
    if checkpoint.family.name == "marigold":
        assert noise is not None
        return ask_pipeline(checkpoint, rgb, noise)
    if checkpoint.family.name == "genpercept":
        return genpercept(checkpoint, rgb)
    if checkpoint.task.name == "depth":  # its scheduler's last alpha is one: x0 is the sample
        depth = ask_pipeline(checkpoint, rgb, np.zeros(SHAPE, np.float32))
        return (depth - depth.min()) / (depth.max() - depth.min())
    picture = decoded_x0(checkpoint, rgb)
    return picture / np.linalg.norm(picture, axis=2, keepdims=True)


def genpercept(checkpoint: Checkpoint, rgb: np.ndarray) -> np.ndarray:
    """The formula: t = 1, x0 = -o; a mean for one channel, unit vectors for normals.

    In float64: the decoder of these random weights reaches 8 before it is clipped, and what float32
    rounds there is as large as the limit.
    """
    vae, unet = (copy.deepcopy(each).double() for each in (checkpoint.vae, checkpoint.unet))
    image = torch.from_numpy(rgb.transpose(2, 0, 1)[None] / 127.5) - 1
    with torch.no_grad():
        latent = vae.encode(image).latent_dist.mode() * 0.18215
        output = unet(latent, 1, encoder_hidden_states=checkpoint.prompt.double()).sample
        decoded = vae.decode(-output / 0.18215).sample[0].permute(1, 2, 0).numpy()
    if checkpoint.task.name != "normal":
        return (decoded.mean(axis=2).clip(-1, 1) + 1) / 2
    vectors = decoded.clip(-1, 1)
    return vectors / np.linalg.norm(vectors, axis=2, keepdims=True)


def difference(found: np.ndarray, expected: np.ndarray, raw: np.ndarray) -> float:
    """The largest one. Of unit vectors that were short before, in the map `raw` [3,H,W], it counts
    by their length: rounding turns a short vector far.
    """
    length = np.minimum(np.linalg.norm(raw, axis=0), 1)[..., None] if len(raw) == 3 else 1
    return float((np.abs(found - expected) * length).max())


def decoded_x0(checkpoint: Checkpoint, rgb: np.ndarray) -> np.ndarray:
    """-sqrt(1 - abar) o, decoded: [H,W,3]."""
    image = torch.from_numpy(rgb.transpose(2, 0, 1)[None] / np.float32(127.5)) - 1
    alphas = DDIMScheduler.from_config(dict(checkpoint.family.scheduler)).alphas_cumprod
    with torch.no_grad():
        latent = checkpoint.vae.encode(image).latent_dist.mode() * 0.18215
        read = torch.cat([latent, torch.zeros_like(latent)], dim=1)
        output = checkpoint.unet(read, 999, encoder_hidden_states=checkpoint.prompt).sample
        decoded = checkpoint.vae.decode(-((1 - alphas[999]) ** 0.5) * output / 0.18215).sample
    return decoded[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("case", CASES)
def test_the_reference_of_a_family_is_the_authors_pipeline(
    case: str, checkpoints: Callable[[str], Path], photos: list[np.ndarray]
) -> None:
    checkpoint = load(checkpoints(case), case)
    noise = noise_for(checkpoint)
    for rgb in photos:
        raw = checkpoint.family.reference(checkpoint, rgb, noise)
        expected = independent(checkpoint, rgb, noise)
        assert expected.std() > 0.1, "a constant would prove nothing"
        assert difference(checkpoint.task.decode(raw), expected, raw) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_what_benchmarks_compare_with_is_the_authors_pipeline(
    case: str,
    checkpoints: Callable[[str], Path],
    photos: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two pictures in one pass, each with the noise of a bundle without --seed."""
    checkpoint = load(checkpoints(case), case)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(pytorch_baseline, "load_checkpoint", lambda name, **_: checkpoint)
    stages: dict[str, float] = {}
    answers = pytorch_baseline.open_pytorch("mine", stages)(np.stack(photos))
    assert set(stages) == {"encoder", "unet", "decoder"}
    noise = draw_noise(0, SHAPE) if checkpoint.family.takes_noise else None
    for rgb, answer in zip(photos, answers, strict=True):
        raw = checkpoint.family.reference(checkpoint, rgb, noise)
        assert difference(answer, independent(checkpoint, rgb, noise), raw) < 1e-4
    with pytest.raises(CheckpointError, match="only Lotus's pipeline is known as published"):
        pytorch_baseline.open_pytorch("mine", stages, published=True)


def double(module: SinglePass) -> SinglePass:
    module = module.double()
    module.unet.timestep = module.unet.timestep.long()
    module.unet.noises = {size: noise.double() for size, noise in module.unet.noises.items()}
    return module


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_folds_keep_the_function(
    case: str, fixed: bool, checkpoints: Callable[[str], Path], photos: list[np.ndarray]
) -> None:
    """In float64 after each fold: noise as input and as a constant, two pictures at once."""
    checkpoint = load(checkpoints(case), case)
    drawn = noise_for(checkpoint)
    if drawn is None and fixed:
        pytest.skip("reads no noise")
    noise = None if drawn is None else torch.from_numpy(drawn)
    module = double(SinglePass(checkpoint, noises=[noise] if noise is not None and fixed else []))
    fed = [] if noise is None or fixed else [torch.cat([noise, -noise]).double()]
    images = torch.from_numpy(np.stack(photos).transpose(0, 3, 1, 2) / 127.5) - 1
    with torch.no_grad():
        (expected,) = module(images, *fed)
        places = {}
        for name, fold in FOLDS.items():
            places[name] = fold(module, RECIPE).places
            assert float((module(images, *fed)[0] - expected).abs().max()) < 1e-12, name
    reads_zeros = checkpoint.family.beside_latent == "zeros"
    assert places["fold-zeros"] == reads_zeros
    assert places["fold-noise"] == (fixed and noise is not None)
    assert places["fold-latent-factor"] == (checkpoint.family.latent_factor != 1)
    assert module.unet.factor == 1
    assert places["fold-post-quant-conv"] == (checkpoint.family.noise_factor == 0)
    if reads_zeros:
        assert module.unet.network.conv_in.weight.shape[1] == 4


def test_each_picture_of_a_batch_is_stretched_alone(
    checkpoints: Callable[[str], Path], photos: list[np.ndarray]
) -> None:
    module = SinglePass(load(checkpoints("e2e"), "e2e"))
    images = torch.from_numpy(np.stack(photos).transpose(0, 3, 1, 2) / np.float32(127.5)) - 1
    with torch.no_grad():
        together = module(images)[0]
        alone = torch.cat([module(image[None])[0] for image in images])
    assert torch.allclose(together, alone, atol=1e-5)
    assert together.amin(dim=(1, 2, 3)).tolist() == [0, 0]
    assert together.amax(dim=(1, 2, 3)).tolist() == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("case", BUILT)
def test_bundles_answer_as_the_authors_pipelines(
    case: str,
    bundles: Callable[[str], Path],
    checkpoints: Callable[[str], Path],
    photos: list[np.ndarray],
) -> None:
    checkpoint, bundle = load(checkpoints(case), case), bundles(case)
    noise = noise_for(checkpoint)
    for backend, limit in (("onnxruntime", 1e-4), ("openvino", 1e-3)):
        if backend == "openvino":
            pytest.importorskip("openvino", reason="needs OpenVINO")
        with LotusEngine(bundle, backend=backend) as engine:
            for rgb in photos:
                found = engine(rgb, seed=3) if noise is not None else engine(rgb)
                expected = independent(checkpoint, rgb, noise)
                raw = checkpoint.family.reference(checkpoint, rgb, noise)
                assert difference(found.values, expected, raw) < limit, backend


@pytest.mark.slow
def test_what_a_bundle_says_of_its_family(bundles: Callable[[str], Path]) -> None:
    manifests = {case: Manifest.load(bundles(case)) for case in BUILT}
    assert {manifests[case].family for case in BUILT} == {CASES[case][0] for case in BUILT}
    assert "OpenRAIL++-M" in manifests["marigold v1-0"].licence
    assert (manifests["marigold v1-0"].mode, manifests["e2e"].mode) == ("g", "d")
    assert "fold-zeros" in manifests["e2e"].folds
    assert "x to the left" in manifests["e2e normals"].outputs["normal"]
    assert "x to the right" in manifests["marigold v1-1 normals"].outputs["normal"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("e2e", {"precision": "int8", "calibration_images": 2, "budget": (10.0,)}),
        ("e2e", {"target": "openvino", "precision": "bf16", "calibration_images": 2}),
        ("marigold v1-0", {"fixed_noise": True}),
        ("e2e normals", {"folds": False}),
    ],
)
def test_every_way_of_building(
    case: str, settings: dict[str, object], checkpoints: Callable[[str], Path], tmp_path: Path
) -> None:
    """A build runs its golden; here it is enough that it comes to an end."""
    family, _, task = CASES[case]
    built = build_bundle(
        checkpoints(case),
        tmp_path / "it",
        task=task,
        family=family,
        resolutions=((64, 64),),
        **settings,
    )
    manifest = Manifest.load(built)
    assert manifest.family == family
    assert bool(manifest.folds) == settings.get("folds", True)


@pytest.mark.slow
def test_an_rtx_engine_of_diffusion_e2e_ft_is_left_to_later_and_built_then(
    checkpoints: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    bundle = build_bundle(
        checkpoints("e2e"),
        tmp_path / "rtx",
        task="depth",
        family="diffusion-e2e-ft",
        resolutions=((64, 64),),
        target="tensorrt-rtx",
        precision="fp16",
        calibration_images=2,
        engine=False,
    )
    assert not list(bundle.glob("*.rtx"))
    assert Manifest.load(bundle).golden.measured[0].backend == "onnxruntime, emulated"
    said = capsys.readouterr().err
    assert "--from-bundle BUNDLE --target tensorrt-rtx` completes it in place" in said
    assert "partial-" not in said, "a folder that is not there any more"
    finish_on_device(
        bundle, target_name="tensorrt-rtx", output=None, overwrite=False, command="finish"
    )
    assert (bundle / "model-64x64.rtx").stat().st_size > 100_000
    assert Manifest.load(bundle).engine is not None
