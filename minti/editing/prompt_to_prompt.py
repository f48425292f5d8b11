"""Prompt-to-prompt: injects the source's attention maps while the edited prompt is sampled (arXiv 2208.01626, algorithm
1; lecture notes `002`, 7.7; questions `003`, 33). Two images are sampled side by side; for a share of the steps the
edited one gets the source's attention maps with its own values:

    edited = (A_source M + A_edited (1 - 1ᵀM)) c v_edited,   A = softmax(q kᵀ / √d)

M, (m, m), moves each word's column to its position in the edited prompt, a replaced word's to the new word; an added
word keeps its own (the paper's refinement); c weights words (re-weighting). Self-attention gets the source's maps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minti.adapter import Adapter
from minti.denoising import Keep
from minti.editing.attention_maps import AttentionMaps, token_positions
from minti.guidance.attention import attention_weights
from minti.layers import Attend
from minti.model import StableDiffusion
from minti.runs.messages import short_repr
from minti.scheduler import Level
from minti.text import token_ids


class PromptToPrompt(Adapter):
    """Attention control for batches [sources, edits]; with guidance [unconditional; these].

    sources, edits: n prompts and their edited versions. cross, own: the share of the schedule, from the noisy end, with
    the source's maps in cross- and in self-attention. weights: factors of words of the edits (re-weighting)."""

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
                raise ValueError(f"{name} = {short_repr(share)}; expected a share of the steps, 0 to 1")
        self.images, self.cross, self.own, self.timestep = len(edits), cross, own, 0
        pairs = [(ids_of(model, source), ids_of(model, edit)) for source, edit in zip(sources, edits)]
        room = model.tokenizer.model_max_length
        self.alignment = torch.stack([alignment(*pair, room) for pair in pairs]).to(model.device)  # n m m
        self.counts = torch.ones(self.images, room, device=model.device)  # n m
        for word, factor in (weights or {}).items():
            for edit, count in zip(edits, self.counts):
                count[word_positions(model, edit, word)] *= factor
        same = torch.eye(room, device=model.device).expand_as(self.alignment)
        self.as_it_is = torch.equal(self.alignment, same) and bool((self.counts == 1).all())

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """Replaces attention probabilities in the UNet, while it lasts."""
        self.last = model.scheduler.config.num_train_timesteps
        yield model.unet.register_forward_pre_hook(self.begin).remove
        for name, layer in model.unet.named_modules():
            if name.endswith((".attn1", ".attn2")):
                around = partial(self.attend, name.endswith(".attn2"))
                layer.around.append(around)
                yield partial(layer.around.remove, around)

    def begin(self, unet: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Notes the timestep."""
        latents, timesteps, _ = inputs
        if len(latents) not in (2 * self.images, 4 * self.images):
            raise ValueError(f"{len(latents)} images in the UNet; expected {self.images} sources and as many edits")
        self.timestep = int(timesteps[0])

    def attend(self, is_cross: bool, attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(b, heads, n, d): the edits, which come last, with the maps of the sources, which come before them."""
        n = self.images
        if self.timestep < (1 - (self.cross if is_cross else self.own)) * self.last:
            return attend(q, k, v)
        of_source = [torch.cat([x[:-n], x[-2 * n : -n]]) for x in (q, k)]
        attended = attend(*of_source, v)
        if self.as_it_is or not is_cross:
            return attended
        source, edited = attention_weights(q[-2 * n :], k[-2 * n :]).chunk(2)  # b heads n m each
        moved = source @ self.alignment[:, None] + edited * (1 - self.alignment.sum(dim=1).clamp(max=1))[:, None, None]
        values = (moved * self.counts[:, None, None]).to(v.dtype) @ v[-n:]  # b heads n m, b heads m d -> b heads n d
        return torch.cat([attended[:-n], values])


def alignment(source: Sequence[int], edited: Sequence[int], room: int) -> Tensor:
    """The alignment of two prompts, (room, room): M[i, j] = 1 where edit token j takes source token i's attention.
    Equal tokens are matched in order; those between two matches are replaced one by one, or with 1 / k by k others."""
    matrix = torch.eye(room)
    matrix[:, : len(edited)] = 0
    matcher = SequenceMatcher(None, source, edited, autojunk=False)
    if sum(match.size for match in matcher.get_matching_blocks()) <= 2:  # beginning and end
        raise ValueError("a prompt and its edit have no word in common, so they cannot be aligned; change few words")
    for kind, i, i_end, j, j_end in matcher.get_opcodes():
        if kind in ("equal", "replace"):
            matrix[i:i_end, j:j_end] = torch.eye(j_end - j) if i_end - i == j_end - j else 1 / (j_end - j)
    return matrix


def ids_of(model: StableDiffusion, prompt: str) -> list[int]:
    """A prompt's token ids with beginning and end, without padding."""
    ids = token_ids(prompt, model.tokenizer, model.words)
    return [model.tokenizer.bos_token_id, *ids[: model.tokenizer.model_max_length - 2], model.tokenizer.eos_token_id]


def word_positions(model: StableDiffusion, prompt: str, word: str) -> list[int]:
    """The positions of a word's tokens in a prompt."""
    return token_positions(token_ids(word, model.tokenizer, model.words), ids_of(model, prompt), word, prompt)


def local_blend(maps: AttentionMaps, words: Sequence[str], threshold: float = 0.3) -> Keep:
    """Local blend: outside the edited word's region the edited image stays the source (arXiv 2208.01626, section 3.2).
    The `keep` of `minti.sample`, while [sources, edits] are sampled from the same noise:

        edited <- source + mask (edited - source),   mask = max-pooled map / its maximum > threshold, of either image

    maps: of [sources, edits], attached inside a `PromptToPrompt` where there is one. words: the word of each of these
    prompts whose region may change."""
    places = [word_positions(maps.model, prompt, word) for prompt, word in zip(maps.prompts, words)]
    n = len(places) // 2

    def blend(latents: Tensor, level: Level) -> Tensor:
        blended = latents.clone()
        for i in range(n):
            seen = [maps.maps[j, places[j]].sum(dim=0)[None, None] for j in (i, n + i)]  # 1 1 h w
            seen = [F.max_pool2d(x, kernel_size=3, stride=1, padding=1) for x in seen]
            mask = (seen[0] / seen[0].amax() > threshold) | (seen[1] / seen[1].amax() > threshold)
            blended[n + i] = torch.where(mask[0], latents[n + i], latents[i])
        return blended

    return blend
