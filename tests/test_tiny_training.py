"""A training run that was killed goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training is PyTorch")
pytest.importorskip("diffusers", reason="tiny.train trains diffusers networks")

from tiny import models  # noqa: E402
from tiny.state import Training  # noqa: E402
from tiny.train import take_weights  # noqa: E402

STEPS = 6


@pytest.mark.parametrize("matrix_rate", [None, 2e-3])
def test_a_run_in_two_parts_ends_where_an_unbroken_one_does(
    tmp_path: Path, matrix_rate: float | None
) -> None:
    whole = new_training(tmp_path / "whole.safetensors", matrix_rate)
    learn(whole, STEPS)
    first = new_training(tmp_path / "parts.safetensors", matrix_rate)
    learn(first, STEPS // 2)
    first.save()
    second = new_training(tmp_path / "parts.safetensors", matrix_rate)
    second.restore()
    assert second.step == STEPS // 2
    assert second.core_seconds > 0
    learn(second, STEPS)
    for name, weight in whole.network.named_parameters():
        torch.testing.assert_close(
            weight, second.network.get_parameter(name), rtol=1e-6, atol=1e-7, msg=name
        )
    with whole.averaged(), second.averaged():
        for name, weight in whole.network.named_parameters():
            torch.testing.assert_close(
                weight, second.network.get_parameter(name), rtol=1e-6, atol=1e-7, msg=name
            )


def test_every_weight_is_learned_with_and_without_muon(tmp_path: Path) -> None:
    for matrix_rate in (None, 2e-3):
        training = new_training(tmp_path / "state.safetensors", matrix_rate)
        before = {
            name: weight.detach().clone() for name, weight in training.network.named_parameters()
        }
        learn(training, 1)
        same = [
            name
            for name, weight in training.network.named_parameters()
            if torch.equal(weight, before[name])
        ]
        assert same == []


def test_averaging_leaves_the_weights_as_they_were(tmp_path: Path) -> None:
    training = new_training(tmp_path / "state.safetensors", 2e-3)
    learn(training, 2)
    before = training.network[0].weight.detach().clone()
    with training.averaged():
        assert not torch.equal(training.network[0].weight, before)
    torch.testing.assert_close(training.network[0].weight, before, rtol=0, atol=0)


def test_mode_g_begins_with_the_weights_of_mode_d_and_a_little_room_for_noise() -> None:
    trained, unet = models.new_unet(1, "d", tasks=3), models.new_unet(2, "g")
    own = unet.conv_in.weight.detach().clone()
    take_weights(unet, trained, task=1)
    torch.testing.assert_close(unet.conv_in.weight[:, :4], trained.conv_in.weight)
    torch.testing.assert_close(unet.conv_in.weight[:, 4:], 0.3 * own[:, 4:])
    torch.testing.assert_close(unet.conv_out.weight, trained.conv_out.weight[4:8])


def new_training(path: Path, matrix_rate: float | None) -> Training:
    torch.manual_seed(5)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.SiLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 36, 4),
    )
    return Training(network, path, steps=STEPS, peak_rate=1e-3, matrix_rate=matrix_rate)


def learn(training: Training, until: int) -> None:
    while training.step < until:
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(training.step))
        training.apply(training.network(x).square().mean())
