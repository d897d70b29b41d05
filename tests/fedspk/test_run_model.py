"""What the model of a run hears is in the run's configuration, whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_federation import BINS, FRAMES, tiny_config

from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.rounds import RunConfig
from fedspk.run_model import initial_vector, load_shared, run_front_end, save_shared


def test_a_run_says_what_its_model_hears() -> None:
    assert run_front_end(RunConfig()) == FrontEndConfig()
    config = tiny_config(front_end={"kind": "fbank", "window_s": 0.025})
    wanted = FrontEndConfig(kind="fbank", frames=FRAMES, bins=BINS, window_s=0.025)
    assert run_front_end(RunConfig.from_json(config.to_json())) == wanted


@pytest.mark.parametrize("wrong", [{"colour": "red"}, {"bins": 8}, {"kind": "sonar"}], ids=str)
def test_a_front_end_that_nobody_knows_is_refused(wrong: dict[str, str | int]) -> None:
    with pytest.raises(FedspkError, match=r"front.end"):
        run_front_end(tiny_config(front_end=wrong))


def test_a_model_that_hears_otherwise_is_not_of_the_run(tmp_path: Path) -> None:
    path, config = tmp_path / "model.safetensors", tiny_config()
    save_shared(path, initial_vector(config), config)
    load_shared(path, config)
    with pytest.raises(FedspkError, match="is not a model of this run's network"):
        load_shared(path, config.changed(front_end={"normalise": "none"}))
