"""Learned words as other programs write them: the vectors arrive, under the name by which that program calls them."""

import base64
import json
import warnings
import zlib

import diffusers
import numpy as np
import pytest
import torch
from helpers import seeded
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file

import minti
from minti.formats.embedded_images import random_numbers
from minti.formats.foreign_embeddings import read
from minti.personalization.removal import remove_word


def rows(count, seed=0):
    return torch.randn(count, 48, generator=seeded(seed))


def silently(path):
    """The words of a file, and no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read(path)


# --- containers -------------------------------------------------------------------------------------------------------


def test_the_original_repository_keeps_parameters(tmp_path):
    """EmbeddingManager.save: torch.save of a ParameterDict, one or several placeholders."""
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(rows(2))})
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}, tmp_path / "bad-hands.pt")
    words = silently(tmp_path / "bad-hands.pt")
    assert list(words) == ["bad-hands"]
    assert torch.equal(words["bad-hands"], rows(2))


@pytest.mark.parametrize("container", [dict, torch.nn.ParameterDict])
def test_several_words_of_one_pt_all_arrive(tiny, tmp_path, container):
    given = {"*": rows(1, 1), "@": rows(2, 2), "<dog>": rows(1, 3)}
    torch.save({"string_to_param": container(given.items())}, tmp_path / "pets.pt")
    with pytest.warns(UserWarning, match=r"pets.pt holds 3 words: \* is called pets-1, @ is called pets-2, <dog> is"):
        assert minti.load_embeddings(tiny, tmp_path / "pets.pt") == ["pets-1", "pets-2", "<dog>"]
    weight = tiny.text_encoder.get_input_embeddings().weight
    for word, vectors in zip(("pets-1", "pets-2", "<dog>"), given.values()):
        assert torch.equal(weight[tiny.words[word]], vectors)


def test_another_class_in_a_pickle_is_refused_and_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    torch.save({"string_to_param": torch.nn.ParameterDict({"*": rows(1)}), "name": Evil()}, tmp_path / "word.pt")
    with pytest.raises(ValueError, match=r"word.pt asks to run \S+, which minti refuses"):
        read(tmp_path / "word.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["word.pt", "word.SAFETENSORS", "word.bin", "word"])
def test_a_file_is_read_by_what_it_holds(tmp_path, name):
    save_file({"<cat>": rows(1)}, tmp_path / name)
    assert torch.equal(silently(tmp_path / name)["<cat>"], rows(1))
    torch.save({"<cat>": rows(2)}, tmp_path / name)
    assert torch.equal(silently(tmp_path / name)["<cat>"], rows(2))


def test_what_was_fetched_in_place_of_the_file_is_named(tiny, tmp_path):
    pointer, page = tmp_path / "cat.safetensors", tmp_path / "dog.pt"
    pointer.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 3840\n", encoding="utf-8"
    )
    page.write_text("\n<!DOCTYPE html><html><body>Sign in</body></html>", encoding="utf-8")
    for load in (minti.load_embeddings, minti.load_lora):
        with pytest.raises(ValueError, match=r"cat.safetensors is a git-lfs pointer, not the file itself; fetch"):
            load(tiny, pointer)
        with pytest.raises(ValueError, match=r"dog.pt is a web page, not the file that it should be"):
            load(tiny, page)


# --- names ------------------------------------------------------------------------------------------------------------


def test_the_files_name_counts_and_the_other_is_told(tmp_path):
    """AUTOMATIC1111's load_from_file: the file's name, but for images."""
    torch.save({"string_to_param": {"*": rows(1)}, "name": "badhandv3"}, tmp_path / "badhandv4.pt")
    with pytest.warns(UserWarning, match=r"badhandv4.pt: .* as the file, 'badhandv4'; inside it is 'badhandv3'"):
        assert list(read(tmp_path / "badhandv4.pt")) == ["badhandv4"]


@pytest.mark.parametrize("name", ["gasai yuno", "charturnerv2_1.5", "cafe\u0301"])
def test_a_prompt_can_say_the_files_name(tiny, tmp_path, name):
    torch.save({"string_to_param": {"*": rows(2)}, "name": name}, tmp_path / f"{name}.pt")
    (word,) = minti.load_embeddings(tiny, tmp_path / f"{name}.pt")
    assert not set(word) & {" ", "\u0301"}
    assert tiny.tokenize(f"a {word} b")[0, 2:4].tolist() == tiny.words[word]


@pytest.mark.parametrize("key", ["emp_params", "emb_params", "clip_l"])
def test_keys_that_are_no_names(tmp_path, key):
    """OneTrainer's, AUTOMATIC1111's, and diffusers' advanced training script's."""
    save_file({key: rows(3)}, tmp_path / "mycat.safetensors")
    assert torch.equal(silently(tmp_path / "mycat.safetensors")["mycat"], rows(3))


def test_what_stands_beside_the_only_vectors(tmp_path):
    """OneTrainer's output embedding is told; of models with several text encoders a word is refused."""
    save_file({"emp_params": rows(1), "emp_params_out": rows(1, 1)}, tmp_path / "cat.safetensors")
    with pytest.warns(UserWarning, match=r"cat.safetensors: emp_params_out, not of SD v1's text encoder, is left out"):
        assert torch.equal(read(tmp_path / "cat.safetensors")["cat"], rows(1))
    for other, model in (("clip_g", "SDXL"), ("t5", "FLUX")):
        save_file({"clip_l": rows(1), other: rows(1, 1)}, tmp_path / "cat.safetensors")
        with pytest.raises(ValueError, match=rf"(clip_l and {other}|{other} and clip_l) are of {model}"):
            read(tmp_path / "cat.safetensors")


@pytest.mark.parametrize(
    ("name", "content"),
    [("w.bin", {"my cat": rows(1), "my-cat": rows(1)}), ("w.pt", {"string_to_param": {"*": rows(1), "w-1": rows(1)}})],
)
@pytest.mark.filterwarnings("ignore:.*is called")
def test_two_words_never_become_one(tmp_path, name, content):
    torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=r"of its words .* two would be called the same"):
        read(tmp_path / name)


@pytest.mark.parametrize("word", ["flora_style", "my_lora_face", "<lora.2>"])
def test_a_words_name_makes_no_lora_of_it(tmp_path, word):
    save_file({word: rows(1), "sksx": rows(1, 1)}, tmp_path / "words.safetensors")
    assert list(silently(tmp_path / "words.safetensors")) == [word, "sksx"]


def test_numbered_keys_in_any_order(tmp_path):
    torch.save({"qa_1": rows(1, 1), "qa_1_1": rows(1, 2), "qa": rows(1)}, tmp_path / "w.bin")
    assert sum(map(len, silently(tmp_path / "w.bin").values())) == 3


def test_a_further_dimension_of_one(tmp_path):
    """diffusers' research projects write (1, 1, d)."""
    torch.save({"<cat>": rows(1)[None]}, tmp_path / "cat.bin")
    assert torch.equal(silently(tmp_path / "cat.bin")["<cat>"], rows(1))


def test_vectors_under_numbered_keys_are_one_word(tmp_path):
    save_file(
        {"<cat>": rows(3)[0], "<cat>_1": rows(3)[1:2], "<cat>_2": rows(3)[2], "<dog>": rows(1, 1)}, tmp_path / "w"
    )
    words = silently(tmp_path / "w")
    assert set(words) == {"<cat>", "<dog>"}
    assert torch.equal(words["<cat>"], rows(3))


def test_a_lora_is_no_word_and_a_word_no_lora(tiny, tmp_path):
    minti.save_lora(minti.LoRA(tiny), tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=r"lora.safetensors is a LoRA, .* load it as a LoRA \(--lora\)"):
        minti.load_embeddings(tiny, tmp_path / "lora.safetensors")
    save_file({"<cat>": rows(1)}, tmp_path / "cat.safetensors")
    with pytest.raises(ValueError, match=r"<cat> is a learned word's: load it as an embedding"):
        minti.load_lora(tiny, tmp_path / "cat.safetensors")


def test_the_words_beside_cloneofsimos_lora(tmp_path):
    """save_all: numbered layers, and the placeholders of pivotal tuning."""
    layers = {f"unet:0:{role}": torch.ones(4, 4) for role in ("up", "down")}
    save_file(layers | {"<s1>": rows(1, 1)[0], "<s2>": rows(1, 2)[0]}, tmp_path / "both.safetensors")
    words = silently(tmp_path / "both.safetensors")
    assert list(words) == ["<s1>", "<s2>"]
    assert torch.equal(words["<s2>"], rows(1, 2)[0])
    save_file(layers, tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="is a LoRA"):
        read(tmp_path / "lora.safetensors")


# --- in images --------------------------------------------------------------------------------------------------------


def as_json(content):
    """AUTOMATIC1111's EmbeddingEncoder."""
    return json.dumps(content, default=lambda tensor: {"TORCHTENSOR": tensor.numpy().tolist()}).encode()


CONTENT = {"string_to_token": {"*": 265}, "string_to_param": {"*": rows(2)}, "name": "probe", "step": 3}


def test_a_word_in_the_text_of_a_png(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("sd-ti-embedding", base64.b64encode(as_json(CONTENT)).decode())
    Image.new("RGB", (64, 64), (90, 120, 200)).save(tmp_path / "preview.png", pnginfo=info)
    words = silently(tmp_path / "preview.png")
    assert torch.equal(words["probe"], rows(2))  # the name inside


def xored(block):
    """A block of low bits under AUTOMATIC1111's random sequence, drawn number by number."""
    numbers, state = [], 0
    for _ in range(block.size):
        state = (1664525 * state + 1013904223) % 2**32
        numbers.append(state % 255)
    return block ^ (np.array(numbers, dtype=np.uint8).reshape(block.shape) & 15)


@pytest.mark.parametrize("name", ["card.png", "card.webp"])
def test_a_word_in_the_pixels(tmp_path, name):
    """As insert_image_data_embed writes it: two blocks with four bits of each byte, black columns, the picture; with
    the black edges that a viewer may add, and high bits that are only decoration."""
    height, data = 64, np.frombuffer(zlib.compress(as_json(CONTENT), 9), np.uint8)
    size = -(-len(data) // (3 * height)) * 3 * height
    low, high = (xored(np.resize(bits, size).reshape(height, -1, 3)) for bits in (data & 15, data >> 4))
    style = np.full(low.shape, 0x50, dtype=np.uint8)  # so that no pixel of a block is black
    picture = np.full((height, 40, 3), 201, dtype=np.uint8)
    black = np.zeros((height, 1, 3), dtype=np.uint8)
    whole = np.concatenate([low | style, black, picture, black, high | style], axis=1)
    framed = np.pad(whole, ((3, 2), (1, 4), (0, 0)))
    Image.fromarray(framed).save(tmp_path / name, lossless=True)
    assert torch.equal(silently(tmp_path / name)["probe"], rows(2))


def test_the_random_sequence_is_theirs():
    """Numbers of AUTOMATIC1111's own test: the first, and the sum of the 100,000 behind the first hundred."""
    assert random_numbers(12).tolist() == [253, 242, 127, 44, 157, 27, 239, 133, 38, 79, 167, 4]
    assert random_numbers(100_100)[100:].astype(int).sum() == 12731374


@pytest.mark.parametrize(
    ("size", "colour", "why"),
    [(64, (0, 0, 0), "black"), (64, (90, 120, 200), "no two blocks"), (4100, (9, 9, 9), "over 16,777,216 pixels")],
)
def test_a_picture_without_a_word(tmp_path, size, colour, why):
    Image.new("RGB", (size, size), colour).save(tmp_path / "cat.png")
    with pytest.raises(ValueError, match=rf"cat.png is an image without a whole learned word in it \(.*{why}"):
        read(tmp_path / "cat.png")


# --- in the tokenizer of a saved pipeline -----------------------------------------------------------------------------


def test_a_saved_pipelines_words_are_whole(tiny, pipeline, tmp_path):
    """diffusers makes "<cat>" of a prompt "<cat> <cat>_1" where the tokenizer has both, and so does minti, which keeps
    them when it saves the model again."""
    for token, vectors in (("<cat>", rows(2)), ("<dog>", rows(1, 1))):
        pipeline.load_textual_inversion({token: vectors})
    pipeline.save_pretrained(tmp_path / "pipeline")
    model = minti.StableDiffusion.from_pretrained(tmp_path / "pipeline")
    options = {"num_inference_steps": 2}
    theirs = pipeline("a <cat> <dog>", generator=seeded(), **options).images[0]
    assert minti.sample(model, "a <cat> <dog>", generator=seeded(), **options)[0].tobytes() == theirs.tobytes()
    model.add_word("<new>", rows(1, 4))
    remove_word(model, "<new>")
    with pytest.raises(ValueError, match="'<cat>' is no word that was added to this model"):
        remove_word(model, "<cat>")
    model.save_pretrained(tmp_path / "again")
    again = minti.StableDiffusion.from_pretrained(tmp_path / "again")
    for one in (model, again):
        assert minti.sample(one, "a <cat> <dog>", generator=seeded(), **options)[0].tobytes() == theirs.tobytes()
    theirs_again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "again", safety_checker=None)
    theirs_again.set_progress_bar_config(disable=True)
    theirs_again.scheduler = pipeline.scheduler
    assert theirs_again("a <cat> <dog>", generator=seeded(), **options).images[0].tobytes() == theirs.tobytes()
    assert minti.sample(model, "a", generator=seeded(), **options)[0].tobytes() != theirs.tobytes()
