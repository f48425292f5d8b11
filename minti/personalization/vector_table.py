"""A word with embedding vectors of its own for each cross-attention and for each range of timesteps.

By layer it is XTI (P+, arXiv 2303.09522), by timestep ProSpect (arXiv 2305.16225); with one entry textual inversion.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minti.adapters.controlnet import ControlNet
from minti.adapters.ip_adapter import cross_attentions
from minti.formats.tensors import read_content, write_tensors
from minti.model import StableDiffusion
from minti.runs.messages import shortened
from minti.runs.word_checks import check_text, check_vectors, loaded_words
from minti.textual_inversion import LearnedEmbedding


class VectorTable(LearnedEmbedding):
    """While it is attached, prompts are encoded once for each entry, (b, entries m, d), and every cross-attention takes
    its own part, by the layer and the range of the timestep. Without it the model has the mean of the entries.

    entries: the vectors, (layers, ranges, k, d) float32, the layers from the top of the UNet's encoder to the end of
    its decoder, or one for all; the ranges from little noise to much. first: the id of the word's first token."""

    def __init__(self, model: StableDiffusion, entries: Tensor, first: int):
        super(LearnedEmbedding, self).__init__()
        self.layers, self.ranges, self.count, _ = entries.shape
        self.table_values, self.first = nn.Parameter(entries.detach().flatten(0, 2).float().clone()), first
        self.room, self.total = model.tokenizer.model_max_length, model.scheduler.config.num_train_timesteps
        self.entry, self.timesteps = 0, torch.zeros(1)
        self.word = next((word for word, ids in model.words.items() if ids[0] == first), None)
        self.name = f"the word {self.word}"

    @property
    def entries(self) -> Tensor:
        """The vectors, (layers ranges, k, d)."""
        return self.table_values.unflatten(0, (-1, self.count))

    @property
    def values(self) -> Tensor:
        """The mean of the entries, (k, d): the word for a model without the table."""
        return self.entries.mean(dim=0)

    def hooks(self, model: StableDiffusion) -> Iterator[Callable[[], Any]]:
        """On the embedding layer, the text encoder, the UNet for its timesteps, and every cross-attention.
        Raises ValueError: another table is attached; the word was removed, or has other token ids."""
        attached = (getattr(hook, "__self__", None) for hook in model.text_encoder._forward_hooks.values())
        if other := next((one for one in attached if isinstance(one, VectorTable)), None):
            raise ValueError(f"{self.name} and {other.name} both have vectors by layer or timestep; attach one of them")
        if self.word is not None and model.words.get(self.word, [None])[0] != self.first:
            raise ValueError(f"{self.name} is no longer where its table put it, as a word was removed; load it again")
        yield model.text_encoder.get_input_embeddings().register_forward_hook(self._put).remove
        yield model.text_encoder.register_forward_hook(self._encode, with_kwargs=True).remove
        yield model.unet.register_forward_pre_hook(self._look).remove
        for i, layer in enumerate(in_order(model)):
            take = partial(self._take, i if self.layers > 1 else 0)
            yield layer.register_forward_pre_hook(take).remove

    def _put(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        (ids,), vectors = inputs, self.entries[self.entry]
        own = (ids >= self.first) & (ids < self.first + self.count)
        return output.masked_scatter(own[..., None], vectors[ids[own] - self.first].to(output.dtype))  # b m d

    def _encode(self, encoder: nn.Module, inputs: tuple, options: dict[str, Any], output: Any) -> Any:
        """The first entry's output, (b, m, d), becomes that of all, (b, entries m, d); so do hidden states."""
        found = [output]
        for entry in range(1, self.layers * self.ranges):
            self.entry = entry
            found.append(encoder.forward(*inputs, **options))
        self.entry = 0
        if output.hidden_states is not None:
            states = zip(*(one.hidden_states for one in found))
            output.hidden_states = tuple(torch.cat(state, dim=1) for state in states)
        output.last_hidden_state = torch.cat([one.last_hidden_state for one in found], dim=1)
        return output

    def _look(self, unet: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        _, timesteps, context = inputs
        if context.shape[1] // self.room % (self.layers * self.ranges):
            raise ValueError(f"the prompts were encoded without {self.name}; encode them while it is attached")
        if any(isinstance(getattr(hook, "__self__", None), ControlNet) for hook in unet._forward_pre_hooks.values()):
            plain = "learned_embeds.safetensors (--embedding) has their mean"
            raise ValueError(f"a ControlNet takes no vectors by layer or timestep, as {self.name} has; {plain}")
        self.timesteps = timesteps

    def _take(self, layer: int, attention: nn.Module, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What is behind the text is another part's, such as an IP-Adapter's."""
        x, context = inputs
        text = context[:, : context.shape[1] // self.room * self.room]
        parts = text.unflatten(1, (-1, self.layers, self.ranges, self.room))[:, :, layer]  # b chunks ranges m d
        chosen = (self.timesteps.expand(len(parts)) * self.ranges // self.total).long().clamp(0, self.ranges - 1)
        own = parts[torch.arange(len(parts), device=parts.device), :, chosen.to(parts.device)].flatten(1, 2)  # b m d
        return x, torch.cat([own, context[:, text.shape[1] :]], dim=1)

    @torch.no_grad()
    def after_step(self, model: Any) -> None:
        """The limits of the vectors' lengths; and the mean goes into the embedding matrix."""
        self.constrain(self.table_values)
        weight = model.text_encoder.get_input_embeddings().weight
        weight[self.first : self.first + self.count] = self.values.to(weight)


def in_order(model: StableDiffusion) -> list[nn.Module]:
    """The UNet's cross-attentions, from the beginning of its encoder through the middle to the end of its decoder."""
    return cross_attentions(model.unet, ("down_blocks", "mid_block", "up_blocks"))


def table_of(wrapper: Any) -> VectorTable:
    """The table of a word that begins to learn, by the settings of its config; all entries are the same."""
    model, config, word = wrapper.model, wrapper.config, wrapper.embedding
    layers = len(in_order(model)) if config.by_layer else 1
    entries = word.values.detach().expand(layers, config.timestep_ranges, -1, -1)
    return VectorTable(model, entries, word.first)


def save_table(path: str | os.PathLike[str], placeholder: str, table: VectorTable) -> None:
    """Writes {placeholder: (layers, ranges, k, d)} as safetensors, atomically. Raises ValueError: it is not finite."""
    write_tensors(path, {placeholder: table.table_values.view(table.layers, table.ranges, table.count, -1)})


def load_table(model: StableDiffusion, path: str | os.PathLike[str]) -> VectorTable:
    """Adds the word of a table to the model, and gives what attaches it. Raises OSError, ValueError: the file holds no
    single table, is for another model, or its word is in the vocabulary already."""
    path, several = Path(path), "{word: (layers, ranges, vectors, width)}"
    tensors = read_content(path, ": no such table of embedding vectors")
    table = next(iter(tensors.values())) if isinstance(tensors, dict) and len(tensors) == 1 else None
    plain = isinstance(table, Tensor) and table.layout == torch.strided and table.ndim == 4
    if not plain or table.numel() * table.element_size() > table.untyped_storage().nbytes():  # one many times
        other = "a word with one entry goes to load_embeddings (--embedding)"
        raise ValueError(f"{path} is no table of embedding vectors, {several}; {other}")
    ((placeholder, entries),) = tensors.items()
    check_text(placeholder, f"{path}: the word")
    check_vectors(entries.flatten(0, 2), f"{path}: {shortened(placeholder)}")
    if len(entries) not in (1, len(in_order(model))):
        raise ValueError(f"{path} is for {len(entries)} cross-attentions, the model has {len(in_order(model))}")
    most = model.scheduler.config.num_train_timesteps
    if entries.shape[1] > most:
        raise ValueError(f"{path} has {entries.shape[1]} ranges of timesteps, the model {most} timesteps")
    means = {placeholder: entries.float().mean(dim=(0, 1))}  # k d
    if placeholder in model.words:
        raise ValueError(f"{path}: the model has {placeholder} already; leave out its other file (--embedding)")
    loaded_words(model, path, means)
    ids = model.add_word(placeholder, means[placeholder])
    return VectorTable(model, entries.to(model.device), ids[0])
