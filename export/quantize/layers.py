"""The layers that int8 can take, and how to look at them or round them while the PyTorch module
runs.

A layer is a convolution, transposed convolution or matrix with constant weights. Its name is that
of its node in the ONNX graph without the operator: `decoder/network.up_blocks.0.resnets.1.conv1`.
Nothing in the module is replaced: its calls to torch's kernels are intercepted, so that folded and
plain modules are the same here.

Some targets round more than what goes into a layer, to have an int8 kernel for it at all or for
more of the graph: what comes out of it, `LAYER/output`, and what that is added to,
`LAYER/residual`. Each is a layer of its own here, whose input is the tensor that is rounded, and
whose work is none. A layer whose output must be int8 is kept or quantised with it; a residual on
its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from export.folds.subpixel import SubpixelUpsample
from export.graph.int8_weights import FEWEST_CHANNELS, LARGEST, safe_scales
from export.graph.stages import layer_name
from export.network.single_pass import SinglePass

OUTPUT_AXIS = {F.conv2d: 0, F.linear: 0, F.conv_transpose2d: 1}
"""The kernels that are looked at, and the axis of the output channels in their weights."""
OUTPUT, RESIDUAL = "output", "residual"
_SUMS = (torch.add, Tensor.add, Tensor.__add__)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """`multiply_adds` are for one image; `group` is what is quantised or kept as one: a layer and
    its output, or a residual.
    """

    name: str
    group: str
    multiply_adds: int


@dataclass(frozen=True, kw_only=True)
class Range:
    """What int8 holds of a tensor: from `low` <= 0 to `high` >= 0, or of each of its channels [C],
    and the `method` that proposed it. -127 stands for `low` and 127 for `high`; a range of channels
    has low = -high.
    """

    method: str = "given"
    low: float | Tensor
    high: float | Tensor

    @property
    def scale(self) -> float | Tensor:
        """Real value of one step of int8, or that of each channel."""
        return (self.high - self.low) / (2 * LARGEST)

    @property
    def zero(self) -> int:
        """The int8 that stands for 0: 0 itself where low = -high."""
        low, scale = self.low, self.scale
        if isinstance(low, Tensor) or isinstance(scale, Tensor):
            return 0
        return round(-LARGEST - low / scale)

    @property
    def widest(self) -> tuple[float, float]:
        """`low` and `high`, of channels the lowest and the highest."""
        return float(torch.as_tensor(self.low).min()), float(torch.as_tensor(self.high).max())


Ranges = Mapping[str, Range]
"""By layer; those of outputs are of channels. Channels that an upsampling puts side by side
(export/folds/subpixel.py) have one: its plain form, for other sizes, has one channel for them.
"""
Kernel = Callable[..., Tensor]
Handle = Callable[[str, Kernel, tuple[Any, ...], dict[str, Any]], Tensor]
"""Called in place of a kernel with the layer's name, the kernel and its arguments: input, weight,
bias, ...; for an output, with what passes it on; for a residual, with the sum of it and the
output.
"""


class LayerHooks(TorchFunctionMode):
    """While active, the kernels of layers, their outputs, and the sums with residuals go through
    `handle`.
    """

    def __init__(self, module: SinglePass, handle: Handle) -> None:
        super().__init__()
        self._names = {id(weight): _layer_name(path) for path, weight in module.named_parameters()}
        self._handle = handle
        self._outputs = WeakTensorKeyDictionary()  # name of the layer, as long as its answer lives

    def __torch_function__(
        self,
        func: Kernel,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SUMS and len(args) == 2:
            name, operands = self._residual(args)
            return self._handle(name, func, operands, kwargs) if name else func(*args, **kwargs)
        name = self._names.get(id(args[1])) if func in OUTPUT_AXIS else None
        if name is None:
            return func(*args, **kwargs)
        output = self._handle(name, func, args, kwargs)
        output = self._handle(f"{name}/{OUTPUT}", _pass_on, (output,), {})
        self._outputs[output] = name
        return output

    def _residual(self, operands: tuple[Any, ...]) -> tuple[str | None, tuple[Any, ...]]:
        """Name and operands, the residual first, of the sum of a layer's answer and something of
        its shape. Of two layers' answers the first is the residual of the second, as in
        export/graph/qdq.py.
        """
        if getattr(operands[0], "shape", None) == getattr(operands[1], "shape", ()):
            for skip, output in (operands, operands[::-1]):
                if output in self._outputs:
                    return f"{self._outputs[output]}/{RESIDUAL}", (skip, output)
        return None, operands


def _pass_on(values: Tensor) -> Tensor:
    return values


def find_layers(
    module: SinglePass, feeds: tuple[Tensor, ...], extra_tensors: Collection[str] = ()
) -> list[Layer]:
    """Every layer that int8 can take, in the order in which it runs; `feeds` are of one image.
    `extra_tensors` are the kinds of tensors, OUTPUT and RESIDUAL, that are layers too.

    Those with fewer than 16 channels are left, and matrices of a batch of tokens [B, S, C]: ONNX
    Runtime 1.31 fuses their product and addition to a node that it then refuses. Folds leave only
    those of the autoencoder's attention.
    """
    layers: dict[str, Layer] = {}

    def note(name: str, kernel: Kernel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        output = kernel(*args, **kwargs)
        if kernel not in OUTPUT_AXIS:
            layer, _, kind = name.rpartition("/")
            if kind in extra_tensors and layer in layers:
                layers[name] = Layer(
                    name=name, group=layer if kind == OUTPUT else name, multiply_adds=0
                )
            return output
        weight = args[1]
        axis = OUTPUT_AXIS[kernel]
        fan = weight.numel() // weight.shape[axis]
        # A transposed convolution spreads each input over the kernel; the others gather each output
        # from it.
        work = args[0].numel() * weight.numel() // weight.shape[0] if axis else output.numel() * fan
        work += layers[name].multiply_adds if name in layers else 0
        if min(weight.shape[:2]) >= FEWEST_CHANNELS and (
            kernel is not F.linear or args[0].ndim == 2
        ):
            layers[name] = Layer(name=name, group=name, multiply_adds=work)
        return output

    with torch.inference_mode(), LayerHooks(module, note):
        module(*feeds)
    return list(layers.values())


def upsampling_channels(module: SinglePass) -> dict[str, int]:
    """How many channels an upsampling makes, by layer: fewer than its convolution does where that
    makes several places of each.
    """
    return {
        _layer_name(f"{path}.weight"): part.channels
        for path, part in module.named_modules()
        if isinstance(part, SubpixelUpsample)
    }


def round_to_int8(values: Tensor, span: Range) -> Tensor:
    """Values that went through int8 with one range, or with one for each channel, or for some
    channels in a row.
    """
    if isinstance(span.scale, Tensor):
        each = span.scale.repeat_interleave(values.shape[1] // len(span.scale))
        return _round_slices(values, each, axis=1)
    return torch.fake_quantize_per_tensor_affine(
        values, span.scale, span.zero, -LARGEST - 1, LARGEST
    )


def _round_slices(values: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Through symmetric int8 with a scale for each slice along `axis`."""
    zeros = torch.zeros(len(scale), dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(
        values, scale.float(), zeros, axis, -LARGEST, LARGEST
    )


def round_weight(kernel: Kernel, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments behind what is rounded: a weight, rounded to int8 as well, and what comes after
    it as it is.
    """
    if kernel not in OUTPUT_AXIS:
        return args[1:]
    axis = OUTPUT_AXIS[kernel]
    scales = torch.from_numpy(safe_scales(args[1].detach().numpy(), axis))
    return _round_slices(args[1], scales, axis), *args[2:]


class FakeQuant(LayerHooks):
    """While active, the layers of `ranges` run with inputs and weights rounded to int8: what an
    engine computes.
    """

    def __init__(self, module: SinglePass, ranges: Ranges) -> None:
        super().__init__(module, self._round)
        self._ranges = ranges

    def _round(
        self, name: str, kernel: Kernel, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        if name not in self._ranges:
            return kernel(*args, **kwargs)
        return kernel(
            round_to_int8(args[0], self._ranges[name]), *round_weight(kernel, args), **kwargs
        )


def _layer_name(parameter: str) -> str:
    """`decoder.network.conv_in.weight` is the layer `decoder/network.conv_in`; so is
    `...conv_in.weights.0`.
    """
    module = re.sub(r"\.(weight|weights\.\d+)$", "", parameter).replace(".", "/", 1)
    return layer_name(module)
