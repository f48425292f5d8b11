"""A table of vectors by layer and timestep beside everything else: with equal entries each gives what it gives plainly,
and with others what each entry gives as the word's row."""

import pytest
import torch
from helpers import pictures, random_controlnet, random_lora, seeded, train, wrapper
from safetensors.torch import save_file

import minti
from minti.adapter import Adapter
from minti.adapters.controlnet import ControlNet
from minti.adapters.ip_adapter import IPAdapter
from minti.personalization.context_loss import context_loss
from minti.personalization.num_vectors_search import NumVectorsSearch, Restarts, losses_of
from minti.personalization.removal import remove_word
from minti.personalization.vector_table import VectorTable, in_order, load_table, save_table
from minti.speed.deep_cache import DeepCache

LONG = "a photo of a <concept> " * 4 + "in the style of a red cat"


def word(model, layers, ranges, equal=False):
    """A word of two vectors, and its table."""
    shape = (1, 1, 2, 48) if equal else (layers, ranges, 2, 48)
    entries = torch.randn(shape, generator=seeded()).expand(layers, ranges, 2, 48)
    ids = model.add_word("<concept>", entries[0, 0] if equal else entries.mean(dim=(0, 1)))
    return VectorTable(model, entries, ids[0]), entries


@pytest.fixture
def model(tiny):
    """Its contexts have a mean, which A1111's rule restores."""
    encoder = tiny.text_encoder
    with torch.no_grad():
        getattr(encoder, "text_model", encoder).final_layer_norm.bias.normal_(0.5, 0.5, generator=seeded())
    yield tiny.freeze() or tiny


OPTIONS = [
    {"weights": "a1111"},
    {"weights": "compel"},
    {"long_prompts": True},
    {"clip_skip": 1},
    {"weights": "compel", "long_prompts": True, "clip_skip": 2},
]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:the prompt is longer")
@pytest.mark.parametrize("options", OPTIONS)
def test_how_prompts_are_read(model, options):
    """What a cross-attention is given at a timestep is the context of its entry, read by the same options."""
    layers, weight = in_order(model), model.text_encoder.get_input_embeddings().weight
    table, entries = word(model, len(layers), 2)
    signs = {"a1111": " (red:0.5) [cat]", "compel": " red-- (cat)1.4"}.get(options.get("weights"), " red cat")
    prompt, seen = "a <concept>" + signs + (" of the dog" * 6 if options.get("long_prompts") else ""), {}
    with table.attached(model):
        for i, layer in enumerate(layers):
            layer.register_forward_pre_hook(lambda _, inputs, i=i: seen.update({i: inputs[1]}))
        context = model.encode_prompt(prompt, **options)
        model.unet(torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), context.expand(2, -1, -1))
    for i in range(len(layers)):
        for j in range(2):
            weight[table.first : table.first + 2] = entries[i, j]
            torch.testing.assert_close(seen[i][j], model.encode_prompt(prompt, **options)[0])


@pytest.mark.parametrize("other", ["ip-adapter", "lora", "deep cache", "long prompts"])
@pytest.mark.parametrize("first", [True, False])
def test_equal_entries_change_nothing_beside_another_adapter(tiny, other, first):
    """Whichever is attached first."""
    tiny.freeze()
    table, _ = word(tiny, len(in_order(tiny)), 2, equal=True)
    adapter = {
        "ip-adapter": lambda: IPAdapter.beside(tiny, 20, seeded()).requires_grad_(False),
        "lora": lambda: random_lora(tiny).requires_grad_(False),
        "deep cache": lambda: DeepCache(2),
        "long prompts": Adapter,
    }[other]()

    def pixels():
        contexts = [tiny.encode_prompt(text, long_prompts=other == "long prompts") for text in ("a <concept>", "")]
        if other == "long prompts":
            contexts = [
                tiny.encode_prompt([LONG, text], long_prompts=True)[i : i + 1] for i, text in enumerate([LONG, ""])
            ]
        if other == "ip-adapter":
            contexts = [adapter.prompted(context, torch.ones(1, 20)) for context in contexts]
        options = {"num_inference_steps": 3, "guidance_scale": 5.0, "sampler": "ddim", "output": "pixels"}
        return minti.sample(tiny, *contexts, generator=seeded(), **options)

    with adapter.attached(tiny):
        plain = pixels()
    one, two = (table, adapter) if first else (adapter, table)
    with one.attached(tiny), two.attached(tiny):
        assert torch.equal(pixels(), plain)


def test_the_context_loss_is_the_mean_over_the_entries(tiny):
    """Of numerator and denominator each; the latter is the class word's, the same for all entries."""
    table, entries = word(tiny, 1, 3)
    prompts, alone = ["a {} in red", "the {} of a cat"], []
    with table.attached(tiny):
        found = context_loss(tiny, "<concept>", "toy", prompts).item()
    for entry in entries[0]:
        with torch.no_grad():
            tiny.text_encoder.get_input_embeddings().weight[table.first : table.first + 2] = entry
            alone.append(context_loss(tiny, "<concept>", "toy", prompts).item())
    assert found == pytest.approx(sum(alone) / 3, rel=1e-5)


def test_what_cannot_go_together_is_refused_in_a_line(tiny, opened_by_diffusers, tmp_path):
    table, _ = word(tiny, 1, 2)
    random_controlnet(opened_by_diffusers.unet, (16, 32)).save_pretrained(tmp_path)
    control = ControlNet.from_pretrained(tmp_path, tiny)
    control.hint = torch.rand(1, 3, 16, 16)
    with (
        pytest.raises(ValueError, match=r"a ControlNet takes no vectors by layer.*the word <concept>.*--embedding"),
        table.attached(tiny),
        control.attached(tiny),
    ):
        minti.sample(tiny, "a <concept>", num_inference_steps=1)
    other = VectorTable(tiny, torch.randn(1, 2, 1, 48), tiny.add_word("<two>", torch.ones(1, 48))[0])
    with (
        pytest.raises(ValueError, match="the word <two> and the word <concept> both have vectors by layer"),
        table.attached(tiny),
        other.attached(tiny),
    ):
        pass
    remove_word(tiny, "<concept>")
    for one in (table, other):
        with pytest.raises(ValueError, match=r"is no longer where its table put it.*load it again"), one.attached(tiny):
            pass
    plain = minti.sample(tiny, "a <two>", num_inference_steps=1, generator=seeded(), output="latents")
    assert plain.isfinite().all()  # no hook is left


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(1, 1, 1, 48)], "is no table of embedding vectors"),
        ({"<x>": 3}, "is no table of embedding vectors"),
        ({"<x>": torch.ones(2, 48)}, r"is no table .*a word with one entry goes to load_embeddings \(--embedding\)"),
        ({"<x>": torch.ones(1).expand(1, 1000, 70, 10**7)}, "is no table of embedding vectors"),
        ({"<x>": torch.ones(1, 2, 1, 48).to_sparse()}, "is no table of embedding vectors"),
        ({5: torch.ones(1, 2, 1, 48)}, "the word 5 is not text"),
        ({"<x>": torch.ones(1, 2, 1, 48, dtype=torch.int64)}, "of floating point numbers"),
        ({"<x>": torch.ones(1, 0, 1, 48)}, "expected its embedding vectors"),
        ({"<x>": torch.ones(1, 1, 1, 48).expand(1, 1001, 1, 48).clone()}, "has 1001 ranges of timesteps"),
        ({"<x>": torch.ones(1, 1, 1, 768)}, "it was learned on another model, SD 1 by its width"),
        ({"\ud800": torch.ones(1, 1, 1, 48)}, "half a character"),
    ],
)
def test_files_that_are_no_tables(tiny, tmp_path, content, message):
    torch.save(content, tmp_path / "table.bin")
    with pytest.raises(ValueError, match=message):
        load_table(tiny, tmp_path / "table.bin")
    assert not tiny.words


def test_beside_the_file_of_its_mean(tiny, tmp_path):
    """`train.py` writes both, of which a model takes one."""
    table, _ = word(tiny, 1, 2)
    save_table(tmp_path / "t.safetensors", "<concept>", table)
    with pytest.raises(ValueError, match=r"t\.safetensors: the model has <concept> already; .*\(--embedding\)"):
        load_table(tiny, tmp_path / "t.safetensors")


def test_a_table_is_told_from_a_word(tiny, tmp_path):
    save_file({"<x>": torch.ones(1, 2, 1, 48)}, tmp_path / "table.safetensors")
    for use in (minti.load_embeddings, lambda model, path: wrapper(model, initializer_token=path).initial_vectors()):
        with pytest.raises(ValueError, match=r"table\.safetensors.*by layer or timestep.*--vector-table"):
            use(tiny, tmp_path / "table.safetensors")


@pytest.mark.parametrize("kind", [Restarts, NumVectorsSearch])
def test_runs_of_a_table_are_compared_with_it(tiny, kind):
    """By the loss with its entries, not with their mean."""
    w = wrapper(tiny, timestep_ranges=2, steps=2, learning_rate=0.5)
    search, expected = kind(tiny, w.config, pictures(), most=2, size=4), []
    for tried in search:
        for _ in minti.textual_inversion(tried, pictures()):
            pass
        with tried.embedding.attached(tiny):
            expected.append(losses_of(tiny, search.validation, tried.prompts).mean().item())
    assert [decision.loss for decision in search.decisions] == expected
    with search.best.embedding.attached(tiny):
        kept = [loss for loss, decision in zip(expected, search.decisions) if decision.kept][-1]
        assert losses_of(tiny, search.validation, search.best.prompts).mean().item() == kept


def test_it_is_resumed_bit_for_bit(tiny_folder, tmp_path):
    """With every option that changes a table's steps."""
    options = {"by_layer": True, "timestep_ranges": 2, "directional": True, "context_weight": 0.1, "num_vectors": 2}
    options |= {"context_prompts": ["a {} in red"], "initializer_token": "toy cat", "steps": 4}
    open_model = lambda: minti.StableDiffusion.from_pretrained(tiny_folder)  # noqa: E731
    whole, _ = train(open_model(), **options)
    half = wrapper(open_model(), **options)
    run = iter(minti.monitored(minti.textual_inversion(half, pictures())))
    next(run), next(run)
    minti.save_checkpoint(half, tmp_path)
    rest = wrapper(open_model(), **options)
    checkpoint = minti.load_checkpoint(tmp_path)
    assert len(list(minti.monitored(minti.textual_inversion(rest, pictures(), checkpoint=checkpoint)))) == 2
    assert torch.equal(rest.embedding.entries, whole.embedding.entries)


def test_several_starts_of_several_vectors(tiny):
    """How many starts there are has nothing to do with how many vectors; the last seed is followed by the first."""
    config = wrapper(tiny, num_vectors=3, steps=1, seed=2**63 - 1).config
    search, seeds = Restarts(tiny, config, pictures(), most=2, size=4), []
    for tried in search:
        seeds.append(tried.config.seed)
        next(minti.textual_inversion(tried, pictures()))
    assert seeds == [2**63 - 1, 0]
    assert search.best.embedding.values.shape == (3, 48)
    with pytest.raises(ValueError, match="most = 0 runs"):
        Restarts(tiny, config, pictures(), most=0)


def test_a_table_that_is_not_finite_is_not_written(tiny, tmp_path):
    table, _ = word(tiny, 1, 2)
    table.table_values.data[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"t\.safetensors is not written: <concept> is not finite"):
        save_table(tmp_path / "t.safetensors", "<concept>", table)
    assert not list(tmp_path.iterdir())


def test_flags_are_true_or_false():
    for flag in ("by_layer", "directional", "masked", "horizontal_flip", "gradient_checkpointing"):
        for wrong in ("no", 1, None):
            with pytest.raises(ValueError, match=f"{flag} = {wrong!r}; expected True or False"):
                minti.TextualInversionConfig(min_snr=5, **{flag: wrong})


def test_a_loaded_table_of_half_precision(tiny, tmp_path):
    """It is float32, on the model's device, and what was saved."""
    table, entries = word(tiny, 1, 2)
    save_table(tmp_path / "t.safetensors", "<other>", table)
    loaded = load_table(tiny.freeze() or tiny, tmp_path / "t.safetensors")
    assert loaded.table_values.device == tiny.device
    assert torch.equal(loaded.entries, entries[0])
