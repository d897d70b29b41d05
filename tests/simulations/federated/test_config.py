"""Presets, a file of the user's, flags: later ones win; mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedspk.errors import FedspkError
from fedspk.run_model import run_front_end
from fedspk.secagg.config import SecureConfig
from simulations.federated.config import ARMS, PRESETS, arm_name, load_config


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_complete(preset: str) -> None:
    config = load_config(preset, None, {})  # type: ignore[arg-type]
    assert config.arm("federated", "speech", public=3).public == 3


def test_the_paper_preset_is_the_papers() -> None:
    config = load_config("paper", None, {})
    run = config.arm("federated", "speech")
    assert config.devices == 25
    assert config.start == "random"
    assert (run.encoder, run.head_kind, run.head, run.rounds) == ("vggm", "binary", "shared", 1)
    assert (run.batch_size, run.momentum, run.weight_decay) == (64, 0.9, 5e-4)
    assert (run.learning_rate, run.final_learning_rate) == (1e-2, 1e-8)
    assert run.codeword_seed is None


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("devices = 7\nseed = 5\n[federated]\nrounds = 3\n")
    config = load_config("quick", file, {"devices": 9, "run.encoder": "resnet1d-18"})
    run = config.arm("federated", "speech")
    assert (config.devices, config.seed, run.rounds, run.encoder) == (9, 5, 3, "resnet1d-18")
    assert run.seed == 5


def test_overrides_reach_the_federated_arms_only() -> None:
    config = load_config("default", None, {"federated.batch_size": 5, "run.batch_size": 6})
    assert config.arm("federated", "speech").batch_size == 5
    assert config.arm("individual", "speech").batch_size == 6


def secure(file: Path | None, flag: bool | None) -> SecureConfig | None:
    flags = {} if flag is None else {"federated.secure": flag}
    return load_config("default", file, flags).arm("federated", "speech").secure


def test_updates_are_summed_securely_unless_the_file_or_the_flag_says_no(tmp_path: Path) -> None:
    preset = secure(None, None)
    assert preset is not None
    assert secure(None, True) == preset
    assert secure(None, False) is None
    (tmp_path / "off.toml").write_text("[federated]\nsecure = false\n")
    (tmp_path / "own.toml").write_text("[federated.secure]\nnorm = 0.5\n")
    assert secure(tmp_path / "off.toml", None) is None
    assert secure(tmp_path / "off.toml", True) == SecureConfig()
    own = secure(tmp_path / "own.toml", True)
    assert own is not None
    assert (own.norm, own.maximum_weight) == (0.5, preset.maximum_weight)


MISTAKES = {
    "unknown field": ("speed = 3\n", "speed"),
    "unknown field below": ("[run]\nrate = 3\n", "run.rate"),
    "unknown override": ("[federated]\nrate = 3\n", "rate"),
    "out of range": ("devices = 1\n", "devices"),
    "wrong arm": ('arms = ["initial", "best"]\n', "arms"),
    "an arm twice": ('arms = ["initial", "initial"]\n', "once"),
    "a mistake in a table": ("[federated.secure]\nnorm = -1\n", "secure.norm"),
    "not TOML": ("devices =\n", "not valid TOML"),
}


@pytest.mark.parametrize(("text", "words"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_with_the_field(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(FedspkError, match=words):
        load_config("default", file, {})


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FedspkError, match="cannot be read"):
        load_config("default", tmp_path / "absent.toml", {})


def test_every_arm_hears_what_the_experiment_says() -> None:
    config = load_config("quick", None, {"front_end.normalise": "mean", "front_end.frames": 200})
    for arm in ARMS:
        assert run_front_end(config.arm(arm, "speech")) == config.front_end


def test_only_further_kinds_of_impostors_get_a_suffix() -> None:
    assert arm_name("federated", "speech", "speech") == "federated"
    assert arm_name("federated", "gan", "speech") == "federated-gan"
    assert arm_name("individual", "gan", "gan") == "individual"
    assert arm_name("initial", "gan", "speech") == "initial"
