"""A node's data drawn from a corpus: for `flwr run .` with nothing prepared.

Node k of n owns the k-th speaker; the last speakers of the corpus are everybody's impostors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from clients.dataset import DeviceDataset, Variants, description_path
from clients.enrolment import enrol_simulated_fleet
from fedspk.cache import FeatureCache, FeatureRequest
from fedspk.corpora import (
    Corpus,
    Utterance,
    examine,
    open_corpus,
    require_speakers,
    split_utterances,
)
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.run_folder import PUBLIC_SPEAKERS

_FEWEST_UTTERANCES = 4
_FEWEST_USABLE = 2  # of those, after listening: one to train on, one to validate
_MOST_PUBLIC_UTTERANCES = 10


def partition_dataset(
    location: str, partition: int, partitions: int, folder: Path
) -> DeviceDataset:
    """Return node `partition`'s data, made once and then kept in `folder`, as its identity is.

    Args:
        location: what `open_corpus` takes.
        partition, partitions: which of how many nodes this is.
        folder: the run's folder of device descriptions.

    Raises:
        FedspkError: the corpus has fewer speakers than nodes and impostors, or the node's speaker
            or all impostors have no usable sound.
    """
    path = description_path(folder, partition)
    if not path.exists():
        enrol_simulated_fleet(folder, (description_path(folder, k).stem for k in range(partitions)))
        _draw(location, partition, partitions, path).save(path)
    return DeviceDataset.open(path)


def _draw(location: str, partition: int, partitions: int, path: Path) -> DeviceDataset:
    corpus = open_corpus(location)
    require_speakers(corpus, partitions + PUBLIC_SPEAKERS, _FEWEST_UTTERANCES)
    names = [name for name, each in corpus.speakers.items() if len(each) >= _FEWEST_UTTERANCES]
    owner, public = names[partition], names[-PUBLIC_SPEAKERS:]
    cache = FeatureCache()
    corpus = examine(corpus.only([owner, *public]), cache)
    usable = {name: each for name, each in corpus.speakers.items() if len(each) >= _FEWEST_USABLE}
    known_voices = [(label, name) for label, name in enumerate(public) if name in usable]
    if owner not in usable or not known_voices:
        whose = owner if owner not in usable else "the public speakers"
        raise FedspkError(
            f"{location}: too few files of {whose} can be used ({_reasons(corpus)}); repair or "
            "remove them."
        )
    train, validation = split_utterances(usable[owner], seed=0)
    impostors, unheard = [], []
    for label, name in known_voices:
        few = usable[name][:_MOST_PUBLIC_UTTERANCES]
        known, held_out = split_utterances(few, seed=0)
        impostors += [(label, utterance) for utterance in known]
        unheard += [(label, utterance) for utterance in held_out]
    used = [*train, *validation, *_second(impostors), *_second(unheard)]
    rows = {utterance.id: row for row, utterance in enumerate(used)}
    table = cache.features(corpus, [FeatureRequest(each) for each in used], FrontEndConfig())
    features = path.with_name(f"{path.stem}-features.json")
    table.save(features)
    return DeviceDataset(
        device=path.stem,
        index=partition,
        speaker=owner,
        features=Path(features.name),
        folder=path.with_suffix(""),
        owner_train=_variants(train, rows),
        owner_validation=_variants(validation, rows),
        impostors=_variants(_second(impostors), rows),
        impostor_labels=tuple(label for label, _ in impostors),
        validation_impostors=_variants(_second(unheard), rows),
        validation_impostor_labels=tuple(label for label, _ in unheard),
    )


def _reasons(corpus: Corpus) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in corpus.skip_reasons.items())


def _second(pairs: Sequence[tuple[int, Utterance]]) -> list[Utterance]:
    return [utterance for _, utterance in pairs]


def _variants(utterances: Iterable[Utterance], rows: dict[str, int]) -> tuple[Variants, ...]:
    return tuple((rows[utterance.id],) for utterance in utterances)
