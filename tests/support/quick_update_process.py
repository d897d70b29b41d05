"""The program `clients.update_process`, quick: models are toys, and nobody has priority over it."""

from __future__ import annotations

import following_device
import pytest

from clients import update_process

if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    following_device.quickly(patch)
    patch.setattr(update_process, "_NICE", 0)
    update_process.main()
