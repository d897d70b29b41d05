"""Voices that are all one, takes that are all one, and a speaker code without meaning are heard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedspk.feature_table import FeatureTable
from fedspk.parallel import one_torch_thread
from gan.diversity import JUDGED_FROM, DiversityMeter, Fault, Progress, spread
from gan.generator_file import load_generator, packaged_generator
from gan.network import Generator
from gan.patches import SpeakerPatches
from gan.sampling import InventedVoices

_SPEAKERS, _PATCHES = 24, 4
SOUND = Progress(JUDGED_FROM, 1.0, 1.0, 0.1, diversity=0.9, take_diversity=0.9, identity=0.8)


def generator() -> Generator:
    """The packaged one, free to be spoilt."""
    return load_generator(packaged_generator())


@pytest.fixture(scope="module")
def meter(tmp_path_factory: pytest.TempPathFactory) -> DiversityMeter:
    """What a sound generator invents stands for real speech."""
    voices = InventedVoices(generator(), seed=5)
    speakers = np.repeat(np.arange(_SPEAKERS), _PATCHES)
    made = voices.patches(speakers.tolist(), np.arange(len(speakers)).tolist())
    pack = tmp_path_factory.mktemp("patches") / "pack.npy"
    np.save(pack, made.numpy().astype(np.float16))
    rows = np.arange(len(speakers))
    table = FeatureTable([Path(pack)], np.zeros_like(rows), rows)
    groups = tuple(map(tuple, rows.reshape(_SPEAKERS, _PATCHES).tolist()))
    return DiversityMeter(SpeakerPatches(table, groups), seed=1)


def measured(meter: DiversityMeter, made: Generator) -> tuple[float, float]:
    with one_torch_thread():
        return meter.measure(made)


def progress(diversity: float, take_diversity: float) -> Progress:
    return replace(SOUND, diversity=diversity, take_diversity=take_diversity)


def test_a_sound_generator_is_about_as_varied_as_speech(meter: DiversityMeter) -> None:
    voices, takes = measured(meter, generator())
    assert 0.6 < voices < 1.7
    assert 0.6 < takes < 1.7
    assert not progress(voices, takes).faults
    assert measured(meter, generator()) == (voices, takes)


def test_one_voice_for_every_code_is_heard_however_much_its_takes_differ(
    meter: DiversityMeter,
) -> None:
    made = generator()
    made.voice = OneVoice(made.voice)
    voices, takes = measured(meter, made)
    assert voices == pytest.approx(0.0, abs=1e-3)
    assert takes > 0.6
    assert progress(voices, takes).faults == {Fault.VOICES_ALIKE}


def test_takes_that_are_all_one_are_heard_however_much_voices_differ(
    meter: DiversityMeter,
) -> None:
    made = generator()
    made.layers[0].convolution.weight.zero_()
    for layer in made.layers:
        layer.noise.zero_()
        layer.style.weight[:, made.config.style_dim :] = 0
    generated = torch.Generator().manual_seed(0)
    made.layers[0].convolution.bias.normal_(generator=generated)
    voices, takes = measured(meter, made)
    assert takes == pytest.approx(0.0, abs=1e-3)
    assert Fault.TAKES_ALIKE in progress(voices, takes).faults


def test_what_takes_add_to_a_voice_s_mean_is_taken_off() -> None:
    draws = torch.Generator().manual_seed(3)
    voices = 2.0 * torch.randn(400, 1, 5, generator=draws)
    takes = 3.0 * torch.randn(400, 4, 5, generator=draws)
    shared = takes[:1].expand(400, 4, 5)
    found = spread(voices + takes)
    assert found.voices == pytest.approx(2 * 5**0.5, rel=0.05)
    assert found.takes == pytest.approx(3 * 5**0.5, rel=0.05)
    assert spread(voices + shared, crossed=True).voices == pytest.approx(2 * 5**0.5, rel=0.05)
    assert spread(shared, crossed=True).voices == pytest.approx(0.0, abs=1e-3)
    assert spread(takes).voices < 0.15 * found.takes


def test_a_code_without_meaning_is_a_fault_once_there_was_time_to_learn() -> None:
    idle = replace(SOUND, identity=0.02)
    assert idle.faults == {Fault.CODE_IDLE}
    assert not replace(idle, step=JUDGED_FROM - 1).faults
    assert not SOUND.faults


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_is_explained_in_one_line_with_its_figure(fault: Fault) -> None:
    low = replace(SOUND, diversity=0.13, take_diversity=0.13, identity=0.13)
    text = low.explain(fault)
    assert text.startswith(f"step {JUDGED_FROM}: ")
    assert "13%" in text or "0.13" in text
    assert "\n" not in text


class OneVoice(nn.Module):
    """Answers every speaker code with the first one's style."""

    def __init__(self, voice: nn.Module) -> None:
        super().__init__()
        self.voice = voice

    def forward(self, codes: Tensor) -> Tensor:
        styles: Tensor = self.voice(codes)
        return styles[:1].expand_as(styles)
