"""Full fine-tuning: the model's own weights as an adapter, for DreamBooth (arXiv 2208.12242; slides `001`)."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from minti.adapter import Adapter
from minti.model import StableDiffusion


class Network(Adapter):
    """The weights of the UNet, and with `text_encoder` of that network too; trainable while they are "attached". What
    is learned stays in the model. Raises ValueError: the model is in half precision, where small steps round to 0."""

    name = "the network"

    def __init__(self, model: StableDiffusion, text_encoder: bool = False):
        super().__init__()
        networks = {"unet": model.unet} | ({"text_encoder": model.text_encoder} if text_encoder else {})
        self._networks = (networks,)  # in a tuple, since they are the model's and no submodules of this adapter
        for weight in self.trainable():
            if weight.dtype.itemsize < 4:
                raise ValueError(f"the network's weights are {weight.dtype}; load the model in float32 to train them")

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Lets the weights take gradients, and freezes them again."""
        for weight in self.trainable():
            weight.requires_grad_(True)
        yield self._freeze

    def _freeze(self) -> None:
        for weight in self.trainable():
            weight.requires_grad_(False)
            weight.grad = None

    def trainable(self) -> list[nn.Parameter]:
        """All weights of the networks."""
        return [weight for network in self._networks[0].values() for weight in network.parameters()]

    def state_dict(self, *args: Any, **options: Any) -> dict[str, Tensor]:
        """The weights, not copied; their names begin with "unet." or "text_encoder."."""
        networks = self._networks[0].items()
        return {f"{name}.{key}": value for name, network in networks for key, value in network.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor], *args: Any, **options: Any) -> None:
        """Loads what `state_dict` gave."""
        for name, network in self._networks[0].items():
            own = {key.removeprefix(f"{name}."): v for key, v in state.items() if key.startswith(f"{name}.")}
            network.load_state_dict(own)
