"""Embeddings of images on their way to another, or to the difference of two texts."""

import pytest
import torch
import torch.nn.functional as F
from helpers import seeded
from running import script_inside

from image_embeddings import text_difference


@pytest.mark.fast
def test_an_embedding_turns_by_a_share_of_its_angle_to_the_difference():
    """It keeps its length, stays in the plane of both, and turns by share times the angle, as a rotation."""
    image, before, after = (F.normalize(torch.randn(1, 6, generator=seeded(i)).double(), dim=1) for i in range(3))
    aim = F.normalize(after - before, dim=1)
    angle = (image @ aim.T).acos().item()
    across = F.normalize(aim - (image @ aim.T) * image, dim=1)
    for share in (0.0, 0.25, 0.6, 1.0):
        turn = torch.tensor(share * angle, dtype=torch.float64)
        got = text_difference(image, before, after, share)
        torch.testing.assert_close(got, turn.cos() * image + turn.sin() * across, rtol=1e-6, atol=1e-6)


def test_the_command(tmp_path):
    """The first sample shows the first image's toy, the last the other's; red becomes green by the texts."""
    said = script_inside("toybox/image_embeddings.py", "--count", 3, "--steps", 10, "--output", tmp_path).stdout
    seen = [line.split("|")[3].strip() for line in said.splitlines() if line.startswith(("| interp", "| text"))]
    assert (seen[0], seen[2]) == ("red cross", "blue heart")
    assert (seen[3], seen[5]) == ("red cross", "green cross")
    assert (tmp_path / "image_embeddings.png").is_file()
