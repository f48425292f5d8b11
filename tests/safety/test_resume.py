"""A run that goes on from a checkpoint ends byte for byte where it would have ended (float32, on the CPU)."""

import itertools
import math

import pytest
import torch
from helpers import NarrowScaler, learning, pictures

import minti
from minti.embeddings import write_embeddings
from minti.runs import monitor
from minti.runs.checkpoints import resumed

CONFIGS = {
    "plain": {},
    "restore": {"row_update": "restore"},
    "many": {"num_vectors": 2, "gradient_accumulation": 2, "horizontal_flip": True, "max_row_norm": 2.0},
    "cosine": {"lr_schedule": "cosine", "warmup_steps": 2, "row_update": "restore", "num_vectors": 2},
}


def wrapper(folder, **options):
    model = minti.StableDiffusion.from_pretrained(folder)
    config = {"placeholder_token": "<new>", "initializer_token": "toy", "batch_size": 4, "steps": 4}
    config |= {"learning_rate": 3e-2} | options
    return minti.TrainingWrapper(model, minti.TextualInversionConfig(**config))


def learned(word, path):
    minti.save_embeddings(word, path)
    return path.read_bytes()


@pytest.fixture
def often(monkeypatch):
    """The validation loss is evaluated after every second step: short runs have best values, and can level off."""
    monkeypatch.setattr(monitor, "evaluation_interval", lambda *_: 2)


def interrupted_at_every_step(tiny_folder, tmp_path, options, steps):
    """Writes a checkpoint after each step, goes on from those in `steps`, and compares all that comes out."""
    whole, states = wrapper(tiny_folder, **options), []
    for state in learning(whole):
        states.append(state)
        minti.save_checkpoint(whole, tmp_path / str(state.step))
    expected = learned(whole, tmp_path / "whole.safetensors")
    assert whole.trainer.monitor.best_step > 0
    for step in steps or range(1, len(states) + 1):
        again = wrapper(tiny_folder, **options)
        checkpoint = minti.load_checkpoint(tmp_path / str(step))
        assert list(learning(again, checkpoint=checkpoint)) == states[step:]
        assert learned(again, tmp_path / "again.safetensors") == expected
        assert again.trainer.monitor.best_step == whole.trainer.monitor.best_step
        assert again.trainer.monitor.losses == whole.trainer.monitor.losses
        assert again.trainer.skipped == whole.trainer.skipped
        assert again.trainer.scaler.state_dict() == whole.trainer.scaler.state_dict()
    return states


@pytest.mark.parametrize("name", ["many", "cosine"])
def test_interrupted_at_one_step(tiny_folder, tmp_path, often, name):
    interrupted_at_every_step(tiny_folder, tmp_path, CONFIGS[name], (3,))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["new_rows", "restore"])
def test_interrupted_while_a_scale_is_looked_for(tiny_folder, tmp_path, often, monkeypatch, form):
    """As in float16: the scale halves where the gradient overflows, and grows after every second good step.

    Interrupted within the lost steps, within the good ones, and at the end.
    """
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, **__: NarrowScaler(2.0**17, growth_interval=2))
    run = {"row_update": form, "lr_schedule": "cosine", "steps": 8}
    states = interrupted_at_every_step(tiny_folder, tmp_path, run, (1, 4, 8))
    lost = [math.isnan(state.gradient_norm) for state in states]
    assert lost == [True, True, False, False, True, False, False, True]
    falling = itertools.accumulate(lost, lambda count, was_lost: count + (not was_lost), initial=0)
    expected = [3e-2 * 0.5 * (1 + math.cos(math.pi * count / 8)) for count in falling]
    assert [state.learning_rate for state in states] == pytest.approx(expected[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_interrupted_at_every_step(tiny_folder, tmp_path, often, name):
    interrupted_at_every_step(tiny_folder, tmp_path, CONFIGS[name], None)


@pytest.mark.slow
def test_a_run_that_stops_by_itself_stops_at_the_same_step(tiny_folder, tmp_path, monkeypatch):
    """Evaluated after every step, so that it levels off soon; at its last step there is nothing more to do."""
    monkeypatch.setattr(monitor, "evaluation_interval", lambda *_: 1)
    options = {"steps": None, "max_steps": 40, "learning_rate": 0.3, "batch_size": 2}
    states = interrupted_at_every_step(tiny_folder, tmp_path, options, (1, 5))
    assert len(states) < 40
    again = wrapper(tiny_folder, **options)
    checkpoint = minti.load_checkpoint(tmp_path / str(len(states)))
    assert list(learning(again, checkpoint=checkpoint)) == []
    assert learned(again, tmp_path / "again.safetensors") == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.slow
def test_a_state_taken_after_the_loop_was_left_is_that_of_the_last_step(tiny_folder, tmp_path, often):
    """The model then has the best vectors; the run goes on from its last."""
    whole = wrapper(tiny_folder, learning_rate=3.0)
    for state in learning(whole):
        pass
    left = wrapper(tiny_folder, learning_rate=3.0)
    for state in learning(left):
        if state.step == 3:
            break
    minti.save_checkpoint(left, tmp_path / "left")
    again = wrapper(tiny_folder, learning_rate=3.0)
    for _ in learning(again, checkpoint=minti.load_checkpoint(tmp_path / "left")):
        pass
    assert left.trainer.monitor.best_step < 3  # what was left in the model is not what the run goes on with
    assert torch.equal(again.trainer.monitor.last["values"], whole.trainer.monitor.last["values"])
    assert learned(again, tmp_path / "a.safetensors") == learned(whole, tmp_path / "b.safetensors")


@pytest.mark.parametrize("form", ["new_rows", "restore"])
def test_another_word_that_was_loaded_since_is_no_part_of_the_state(tiny_folder, tmp_path, often, form):
    """The embedding has grown behind the word that learns; the run goes on where it has not."""
    whole = wrapper(tiny_folder, row_update=form)
    for state in learning(whole):
        if state.step == 2:
            write_embeddings(tmp_path / "other.safetensors", {"<other>": torch.ones(3, 48)})
            minti.load_embeddings(whole.model, tmp_path / "other.safetensors")
        if state.step == 3:
            minti.save_checkpoint(whole, tmp_path / "at 3")
    again = wrapper(tiny_folder, row_update=form)
    list(learning(again, checkpoint=minti.load_checkpoint(tmp_path / "at 3")))
    assert learned(again, tmp_path / "a.safetensors") == learned(whole, tmp_path / "b.safetensors")


def test_an_optimizer_that_was_in_use_takes_the_state_alone(tiny_folder, checkpoint):
    """Also one that kept more than what the checkpoint has."""
    word = wrapper(tiny_folder)
    optimizer = minti.prepare_for_textual_inversion(word)
    optimizer.state[word.embedding.trainable()[0]] = {"step": torch.tensor(9.0), "more": torch.ones(1, 48)}
    trainer = minti.textual_inversion(word, pictures(), optimizer, checkpoint)
    (saved,), (own,) = checkpoint.state["optimizer"].values(), trainer.optimizer.state.values()
    assert own.keys() == saved.keys()
    assert all(torch.equal(value, saved[key]) for key, value in own.items())


def test_there_is_no_state_in_the_middle_of_a_step(tiny, tmp_path, monkeypatch):
    word = minti.TrainingWrapper(tiny, minti.TextualInversionConfig(initializer_token="toy", steps=3, batch_size=1))
    with pytest.raises(ValueError, match="nothing to save yet"):
        minti.save_checkpoint(word, tmp_path)
    steps = minti.textual_inversion(word, pictures())
    next(steps)
    monkeypatch.setattr(tiny.unet, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(steps)
    with pytest.raises(ValueError, match="in the middle of step 2"):
        minti.save_checkpoint(word, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def two_steps(tiny_folder, tmp_path_factory):
    folder, word = tmp_path_factory.mktemp("two"), wrapper(tiny_folder, steps=2)
    for _ in learning(word):
        minti.save_checkpoint(word, folder)
    return folder


@pytest.fixture
def checkpoint(two_steps):
    return minti.load_checkpoint(two_steps)


def refusal(trainer, checkpoint):
    with pytest.raises(ValueError, match="the checkpoint is of another run: ") as caught:
        resumed(trainer, checkpoint)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix("the checkpoint is of another run: ")


def test_another_run_is_refused_with_the_difference_named(tiny_folder, checkpoint):
    word = wrapper(tiny_folder, learning_rate=0.02, seed=3, templates=("my {}",))
    message = refusal(minti.textual_inversion(word, pictures()), checkpoint)
    assert message.startswith("learning_rate was 0.03 and is 0.02; seed was 0 and is 3; templates was [")
    assert message.endswith("and is ['my {}']. Go on with the same, or begin anew")
    word = wrapper(tiny_folder)
    minti.prepare_for_textual_inversion(word)
    optimizer = torch.optim.SGD(word.embedding.trainable(), 1)
    message = refusal(minti.textual_inversion(word, pictures(seed=1), optimizer), checkpoint)
    assert message.startswith("images was ") and "; optimizer was AdamW and is SGD. Go on" in message
    assert message.count(";") == 1
    word = wrapper(tiny_folder)
    word.unet.conv_in.weight.data.flatten()[0] += 1e-3
    assert refusal(minti.textual_inversion(word, pictures()), checkpoint).startswith("model was ")
    word = wrapper(tiny_folder)
    for part in (word.unet, word.vae, word.text_encoder):
        part.to(torch.bfloat16)
    trainer = minti.textual_inversion(word, pictures())
    assert "dtype was torch.float32 and is torch.bfloat16; model was" in refusal(trainer, checkpoint)
    checkpoint.identity["processes"] = 2
    assert refusal(trainer, checkpoint).endswith("processes was 2 and is 1. Go on with the same, or begin anew")


@pytest.mark.parametrize(("schedule", "steps"), [("constant", 3), ("cosine", 2), ("cosine", 3)])
def test_a_schedule_that_ends_elsewhere_is_told(tiny_folder, tmp_path, recwarn, schedule, steps):
    """A cosine of 3 steps in place of 2 has another rate after one step: 1/2 (1 + cos(pi / n)) of the highest."""
    short = wrapper(tiny_folder, steps=2, lr_schedule=schedule)
    next(iter(learning(short)))
    minti.save_checkpoint(short, tmp_path)
    longer = wrapper(tiny_folder, steps=steps, lr_schedule=schedule)
    assert len(list(learning(longer, checkpoint=minti.load_checkpoint(tmp_path)))) == steps - 1
    new, old = (f"{3e-2 * 0.5 * (1 + math.cos(math.pi / n)):.3g}" for n in (3, 2))
    line = f"goes on with {new} in place of {old}: its schedule ends at the last step, which was 2 and is 3"
    assert [str(each.message) for each in recwarn] == [f"the learning rate {line}"] * (
        (schedule, steps) == ("cosine", 3)
    )


def test_a_machine_that_rounds_otherwise_has_the_same_images(tiny_folder, checkpoint):
    """Other kernels, or another number of threads, change the last bits of what the VAE makes of them."""
    word = wrapper(tiny_folder, steps=2)
    trainer = minti.textual_inversion(word, pictures())
    trainer.data.mean.mul_(1 + 1e-6)
    assert resumed(trainer, checkpoint).number == 2


def test_a_refused_word_has_the_vectors_it_began_with(tiny_folder, checkpoint):
    word = wrapper(tiny_folder, seed=1)
    with pytest.raises(ValueError, match="seed was 0 and is 1"):
        minti.textual_inversion(word, pictures(), checkpoint=checkpoint)
    weight = word.text_encoder.get_input_embeddings().weight
    assert torch.equal(weight[-1], weight[word.tokenizer.convert_tokens_to_ids("toy</w>")])


def test_more_steps_are_allowed_and_fewer_are_not(tiny_folder, checkpoint):
    with pytest.raises(ValueError, match="of step 2, beyond the 1 wanted"):
        minti.textual_inversion(wrapper(tiny_folder, steps=1), pictures(), checkpoint=checkpoint)
    word = wrapper(tiny_folder, steps=None, max_steps=3)
    states = list(learning(word, checkpoint=checkpoint))
    assert [state.step for state in states] == [3]


@pytest.mark.slow
def test_a_cosine_that_is_made_longer_has_the_rate_of_the_longer_run(tiny_folder, tmp_path):
    options = {"lr_schedule": "cosine", "warmup_steps": 1}
    word = wrapper(tiny_folder, steps=2, **options)
    for _ in learning(word):
        minti.save_checkpoint(word, tmp_path)
    rates = [state.learning_rate for state in learning(wrapper(tiny_folder, **options))]
    longer = wrapper(tiny_folder, **options)
    states = list(learning(longer, checkpoint=minti.load_checkpoint(tmp_path)))
    assert [state.learning_rate for state in states] == rates[2:]


def test_a_word_s_checkpoint_has_its_own_rows_alone(tmp_path):
    """Of E4's recipe too, whose optimizer trains the whole matrix: 49,408 rows, thrice, in SD v1.4."""

    def tensors(state):
        if isinstance(state, dict):
            return [tensor for value in state.values() for tensor in tensors(value)]
        return [state] if isinstance(state, torch.Tensor) else []

    model = minti.StableDiffusion.from_pretrained()
    word = minti.TrainingWrapper(model, minti.TextualInversionConfig(row_update="restore", num_vectors=2, batch_size=1))
    next(learning(word, torch.zeros(1, 3, model.resolution, model.resolution)))
    path, width = minti.save_checkpoint(word, tmp_path), word.embedding.values.shape[1]
    state = minti.load_checkpoint(tmp_path).state
    found = tensors({key: state[key] for key in ("adapter", "optimizer", "monitor")})
    assert {tuple(tensor.shape) for tensor in found} == {(2, width), ()}
    assert path.stat().st_size < 2**20


def test_settings_at_their_defaults_are_no_other_run(tiny_folder, tmp_path):
    """A config with further settings (`PersonalizationConfig`), all at their defaults, asks for the same run."""
    for given in ({}, {"horizontal_flip": False, "huber": None}):
        word = wrapper(tiny_folder, **given)
        next(minti.textual_inversion(word, pictures()))
        minti.save_checkpoint(word, tmp_path)
        other = wrapper(tiny_folder, **({} if given else {"masked": False}))
        assert type(other.config) is not type(word.config)
        trainer = minti.textual_inversion(other, pictures(), checkpoint=minti.load_checkpoint(tmp_path))
        assert next(trainer).step == 2
