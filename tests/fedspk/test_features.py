"""Front ends give the reference implementations' numbers, batched, and export to ONNX."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sounds import REAL_SPEECH, needs_real_speech, noise, silence, tone

from fedspk.audio import SAMPLE_RATE, FloatArray, crop_or_repeat, load_audio
from fedspk.errors import FedspkError
from fedspk.features import MFCC, FrontEndConfig, KaldiFbank, LogMel, build_front_end

CONFIGS = [
    FrontEndConfig(frames=100),
    FrontEndConfig("mfcc", frames=100, bins=23),
    FrontEndConfig("fbank", frames=100, window_s=0.025),
]
SAMPLES = CONFIGS[0].samples
by_kind = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)


def sounds() -> list[FloatArray]:
    loud_then_quiet = np.concatenate([tone(0.5), noise(0.5, level=1e-4)])
    return [tone(1.0, 130), noise(1.0), loud_then_quiet]


def noisy_sounds() -> list[FloatArray]:
    """Kaldi computes in float32: where a band is 100 dB below its frame, its numbers are noise."""
    return [sound + noise(1.0, seed=1, level=3e-3) for sound in sounds()]


def batch() -> torch.Tensor:
    return torch.from_numpy(np.stack(sounds()))


def librosa_log_mel(audio: FloatArray, bins: int = 80) -> Any:
    librosa = pytest.importorskip("librosa")
    mel = librosa.feature.melspectrogram(
        y=audio, sr=SAMPLE_RATE, n_fft=512, win_length=480, hop_length=160, n_mels=bins
    )
    return np.log(np.maximum(mel, 1e-10))[:, : len(audio) // 160].T


@pytest.mark.parametrize("audio", sounds(), ids=["tone", "noise", "loud then quiet"])
def test_log_mel_equals_librosa(audio: FloatArray) -> None:
    ours = LogMel(FrontEndConfig(normalise="none"))(torch.from_numpy(audio)[None])[0].numpy()
    np.testing.assert_allclose(ours, librosa_log_mel(audio), atol=1e-4)


@needs_real_speech
def test_log_mel_equals_librosa_on_real_speech() -> None:
    config = FrontEndConfig()
    for path in sorted(REAL_SPEECH.glob("*/*.flac"))[::200]:
        audio = crop_or_repeat(load_audio(path), config.samples)
        theirs = librosa_log_mel(audio)
        theirs = (theirs - theirs.mean(axis=0)) / theirs.std(axis=0)
        ours = LogMel(config)(torch.from_numpy(audio.copy())[None])[0].numpy()
        assert ours.shape == (350, 80)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_mfcc_equals_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    front_end = MFCC(FrontEndConfig("mfcc", bins=23, normalise="none"))
    for audio, ours in zip(sounds(), front_end(batch()).numpy(), strict=True):
        theirs = librosa.feature.mfcc(S=librosa_log_mel(audio, bins=40).T, n_mfcc=23).T
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_fbank_equals_kaldi_native_fbank() -> None:
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = 80
    front_end = KaldiFbank(FrontEndConfig("fbank", window_s=0.025, normalise="none"))
    for audio in noisy_sounds():
        computer = knf.OnlineFbank(options)
        computer.accept_waveform(SAMPLE_RATE, (audio * 32768).tolist())
        computer.input_finished()
        theirs = np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])
        ours = front_end(torch.from_numpy(audio)[None])[0].numpy()
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_fbank_equals_torchaudio() -> None:
    from fedspk.torchaudio_compat import import_torchaudio

    import_torchaudio()
    from torchaudio.compliance import kaldi

    front_end = KaldiFbank(FrontEndConfig("fbank", window_s=0.025, normalise="none"))
    for audio in noisy_sounds():
        clip = torch.from_numpy(audio)[None]
        theirs = kaldi.fbank(clip * 32768, num_mel_bins=80, snip_edges=False)
        np.testing.assert_allclose(front_end(clip)[0].numpy(), theirs.numpy(), atol=2e-3)


@by_kind
def test_configured_samples_make_the_configured_frames(config: FrontEndConfig) -> None:
    features = build_front_end(config)(torch.zeros(2, config.samples))
    assert features.shape == (2, config.frames, config.bins)
    assert features.dtype == torch.float32


@by_kind
@pytest.mark.parametrize("samples", [320, 1600, 1759, 4001])
def test_any_length_makes_one_frame_a_hop(config: FrontEndConfig, samples: int) -> None:
    assert build_front_end(config)(torch.randn(1, samples)).shape[1] == samples // 160


@by_kind
def test_normalised_features_have_zero_mean_and_unit_variance(config: FrontEndConfig) -> None:
    features = build_front_end(config)(batch())
    assert features.mean(dim=1).abs().max() < 1e-3
    assert (features.std(dim=1, unbiased=False) - 1).abs().max() < 1e-3


@by_kind
def test_clip_gives_the_same_numbers_alone_and_in_a_batch(config: FrontEndConfig) -> None:
    front_end = build_front_end(config)
    together = front_end(batch())
    for clip, expected in zip(batch(), together, strict=True):
        assert torch.equal(front_end(clip[None])[0], expected)


@by_kind
def test_silence_is_finite(config: FrontEndConfig) -> None:
    features = build_front_end(config)(torch.from_numpy(silence(1))[None])
    assert torch.isfinite(features).all()
    assert features.abs().max() < 10


@by_kind
def test_front_end_exports_to_onnx(config: FrontEndConfig, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    front_end = build_front_end(config)
    program = torch.onnx.export(
        front_end,
        (batch(),),
        dynamo=True,
        dynamic_shapes={"audio": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    assert program is not None
    program.save(tmp_path / "front_end.onnx")
    session = runtime.InferenceSession(tmp_path / "front_end.onnx")
    audio = torch.cat([batch(), 0.5 * batch()])
    (theirs,) = session.run(None, {session.get_inputs()[0].name: audio.numpy()})
    np.testing.assert_allclose(theirs, front_end(audio).numpy(), atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@by_kind
def test_gpu_gives_the_same_numbers(config: FrontEndConfig) -> None:
    front_end = build_front_end(config)
    expected = front_end(batch())
    on_gpu = front_end.cuda()(batch().cuda()).cpu()
    np.testing.assert_allclose(on_gpu.numpy(), expected.numpy(), atol=1e-3)


def test_content_hash_changes_with_every_value() -> None:
    configs = [
        FrontEndConfig(),
        FrontEndConfig(frames=200),
        FrontEndConfig(bins=40),
        FrontEndConfig(window_s=0.025),
        FrontEndConfig(hop_s=0.0125),
        FrontEndConfig(normalise="mean"),
        FrontEndConfig("fbank"),
    ]
    assert len({config.content_hash() for config in configs}) == len(configs)
    assert (
        FrontEndConfig().content_hash()
        == dataclasses.replace(configs[1], frames=350).content_hash()
    )


def test_default_is_the_papers() -> None:
    assert FrontEndConfig().samples == 56_000


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "plp"},
        {"normalise": "max"},
        {"bins": 0},
        {"kind": "mfcc", "bins": 41},
        {"bins": "x"},
        {"bins": True},
        {"frames": 0},
        {"frames": 60.5},
        {"frames": 10**9},
        {"frames": "x"},
        {"hop_s": 0.05},
        {"hop_s": 1e-9},
        {"hop_s": "x"},
        {"hop_s": float("nan")},
        {"window_s": 3.0},
    ],
)
def test_values_out_of_range_are_one_clear_error(values: dict[str, Any]) -> None:
    with pytest.raises(FedspkError, match="front end"):
        FrontEndConfig(**values)
