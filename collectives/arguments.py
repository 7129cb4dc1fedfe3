"""What the command lines of this package have in common. Nothing heavy is imported here."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path
from typing import NoReturn

from collectives.algorithms import find

UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse, and by the commands for what argparse cannot see."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")


def allreduce(text: str) -> str:
    """The name of an algorithm that exists."""
    try:
        find(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def num_bytes(text: str) -> int:
    """64K, 1M or a plain number of bytes."""
    factor = UNITS.get(text[-1:].upper(), 1)
    number = text[:-1] if factor > 1 else text
    if not (number.isascii() and number.isdecimal() and int(number)):
        raise argparse.ArgumentTypeError(f"bytes must look like 4096, 64K or 1M, got {text!r}")
    return int(number) * factor


def count(text: str) -> int:
    """A number of at least 1."""
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """A number of at least 0, such as 2e-5."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise argparse.ArgumentTypeError(f"must be 0 or more seconds, such as 2e-5, got {text!r}")
    return found


def writable(text: str) -> str:
    """A file that can be written, or - for standard output."""
    file = Path(text)
    if text != "-" and (
        file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK)
    ):
        raise argparse.ArgumentTypeError(f"must be a writable file, got {text!r}")
    return text
