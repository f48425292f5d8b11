"""Ctrl-C, SIGTERM and a closed terminal let a run finish its step and save; a second signal ends it at once."""

import signal
import sys
from contextlib import suppress
from types import FrameType

import torch

from minti.runs import distributed

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = tuple(filter(None, (signal.SIGINT, signal.SIGTERM, HANGUP)))


class Interruption:
    """A context in which the first signal is only noted.

    Attributes:
        number: of the signal; 0 as long as there was none.
    """

    def __init__(self) -> None:
        self.number = 0

    def __enter__(self) -> "Interruption":
        # nohup ignores SIGHUP, and goes on doing so
        caught = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self.former = {number: signal.signal(number, self._note) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in self.former.items():
            signal.signal(number, former)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        for each in self.former:  # kernel and shell both tell of a closed terminal, so SIGHUP often comes twice
            signal.signal(each, signal.SIG_IGN if each == HANGUP else signal.SIG_DFL)
        with suppress(OSError):  # nobody reads it
            print("\nstopping after this step; once more to stop at once", file=sys.stderr)

    def asked(self, device: torch.device) -> bool:
        """Whether to stop now; several processes agree on it.

        Args:
            device: where they exchange what they know.
        """
        asked = distributed.add_up(torch.tensor(self.number, device=device)).item()
        self.number = self.number or asked  # of another process
        return bool(asked)
