"""Int8: ranges, rounding, the search, and the graph that comes out."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from PIL import Image
from torch.nn import functional as F

from export.build_engine import main
from export.checkpoint import load_checkpoint
from export.costs import read_costs
from export.errors import BuildError
from export.folds import apply_folds
from export.folds.lean_transformer import LeanBlock
from export.precision import int8
from export.precision.calibration import Calibration
from export.precision.int8 import _taken_over
from export.precision.layers import (
    LARGEST,
    OUTPUT,
    RESIDUAL,
    Layer,
    Quantised,
    Range,
    Ranges,
    find_layers,
    round_to_int8,
    round_weight,
    weight_scales,
)
from export.precision.ranges import Histogram, _compared, choose_ranges
from export.precision.search import Meter, Remembered, distance, rank, search
from export.precision.smooth import smooth
from export.precision.weights import channel_scales, to_int8
from export.single_pass import SinglePass
from export.targets import TARGETS
from runtime import LotusEngine
from runtime.backends.openvino import hints
from runtime.manifest import Bucket, Manifest
from runtime.tasks import TASKS
from tests.conftest import BUCKET, build_bundle


@pytest.fixture(scope="module")
def folded(checkpoint_d: Path) -> SinglePass:
    module = SinglePass(load_checkpoint(str(checkpoint_d), task="depth"))
    apply_folds(module, lambda line: None, TARGETS["onnxruntime"].upsampling["int8"])
    return module


@pytest.fixture(scope="module")
def bundle_int8(checkpoint_d: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Depth, one bucket, two calibration images, and no layer kept."""
    return build_bundle(
        checkpoint_d,
        tmp_path_factory.mktemp("int8") / "bundle",
        task="depth",
        resolutions=((BUCKET, BUCKET),),
        precision="int8",
        calibration_images=2,
        budget=10.0,
    )


def _inputs(count: int = 2) -> list[tuple[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(1, 3, BUCKET, BUCKET, generator=generator) * 2 - 1,) for _ in range(count)]


def test_rounding_agrees_with_the_definition() -> None:
    values = torch.linspace(-2, 2, 1001)
    for low, high, scale, zero in ((-1.5, 1.5, 1.5 / 127, 0), (-0.27, 1.0, 1.27 / 254, -73), (0.0, 2.0, 2 / 254, -127)):
        span = Range(low=low, high=high)
        assert (span.scale, span.zero) == (pytest.approx(scale), zero)
        expected = (np.clip(np.rint(values.numpy() / np.float32(scale)) + zero, -128, 127) - zero) * scale
        assert np.abs(round_to_int8(values, span).numpy() - expected).max() < 1e-6
    weight = torch.randn(3, 5, 2, 2, generator=torch.Generator().manual_seed(0))
    weight[:, 2] = 0
    for axis in (0, 1):
        scales = weight_scales(weight, axis)
        stored = channel_scales(weight.numpy(), axis)
        whole = to_int8(weight.numpy(), stored, axis)
        assert np.allclose(stored, scales.numpy(), rtol=1e-6)
        shape = [-1 if place == axis else 1 for place in range(4)]
        kernel = {0: F.conv2d, 1: F.conv_transpose2d}[axis]
        rounded, *_ = round_weight(kernel, (None, weight))
        assert np.abs(whole * stored.reshape(shape) - rounded.numpy()).max() < 1e-6
        assert np.abs(whole).max() == LARGEST


def test_histogram_keeps_every_count_when_it_grows() -> None:
    histogram = Histogram()
    random = np.random.default_rng(0)
    parts = [random.normal(0, size, 10_000).astype(np.float32) for size in (0.1, 1, 5)]
    for part in parts:
        histogram.update(torch.from_numpy(part))
    whole = np.abs(np.concatenate(parts))
    assert histogram.counts.sum() == whole.size
    assert histogram.largest == whole.max()
    found = {one.method: one.high for one in histogram.candidates()}
    assert all(one.low == -one.high for one in histogram.candidates())
    assert found["min-max"] == histogram.largest
    assert found["percentile 99.99"] == pytest.approx(np.quantile(whole, 0.9999), rel=0.02)
    assert found["mse"] == pytest.approx(_slow_mse_bound(whole), rel=0.05)


def _slow_mse_bound(values: np.ndarray) -> float:
    bounds = np.linspace(0.01, 1, 200) * values.max()
    errors = [
        ((np.clip(np.rint(values / (bound / 127)), 0, 127) * (bound / 127) - values) ** 2).sum() for bound in bounds
    ]
    return float(bounds[int(np.argmin(errors))])


def test_zeros_have_a_range() -> None:
    histogram = Histogram()
    histogram.update(torch.zeros(8))
    assert [(one.low, one.high) for one in histogram.candidates()] == [(-1.0, 1.0)]


@pytest.mark.parametrize("symmetric", [True, False])
def test_steps_go_where_values_are(symmetric: bool) -> None:
    """Of what SiLU answers: without a zero point nearly half of the steps stand for values that never come."""
    values = F.silu(4 * torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
    histogram = Histogram()
    histogram.update(values)
    for span in histogram.candidates(symmetric=symmetric):
        assert span.low == (-span.high if symmetric else pytest.approx(-0.2785, abs=1e-3))
        assert span.scale == pytest.approx((span.high - span.low) / 254)
        error = (round_to_int8(values, span) - values).abs()[values < span.high]
        assert error.max() <= span.scale * 1.001  # half a step, and where the lowest lies between two
    assert (span.zero < -100) is not symmetric


def test_an_outlier_is_cut_off_where_that_serves_the_output() -> None:
    """One input of 1000 among values of about 1 would leave those seven steps."""
    histogram = Histogram()
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    values[0] = 1000
    histogram.update(values)
    assert min(one.high for one in histogram.candidates()) < 20


def test_layers_are_the_nodes_of_the_graph(folded: SinglePass, bundle_int8: Path) -> None:
    layers = find_layers(folded, _inputs(1)[0])
    graph = onnx.load(bundle_int8 / "model-64x64.onnx", load_external_data=False).graph
    named = {node.name.rsplit("/", 1)[0] for node in graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")}
    assert {layer.name for layer in layers} <= named
    costs = read_costs(bundle_int8 / "model-64x64.onnx")["all"]
    assert sum(layer.multiply_adds for layer in layers) == costs.int8
    assert 0.7 < costs.int8 / costs.multiply_adds < 1
    assert not any(layer.name.endswith(("conv_in", "decoder/network.conv_out")) for layer in layers)


def test_residuals_are_those_of_blocks_and_transformers(folded: SinglePass) -> None:
    layers = {layer.name: layer for layer in find_layers(folded, _inputs(1)[0], (RESIDUAL,))}
    residuals = {name: layer for name, layer in layers.items() if name.endswith(f"/{RESIDUAL}")}
    assert not set(residuals) & {layer.name for layer in find_layers(folded, _inputs(1)[0])}
    assert {layer.multiply_adds for layer in residuals.values()} == {0}
    assert all(layer.group == name for name, layer in residuals.items())
    blocks = [path for path, part in folded.named_modules() if isinstance(part, ResnetBlock2D)]
    transformers = [path for path, part in folded.named_modules() if isinstance(part, LeanBlock)]
    expected = {f"{path}.conv2" for path in blocks}
    expected |= {f"{path}.{layer}" for path in transformers for layer in ("attn1.out", "ff.net.2")}
    assert {name.removesuffix(f"/{RESIDUAL}") for name in residuals} == {name.replace(".", "/", 1) for name in expected}


@pytest.mark.parametrize("beside", [(), (RESIDUAL,), (OUTPUT,)])
def test_module_and_graph_round_alike(
    beside: tuple[str, ...],
    folded: SinglePass,
    checkpoint_d: Path,
    tmp_path: Path,
    photo: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One block in int8: with all of them, one step more or less at the start is another rounding everywhere after."""
    target = dataclasses.replace(TARGETS["onnxruntime"], int8_beside=beside)
    monkeypatch.setitem(TARGETS, "onnxruntime", target)
    groups = {layer.group for layer in find_layers(folded, _inputs(1)[0], beside)}
    block = {group for group in groups if group.startswith("decoder/network.up_blocks.3.resnets.0.")}
    assert len(block) == 2 + (RESIDUAL in beside)
    elsewhere = "unet/network.down_blocks.0.resnets.0.conv2/residual"  # some targets round it
    policy = {"kept": sorted({*groups, elsewhere} - block), "layers": [{"group": group} for group in sorted(groups)]}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    settings = {"task": "depth", "resolutions": ((BUCKET, BUCKET),), "precision": "int8", "calibration_images": 2}
    bundle = build_bundle(checkpoint_d, tmp_path / "bundle", policy=tmp_path / "policy.json", **settings)
    found = [row for row in json.loads((bundle / "policy.json").read_text())["layers"] if row["int8"]]
    assert {row["group"] for row in found} == block
    assert {row["name"].rpartition("/")[2] for row in found} & {OUTPUT, RESIDUAL} == set(beside)
    ranges = {row["name"]: Range(low=row["range"]["low"], high=row["range"]["high"]) for row in found}
    assert any(span.zero < -80 for span in ranges.values()), "inputs have zero points"
    for name in (name for name in ranges if name.endswith(OUTPUT)):
        bound = LARGEST * _channel_scales(bundle / f"model-{BUCKET}x{BUCKET}.onnx", name)
        ranges[name] = Range(low=-bound, high=bound)
        assert len(bound.unique()) > 10
    image = photo[:BUCKET, :BUCKET]
    feeds = torch.from_numpy(image.transpose(2, 0, 1)[None] / np.float32(127.5) - 1)
    with torch.inference_mode():
        exact = folded(feeds)[0, 0].numpy()
        with Quantised(folded, ranges):
            rounded = folded(feeds)[0, 0].numpy()
    with LotusEngine(bundle) as engine:
        answer = engine(image).values
    # A sum that lies between two steps of an output falls on the other one now and then.
    assert np.abs(answer - rounded).mean() < (0.25 if OUTPUT in beside else 0.1) * np.abs(rounded - exact).mean()


def _channel_scales(graph: Path, output: str) -> torch.Tensor:
    """Of the node behind a layer whose output is int8; what it was divided by before is not written anywhere."""
    model = ir.load(graph)
    scales = model.graph.initializers[f"{output.removesuffix(OUTPUT)}Conv/output_scales"].const_value
    return torch.from_numpy(scales.numpy().flatten())


def test_openvino_answers_as_onnxruntime(checkpoint_d: Path, tmp_path: Path, photo: np.ndarray) -> None:
    """OpenVINO once answered int8 networks wrongly. Of its own graph ONNX Runtime has no int8 kernels: it computes what
    is written there, in fp32."""
    settings = {"task": "depth", "resolutions": ((BUCKET, BUCKET),), "precision": "int8", "budget": 10.0}
    bundle = build_bundle(checkpoint_d, tmp_path / "bundle", target="openvino", calibration_images=2, **settings)
    image = photo[:BUCKET, :BUCKET]
    with LotusEngine(bundle, backend="onnxruntime") as one, LotusEngine(bundle) as other:
        first, second = one(image).values, other(image).values
        other.verify()
    assert np.abs(first - second).mean() < 0.02
    graph = ir.load(bundle / f"model-{BUCKET}x{BUCKET}.onnx").graph
    zeros = [node.inputs[2].const_value.numpy() for node in graph if node.op_type == "QuantizeLinear"]
    assert len(zeros) > 50
    assert {(zero.dtype.name, int(zero)) for zero in zeros} == {("int8", 0)}, "its convolutions are slower with others"
    core = pytest.importorskip("openvino").Core()
    if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        found = _upsamplings(core, bundle / f"model-{BUCKET}x{BUCKET}.onnx")
        assert {kernel.rpartition("_")[2] for kernel, _ in found} == {"i8"}, found
        assert {answer for _, answer in found} == {"bf16"}, "in float32 it costs another pass; see the form 'clipped'"
        assert len(found) == 6


def _upsamplings(core: Any, graph: Path) -> list[tuple[str, str]]:
    """Kernel and type of the answer of each transposed convolution of the compiled graph."""
    model = core.read_model(str(graph))
    ops = core.compile_model(model, "CPU", hints(model, "int8")).get_runtime_model().get_ops()
    infos = [{key: value.astype(str) for key, value in op.get_rt_info().items()} for op in ops]
    return [(info["primitiveType"], info["outputPrecisions"]) for info in infos if info["layerType"] == "Deconvolution"]


def test_onnxruntime_has_an_int8_kernel_for_every_layer(bundle_int8: Path, tmp_path: Path) -> None:
    """Without int8 outputs it computes all of them in fp32, and says nothing."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(bundle_int8 / "model-64x64.onnx"), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx", load_external_data=False).graph
    kernels = [node for node in optimised.node if node.op_type in ("QLinearConv", "QGemm")]
    layers = [row for row in json.loads((bundle_int8 / "policy.json").read_text())["layers"] if row["multiply_adds"]]
    assert len(kernels) == len(layers) > 100


def test_manifest_says_how(bundle_int8: Path) -> None:
    manifest = Manifest.load(bundle_int8)
    assert manifest.precision == "int8"
    assert [run.backend for run in manifest.golden.measured] == ["onnxruntime"], "the graph itself, not an emulation"
    assert manifest.quantisation is not None
    assert manifest.quantisation.images == 2
    assert 0 < manifest.quantisation.distance <= manifest.quantisation.budget
    assert "policy.json" in {file.path for file in manifest.files}
    costs = read_costs(bundle_int8 / "model-64x64.onnx")["all"]
    assert manifest.quantisation.multiply_adds == costs.int8
    weights = sum(file.bytes for file in manifest.files if file.path.endswith(".data"))
    assert weights < 1.5 * costs.weights
    model = onnx.load(bundle_int8 / "model-64x64.onnx", load_external_data=False)
    zeros: dict[bool, list[int]] = {}
    for node in ir.from_proto(model).graph:
        if node.op_type == "QuantizeLinear":
            zero = node.inputs[2].const_value
            assert zero.dtype == ir.DataType.UINT8
            zeros.setdefault(node.name.endswith("_output"), []).append(int(zero.numpy()))
    assert set(zeros[True]) == {128}, "channels are symmetric"
    assert len([zero for zero in zeros[False] if zero < 40]) > 30, "what comes from SiLU is at least -0.28"


def test_search_keeps_the_fewest() -> None:
    """Made-up groups: `bad` costs more than the budget alone, `worse` most for its work."""
    layers = [
        Layer(name=name, group=name, multiply_adds=work) for name, work in (("a", 50), ("bad", 30), ("worse", 10))
    ]
    errors = {"a": 0.001, "bad": 0.02, "worse": 0.015}
    asked: list[set[str]] = []

    def meter(scales: Mapping[str, Range]) -> float:
        asked.append(set(scales))
        return sum(errors[name] for name in scales)

    scales = dict.fromkeys(errors, 1.0)
    for budget, kept in ((1.0, []), (0.025, ["worse"]), (0.01, ["worse", "bad"]), (1e-9, ["worse", "bad", "a"])):
        choice = search(meter, layers, scales, lambda: errors, budget, lambda line: None)
        assert choice.kept == kept
        assert choice.final.distance <= budget
        assert choice.final.int8_share == sum(layer.multiply_adds for layer in layers if layer.name not in kept) / 90


def test_the_order_is_by_squares_and_what_saves_nothing_comes_first() -> None:
    """`large` is less far off for its work than `small`, and its square is further; `residual` has no work at all."""
    work = {"small": 1, "large": 100, "residual": 0}
    layers = [Layer(name=name, group=name, multiply_adds=count) for name, count in work.items()]
    errors = {"small": 0.001, "large": 0.02, "residual": 0.0001}

    def meter(scales: Mapping[str, Range]) -> float:
        return sum(errors[name] for name in scales)

    kept = search(meter, layers, dict.fromkeys(work, 1.0), lambda: errors, 1e-9, lambda line: None).kept
    assert kept == ["residual", "large", "small"]


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    """Killed at its third measurement; the next build asks for that one and what comes after it alone."""
    layers = [Layer(name=name, group=name, multiply_adds=1) for name in "abc"]
    scales = dict.fromkeys("abc", 1.0)
    calls: list[str] = []

    def meter(scales: Mapping[str, Range]) -> float:
        calls.append("".join(scales))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 0.5 * len(scales)

    def build() -> list[str]:
        remembered = Remembered(meter, tmp_path / "memory.json")
        ranked = partial(rank, remembered, layers, scales, print)
        return search(remembered, layers, scales, ranked, 0.5, print).kept

    (tmp_path / "memory.json").write_text("{damaged")
    with pytest.raises(KeyboardInterrupt):
        build()
    assert build() == ["a", "b"]
    assert calls == ["abc", "a", "b", "b", "c", "bc"]


def test_a_build_ranks_with_fixed_noise_and_forgets_what_it_measured(
    checkpoint_g: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket larger than ranking's: a network that has its noise inside takes no other size."""
    monkeypatch.setattr(int8, "_RANKING_EDGE", BUCKET // 2)
    asked: list[tuple[str, int]] = []

    class Spy(Meter):
        def __call__(self, ranges: Ranges) -> float:
            (image, *_), *_ = self._feeds()
            asked.append(("all" if len(ranges) > 2 else "one", image.shape[-1]))
            (tmp_path / "seen").write_text(" ".join(path.name for path in tmp_path.glob(".bundle.search/*")))
            return float(len(ranges) > 2)

    monkeypatch.setattr(int8, "Meter", Spy)
    for fixed, edge in ((True, BUCKET), (False, BUCKET // 2)):
        asked.clear()
        settings = {"task": "normal", "resolutions": ((BUCKET, BUCKET),), "precision": "int8", "budget": 0.5}
        build_bundle(
            checkpoint_g, tmp_path / "bundle", **settings, fixed_noise=fixed, calibration_images=1, overwrite=True
        )
        assert asked[0] == ("all", BUCKET)
        assert set(asked) == {("all", BUCKET), ("one", BUCKET), ("one", edge)}
        assert [name.split("-")[0] for name in sorted((tmp_path / "seen").read_text().split())] == ["alone", "together"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "seen"]


def test_memory_is_of_one_task_and_network(bundle_int8: Path) -> None:
    manifest = Manifest.load(bundle_int8)
    others = {"tasks": ["normal"], "target": "openvino", "noise_seed": 1, "fixed_noise": True, "folds": []}
    changed = [dataclasses.replace(manifest, **{name: value}) for name, value in others.items()]
    assert len({int8._key(one, "pixels", {}) for one in [manifest, *changed]}) == 1 + len(others)


@pytest.mark.parametrize("mode", ["d", "g"])
def test_stages_that_nothing_rounded_has_touched_are_not_run_again(mode: str, request: pytest.FixtureRequest) -> None:
    """The distance is that of the whole module's predictions, from whichever stage on it runs."""
    module = SinglePass(load_checkpoint(str(request.getfixturevalue(f"checkpoint_{mode}")), task="depth"))
    generator = torch.Generator().manual_seed(1)
    noises = [(torch.randn(1, 4, BUCKET // 8, BUCKET // 8, generator=generator),) * (mode == "g") for _ in range(2)]
    inputs = [(*image, *noise) for image, noise in zip(_inputs(), noises, strict=True)]
    meter = Meter(module, TASKS["depth"], lambda: inputs)
    stages = dict(module.named_children())
    ran: list[str] = []
    for name, part in stages.items():
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    first: dict[str, str] = {}
    for layer in find_layers(module, inputs[0]):
        first.setdefault(layer.name.partition("/")[0], layer.name)
    with torch.inference_mode():
        exact = [module(*one)[0].numpy() for one in inputs]
    meter({})  # what is exact is kept from here on
    for rounded in (["encoder"], ["unet"], ["decoder"], ["encoder", "decoder"], ["unet", "decoder"], list(stages)):
        ranges = {first[stage]: Range(low=-12.7, high=12.7) for stage in rounded}
        with torch.inference_mode(), Quantised(module, ranges):
            wanted = [
                distance(TASKS["depth"], module(*one)[0].numpy(), was) for one, was in zip(inputs, exact, strict=True)
            ]
        ran.clear()
        assert meter(ranges) == np.mean(wanted) > 0
        assert ran == list(stages)[list(stages).index(rounded[0]) :] * 2


def test_wide_convolutions_are_compared_on_fewer_channels() -> None:
    """Those come out as they would among all; of matrices and residuals nothing is left out."""
    torch.manual_seed(0)
    image, bias = torch.randn(1, 8, 6, 6), torch.randn(512)
    for kernel, args in (
        (F.conv2d, (image, torch.randn(512, 8, 3, 3), bias, 1, 1)),
        (F.conv2d, (image, torch.randn(512, 8, 3, 3), None, 1, 1)),
        (F.conv_transpose2d, (image, torch.randn(8, 512, 4, 4), bias, 2, 1)),
    ):
        rest, wanted = _compared(kernel, args, kernel(*args))
        every = slice(None, None, 5)  # odd, so that of "shuffle" channels of each place are among them
        assert torch.equal(wanted, kernel(*args)[:, every])
        assert torch.allclose(kernel(image, *rest), kernel(image, *round_weight(kernel, args))[:, every], atol=1e-5)
    for kernel, args in ((F.linear, (image, torch.randn(512, 6), bias)), (torch.add, (image, image))):
        rest, wanted = _compared(kernel, args, kernel(*args))
        assert torch.equal(wanted, kernel(*args))
        assert kernel(image, *rest).shape == wanted.shape


def test_residuals_that_a_policy_was_not_asked_about_are_kept(tmp_path: Path) -> None:
    """The policy of a target that rounds none, taken over for one that does; the search keeps residuals first too."""
    layers = [Layer(name=name, group=name, multiply_adds=1) for name in ("a", f"a/{RESIDUAL}", "b")]
    path = tmp_path / "policy.json"
    for asked, kept in ((("a", "b"), [f"a/{RESIDUAL}", "b"]), (("a", f"a/{RESIDUAL}", "b"), ["b"])):
        path.write_text(json.dumps({"kept": ["b"], "layers": [{"group": group} for group in asked]}))
        choice = _taken_over(path, lambda scales: 0.0, layers, dict.fromkeys("ab", 1.0) | {f"a/{RESIDUAL}": 1.0}, print)
        assert choice.kept == kept
    broken = dict.fromkeys(("{", "[]", "{}", '{"kept": null}', '{"kept": 3}'), r"is not a policy.*--precision int8")
    for text, message in (broken | {'{"kept": ["up_blocks.0"]}': r"up_blocks\.0.*blocks.*single layers"}).items():
        path.write_text(text)
        with pytest.raises(BuildError, match=message):
            _taken_over(path, lambda scales: 0.0, layers, {}, print)


def test_distance_is_absrel_after_alignment_or_degrees() -> None:
    random = np.random.default_rng(0)
    exact = random.uniform(0.2, 1, (1, 8, 8)).astype(np.float32)
    assert distance(TASKS["depth"], 0.3 * exact + 0.1, exact) < 1e-6
    shifted = exact.copy()
    shifted[0, ::2] += 0.1
    assert 0.01 < distance(TASKS["depth"], shifted, exact) < 0.5
    angle = np.radians(20)
    flat = np.zeros((3, 4, 4), np.float32)
    flat[2] = 1
    turned = np.stack([np.full((4, 4), np.sin(angle)), np.zeros((4, 4)), np.full((4, 4), np.cos(angle))])
    assert distance(TASKS["normal"], turned.astype(np.float32), flat) == pytest.approx(20, abs=1e-4)


def test_ranges_stream_and_are_chosen_by_output_error(folded: SinglePass) -> None:
    names = [layer.name for layer in find_layers(folded, _inputs(1)[0])][:6]
    passes: list[int] = []

    def feeds() -> Iterator[tuple[torch.Tensor]]:
        passes.append(len(passes))
        yield from _inputs()

    ranges = choose_ranges(folded, names, feeds, lambda line: None)
    assert list(ranges) == names
    assert len(passes) == 2
    errors = {}
    with torch.inference_mode():
        exact = folded(*_inputs(1)[0])
        for factor in (0.2, 1.0):
            cut = {name: Range(low=factor * one.low, high=factor * one.high) for name, one in ranges.items()}
            with Quantised(folded, cut):
                errors[factor] = float((folded(*_inputs(1)[0]) - exact).abs().mean())
    assert errors[1.0] < errors[0.2]


def test_smoothing_is_exact_and_serves_rounding(folded: SinglePass) -> None:
    """One channel of a norm's output a hundred times as large as the others."""
    module = copy.deepcopy(folded).double()
    block = next(part for part in module.unet.modules() if isinstance(part, LeanBlock))
    factors = torch.ones(block.attn1.project.in_features, dtype=torch.float64)
    factors[3] = 100
    block.norm1.weight = torch.nn.Parameter(factors, requires_grad=False)
    block.attn1.project.weight.data /= factors
    feeds = [(image.double(),) for (image,) in _inputs()]
    name = next(name for name in _names(module) if name.endswith("attn1.project"))

    def off() -> tuple[torch.Tensor, float]:
        ranges = choose_ranges(module, [name], lambda: feeds, lambda line: None)
        with torch.inference_mode():
            exact = module(*feeds[0])
            with Quantised(module, ranges):
                return exact, float((module(*feeds[0]) - exact).abs().mean())

    before, rounded_before = off()
    assert smooth(module, lambda: feeds) >= 1
    after, rounded_after = off()
    assert (before - after).abs().max() < 1e-12
    assert rounded_after < 0.7 * rounded_before


def _names(module: SinglePass) -> list[str]:
    return [path.removesuffix(".weight").replace(".", "/", 1) for path, _ in module.named_parameters()]


def test_calibration_reads_a_folder(tmp_path: Path, photo: np.ndarray, bundle_int8: Path) -> None:
    manifest, bucket = Manifest.load(bundle_int8), Bucket(height=32, width=64, graph="")
    for number in range(3):
        Image.fromarray(np.roll(photo, number, axis=0)).save(tmp_path / f"{number}.png")
    calibration = Calibration(count=2, folder=tmp_path)
    assert [one.shape for (one,) in calibration.feeds(manifest, bucket)] == [(1, 3, 32, 64)] * 2
    more = np.full((32, 64, 3), 255, np.uint8)
    *_, (last,) = calibration.feeds(manifest, bucket, [more])
    np.testing.assert_allclose(last, 1)
    digest = calibration.sha256(bucket)
    assert digest != Calibration(count=3, folder=tmp_path).sha256(bucket)
    assert digest == calibration.sha256(bucket)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--calibration", "nowhere"], "nowhere"),
        (["--calibration-images", "0"], "at least one"),
        (["--policy", "nowhere.json"], "policy"),
        (["--budget", "-1"], "budget"),
    ],
)
def test_bad_requests_are_refused(
    words: list[str], message: str, checkpoint_d: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(checkpoint_d), "--task", "depth", "--resolution", "64x64", "--precision", "int8"]
    assert main([*command, "--output", str(tmp_path / "bundle"), *words]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_golden_lies_within_the_ranges(checkpoint_d: Path, tmp_path: Path) -> None:
    """A black image shows no range; a golden beyond the ranges would fail, or its bound would have to prove nothing."""
    Image.new("RGB", (BUCKET, BUCKET)).save(tmp_path / "black.png")
    settings = {"task": "depth", "resolutions": ((BUCKET, BUCKET),), "precision": "int8", "budget": 10.0}
    bundle = build_bundle(checkpoint_d, tmp_path / "bundle", calibration=tmp_path, **settings)
    manifest = Manifest.load(bundle)
    assert manifest.quantisation is not None
    assert manifest.quantisation.images == 1
    assert manifest.golden.measured[0].mean_abs_error < 0.015  # 0.021 without it


def test_policy_of_another_bundle_is_taken_over(bundle_int8: Path, checkpoint_d: Path, tmp_path: Path) -> None:
    policy = json.loads((bundle_int8 / "policy.json").read_text())
    kept = [policy["layers"][3]["group"]]
    (tmp_path / "policy.json").write_text(json.dumps({"kept": kept}))
    settings = {"task": "depth", "resolutions": ((BUCKET, BUCKET),), "precision": "int8", "calibration_images": 1}
    bundle = build_bundle(checkpoint_d, tmp_path / "bundle", policy=tmp_path / "policy.json", **settings)
    found = json.loads((bundle / "policy.json").read_text())
    assert found["kept"] == kept
    assert {row["group"] for row in found["layers"] if not row["int8"]} == set(kept)
    (tmp_path / "policy.json").write_text(json.dumps({"kept": ["encoder/nothing"]}))
    with pytest.raises(BuildError, match="encoder/nothing"):
        build_bundle(checkpoint_d, tmp_path / "other", policy=tmp_path / "policy.json", **settings)
