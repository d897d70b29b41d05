"""Where the parts of a Flower run keep their files when its configuration names no folder."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

PUBLIC_SPEAKERS = 8
"""Speakers of a corpus that serve every node as impostors when nodes draw their own data."""


def run_folder(run_id: int) -> Path:
    """Return the run's folder below FEDSPK_CACHE or the user's cache; both sides agree on it."""
    root = os.environ.get("FEDSPK_CACHE") or platformdirs.user_cache_dir("fedspk")
    return Path(root).expanduser().absolute() / "flower" / f"run-{run_id}"
