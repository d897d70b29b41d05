"""What a generator's manifest says beyond its file: the draft that the main server publishes it by.

`fedspk server publish --model generator.safetensors --manifest generator.manifest.json` adds the
version, the hash, and from the file itself the front end and the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedspk.files import write_json
from fedspk.release import Scalar
from gan.generator_file import generator_origin


def write_draft(generator: Path, path: Path, report: Mapping[str, Scalar] | None = None) -> None:
    """Write the draft of a generator file's manifest to `path`.

    `report` holds figures of `fedspk gan report`, if there is one.

    Raises:
        FedspkError: the file is no generator, or the draft cannot be written.
    """
    origin = generator_origin(generator)
    draft = {
        "kind": "gan",
        "training": {"config": dict(origin.get("training", {}))},
        "report": dict(report or {}),
    }
    write_json(path, draft)
