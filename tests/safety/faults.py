"""What can go wrong for a process, done to it before a script runs: it dies, is stopped or signalled, the disk is full.

The moments are counted in operations on files, so that they lie within a save as well as between two.
"""

import errno
import os
import resource
import signal
import socket
import time
from pathlib import Path

import minti.learning.run_state
import minti.words.files

OPERATIONS = ("fsync", "chmod", "replace", "unlink")


def _before(act):
    """Calls `act(operation, number)` before every operation on a file, numbered from 1."""
    count = 0

    def counted(name, original):
        def operation(*args, **kwargs):
            nonlocal count
            count += 1
            act(name, count)
            return original(*args, **kwargs)

        return operation

    for name in OPERATIONS:
        setattr(os, name, counted(name, getattr(os, name)))
    for module in (minti.learning.run_state, minti.words.files):
        module.save_file = counted("write", _in_two_parts(module.save_file))


def _in_two_parts(save_file):
    """The second half of a file comes after one more operation: there is a moment at which it is half written."""

    def halves(tensors, path, *args):
        save_file(tensors, path, *args)
        content = Path(path).read_bytes()
        Path(path).write_bytes(content[: len(content) // 2])
        os.chmod(path, 0o600)  # an operation like any other
        Path(path).write_bytes(content)

    return halves


def signal_at(number, name, times=1):
    """At the `number`-th operation the process sends itself a signal."""

    def act(operation, count):
        if number <= count < number + times:
            os.kill(os.getpid(), getattr(signal, name))

    _before(act)


def interrupted_while_loading():
    """Ctrl-C while the model is read."""

    def from_pretrained(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    minti.StableDiffusion.from_pretrained = from_pretrained


def fail_at(number, operation="replace", code=errno.EIO):
    """The `number`-th operation, if it is this one or else the next such one, is refused by the system."""
    failed = []

    def act(name, count):
        if count >= number and name == operation and not failed:
            failed.append(True)
            raise OSError(code, os.strerror(code))

    _before(act)


def slow(seconds):
    """Every operation takes its time."""
    _before(lambda operation, count: time.sleep(seconds))


def small_files(size):
    """No file may grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def as_nobody():
    """Root may write anywhere; nobody may not."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def no_network():
    """Whoever asks for a name or a connection ends the process."""

    def refused(*args, **kwargs):
        os.write(2, f"asked for the network: {args}\n".encode())
        os._exit(99)

    socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refused
