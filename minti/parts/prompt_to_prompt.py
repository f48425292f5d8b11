"""Prompt-to-prompt: the edited picture looks where the source picture looks, and sees there what its own prompt says.

Cross-attention spreads a weight of one over the prompt's words, at every place; it decides what stands where. Two
pictures are drawn side by side, and for a share of the steps the edited one gets the source's weights with its own
values (arXiv 2208.01626, algorithm 1; lecture notes `002`, 7.7; questions `003`, 33):

    edited = (A_source M + A_edited (1 - 1ᵀM)) c v_edited,   A = softmax(q kᵀ / √d)

M, (m, m), takes each word's column to where the edited prompt has it, a swapped word's to the word in its place; a word
that is new keeps its own (the paper's refinement); c makes a word count more or less. Self-attention has no words:
the source's weights as they are.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minti.machine.messages import shown
from minti.model import StableDiffusion
from minti.networks.layers import Attend, attention_weights
from minti.parts.alignment import alignment, ids_of, positions
from minti.parts.part import Part


class PromptToPrompt(Part):
    """Goes round every attention of the UNet, for batches [sources, edits]; with guidance [unconditional; these].

    Args:
        sources, edits: n prompts and what becomes of them.
        cross, own: the share of the schedule, from the noisy end, for which cross- and self-attention is the source's.
        weights: words of the edits and how much more they count, while cross-attention is the source's.

    Raises ValueError: a share out of [0, 1]; prompts that cannot be aligned; a word that is not in an edit.
    """

    name = "prompt-to-prompt"

    def __init__(
        self,
        model: StableDiffusion,
        sources: Sequence[str],
        edits: Sequence[str],
        cross: float = 0.8,
        own: float = 0.4,
        weights: Mapping[str, float] | None = None,
    ):
        super().__init__()
        if len(sources) != len(edits):
            raise ValueError(f"{len(sources)} source prompts for {len(edits)} edited ones; give as many")
        for name, share in (("cross", cross), ("own", own)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} = {shown(share)}; expected a share of the steps, 0 to 1")
        self.pictures, self.cross, self.own, self.timestep = len(edits), cross, own, 0
        pairs = [(ids_of(model, source), ids_of(model, edit)) for source, edit in zip(sources, edits)]
        room = model.tokenizer.model_max_length
        self.moved = torch.stack([alignment(*pair, room) for pair in pairs]).to(model.device)  # n m m
        self.counts = torch.ones(self.pictures, room, device=model.device)  # n m
        for word, factor in (weights or {}).items():
            for edit, count in zip(edits, self.counts):
                count[positions(model, edit, word)] *= factor
        same = torch.eye(room, device=model.device).expand_as(self.moved)
        self.as_it_is = torch.equal(self.moved, same) and bool((self.counts == 1).all())

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Listens for the timestep, and goes round every attention."""
        self.last = model.scheduler.config.num_train_timesteps
        yield model.unet.register_forward_pre_hook(self.begin).remove
        for name, layer in model.unet.named_modules():
            if name.endswith((".attn1", ".attn2")):
                around = partial(self.attend, name.endswith(".attn2"))
                layer.around.append(around)
                yield partial(layer.around.remove, around)

    def begin(self, unet: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Raises ValueError: another batch than that of the prompts."""
        latents, timesteps, _ = inputs
        if len(latents) not in (2 * self.pictures, 4 * self.pictures):
            raise ValueError(f"{len(latents)} pictures in the UNet; expected {self.pictures} sources and as many edits")
        self.timestep = int(timesteps[0])

    def attend(self, is_cross: bool, attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(b, heads, n, d): of the edits, which come last, with the weights of the sources, which stand before them."""
        n = self.pictures
        if self.timestep < (1 - (self.cross if is_cross else self.own)) * self.last:
            return attend(q, k, v)
        of_source = [torch.cat([x[:-n], x[-2 * n : -n]]) for x in (q, k)]
        attended = attend(*of_source, v)
        if self.as_it_is or not is_cross:
            return attended
        source, edited = attention_weights(q[-2 * n :], k[-2 * n :]).chunk(2)  # b heads n m each
        moved = source @ self.moved[:, None] + edited * (1 - self.moved.sum(dim=1).clamp(max=1))[:, None, None]
        values = (moved * self.counts[:, None, None]).to(v.dtype) @ v[-n:]  # b heads n m, b heads m d -> b heads n d
        return torch.cat([attended[:-n], values])
