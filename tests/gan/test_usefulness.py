"""Of what use a generator is, is told by a run with this very generator, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from simulated_arms import write_results
from tiny_generator import make_generator

from fedspk.errors import FedspkError
from fedspk.files import read_json, write_json
from gan.usefulness import read_usefulness

NEEDED = ("individual", "federated", "federated-gan")


@pytest.fixture
def generator(tmp_path: Path) -> Path:
    return make_generator(tmp_path / "generator.safetensors")


def test_the_arms_and_the_tests_against_invented_impostors_are_read(
    generator: Path, tmp_path: Path
) -> None:
    found = read_usefulness(write_results(tmp_path / "run", NEEDED, generator), generator)
    assert found["arms"]["federated"] == {"mean_eer": 5.0, "mean_eer_interval": [4.0, 6.0]}
    assert list(found["eer"]) == list(NEEDED)
    assert [(row["a"], row["b"]) for row in found["tests"]] == [
        ("individual", "federated-gan"),
        ("federated", "federated-gan"),
    ]


def test_further_arms_are_shown_where_the_run_has_them(generator: Path, tmp_path: Path) -> None:
    arms = (*NEEDED, "initial", "individual-gan", "federated-none", "individual-none")
    found = read_usefulness(write_results(tmp_path / "run", arms, generator), generator)
    assert set(found["arms"]) == set(arms) - {"initial"}
    assert {*(row["a"] for row in found["tests"]), *(row["b"] for row in found["tests"])} == set(
        found["arms"]
    )


def test_a_run_with_another_generator_is_refused(generator: Path, tmp_path: Path) -> None:
    folder = write_results(tmp_path / "run", NEEDED, make_generator(tmp_path / "o.safetensors", 2))
    with pytest.raises(FedspkError, match="another generator"):
        read_usefulness(folder, generator)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"generator": ...}, "does not say which generator"),
        ({"generator": None}, "another generator"),
        ({"summary": {}}, "has no arm individual"),
        ({"summary": 3}, "holds no results"),
        ({"devices": [{"eer": {"federated": 5.0}}]}, "lacks a device's EER"),
        ({"config": {"impostors": ["none", "gan"]}}, "no real impostors"),
    ],
)
def test_what_is_no_such_run_is_refused(
    change: dict[str, Any], told: str, generator: Path, tmp_path: Path
) -> None:
    folder = write_results(tmp_path / "run", NEEDED, generator)
    results = {**read_json(folder / "results.json"), **change}
    kept = {name: value for name, value in results.items() if value is not ...}
    write_json(folder / "results.json", kept)
    with pytest.raises(FedspkError, match=told):
        read_usefulness(folder, generator)


@pytest.mark.parametrize("results", [{}, [], "no run"])
def test_a_file_that_is_no_run_is_refused(results: Any, generator: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", results)
    with pytest.raises(FedspkError, match="does not say which generator"):
        read_usefulness(tmp_path, generator)
