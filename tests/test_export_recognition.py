"""Which family a checkpoint is: by its id, by its configs, or by --family; and what is refused."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from family_checkpoints import SCHEDULERS, save_family

from export.errors import CheckpointError
from export.families import FAMILIES, Configs, find_family, known_ids
from export.families.one_step import one_step
from export.network.checkpoint import describe, load_checkpoint
from export.network.hub import did_you_mean
from export.network.parts import DIFFUSERS_FOLDER
from export.plan import make_plan
from export.progress import Progress
from export.settings import BuildSettings

UNET = {"in_channels": 8, "out_channels": 4}
SD = {"in_channels": 4, "out_channels": 4}
VAE = {"latent_channels": 4}
DDIM = {"_class_name": "DDIMScheduler", **SCHEDULERS["e2e"]}
LCM = {"_class_name": "LCMScheduler", "prediction_type": "v_prediction"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("mine") / "mine", "e2e")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def configs(**changes: Any) -> Configs:
    return Configs(**{"unet": UNET, "vae": VAE, "scheduler": DDIM, **changes})


@pytest.mark.parametrize(
    ("found", "family"),
    [
        (configs(index={"default_denoising_steps": 10}), "marigold"),
        (configs(scheduler=LCM), "marigold"),
        (configs(unet=SD, scheduler={**DDIM, "beta_start": 1.0}), "genpercept"),
    ],
)
def test_configs_that_fit_one_family(found: Configs, family: str) -> None:
    assert find_family("mine", found).name == family


def test_configs_that_fit_two_ask_for_the_family(folder: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        describe(str(folder), task="depth")
    message = str(caught.value)
    assert "pass --family with one of:\n  diffusion-e2e-ft: " in message
    assert "\n  marigold: " in message
    assert "lotus" not in message
    for name in ("diffusion-e2e-ft", "marigold"):
        assert describe(str(folder), task="depth", family=name).family.name == name


def test_a_family_that_was_asked_for_must_fit(folder: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"(?s)the family lotus-d.*4 \(here 8\).*'projection'"
    ):
        describe(str(folder), task="depth", family="lotus-d")
    with pytest.raises(CheckpointError, match=r"unknown family 'lotus'; known: \["):
        describe(str(folder), task="depth", family="lotus")
    with pytest.raises(CheckpointError, match="known as lotus-d, but --family marigold was asked"):
        describe("tiny/depth-d", family="marigold")


def test_known_ids_say_family_task_and_licence() -> None:
    ids = known_ids()
    assert ids["prs-eth/marigold-normals-v1-1"][1] == "normal"
    assert ids["GonzaloMG/stable-diffusion-e2e-ft-depth"][0].name == "diffusion-e2e-ft"
    assert all(family.licence and family.about for family in FAMILIES.values())
    for name, (family, _) in ids.items():
        if family.name == "marigold":
            assert find_family(name, configs()).timestep == 999


def test_a_plan_and_a_build_say_licence_and_warning(folder: Path) -> None:
    settings = BuildSettings(checkpoint=str(folder), task="depth", family="marigold")
    lines = "\n".join(make_plan(settings).lines())
    assert "OpenRAIL++-M" in lines
    assert "an ensemble" in lines
    stream = io.StringIO()
    with Progress(stream):
        load_checkpoint(str(folder), task="depth", family="marigold")
    assert "licence of its weights: OpenRAIL++-M" in stream.getvalue()
    assert "take several steps and the median of an ensemble" in stream.getvalue()


def test_plain_stable_diffusion_is_no_genpercept() -> None:
    with pytest.raises(CheckpointError, match=r"beta_start 1 \(here 0\.00085\)"):
        find_family("mine", configs(unet=SD))
    found = find_family("mine", configs(unet=SD), "genpercept")
    assert (found.timestep, found.latent_factor, found.noise_factor) == (1, -1, 0)


def test_a_known_unet_alone_needs_a_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(CheckpointError, match=r"is a UNet alone: pass --base .*Diffusion 2"):
        describe("guangkaixu/genpercept-dis")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Stable-X/stable-normal-v0-1", "is StableNormal, .*ControlNet"),
        ("zysong212/DepthMaster", "is DepthMaster, .*Fourier"),
        ("prs-eth/marigold-iid-appearance-v1-1", "is Marigold-IID, .*several latents"),
        ("lemonaddie/geowizard", "is GeoWizard, .*CLIP"),
        ("GonzaloMG/geowizard-e2e-ft", "is GeoWizard, .*CLIP"),
        ("jingheya/Lotus-2", "is Lotus-2, .*FLUX"),
        ("guangkaixu/genpercept-disparity-dpt-head", "GenPercept with a DPT head, .*features"),
        ("guangkaixu/genpercept-seg", "colour for each class"),
        ("guangkaixu/genpercept-models", "collection of GenPercept's UNets, .*--base"),
        ("someone/FE2E", "is FE2E, .*transformer"),
    ],
)
def test_other_networks_are_refused_by_name_before_a_download(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(CheckpointError, match=reason):
        describe(name, task="depth")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"names": ("controlnet", "unet")}, "is StableNormal"),
        ({"names": ("dpt_head_identity", "unet")}, "GenPercept with a DPT head"),
        ({"names": ("vae_decoder", "unet")}, "GenPercept with a decoder of its own"),
        ({"index": {"image_encoder": ["transformers", "x"]}}, "is GeoWizard"),
        ({"unet": {"in_channels": 16, "out_channels": 12}}, "is Marigold-IID"),
        ({"index": {"_class_name": "MarigoldIntrinsicsPipeline"}}, "is Marigold-IID"),
        ({"index": {"_class_name": "DepthMasterPipeline"}}, "is DepthMaster"),
        ({"index": {"_class_name": "FluxPipeline"}}, "is Lotus-2"),
    ],
)
def test_other_networks_are_refused_by_their_structure(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        find_family("./mine", configs(**changes))


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"clip_sample": True}, "clips the latent"),
        ({"clip_sample": None}, "clips the latent"),
        ({"thresholding": True}, "thresholds"),
        ({"prediction_type": "x"}, "unknown prediction_type 'x'"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
        ({"_class_name": "PNDMScheduler"}, "is PNDMScheduler, and one of DDIMScheduler"),
        (
            {"prediction_type": "epsilon", "rescale_betas_zero_snr": True},
            r"no signal at its last timestep \(`rescale_betas_zero_snr`\)",
        ),
    ],
)
def test_a_scheduler_that_the_rule_is_not_for(changes: dict[str, Any], fact: str) -> None:
    """`None` takes the entry out: diffusers' default counts then."""
    changed = {k: v for k, v in {**DDIM, **changes}.items() if v is not None}
    with pytest.raises(CheckpointError, match=fact) as caught:
        find_family("GonzaloMG/marigold-e2e-ft-depth", configs(scheduler=changed))
    assert "scheduler/scheduler_config.json" in str(caught.value)


def test_a_folder_without_its_scheduler(copy: Path) -> None:
    shutil.rmtree(copy / "scheduler")
    with pytest.raises(CheckpointError, match=r"there is no scheduler/scheduler_config\.json"):
        describe(str(copy), task="depth", family="marigold")
    (copy / "scheduler").mkdir()
    (copy / "scheduler" / "scheduler_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"scheduler_config\.json holds list"):
        describe(str(copy), task="depth", family="marigold")


@pytest.mark.parametrize("case", sorted(set(SCHEDULERS) - {"genpercept"}))
def test_a_step_is_diffusers_step(case: str) -> None:
    """The factors, against a step of diffusers' scheduler on numbers."""
    import torch
    from diffusers import DDIMScheduler, LCMScheduler

    settings = dict(SCHEDULERS[case])
    kind: Any = LCMScheduler if settings.pop("_class", "") else DDIMScheduler
    scheduler = kind(**settings | {"timestep_spacing": "trailing"})
    config = json.loads(json.dumps(dict(scheduler.config))) | {"_class_name": kind.__name__}
    step = one_step(config)
    scheduler.set_timesteps(1)
    (timestep,) = scheduler.timesteps
    assert step.timestep == int(timestep)
    output, noisy = torch.tensor([0.3, -2.0, 0.0]), torch.tensor([1.5, 0.1, -1.0])
    found = scheduler.step(output, timestep, noisy).prev_sample
    expected = step.noise_factor * noisy + step.latent_factor * output
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_revision_reaches_the_hub_and_the_manifests_id(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, object]] = []
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    def info(_: object, name: str, *, revision: object, timeout: float) -> object:
        asked.append((name, revision))
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=n) for n in names])

    def snapshot(name: str, *, revision: object, **_: object) -> str:
        asked.append((name, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    name = "prs-eth/marigold-depth-v1-0@refs/pr/1"
    described = describe(name)
    assert set(asked) == {("prs-eth/marigold-depth-v1-0", "refs/pr/1")}
    assert described.public_id == name
    assert (described.family.name, described.task.name) == ("marigold", "depth")
    assert load_checkpoint(name).id == name


def test_a_revision_that_means_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, words in (
        (f"{folder}@main", "is a local folder: it has no revision 'main'"),
        ("prs-eth/marigold-depth-v1-0@", "id or revision is empty"),
        ("tiny/depth-d@main", "is a local folder|no embedded checkpoint"),
        ("random/lotus-d@main", "is the seed of the UNet's weights, a number; found 'main'"),
    ):
        with pytest.raises(CheckpointError, match=words):
            describe(name, task="depth")


def test_without_network_the_advice_names_the_revision_and_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("401 for Bearer hf_secret")

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        describe("prs-eth/marigold-depth-v1-1@v2")
    message = str(caught.value)
    assert "hf download prs-eth/marigold-depth-v1-1 --revision v2 --local-dir marigold" in message
    assert "build_engine.py ./marigold-depth-v1-1 --task depth --family marigold" in message
    assert "hf_secret" not in message
    assert "$HF_TOKEN" in message


def test_a_random_unet_of_its_own_shares_the_autoencoder() -> None:
    import torch

    from export.network.modules import draw_modules

    unet = {
        "in_channels": 4,
        "block_out_channels": [32, 32],
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 8,
    }
    vae = {"block_out_channels": [32], "norm_num_groups": 8}
    plain, other = draw_modules(unet, vae, 5), draw_modules(unet, vae, 5, unet_seed=1)
    third = draw_modules(unet, vae, 1)
    assert torch.equal(plain.vae.decoder.conv_out.weight, other.vae.decoder.conv_out.weight)
    assert torch.equal(plain.prompt, other.prompt)
    assert torch.equal(other.unet.conv_in.weight, third.unet.conv_in.weight)
    assert not torch.equal(plain.unet.conv_in.weight, other.unet.conv_in.weight)
    described = describe("random/lotus-d@1")
    assert (described.public_id, described.task.name) == ("random/lotus-d@1", "disparity")


@pytest.mark.parametrize(
    ("family", "channels", "embedding", "timestep", "factor"),
    [
        ("lotus-d", 4, "projection", 999, 1.0),
        ("lotus-g", 8, "projection", 999, 1.0),
        ("diffusion-e2e-ft", 8, None, 999, -((1 - 0.0046601) ** 0.5)),  # Stable Diffusion's alpha
        ("marigold", 8, None, 999, -1.0),
        ("genpercept", 4, None, 1, -1.0),
    ],
)
def test_each_family_has_a_full_size_network_with_random_weights(
    family: str, channels: int, embedding: str | None, timestep: int, factor: float
) -> None:
    """It is whole, other tasks may be asked for, and its UNet may be another."""
    name = f"random/{family}"
    found = describe(name)
    assert (found.family.name, found.base, found.folder) == (family, None, None)
    assert (found.unet["in_channels"], found.unet["class_embed_type"]) == (channels, embedding)
    assert found.family.timestep == timestep
    assert found.family.latent_factor == pytest.approx(factor, abs=1e-6)
    assert (found.family.licence[:5], found.family.remark) == ("none:", None)
    assert describe(f"{name}@1", task="normal").task.name == "normal"
    with pytest.raises(CheckpointError, match="needs no --base"):
        describe(name, base="tiny/disparity-d")


def test_no_family_lacks_its_random_network() -> None:
    assert {f"random/{family}" for family in FAMILIES} <= set(known_ids())


def test_random_weights_are_suggested_for_their_own_names_alone() -> None:
    for name in ("marigold", "someone/diffusion-e2e-ft", "./genpercept"):
        assert "random/" not in did_you_mean(name, DIFFUSERS_FOLDER)
    assert "'prs-eth/marigold-v1-0'" in did_you_mean("marigold-v2", DIFFUSERS_FOLDER)
    assert "'random/marigold'" in did_you_mean("random/marigld", DIFFUSERS_FOLDER)
