"""Invented voices: reproducible, lazy, and speakers apart from what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_generator import TINY_FRONT_END, make_generator

from fedspk.cli import run
from fedspk.errors import FedspkError
from gan.codes import patch_codes
from gan.generator_file import load_generator
from gan.network import Codes, Generator
from gan.samples import write_samples
from gan.sampling import InventedVoices


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_generator(tmp_path_factory.mktemp("gan") / "generator.safetensors")


@pytest.fixture(scope="module")
def voices(file: Path) -> InventedVoices:
    return InventedVoices(load_generator(file), seed=3)


def test_patches_are_shaped_and_normalised_as_the_front_end_does(voices: InventedVoices) -> None:
    patches = voices.patches([0, 1], [0, 0])
    assert patches.shape == (2, TINY_FRONT_END.frames, TINY_FRONT_END.bins)
    assert patches.dtype == torch.float32
    torch.testing.assert_close(patches.mean(dim=1), torch.zeros(2, 8), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.std(dim=1, correction=0), torch.ones(2, 8))


def test_a_patch_is_the_same_bits_whatever_it_is_drawn_with(
    file: Path, voices: InventedVoices
) -> None:
    together = voices.patches([5, 2, 7, 2], [1, 0, 0, 3])
    again = InventedVoices(load_generator(file), seed=3)
    for row, (speaker, take) in enumerate([(5, 1), (2, 0), (7, 0), (2, 3)]):
        assert torch.equal(again.patches([speaker], [take])[0], together[row])


def test_another_seed_another_speaker_or_another_take_is_another_patch(
    file: Path, voices: InventedVoices
) -> None:
    other = InventedVoices(load_generator(file), seed=4)
    found = [*voices.patches([0, 0, 1], [0, 1, 0]), other.patches([0], [0])[0]]
    assert len({patch.numpy().tobytes() for patch in found}) == 4


def test_takes_of_one_speaker_share_the_speaker_code_and_nothing_else(
    voices: InventedVoices,
) -> None:
    config = voices.generator.config
    first, second = (patch_codes(config, 40, 3, speaker=6, take=take) for take in (0, 1))
    other = patch_codes(config, 40, 3, speaker=7, take=0)
    assert torch.equal(first.speaker, second.speaker)
    assert not torch.equal(first.speaker, other.speaker)
    assert not torch.equal(first.session, second.session)
    assert not torch.equal(first.content, second.content)


def test_the_speaker_code_alone_changes_a_patch(voices: InventedVoices) -> None:
    codes = patch_codes(voices.generator.config, 40, 3, speaker=0, take=0)
    voice = Codes(-codes.speaker, codes.session, codes.content, codes.noise)
    assert not torch.equal(voices.generator(codes), voices.generator(voice))


def test_batches_are_drawn_only_when_they_are_asked_for(
    voices: InventedVoices, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    forward = Generator.forward
    monkeypatch.setattr(
        Generator, "forward", lambda self, codes: drawn.append(1) or forward(self, codes)
    )
    batches = voices.batches(900, speakers=90, batch_size=32)
    assert not drawn
    features, speakers = next(batches)
    assert len(drawn) == len(features) == 32
    assert speakers == list(range(32))


def test_every_speaker_gets_its_share(voices: InventedVoices) -> None:
    speakers = [s for _, part in voices.batches(10, speakers=3, batch_size=4) for s in part]
    assert [speakers.count(speaker) for speaker in range(3)] == [4, 3, 3]
    with pytest.raises(FedspkError, match="positive numbers"):
        next(voices.batches(10, speakers=0))


def test_samples_are_written_as_they_are_drawn(voices: InventedVoices, tmp_path: Path) -> None:
    path = tmp_path / "impostors.safetensors"
    write_samples(path, voices, count=7, speakers=3)
    content = load_file(path)
    assert content["speakers"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    expected = voices.patches([0, 1, 2, 0, 1, 2, 0], [0, 0, 0, 1, 1, 1, 2])
    assert torch.equal(content["patches"], expected.half())


def test_the_command_writes_the_same_file_for_the_same_seed(file: Path, tmp_path: Path) -> None:
    drawn = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = tmp_path / f"{name}.safetensors"
        command = ["gan", "sample", "--model", str(file), "--count", "4", "--speakers", "2"]
        assert run([*command, "--seed", seed, "--out", str(out)]) == 0
        drawn.append(out.read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_sample_file_has_a_name_that_says_what_it_is(
    voices: InventedVoices, tmp_path: Path
) -> None:
    with pytest.raises(FedspkError, match=r"ends in \.safetensors"):
        write_samples(tmp_path / "impostors.wav", voices, count=1, speakers=1)
