"""A model version as the device runs it: audio to embedding as one ONNX graph.

PyTorch takes longer to import than a person waits for an answer. So the model is compiled once,
when it is taken into use, and ONNX Runtime, which loads in a tenth of the time, does the rest. The
front end is part of the graph.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedspk.audio import FloatArray, crop_or_repeat
from fedspk.errors import FedspkError

if TYPE_CHECKING:
    from fedspk.engine import SpeechEngine

_NEEDED = "install it with: pip install 'fedspk[onnx]'"
_LEAST_COSINE = 0.9999  # between PyTorch's embedding and the compiled model's


@dataclass(frozen=True)
class CompiledModel:
    """A model that was compiled.

    Args:
        model_hash: of the model, as `fedspk.engine.model_hash` gives it (64 hex digits).
        samples: audio samples that the model hears, at 16 kHz.
        graph: the ONNX file's bytes.
    """

    model_hash: str
    samples: int
    graph: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the graph, in hex."""
        return hashlib.sha256(self.graph).hexdigest()


def compile_model(path: Path) -> CompiledModel:
    """Compile a model file and check the result against PyTorch on a made sound.

    Raises:
        FedspkError: the file is no model, ONNX is not installed, or the compiled model does not
            give the same embedding.
    """
    from fedspk.engine import SpeechEngine

    _import_runtime()
    engine = SpeechEngine.load(path)
    compiled = CompiledModel(engine.model_hash, engine.front_end.samples, _export(engine, path))
    sound = np.random.default_rng(0).standard_normal(compiled.samples, dtype=np.float32)
    expected = engine.embed(sound)
    got = CompiledEngine(compiled).embed(sound)
    cosine = float(expected @ got / (np.linalg.norm(expected) * np.linalg.norm(got)))
    if not cosine >= _LEAST_COSINE:
        raise FedspkError(
            f"{path}: the model gives another embedding when compiled (cosine {cosine:.6f} with "
            "the original); update onnxruntime or use another encoder."
        )
    return compiled


class CompiledEngine:
    """One model version at work, without PyTorch; several threads may share it.

    Raises:
        FedspkError: the graph is no ONNX model, or ONNX Runtime is not installed.
    """

    def __init__(self, model: CompiledModel) -> None:
        runtime = _import_runtime()
        self.model_hash = model.model_hash
        self.samples = model.samples
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors only
        try:
            self._session = runtime.InferenceSession(
                model.graph, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own kinds of error have no common base
            raise FedspkError(f"the compiled model cannot be loaded ({error}).") from error

    def embed(self, speech: FloatArray) -> FloatArray:
        """Return the embedding (D,) float32, not normalised, of speech (samples,) at 16 kHz.

        The first `samples` are heard, a shorter sound is repeated; trim silence before.

        Raises:
            AudioError: the sound is empty.
        """
        crop = crop_or_repeat(speech, self.samples)[np.newaxis]
        embedding: FloatArray = self._session.run(None, {"audio": crop})[0][0]
        return embedding


def _export(engine: SpeechEngine, path: Path) -> bytes:
    """Return the ONNX graph of front end and encoder: (1, samples) float32 to (1, D) float32."""
    import torch

    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise FedspkError(f"onnxscript is not installed; {_NEEDED}") from error
    audio = torch.zeros(1, engine.front_end.samples)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                engine.network(),
                (audio,),
                dynamo=True,
                input_names=["audio"],
                output_names=["embedding"],
                verbose=False,
            )
            file = Path(folder) / "model.onnx"
            assert program is not None  # torch.onnx.export(dynamo=True) without a file name
            program.save(file, external_data=False)
            return file.read_bytes()
    except torch.onnx.errors.OnnxExporterError as error:
        raise FedspkError(f"{path}: the model cannot be compiled to ONNX ({error}).") from error
    finally:
        logger.setLevel(level)


def _import_runtime() -> Any:
    # ONNX Runtime from 1.31 on would tell Microsoft of every model that is loaded.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise FedspkError(f"onnxruntime is not installed; {_NEEDED}") from error
    return onnxruntime
