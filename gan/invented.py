"""The invented speakers of a federated run, the same on all its devices, and their classes."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import torch

from fedspk.errors import FedspkError
from fedspk.model import HeadConfig, SpeakerModel
from fedspk.parallel import one_torch_thread
from fedspk.rounds import RunConfig
from fedspk.run_model import federated_model, run_front_end, run_network, shared_names
from fedspk.seeds import derive
from fedspk.training import fit_head
from fedspk.weights import FloatVector, flatten
from gan.generator_file import check_front_end, load_generator
from gan.sampling import InventedVoices

VALIDATION_TAKE = 0
"""The take of every invented speaker that validates; training draws others."""

_TAKES_HEARD = range(VALIDATION_TAKE + 1, VALIDATION_TAKE + 9)
_CLASSES = "head.classes.public"


def run_voices(generator: Path, config: RunConfig) -> InventedVoices:
    """Return the invented speakers of a run, the same on all its devices.

    Raises:
        FedspkError: the file is another generator than the run's, or one for another front end.
    """
    voices = _voices(generator, derive(config.seed, "invented"), config.generator)
    check_front_end(generator, voices.generator, run_front_end(config))
    return voices


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a generator file in hex, by which a run names it.

    Raises:
        FedspkError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FedspkError(f"{path}: cannot be read ({error.strerror}).") from error


def with_invented_classes(vector: FloatVector, config: RunConfig, generator: Path) -> FloatVector:
    """Return a run's shared parameters (n,) float32 with classes that know its invented speakers.

    A binary head has no classes: its run starts from `vector` as it is.

    Raises:
        FedspkError: see `run_voices`; or the vector is of another network.
    """
    voices = run_voices(generator, config)
    if config.head_kind == "binary":
        return vector
    whole = federated_model(vector, config)
    head = HeadConfig(
        config.head_kind, config.public, devices=0, scale=config.scale, margin=config.margin
    )
    learner = run_network(config, head)
    state = whole.state_dict()
    learner.load_parameters({n: value for n, value in state.items() if n.startswith("encoder.")})
    learn_classes(learner, voices)
    whole.load_parameters({_CLASSES: learner.state_dict()[_CLASSES]})
    return flatten(whole.state_dict(), shared_names(whole, config))


def learn_classes(model: SpeakerModel, voices: InventedVoices) -> None:
    """Train a model's head, whose classes are invented speakers alone, on some takes of each.

    The encoder stays as it is.
    """
    model.encoder.eval()
    speakers = model.config.public
    with torch.inference_mode(), one_torch_thread():
        heard = [
            model.encoder(voices.patches([speaker] * len(_TAKES_HEARD), _TAKES_HEARD)).float()
            for speaker in range(speakers)
        ]
    embeddings = torch.cat(heard).clone()
    labels = torch.arange(speakers).repeat_interleave(len(_TAKES_HEARD))
    with one_torch_thread():
        fit_head(model, embeddings, labels)


@lru_cache(maxsize=2)
def _voices(path: Path, seed: int, wanted: str) -> InventedVoices:
    """Return a run's voices; a process that plays many devices opens the generator once."""
    if file_hash(path) != wanted:
        raise FedspkError(f"{path}: is not the generator of this run; fetch the run's own.")
    return InventedVoices(load_generator(path), seed)
