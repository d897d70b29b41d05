"""What is wrong with a trial's sound is said with the file's name."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
from sounds import silence, write_speakers

from fedspk.audio import save_audio
from fedspk.engine import SpeechEngine
from fedspk.errors import FedspkError
from fedspk.evaluation import score_trials
from fedspk.trials import Trial


def test_a_silent_a_broken_and_a_missing_file_are_named(tmp_path: Path) -> None:
    write_speakers(tmp_path)
    save_audio(tmp_path / "silent.wav", silence(2))
    (tmp_path / "broken.wav").write_text("no sound")
    engine = Mock(spec=SpeechEngine)
    for name in ("silent.wav", "broken.wav", "missing.wav"):
        with pytest.raises(FedspkError, match=name.replace(".", r"\.")):
            score_trials([Trial(name, "s0/u0.wav", True)], engine, tmp_path)
