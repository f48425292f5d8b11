"""The cases of `benchmark.py` by minti, whose UNet OpenVINO computes."""

from support.benchmark_cases import LEAN, Minti
from support.openvino_engine import OpenVINO

from collections.abc import Callable
from typing import Any

from torch import Tensor


class MintiByOpenVINO(Minti):
    """minti, whose UNet OpenVINO computes."""

    def __init__(self, *args: Any, **more: Any):
        super().__init__(*args, **more)
        self.engine = OpenVINO()
        self.attached.enter_context(self.engine.attached(self.model))

    def image(self, steps: int = 0, **options: Any) -> Callable[[], Any]:
        """A whole guided image; both its shapes are compiled before."""
        self.unet_step(guided=True)()
        self.unet_step(guided=False)()
        return super().image(steps, **options)

    def lean_image(self) -> Callable[[], Any]:
        """The same steps, guided in the same ones, but all whole: what is compiled cannot keep features."""
        return self.image(**LEAN)

    def compared(self, action: Callable[[], Any]) -> dict[str, float]:
        """Seconds of conversion and compilation; the largest difference of tensors from torch's, in their spread."""
        if not isinstance(ours := action(), Tensor):
            return self.engine.seconds
        self.attached.close()
        theirs = action().float()
        return self.engine.seconds | {"difference": ((ours.float() - theirs).abs().max() / theirs.std()).item()}
