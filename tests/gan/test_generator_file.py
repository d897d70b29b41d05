"""A generator file comes back as it was stored, or is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_generator import TINY_FRONT_END, TINY_NETWORK, make_generator
from version_repository import make_model

from fedspk.cli import run
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.model_file import GENERATOR
from fedspk.release import Manifest, check_model_file, draft_manifest
from gan.generator_file import check_front_end, generator_origin, load_generator
from gan.manifest import write_draft


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_generator(tmp_path_factory.mktemp("gan") / "generator.safetensors")


def test_what_is_loaded_is_what_was_stored(file: Path) -> None:
    generator = load_generator(file)
    assert generator.config == TINY_NETWORK
    assert generator.front_end == TINY_FRONT_END
    for name, value in load_file(file).items():
        assert value.dtype == torch.float16
        assert torch.equal(generator.state_dict()[name], value.float())
    assert generator_origin(file)["corpus"] == "fingerprint"


def rewritten(file: Path, folder: Path, change: Callable[[dict[str, object]], object]) -> Path:
    from fedspk.weights import load_model

    tensors, metadata = load_model(file)
    description = json.loads(metadata[GENERATOR])
    change(description)
    path = folder / "changed.safetensors"
    save_file(tensors, path, {GENERATOR: json.dumps(description)})
    return path


CHANGES: dict[str, Callable[[dict[str, object]], object]] = {
    "another format": lambda d: d.update(format=9),
    "no network": lambda d: d.pop("network"),
    "other sizes": lambda d: d.update(network={**TINY_NETWORK.__dict__, "style_dim": 7}),
    "sizes of another kind": lambda d: d.update(network={"channels": "wide"}),
    "a negative size": lambda d: d.update(network={**TINY_NETWORK.__dict__, "style_dim": -1}),
    "an unknown size": lambda d: d.update(network={**TINY_NETWORK.__dict__, "depth": 1}),
    "an impossible front end": lambda d: d.update(front_end={"bins": 0}),
    "no origin": lambda d: d.pop("origin"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_foreign_description_is_refused(
    file: Path, tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    with pytest.raises(FedspkError, match=r"changed\.safetensors: is damaged or of another fedspk"):
        load_generator(rewritten(file, tmp_path, change))


def test_a_damaged_or_foreign_file_is_refused(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "generator.safetensors"
    with pytest.raises(FedspkError, match="no such model file"):
        load_generator(path)
    path.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FedspkError, match="not a whole safetensors"):
        load_generator(path)
    path.write_bytes(b"\0" * 100)
    with pytest.raises(FedspkError, match="not a whole safetensors"):
        load_generator(path)
    make_model(path)
    with pytest.raises(FedspkError, match="holds no impostor generator"):
        load_generator(path)
    path.write_bytes(b"\0" * (6 << 20))
    with pytest.raises(FedspkError, match="it is no impostor generator"):
        load_generator(path)


def test_weights_that_are_no_numbers_are_refused(file: Path, tmp_path: Path) -> None:
    from fedspk.weights import load_model

    tensors, metadata = load_model(file)
    tensors["output.bias"][0] = torch.nan
    path = tmp_path / "generator.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(FedspkError, match="no numbers"):
        load_generator(path)


def test_a_generator_for_another_front_end_is_refused(file: Path) -> None:
    generator = load_generator(file)
    check_front_end(file, generator, TINY_FRONT_END)
    with pytest.raises(FedspkError, match="trained with the encoder's front end"):
        check_front_end(file, generator, FrontEndConfig(frames=40, bins=9))


def test_its_draft_becomes_the_manifest_that_it_is_published_with(
    file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "generator.safetensors"
    path.write_bytes(file.read_bytes())
    write_draft(path, tmp_path / "draft.json", {"detector_eer": 3.5})
    draft = json.loads((tmp_path / "draft.json").read_text())
    manifest = draft_manifest(draft, path, 4, created="2026-01-01T00:00:00Z")
    check_model_file(path, manifest)
    assert manifest.kind == "gan"
    assert manifest.generator is not None
    assert manifest.generator.speakers == 3
    assert manifest.report == {"detector_eer": 3.5}


def test_the_main_server_publishes_it_beside_the_models(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    versions, draft = str(tmp_path / "versions"), tmp_path / "draft.json"
    write_draft(file, draft)
    assert run(["server", "init", versions]) == 0
    publish = ["server", "publish", versions, "--manifest", str(draft), "--model"]
    assert run([*publish, str(file)]) == 0
    (path,) = (tmp_path / "versions").rglob("*.manifest.json")
    assert Manifest.from_json(path.read_bytes()).generator is not None
    make_model(tmp_path / "model.safetensors")
    capsys.readouterr()
    assert run([*publish, str(tmp_path / "model.safetensors")]) == 2
    assert "fedspk gan train" in capsys.readouterr().err
