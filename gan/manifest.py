"""What a generator's manifest says beyond its file: the draft that the main server publishes it by.

`fedspk server publish --model generator.safetensors --manifest generator.manifest.json` adds the
version, and from the file itself the front end and the corpus. It refuses a file that is another
than the draft tells of: see `content_hash`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedspk.files import write_json
from fedspk.release import Scalar
from gan.generator_file import generator_origin
from gan.invented import file_hash


def write_draft(generator: Path, path: Path, report: Mapping[str, Scalar] | None = None) -> None:
    """Write the draft of a generator file's manifest to `path`.

    Its `content_hash` is the SHA-256 of the file. Of the training it holds the configuration and,
    as `reached_step`, the step that the weights are of.

    Args:
        generator: the file.
        path: of the draft.
        report: figures of `fedspk gan report`, if there is one.

    Raises:
        FedspkError: the file is no generator, or the draft cannot be written.
    """
    origin = generator_origin(generator)
    config = dict(origin.get("training", {}))
    if "reached" in origin:
        config["reached_step"] = origin["reached"]["step"]
    draft = {
        "kind": "gan",
        "content_hash": file_hash(generator),
        "training": {"config": config},
        "report": dict(report or {}),
    }
    write_json(path, draft)
