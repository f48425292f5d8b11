"""Models by their id on the hub, and what goes wrong there."""

import types

import huggingface_hub
import pytest
from helpers import assert_same
from huggingface_hub import errors

import minti
from minti.formats import hub

NETWORK = "diffusion_pytorch_model"


def test_a_hub_id_fetches_what_is_needed(tiny, tiny_folder, monkeypatch):
    calls = []

    def download(hub_id, **options):
        calls.append((hub_id, options))
        return str(tiny_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same(minti.StableDiffusion.from_pretrained("CompVis/stable-diffusion-v1-4", revision="main"), tiny)
    ((hub_id, options),) = calls
    assert (hub_id, options["revision"]) == ("CompVis/stable-diffusion-v1-4", "main")
    wanted = options["allow_patterns"]
    fetched = lambda names: list(huggingface_hub.utils.filter_repo_objects(names, allow_patterns=wanted))  # noqa: E731
    needed = [
        "unet/config.json",
        f"unet/{NETWORK}.safetensors",
        f"vae/{NETWORK}.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/vocab.json",
        "scheduler/scheduler_config.json",
        f"unet/{NETWORK}.safetensors.index.json",
        f"unet/{NETWORK}-00001-of-00002.safetensors",
    ]
    assert fetched(needed) == needed
    assert not fetched(
        [
            "safety_checker/model.safetensors",
            f"unet/{NETWORK}.bin",
            f"unet/{NETWORK}.fp16.safetensors",
            f"unet/{NETWORK}.non_ema.safetensors",
            "sd-v1-4.ckpt",
        ]
    )
    half = hub.needed_files("fp16")
    assert f"unet/{NETWORK}.fp16.safetensors" in half
    assert f"unet/{NETWORK}.safetensors" not in half


def http_error(kind):
    response = types.SimpleNamespace(headers={}, status_code=403, request=None)
    return kind("no\nmore than one line", response=response)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (http_error(errors.GatedRepoError), "accept its licence first.*hf auth login"),
        (http_error(errors.RepositoryNotFoundError), "no such model is visible"),
        (http_error(errors.RevisionNotFoundError), "no such revision"),
        (http_error(errors.HfHubHTTPError), "the hub answered: no"),
        (errors.LocalEntryNotFoundError("offline"), "not in the local cache, and the hub cannot be reached"),
        (OSError(28, "No space left on device"), "no space is left on the disk"),
    ],
)
def test_what_goes_wrong_with_the_hub_is_one_line(monkeypatch, error, message):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(OSError, match=message) as caught:
        minti.StableDiffusion.from_pretrained("someone/some-model")
    assert "\n" not in str(caught.value)
    assert "someone/some-model" in str(caught.value)
