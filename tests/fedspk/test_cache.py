"""The cache computes everything once, survives damage, rivals and full disks."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cache_jobs import CONFIG, requests, rows
from sounds import silence, tone, write_speakers

from fedspk.audio import AudioError, crop_or_repeat, load_audio, save_audio, trim_silence
from fedspk.cache import FeatureCache, FeatureRequest, FeatureTable
from fedspk.corpora import Corpus, Utterance, examine, open_corpus
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig, build_front_end
from fedspk.packs import is_intact, open_pack
from fedspk.sessions import apply_session


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    write_speakers(tmp_path / "corpus")
    return open_corpus(tmp_path / "corpus")


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "cache")


def everything(table: FeatureTable) -> torch.Tensor:
    return table.gather(range(len(table)))


class Counting:
    """A sound source that counts what it reads."""

    seconds_each = 0.003

    def __init__(self, corpus: Corpus) -> None:
        self._source = corpus.source
        self.read_ids: list[str] = []

    def read(self, utterance: Utterance) -> np.ndarray:
        self.read_ids.append(utterance.id)
        return self._source.read(utterance)

    def stamp(self, utterance: Utterance) -> str:
        return self._source.stamp(utterance)


def test_rows_are_trimmed_cropped_heard_and_transformed(
    corpus: Corpus, cache: FeatureCache
) -> None:
    wanted = requests(corpus)
    table = cache.features(corpus, wanted, CONFIG)
    assert table.shape == (len(wanted), CONFIG.frames, CONFIG.bins)
    front_end = build_front_end(CONFIG)
    for row, request in zip(everything(table), wanted, strict=True):
        speech = trim_silence(corpus.load(request.utterance))
        clip = crop_or_repeat(speech, CONFIG.samples, request.start)
        if request.session is not None:
            clip = apply_session(clip, request.session)
        expected = front_end(torch.from_numpy(clip.copy())[None])[0]
        torch.testing.assert_close(row, expected, atol=5e-3, rtol=2e-3)


def test_every_file_is_decoded_once_ever(corpus: Corpus, cache: FeatureCache) -> None:
    source = Counting(corpus)
    counted = replace(corpus, source=source)
    examine(counted, cache)
    cache.features(counted, requests(counted), CONFIG)
    examine(counted, FeatureCache(cache.root))
    FeatureCache(cache.root).features(counted, requests(counted), FrontEndConfig(frames=30))
    assert sorted(source.read_ids) == [utterance.id for utterance in corpus.utterances]


def test_second_run_computes_nothing(
    corpus: Corpus, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cache.features(corpus, requests(corpus), CONFIG)
    monkeypatch.setattr("fedspk.cache.run_jobs", _must_not_run)
    again = FeatureCache(cache.root).features(corpus, requests(corpus), CONFIG)
    assert torch.equal(everything(first), everything(again))


def test_only_what_is_new_is_computed(corpus: Corpus, cache: FeatureCache) -> None:
    wanted = requests(corpus)
    cache.features(corpus, wanted[:3], CONFIG)
    table = cache.features(corpus, wanted, CONFIG)
    assert len(table.packs) == 2
    fresh = FeatureCache(cache.root.parent / "other").features(corpus, wanted, CONFIG)
    assert torch.equal(everything(table), everything(fresh))


def test_repeated_request_is_one_row_in_the_pack(corpus: Corpus, cache: FeatureCache) -> None:
    request = FeatureRequest(corpus.utterances[0])
    table = cache.features(corpus, [request, request], CONFIG)
    assert len(table) == 2
    assert len(open_pack(table.packs[0])) == 1


def test_changed_file_is_decoded_again(corpus: Corpus, cache: FeatureCache) -> None:
    before = examine(corpus, cache)
    path = corpus.utterances[0].source
    assert path is not None
    save_audio(path, tone(1.2, hertz=333))
    os.utime(path, ns=(1, 1))
    after = examine(corpus, cache)
    assert before.utterances[0].content != after.utterances[0].content
    assert before.fingerprint != after.fingerprint
    assert before.utterances[1:] == after.utterances[1:]


def test_processes_give_the_same_rows_as_this_one(
    corpus: Corpus, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = cache.features(corpus, requests(corpus), CONFIG)
    monkeypatch.setattr("fedspk.cache._POOL_SECONDS", 0.0)
    monkeypatch.setattr("fedspk.cache._ROWS_A_JOB", 6)
    other = FeatureCache(cache.root.parent / "other")
    there = other.features(corpus, requests(corpus), CONFIG, workers=2)
    assert len(there.packs) > 1
    assert torch.equal(everything(here), everything(there))


def test_processes_building_the_same_cache_at_once_agree(
    corpus: Corpus, cache: FeatureCache
) -> None:
    with _processes(2) as pool:
        built = list(pool.map(rows, [corpus] * 4, [cache.root] * 4))
    for each in built:
        np.testing.assert_array_equal(each, rows(corpus, cache.root))


def _truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 0x55
    path.write_bytes(content)


@pytest.mark.parametrize("folder", ["audio", "features"])
@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
def test_damaged_pack_is_rebuilt(
    corpus: Corpus, cache: FeatureCache, folder: str, damage: Callable[[Path], None]
) -> None:
    expected = everything(cache.features(corpus, requests(corpus), CONFIG)).clone()
    for pack in (cache.root / folder).rglob("*.npy"):
        damage(pack)
    open_pack.cache_clear()  # as in a new process
    if folder == "audio":
        for index in (cache.root / "features").rglob("*.json"):
            index.unlink()
    is_intact.cache_clear()
    rebuilt = rows(corpus, cache.root)
    np.testing.assert_array_equal(rebuilt, expected.numpy())


def test_damaged_index_is_rebuilt(corpus: Corpus, cache: FeatureCache) -> None:
    expected = everything(cache.features(corpus, requests(corpus), CONFIG))
    for index in cache.root.rglob("*.json"):
        index.write_text(index.read_text()[:50])
    again = FeatureCache(cache.root).features(corpus, requests(corpus), CONFIG)
    assert torch.equal(everything(again), expected)


def test_full_disk_is_one_clear_error_and_leaves_nothing_behind(
    corpus: Corpus, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedspk.packs.np.lib.format.write_array", full)
    with pytest.raises(FedspkError, match="disk is full"):
        cache.features(corpus, requests(corpus), CONFIG)
    assert [path for path in cache.root.rglob("*") if path.is_file()] == []


def test_cache_that_cannot_be_written_is_one_clear_error(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FedspkError, match="cannot be written"):
        FeatureCache(tmp_path / "file").features(corpus, requests(corpus), CONFIG)


def test_unusable_utterance_is_refused_by_name(corpus: Corpus, cache: FeatureCache) -> None:
    path = corpus.utterances[0].source
    assert path is not None
    save_audio(path, silence(2))
    with pytest.raises(AudioError, match=r"u0\.wav: cannot be used \(silent\)"):
        cache.features(corpus, requests(corpus), CONFIG)


def test_cached_audio_is_the_decoded_audio(corpus: Corpus, cache: FeatureCache) -> None:
    utterance = corpus.utterances[1]
    assert utterance.source is not None
    (sound,) = cache.sounds(corpus.source, [utterance])
    np.testing.assert_array_equal(sound.read(), load_audio(utterance.source))


def test_saved_table_opens_elsewhere(corpus: Corpus, cache: FeatureCache, tmp_path: Path) -> None:
    table = cache.features(corpus, requests(corpus), CONFIG)
    table.save(tmp_path / "table.json")
    opened = FeatureTable.open(tmp_path / "table.json")
    assert opened.shape == table.shape
    assert torch.equal(opened.gather([5, 0, 5]), table.gather([5, 0, 5]))
    assert opened.gather([0]).dtype == torch.float32


def test_table_whose_packs_are_gone_is_one_clear_error(corpus: Corpus, cache: FeatureCache) -> None:
    table = cache.features(corpus, requests(corpus), CONFIG)
    table.packs[0].unlink()
    open_pack.cache_clear()
    with pytest.raises(FedspkError, match="run again to rebuild"):
        table.gather([0])


def test_file_that_is_no_table_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text('{"rows": 3}')
    with pytest.raises(FedspkError, match="not a feature table"):
        FeatureTable.open(tmp_path / "table.json")


def test_environment_names_the_default_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSPK_CACHE", str(tmp_path / "here"))
    assert FeatureCache().root == tmp_path / "here"


def _processes(count: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def _must_not_run(_: object, jobs: list[object], **__: object) -> list[object]:
    assert jobs == []
    return []
