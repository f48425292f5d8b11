"""Ctrl-C and SIGTERM let a run finish its step and save; a second one ends it at once."""

import signal
import sys
from types import FrameType

import torch

from minti.runs import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """A context in which the first signal is only noted.

    Attributes:
        number: of the signal; 0 as long as there was none.
    """

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> "Interruption":
        self.former = [signal.signal(number, self._note) for number in SIGNALS]
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in zip(SIGNALS, self.former):
            signal.signal(number, former)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)

    def asked(self, device: torch.device) -> bool:
        """Whether to stop now; several processes agree on it.

        Args:
            device: where they exchange what they know.
        """
        asked = distributed.add_up(torch.tensor(self.number, device=device)).item()
        self.number = self.number or asked  # of another process
        return bool(asked)
