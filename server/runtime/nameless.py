"""Files that go when nobody has them open any more: what processes of one machine share."""

from __future__ import annotations

import os
import tempfile
from typing import IO


def nameless_file() -> IO[bytes]:
    """A new one, empty; in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("ml-trainer"), "w+b")
    return tempfile.TemporaryFile()
