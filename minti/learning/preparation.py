"""What is asked of a word before it is learned, and of its rows while they are."""

import torch

from minti.learning.pictures import Concept, Images
from minti.learning.settings import LearningConfig, TrainingWrapper
from minti.machine.messages import quoted
from minti.model import StableDiffusion
from minti.parts.restored_matrix import RestoredMatrix
from minti.parts.word import Word
from minti.text import token_ids, tried_word


def check_wrapper(wrapper: TrainingWrapper) -> None:
    """Refuses what would run for hours and learn nothing; asked before the word is added, of a copy of the tokenizer.

    Raises ValueError: the placeholder cannot be a new word or is not found in a prompt, a template is too long for it,
    or E4's recipe would have to train a matrix in half precision.
    """
    config, dtype = wrapper.config, wrapper.text_encoder.get_input_embeddings().weight.dtype
    if config.row_update == "restore" and dtype != torch.float32:
        mend = "load the model in float32, or use row_update='new_rows', whose rows are float32 in any model"
        raise ValueError(f"row_update='restore' trains the embedding matrix itself, which is {dtype}; {mend}")
    placeholder, length = config.placeholder_token, wrapper.tokenizer.model_max_length
    tried, ids = tried_word(wrapper.tokenizer, placeholder, config.num_vectors)
    for prompt in wrapper.prompts:
        found = token_ids(prompt, tried, wrapper.model.words | {placeholder: ids})
        if not set(ids) <= set(found):
            mend = "; write {} in every caption where the word goes" if wrapper.config.captions else ""
            raise ValueError(f"the tokenizer does not find {placeholder} in the prompt {quoted(prompt)}{mend}")
        if not set(ids) <= set(found[: length - 2]):  # without the beginning and the end
            lacks = f"does not contain all {len(ids)} vectors of {placeholder} once tokenized"
            why = f"it is too long for the {length} tokens of the context; use a shorter template or fewer vectors"
            raise ValueError(f"the prompt {quoted(prompt)} {lacks}: {why}")


def concept_of(model: StableDiffusion, config: LearningConfig, images: Images) -> Concept:
    """The pictures as the loop needs them. Raises ValueError: as `Concept`; there is not one caption for each."""
    captions = config.captions
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} pictures; give each picture one, in their order")
    return Concept(model, images, config.horizontal_flip, config.masked)


def part_that_learns(wrapper: TrainingWrapper) -> Word | RestoredMatrix:
    """The word's rows, which the model has got by now: alone, or as E4 has it (`row_update`)."""
    embedding, ids = wrapper.text_encoder.get_input_embeddings(), wrapper.placeholder_ids
    alone = wrapper.config.row_update == "new_rows"
    part = Word(embedding.weight[ids], ids[0]) if alone else RestoredMatrix(embedding, ids[0], len(ids))
    part.name = f"the word {wrapper.config.placeholder_token}"
    return part


def follow(wrapper: TrainingWrapper, part: Word | RestoredMatrix, optimizer: torch.optim.Optimizer) -> None:
    """After every step, cuts back rows that are longer than the config allows, and brings the model up to date."""

    @torch.no_grad()
    def cut_back(*_: object) -> None:
        lengths = part.values.norm(dim=1, keepdim=True)  # k 1
        part.values.mul_((longest / lengths).clamp(max=1))

    if wrapper.config.max_row_norm is not None:
        longest = wrapper.config.max_row_norm * wrapper.vocabulary_norm
        optimizer.register_step_post_hook(cut_back)
    part.follow(optimizer, wrapper.model)
