"""The text encoder of a model folder: Hugging Face's class, built from the keys that minti knows; its own loader obeys
whatever a config says, down to which attention kernel to fetch from the hub and run."""

from dataclasses import asdict, dataclass

from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel


@dataclass(frozen=True)
class TextConfig:
    """The keys of `text_encoder/config.json` that minti obeys; the defaults are SD v1.4's."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    bos_token_id: int | None = 0
    eos_token_id: int | None = 2
    pad_token_id: int | None = 1

    def hugging_face(self) -> CLIPTextConfig:
        """The same as transformers' config."""
        return CLIPTextConfig(**asdict(self))


def rename_text_keys(tensors: dict[str, Tensor], model: CLIPTextModel) -> dict[str, Tensor]:
    """To the model's own names: a file, and the model itself before transformers 5.6, may have a level `text_model.`.
    `position_ids` (0 .. 76), in older files, is no weight."""
    own = {key.removeprefix("text_model."): key for key in model.state_dict()}
    weights = {key: tensor for key, tensor in tensors.items() if not key.endswith("position_ids")}
    return {own.get(key.removeprefix("text_model."), key): tensor for key, tensor in weights.items()}
