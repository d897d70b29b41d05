"""Layouts are recognised, bad files are counted, and wrong paths are one clear sentence."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from sounds import silence, tone, write_speakers

from fedspk.audio import save_audio
from fedspk.cache import FeatureCache
from fedspk.corpora import examine, open_corpus, require_speakers
from fedspk.errors import FedspkError


def write_sound(path: Path, hertz: float = 200.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_audio(path, tone(1.2, hertz))


def test_plain_folder(tmp_path: Path) -> None:
    write_speakers(tmp_path / "people", speakers=2, utterances=3)
    corpus = open_corpus(tmp_path / "people")
    assert corpus.name == "people"
    assert list(corpus.speakers) == ["s0", "s1"]
    assert [utterance.id for utterance in corpus.speakers["s1"]] == ["s1/u0", "s1/u1", "s1/u2"]
    assert not corpus.has_sessions


def test_plain_folder_looks_below_the_speaker(tmp_path: Path) -> None:
    write_sound(tmp_path / "anna" / "monday" / "a.wav")
    write_sound(tmp_path / "anna" / "b.flac")
    corpus = open_corpus(tmp_path)
    assert [utterance.id for utterance in corpus.utterances] == ["anna/b", "anna/monday/a"]


def test_same_name_with_two_endings_gets_two_ids(tmp_path: Path) -> None:
    write_sound(tmp_path / "anna" / "a.wav")
    write_sound(tmp_path / "anna" / "a.flac")
    ids = [utterance.id for utterance in open_corpus(tmp_path).utterances]
    assert ids == ["anna/a", "anna/a.wav"]


@pytest.mark.parametrize("above", ["", "wav", "vox1_dev_wav/wav"])
def test_voxceleb(tmp_path: Path, above: str) -> None:
    for name in ("id10001/videoA/00001", "id10001/videoB/00001", "id10002/videoC/00002"):
        write_sound(tmp_path / above / f"{name}.wav")
    corpus = open_corpus(tmp_path)
    assert list(corpus.speakers) == ["id10001", "id10002"]
    assert [u.session for u in corpus.speakers["id10001"]] == ["videoA", "videoB"]
    assert corpus.utterances[0].id == "id10001/videoA/00001"
    assert corpus.has_sessions


@pytest.mark.parametrize("above", ["", "train-clean-100"])
def test_librispeech(tmp_path: Path, above: str) -> None:
    for speaker, chapter in ((19, 198), (19, 227), (26, 495)):
        folder = tmp_path / above / str(speaker) / str(chapter)
        write_sound(folder / f"{speaker}-{chapter}-0000.flac")
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("19-198-0000 A WORD\n")
    corpus = open_corpus(tmp_path)
    assert list(corpus.speakers) == ["19", "26"]
    assert [u.session for u in corpus.speakers["19"]] == ["198", "227"]
    assert corpus.has_sessions
    assert corpus.skipped == ()


def test_bad_files_are_skipped_with_counted_reasons(tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "anna"
    for number in range(2):
        write_sound(folder / f"good{number}.wav", 200 + 10 * number)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("not sound at all " * 20)
    (folder / "notes.txt").write_text("notes")
    (folder / ".hidden.wav").write_bytes(b"x")
    (folder / "folder.wav").mkdir()
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    save_audio(folder / "silent.wav", silence(3))
    save_audio(folder / "short.wav", tone(0.4))
    (folder / "cut.flac").write_bytes(_flac(tmp_path)[:9000])
    corpus = examine(open_corpus(tmp_path / "corpus"), FeatureCache(tmp_path / "cache"))
    assert [utterance.id for utterance in corpus.utterances] == ["anna/good0", "anna/good1"]
    assert corpus.skip_reasons == {
        "not audio": 2,
        "unreadable": 2,
        "empty file": 1,
        "hidden file": 1,
        "directory": 1,
        "silent": 1,
        "too short": 1,
    }
    assert all(1.1 < (utterance.seconds or 0) < 1.3 for utterance in corpus.utterances)


@pytest.mark.parametrize(
    "layout", ["{0}/a", "wav/id1000{1}/video/1", "train/{1}9/198/{1}9-198-0000"]
)
def test_names_and_folders_that_cannot_be_read_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    for number, name in enumerate(("anna", "bert", "carl")):
        write_sound(tmp_path / f"{layout.format(name, number)}.flac")
    good = (tmp_path / layout.format("anna", 0)).parent
    (good / os.fsdecode(b"gr\xfc\xdfe.flac")).write_bytes(b"x")
    closed = [tmp_path / layout.split("/", maxsplit=1)[0].format("bert"), tmp_path / "lost+found"]
    (tmp_path / "lost+found").mkdir()
    if len(layout.split("/")) > 2:
        closed[0] = tmp_path / Path(*Path(layout.format("bert", 1)).parts[:2])
    _close(monkeypatch, closed)
    corpus = examine(open_corpus(tmp_path), FeatureCache(tmp_path / ".cache"))
    assert len(corpus.speakers) == 2
    assert corpus.skip_reasons == {"unreadable": 2, "name is not UTF-8": 1}
    for skipped in corpus.skipped:
        skipped.id.encode()


def _close(monkeypatch: pytest.MonkeyPatch, folders: list[Path]) -> None:
    """Refuse to list these folders, as the system does to all but the administrator."""
    scandir = os.scandir

    def refusing(path):
        if Path(path) in folders:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


def test_files_beside_the_speakers_are_no_speakers(tmp_path: Path) -> None:
    write_speakers(tmp_path)
    (tmp_path / "README.md").write_text("About this corpus")
    (tmp_path / "speakers.tsv").write_text("s0\tf\n")
    corpus = open_corpus(tmp_path)
    assert list(corpus.speakers) == ["s0", "s1"]
    assert corpus.skipped == ()


def test_wrong_path_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FedspkError, match=r"nowhere: cannot be read as a corpus \(No such file"):
        open_corpus(tmp_path / "nowhere")


def test_file_instead_of_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FedspkError, match="one folder per speaker"):
        open_corpus(tmp_path / "file")


def test_empty_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FedspkError, match="holds no sound files"):
        open_corpus(tmp_path)


def test_folder_without_speakers_folders_is_one_clear_error(tmp_path: Path) -> None:
    write_sound(tmp_path / "a.wav")
    with pytest.raises(FedspkError, match="no speakers' folders"):
        open_corpus(tmp_path)


def test_folders_without_sound_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "anna").mkdir()
    (tmp_path / "anna" / "notes.txt").write_text("notes")
    with pytest.raises(FedspkError, match="none of the 1 files"):
        open_corpus(tmp_path)


def test_too_small_a_corpus_is_one_clear_error(tmp_path: Path) -> None:
    write_speakers(tmp_path, speakers=3, utterances=2)
    write_sound(tmp_path / "s0" / "u2.wav")
    (tmp_path / "s1" / "broken.wav").write_bytes(b"")
    corpus = open_corpus(tmp_path)
    require_speakers(corpus, 3, 2)
    with pytest.raises(FedspkError, match=r"1 of its 3 speakers .* 2 are needed .*1 empty file"):
        require_speakers(corpus, 2, 3)


def test_fingerprint_depends_on_names_and_sound(tmp_path: Path) -> None:
    write_speakers(tmp_path / "a")
    write_speakers(tmp_path / "b")
    cache = FeatureCache(tmp_path / "cache")
    first = examine(open_corpus(tmp_path / "a"), cache)
    assert first.fingerprint == examine(open_corpus(tmp_path / "b"), cache).fingerprint
    assert first.fingerprint != first.only(["s0"]).fingerprint
    write_sound(tmp_path / "b" / "s0" / "u0.wav", hertz=300)
    assert first.fingerprint != examine(open_corpus(tmp_path / "b"), cache).fingerprint


def test_only_keeps_the_named_speakers(tmp_path: Path) -> None:
    write_speakers(tmp_path, speakers=3)
    assert list(open_corpus(tmp_path).only(["s2", "s0"]).speakers) == ["s0", "s2"]


def _flac(tmp_path: Path) -> bytes:
    write_sound(tmp_path / "whole.flac")
    return (tmp_path / "whole.flac").read_bytes()
