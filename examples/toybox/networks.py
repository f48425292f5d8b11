"""Two small convolutional networks on toybox images: the image encoder of a tiny CLIP, and the judge, a classifier."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

import world
from minti.runs.files import replacing


def _trunk(widths: tuple[int, ...]) -> nn.Sequential:
    """Strided convolutions, (b, 3, 64, 64) -> (b, widths[-1] * 16).

    Batch norm, not group norm: at test time it is an affine map and keeps absolute colours.
    """
    layers: list[nn.Module] = []
    for level, (c_in, c_out) in enumerate(zip((3, *widths), widths)):
        stride = 2 if level < 4 else 1  # 64 -> 32 -> 16 -> 8 -> 4
        layers += [nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1), nn.BatchNorm2d(c_out), nn.SiLU()]
    # Channels last: on a CPU, twice as fast in bf16.
    return nn.Sequential(*layers, nn.Flatten()).to(memory_format=torch.channels_last)


class ToyCLIP(nn.Module):
    """A tiny CLIP: an image encoder of five convolutions, and a small CLIPTextModel for captions.

    The text model becomes the frozen text encoder of the toybox; the rest is used for CLIP scores.
    """

    def __init__(self, text_config: CLIPTextConfig, widths: tuple[int, ...] = (32, 64, 96, 96, 96)):
        super().__init__()
        dim = text_config.hidden_size
        self.text_model = CLIPTextModel(copy.deepcopy(text_config))  # the next line changes its config
        self.text_model.set_attn_implementation("eager")  # for so few tokens, plain matrix products are twice as fast
        self.text_projection = nn.Linear(dim, dim, bias=False)
        self.image_trunk = _trunk(widths)
        self.image_projection = nn.Linear(widths[-1] * 16, dim)
        self.logit_scale = nn.Parameter(torch.tensor(2.65926))  # log(1 / 0.07), as in CLIP

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Image embeddings: (b, 3, 64, 64) in [-1, 1] -> (b, dim), of length one."""
        return F.normalize(self.image_projection(self.image_trunk(pixels)), dim=-1)

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """Text embeddings: (b, n) token ids -> (b, dim), of length one."""
        return F.normalize(self.text_projection(self.text_model(input_ids).pooler_output), dim=-1)

    def forward(self, pixels: Tensor, input_ids: Tensor) -> Tensor:
        """Logits: the scaled cosine similarities of all pairs, (images, captions)."""
        scale = self.logit_scale.clamp(max=4.6052).exp()  # at most 100, as in CLIP
        return scale * self.encode_image(pixels) @ self.encode_text(input_ids).T


class Judge(nn.Module):
    """The judge: an image classifier trained on the world's ground truth, which evaluates the toybox's samples.

    An image has two slots: the first is the only toy, or the left one of a pair; the second is the right one. Each head
    classifies one attribute.
    """

    TOY = {
        "shape": world.SHAPES,
        "pattern": world.PATTERNS,
        "main": tuple(world.COLOURS),
        "second": tuple(world.COLOURS),
    }
    SCENE = {
        "count": ("one", "two"),
        "size": tuple(world.SIZES),
        "place": tuple(world.PLACES),
        "background": tuple(world.BACKGROUNDS),
        "style": tuple(world.STYLES),
    }

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128, 128), hidden: int = 128):
        super().__init__()
        # head name -> its classes: "shape_0" .. "second_1", "count" .. "style"
        self.answers = {f"{key}_{slot}": values for slot in (0, 1) for key, values in self.TOY.items()} | self.SCENE
        self.trunk = _trunk(widths)
        self.hidden = nn.Sequential(nn.Linear(widths[-1] * 16, hidden), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, len(values)) for name, values in self.answers.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(b, 3, 64, 64) in [-1, 1] -> {head: (b, number of classes)} logits."""
        features = self.hidden(self.trunk(pixels))
        return {name: head(features) for name, head in self.heads.items()}

    def labels(self, scene: world.Scene) -> dict[str, int]:
        """Labels of an image of the scene, as class indices; -100, which losses ignore, for invisible attributes."""
        answers: dict[str, str] = {"count": "two" if len(scene.toys) == 2 else "one", "style": scene.style}
        if len(scene.toys) == 1:
            answers |= {"size": scene.size, "place": scene.place}
        if scene.style not in world.COLOURLESS:
            answers["background"] = scene.background
        for slot, toy in enumerate(scene.toys):
            answers[f"shape_{slot}"] = toy.shape
            if world.pattern_visible(toy, scene.style):
                answers[f"pattern_{slot}"] = toy.pattern
            if scene.style not in world.COLOURLESS:
                answers |= {f"main_{slot}": toy.main, f"second_{slot}": toy.second}
        return {name: values.index(answers[name]) if name in answers else -100 for name, values in self.answers.items()}


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file in float16. Raises OSError: it cannot be written."""
    halves = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    with replacing(path) as temporary:
        save_file({key: value.contiguous() for key, value in halves.items()}, temporary, metadata={"format": "pt"})


def loaded(network: nn.Module, path: Path) -> nn.Module:
    """A network with the weights of a file, for evaluation. Raises FileNotFoundError: the file is missing."""
    network.load_state_dict(load_weights(path))
    return network.eval().requires_grad_(False)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file to float32. Raises FileNotFoundError: it is missing."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; only the toybox has this network")
    return {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
