"""Several adapters as one."""

import pytest
from helpers import random_lora

from minti.adapters.compose import Compose


def test_a_member_cannot_be_attached_once_more(tiny):
    """It would act twice; nor can what has a member that is attached."""
    lora = random_lora(tiny)
    both = Compose(lora, random_lora(tiny, seed=2))
    with both.attached(tiny), pytest.raises(RuntimeError, match="is attached to a model already"), lora.attached(tiny):
        pass
    with lora.attached(tiny), pytest.raises(RuntimeError, match="is attached to a model already"), both.attached(tiny):
        pass
    with lora.attached(tiny):  # nothing is left of the refusals
        pass
    assert not any(module._forward_hooks for module in tiny.unet.modules())
