"""Configuration from TOML, YAML, SpeakerVerSim's YAML, flags and sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedspk.errors import FedspkError
from simulations.versioning.config import VersioningConfig
from simulations.versioning.loading import load_config, load_sweep, parse_sweep

SPEAKERVERSIM = """
strategy: "SSO-sync"
log_verbosity: 2
print_stats: True
num_cloud_workers: 20
time_to_run: 7200
client_frontend_latency: 0.244
frontend_worker_latency: 0.0012
database_read_latency: 0.0005
database_write_latency: 0.02
worker_inference_latency: 0.25
flops_per_inference: 2100000000
client_request_interval: 5
num_users: 7
user_distribution: "linear"
worker_update_mean_time: 1800
version_query_interval: 300
"""


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def refused(file: Path | None = None, **flags: object) -> str:
    with pytest.raises(FedspkError) as caught:
        load_config(file, {name.replace("__", "."): value for name, value in flags.items()})
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_toml_and_yaml_say_the_same(tmp_path: Path) -> None:
    toml = write(tmp_path, "a.toml", 'workers = 7\n[rollout]\nkind = "rolling"\nstep_s = 60.0\n')
    yaml = write(tmp_path, "a.yaml", "workers: 7\nrollout:\n  kind: rolling\n  step_s: 60.0\n")
    assert load_config(toml, {}) == load_config(yaml, {})
    assert load_config(toml, {}).rollout.step_s == 60


def test_flags_override_the_file_and_nothing_beside(tmp_path: Path) -> None:
    file = write(tmp_path, "a.toml", "workers = 7\n[rollout]\nmean_s = 60.0\nstep_s = 5.0\n")
    config = load_config(file, {"workers": 8, "rollout.mean_s": 90.0})
    assert (config.workers, config.rollout.mean_s, config.rollout.step_s) == (8, 90, 5)


def test_nothing_given_is_the_default() -> None:
    assert load_config(None, {}) == VersioningConfig()


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "a.yml", "# nothing\n"), {}) == VersioningConfig()


def test_a_speakerversim_file_is_read_one_for_one(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "example_config.yml", SPEAKERVERSIM), {})
    assert config.model == "compat"
    assert config.strategies == ("SSO-sync",)
    assert (config.workers, config.users, config.hours) == (20, 7, 2)
    assert (config.interval, config.sync_interval, config.rollout.mean_s) == (5, 300, 1800)
    assert (config.arrivals.kind, config.user_rates.kind) == ("regular", "linear")
    compat = config.compat
    assert (compat.client_frontend_s, compat.frontend_worker_s) == (0.244, 0.0012)
    assert (compat.database_read_s, compat.database_write_s) == (0.0005, 0.02)
    assert compat.inference_s == 0.25
    assert compat.gflops_per_inference == pytest.approx(2.1)


def test_a_speakerversim_file_means_the_same_load_to_the_default_model(tmp_path: Path) -> None:
    file = write(tmp_path, "example_config.yml", SPEAKERVERSIM)
    config = load_config(file, {"model": "default"})
    audio_mbit = config.audio.seconds * config.audio.kbit_per_s / 1000
    assert audio_mbit / config.links.client_mbit_per_s == pytest.approx(0.244)
    assert audio_mbit / config.links.worker_mbit_per_s == pytest.approx(0.0012)
    assert config.audio.seconds * config.worker.real_time_factor == pytest.approx(0.25)
    assert config.audio.seconds * config.worker.gflops_per_second == pytest.approx(2.1)
    assert config.database.write_s == 0.02


def test_flops_in_exponent_notation_are_a_number(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yml", "flops_per_inference: 3.0e9\n")  # text to YAML 1.1
    assert load_config(file, {}).compat.gflops_per_inference == pytest.approx(3.0)


def test_broken_speakerversim_files_are_one_sentence(tmp_path: Path) -> None:
    assert "workers" in refused(write(tmp_path, "a.yml", "num_users: 3\nworkers: 4\n"))
    assert "time_to_run" in refused(write(tmp_path, "b.yml", "time_to_run: long\n"))
    assert "above zero" in refused(write(tmp_path, "c.yml", "worker_update_mean_time: -1\n"))
    assert "user_rates.kind" in refused(write(tmp_path, "d.yml", "user_distribution: normal\n"))


def test_nonsense_is_one_sentence_that_names_the_field() -> None:
    assert "interval" in refused(interval=-1.0)
    assert "workers" in refused(workers=0)
    assert "20 groups" in refused(groups=20, workers=10)
    assert "'SSO-best'" in refused(strategies=["SSO-best"])
    assert "strategies" in refused(strategies=[])
    assert "rollout.kind" in refused(rollout__kind="sudden")
    assert "hours" in refused(hours=float("inf"))
    assert "hours" in refused(hours=float("nan"))
    assert "worker.speed is unknown" in refused(worker__speed=1)
    assert "real_time_factor" in refused(worker__speed=1)
    assert "speeed is unknown" in refused(speeed=1)
    assert "workers" in refused(workers__count=1)


def test_files_that_are_none_are_one_sentence(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "absent.toml")
    assert "not valid" in refused(write(tmp_path, "a.toml", "workers = = 3"))
    assert "not valid" in refused(write(tmp_path, "a.yaml", "a: [1\nb: }"))
    assert "holds no fields" in refused(write(tmp_path, "b.yaml", "- 1\n- 2\n"))
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00")
    assert "not valid" in refused(tmp_path / "c.toml")
    assert "not valid" in refused(write(tmp_path, "d.yaml", "a: !!python/object:os.system {}\n"))


def test_a_sweep_sets_one_field_to_each_value() -> None:
    sweep = parse_sweep("sync-interval=60, 600,3600")
    configs = load_sweep(None, {"workers": 5}, sweep)
    assert [config.sync_interval for config in configs] == [60, 600, 3600]
    assert {config.workers for config in configs} == {5}


def test_a_sweep_reaches_into_tables_and_takes_words() -> None:
    configs = load_sweep(None, {}, parse_sweep("worker.concurrency=1,2,infinite"))
    assert [config.worker.concurrency for config in configs] == [1, 2, None]
    configs = load_sweep(None, {}, parse_sweep("rollout.kind=rolling,blue-green"))
    assert [config.rollout.kind for config in configs] == ["rolling", "blue-green"]


@pytest.mark.parametrize("text", ["workers", "workers=", "=1,2", "workers=1,1", "strategies=SD"])
def test_a_sweep_of_another_form_is_one_sentence(text: str) -> None:
    with pytest.raises(FedspkError, match="--sweep"):
        parse_sweep(text)


def test_a_swept_value_out_of_range_names_the_field() -> None:
    with pytest.raises(FedspkError, match="workers"):
        load_sweep(None, {}, parse_sweep("workers=10,-5"))
