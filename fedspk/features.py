"""Front ends: audio to frames of log-mel energies, MFCC or Kaldi filter banks, as `nn.Module`.

Every front end maps (B, samples) float32 at 16 kHz to (B, frames, bins) float32 with
frames = samples // hop, on any device, and exports to ONNX.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedspk.audio import SAMPLE_RATE
from fedspk.errors import FedspkError

Kind: TypeAlias = Literal["logmel", "mfcc", "fbank"]
Normalisation: TypeAlias = Literal["mean-variance", "mean", "none"]
FloatArray: TypeAlias = npt.NDArray[np.float64]

_VERSION = 1  # part of the content hash: raise it when the numbers of any front end change
_LOG_FLOOR = 1e-10  # power below which a mel band is silent; librosa.power_to_db's `amin`
_KALDI_FLOOR = torch.finfo(torch.float32).eps
_LEAST_DEVIATION = 1e-2  # nepers; a band that never changes is set to zero, not blown up
_MFCC_MELS = 40
_MOST_FRAMES = 6000  # one minute at the usual hop; a model hears a few seconds


@dataclass(frozen=True)
class FrontEndConfig:
    """What a model hears: part of the model's version.

    `frames` and `bins` are the shape of one example, `window_s` and `hop_s` seconds. For "mfcc"
    `bins` is the number of coefficients (customarily 23, at most 40).

    Raises:
        FedspkError: a value is out of range.
    """

    kind: Kind = "logmel"
    frames: int = 350
    bins: int = 80
    window_s: float = 0.03
    hop_s: float = 0.01
    normalise: Normalisation = "mean-variance"

    def __post_init__(self) -> None:
        if self.kind not in ("logmel", "mfcc", "fbank"):
            raise FedspkError(f"front end: kind is {self.kind!r}; use logmel, mfcc or fbank.")
        if self.normalise not in ("mean-variance", "mean", "none"):
            raise FedspkError(
                f"front end: normalise is {self.normalise!r}; use mean-variance, mean or none."
            )
        most = _MFCC_MELS if self.kind == "mfcc" else 128
        if not _is_count(self.bins, most):
            raise FedspkError(f"front end: bins is {self.bins!r}; use 1 to {most} for {self.kind}.")
        if not _is_count(self.frames, _MOST_FRAMES):
            raise FedspkError(f"front end: frames is {self.frames!r}; use 1 to {_MOST_FRAMES}.")
        if not (_is_number(self.hop_s) and _is_number(self.window_s)):
            raise FedspkError("front end: hop_s and window_s must be numbers of seconds.")
        if not 1 / SAMPLE_RATE <= self.hop_s <= self.window_s <= 0.1:
            raise FedspkError(
                "front end: at least one sample (1/16000 s) <= hop_s <= window_s <= 0.1 seconds."
            )

    @property
    def window(self) -> int:
        """Samples in one analysis window."""
        return round(self.window_s * SAMPLE_RATE)

    @property
    def hop(self) -> int:
        """Samples between two frames."""
        return round(self.hop_s * SAMPLE_RATE)

    @property
    def samples(self) -> int:
        """Audio samples that make exactly `frames` frames."""
        return self.frames * self.hop

    def content_hash(self) -> str:
        """Return 32 hexadecimal digits that change with every value and with the code's version."""
        text = json.dumps({"version": _VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class LogMel(nn.Module):
    """Natural logarithm of the mel power spectrogram, normalised per band over the clip.

    The same numbers as `log(max(librosa.feature.melspectrogram(...), 1e-10))` with a Hann window,
    zero-padded and centred frames (the last one, beyond the clip, left out) and Slaney's scale.
    """

    def __init__(self, config: FrontEndConfig | None = None) -> None:
        super().__init__()
        self.config = config or FrontEndConfig()
        window = torch.hann_window(self.config.window, periodic=True, dtype=torch.float64)
        self._spectrum = _MelSpectrum(
            self.config, window, mel_filters(_fft_size(self.config), self.config.bins)
        )

    def forward(self, audio: Tensor) -> Tensor:
        """Map (B, samples) float32 to (B, samples // hop, bins) float32."""
        half = self._spectrum.fft_size // 2
        mel = self._spectrum(F.pad(audio, (half, half)), audio.shape[1] // self.config.hop)
        return normalise(torch.log(torch.clamp_min(mel, _LOG_FLOOR)), self.config.normalise)


class MFCC(nn.Module):
    """Mel-frequency cepstral coefficients: orthonormal DCT-II of 40 log-mel bands, normalised.

    Davis and Mermelstein, 1980. The bands are `LogMel`'s, so the numbers are those of
    `librosa.feature.mfcc` on natural logarithms.
    """

    dct: Tensor

    def __init__(self, config: FrontEndConfig | None = None) -> None:
        super().__init__()
        self.config = config or FrontEndConfig(kind="mfcc", bins=23)
        self._log_mel = LogMel(
            FrontEndConfig(
                frames=self.config.frames,
                bins=_MFCC_MELS,
                window_s=self.config.window_s,
                hop_s=self.config.hop_s,
                normalise="none",
            )
        )
        self.register_buffer("dct", _dct_matrix(_MFCC_MELS, self.config.bins), persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        """Map (B, samples) float32 to (B, samples // hop, coefficients) float32."""
        cepstrum: Tensor = self._log_mel(audio) @ self.dct
        return normalise(cepstrum, self.config.normalise)


class KaldiFbank(nn.Module):
    """Kaldi's log filter-bank energies (`compute-fbank-feats`), normalised per band.

    Kaldi's defaults but for `--snip-edges=false --dither=0`: samples in 16-bit units, offset
    removed and 0.97 pre-emphasis in every window, Povey's window, HTK's mel scale from 20 Hz.
    """

    def __init__(self, config: FrontEndConfig | None = None) -> None:
        super().__init__()
        self.config = config or FrontEndConfig(kind="fbank", window_s=0.025)
        size = self.config.window
        window = torch.hann_window(size, periodic=False, dtype=torch.float64).pow(0.85)
        self._spectrum = _MelSpectrum(
            self.config,
            window,
            kaldi_mel_filters(_fft_size(self.config), self.config.bins),
            pre_emphasis=0.97,
        )

    def forward(self, audio: Tensor) -> Tensor:
        """Map (B, samples) float32 to (B, samples // hop, bins) float32."""
        size, hop = self.config.window, self.config.hop
        frames = audio.shape[1] // hop
        before = (size - hop) // 2
        after = (frames - 1) * hop + size - before - audio.shape[1]
        parts = [audio[:, :before].flip(1), audio]  # Kaldi mirrors the signal at both ends
        if after > 0:
            parts.append(audio[:, -after:].flip(1))
        mel = self._spectrum(torch.cat(parts, dim=1) * 32768.0, frames)
        return normalise(torch.log(torch.clamp_min(mel, _KALDI_FLOOR)), self.config.normalise)


def build_front_end(config: FrontEndConfig) -> LogMel | MFCC | KaldiFbank:
    """Return the front end that `config` describes, on the CPU, in evaluation mode."""
    front_ends: dict[str, type[LogMel | MFCC | KaldiFbank]] = {
        "logmel": LogMel,
        "mfcc": MFCC,
        "fbank": KaldiFbank,
    }
    return front_ends[config.kind](config).eval()


def normalise(features: Tensor, how: Normalisation) -> Tensor:
    """Remove the mean of every band over time, (B, frames, bins), and divide by its deviation."""
    if how == "none":
        return features
    centred = features - features.mean(dim=1, keepdim=True)
    if how == "mean":
        return centred
    deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
    return centred / torch.clamp_min(deviation, _LEAST_DEVIATION)


def mel_filters(fft_size: int, bins: int) -> Tensor:
    """Triangular filters of unit area on Slaney's mel scale, 0 to 8 kHz: (fft_size/2+1, bins).

    Slaney, Auditory Toolbox, 1998: linear to 1 kHz, then logarithmic; librosa's default.
    """
    edges = _slaney_to_hertz(np.linspace(0.0, _hertz_to_slaney(SAMPLE_RATE / 2), bins + 2))
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, fft_size // 2 + 1)
    area = 2.0 / (edges[2:] - edges[:-2])
    return torch.from_numpy(_triangles(frequencies, edges) * area).float()


def kaldi_mel_filters(fft_size: int, bins: int) -> Tensor:
    """Triangular filters of unit height on HTK's mel scale, 20 Hz to 8 kHz: (fft_size/2+1, bins).

    The triangles are straight on the mel axis, as in Kaldi's `mel-computations.cc`.
    """
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, fft_size // 2 + 1)
    low, high = _hertz_to_htk(np.array([20.0, SAMPLE_RATE / 2]))
    weights = _triangles(_hertz_to_htk(frequencies), np.linspace(low, high, bins + 2))
    weights[-1] = 0.0  # Kaldi leaves out the Nyquist bin
    return torch.from_numpy(weights).float()


class _MelSpectrum(nn.Module):
    """Frames, window, power spectrum, filters: (B, padded samples) to (B, frames, bins).

    The transform runs in float64: speech spans more than 100 dB within one window, and float32
    would put errors of 0.002 nepers into the quiet bands.
    """

    window: Tensor
    filters: Tensor

    def __init__(
        self, config: FrontEndConfig, window: Tensor, filters: Tensor, pre_emphasis: float = 0.0
    ) -> None:
        super().__init__()
        self.fft_size = _fft_size(config)
        self._hop = config.hop
        self._pre_emphasis = pre_emphasis
        if pre_emphasis == 0.0:  # centre the window in the transform, as librosa does
            margin = self.fft_size - len(window)
            window = F.pad(window, (margin // 2, margin - margin // 2))
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, padded: Tensor, frames: int) -> Tensor:
        if padded.is_cpu and not torch.compiler.is_compiling() and len(padded) > 1:
            # One clip at a time stays in the processor's cache: twice as fast, and a clip's
            # numbers do not depend on the batch that it came in.
            clips = [self._clips(padded[i : i + 1], frames) for i in range(len(padded))]
            return torch.cat(clips)
        return self._clips(padded, frames)

    def _clips(self, padded: Tensor, frames: int) -> Tensor:
        precise = padded.to(self.window.dtype)
        pieces = precise.unfold(1, self.window.shape[0], self._hop)[:, :frames]
        if self._pre_emphasis:
            pieces = pieces - pieces.mean(dim=2, keepdim=True)
            previous = torch.cat([pieces[:, :, :1], pieces[:, :, :-1]], dim=2)
            pieces = pieces - self._pre_emphasis * previous
        spectrum = torch.fft.rfft(pieces * self.window, n=self.fft_size)
        parts = torch.view_as_real(spectrum).to(self.filters.dtype)
        power = parts[..., 0].square() + parts[..., 1].square()
        return power @ self.filters


def _fft_size(config: FrontEndConfig) -> int:
    return 1 << (config.window - 1).bit_length()


def _triangles(points: FloatArray, edges: FloatArray) -> FloatArray:
    """Weights (points, filters): filter i rises from edges[i] to 1 and falls to edges[i + 2]."""
    position = points[:, None]
    rising = (position - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - position) / (edges[2:] - edges[1:-1])
    weights: FloatArray = np.maximum(0.0, np.minimum(rising, falling))
    return weights


_SLANEY_STEP = 200.0 / 3  # Hz per mel below 1 kHz
_SLANEY_KNEE = 1000.0 / _SLANEY_STEP
_SLANEY_RATIO = math.log(6.4) / 27  # per mel above


def _hertz_to_slaney(frequency: float) -> float:
    if frequency < 1000.0:
        return frequency / _SLANEY_STEP
    return _SLANEY_KNEE + math.log(frequency / 1000.0) / _SLANEY_RATIO


def _slaney_to_hertz(mel: FloatArray) -> FloatArray:
    high = 1000.0 * np.exp(_SLANEY_RATIO * (mel - _SLANEY_KNEE))
    return np.where(mel < _SLANEY_KNEE, mel * _SLANEY_STEP, high)


def _hertz_to_htk(frequency: FloatArray) -> FloatArray:
    mel: FloatArray = 1127.0 * np.log1p(frequency / 700.0)
    return mel


def _dct_matrix(inputs: int, outputs: int) -> Tensor:
    """Orthonormal DCT-II: (inputs, outputs) float32."""
    n = torch.arange(inputs, dtype=torch.float64)[:, None]
    k = torch.arange(outputs, dtype=torch.float64)[None, :]
    matrix = torch.cos(math.pi / inputs * (n + 0.5) * k) * math.sqrt(2.0 / inputs)
    matrix[:, 0] /= math.sqrt(2.0)
    return matrix.float()
