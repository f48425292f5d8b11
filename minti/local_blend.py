"""Local blend: outside the edited word's place the edited picture stays the source (arXiv 2208.01626, section 3.2)."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from minti.diffusion.steps import SampleStep
from minti.evaluation.attention_maps import AttentionMaps
from minti.parts.alignment import positions


def local_blend(maps: AttentionMaps, words: Sequence[str], threshold: float = 0.3) -> Callable[[SampleStep], None]:
    """For `minti.sample`'s `on_step`, while [sources, edits] are drawn from the same noise; writes to the step, from
    which the sampler goes on.

        edited <- source + mask (edited - source),   mask = max-pooled map / its maximum > threshold, of either picture

    Args:
        maps: of [sources, edits], entered inside a `PromptToPrompt` where there is one.
        words: one for each of these prompts: the word whose place may change.

    Raises ValueError: a word is not in its prompt.
    """
    places = [positions(maps.model, prompt, word) for prompt, word in zip(maps.prompts, words)]
    n = len(places) // 2

    def blend(step: SampleStep) -> None:
        """In place: the sampler goes on from what stands there."""
        for i in range(n):
            seen = [maps.maps[j, places[j]].sum(dim=0)[None, None] for j in (i, n + i)]  # 1 1 h w
            seen = [F.max_pool2d(x, kernel_size=3, stride=1, padding=1) for x in seen]
            mask = (seen[0] / seen[0].amax() > threshold) | (seen[1] / seen[1].amax() > threshold)
            source, edited = step.latents[i], step.latents[n + i]
            edited.copy_(torch.where(mask[0], edited, source))

    return blend
