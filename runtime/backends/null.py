"""No network at all: answers a fixed function of the image, so that everything around a network is testable."""

from __future__ import annotations

import numpy as np

from runtime.backends.session import Arrays, Session, Shapes


class BackendSession(Session):
    """Scalar tasks answer the image's mean over channels in [0,1]; vector tasks answer the image itself in [-1,1].

    Noise (mode G) shifts the image by its mean first.
    """

    def _open(self) -> Shapes:
        return self.input_shapes | self.output_shapes

    def _run(self, inputs: Arrays) -> Arrays:
        image = inputs["image"]
        if "noise" in inputs:
            image = np.clip(image + inputs["noise"].mean(), -1, 1)
        grey = image.mean(axis=1, keepdims=True) / 2 + np.float32(0.5)
        return {name: grey if shape[1] == 1 else image.copy() for name, shape in self.output_shapes.items()}

    def _close(self) -> None:
        pass
