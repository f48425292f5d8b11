"""What can go wrong for a process, done to it before a script runs: it dies, is stopped or signalled, the disk is full.

A moment is an operation on a file, by its kind and a part of the file's name: within a save as well as between two.
"""

import errno
import os
import resource
import signal
import socket
import sys
import time
from pathlib import Path

import torch

import minti

OPERATIONS = ("fsync", "chmod", "replace", "unlink")


def _before(act):
    """Calls `act(operation, path)` before every operation on a file."""

    def watched(name, original):
        def operation(*args, **kwargs):
            act(name, os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else str(args[0]))
            return original(*args, **kwargs)

        return operation

    for name in OPERATIONS:
        setattr(os, name, watched(name, getattr(os, name)))
    torch.save = _in_two_parts(torch.save, act)
    for name, module in list(sys.modules.items()):
        if name.startswith("minti") and hasattr(module, "save_file"):
            module.save_file = _in_two_parts(module.save_file, act)


def _in_two_parts(save, act):
    """The second half of a file comes after one more operation, "write": at that moment it is half written."""

    def halves(content, path, *args):
        save(content, path, *args)
        if hasattr(path, "flush"):  # an open file
            path.flush()
            path = path.name
        if isinstance(path, (str, Path)):
            data = Path(path).read_bytes()
            Path(path).write_bytes(data[: len(data) // 2])
            act("write", str(path))
            Path(path).write_bytes(data)

    return halves


def signal_at(operation, file, name, times=1):
    """At the first such operation the process sends itself a signal; `times` = 2: and at the operation after it."""
    sent = 0

    def act(what, path):
        nonlocal sent
        if (sent or (what == operation and file in path)) and sent < times:
            sent += 1
            os.kill(os.getpid(), getattr(signal, name))

    _before(act)


def closed_terminal():
    """Whatever is printed fails, as on a terminal that has been closed."""
    ours, theirs = os.openpty()
    for descriptor in (1, 2):
        os.dup2(theirs, descriptor)
    os.close(theirs)
    os.close(ours)


def nohup():
    """SIGHUP is ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def killed_at(number):
    """At so many operations, whatever they are."""
    count = 0

    def act(what, path):
        nonlocal count
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    _before(act)


def interrupted_while_loading():
    """Ctrl-C while the model is read."""

    def from_pretrained(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    minti.StableDiffusion.from_pretrained = from_pretrained


def fail_at(operation, file, code=errno.EIO):
    """The first such operation is refused by the system."""
    failed = []

    def act(what, path):
        if what == operation and file in path and not failed:
            failed.append(True)
            raise OSError(code, os.strerror(code))

    _before(act)


def slow(seconds):
    """Every operation takes its time."""
    _before(lambda operation, path: time.sleep(seconds))


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
