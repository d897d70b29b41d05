"""A generator file comes back as it was stored, or is refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_generator import TINY_FRONT_END, TINY_NETWORK, make_generator
from version_repository import make_model

from fedspk import release
from fedspk.cli import run
from fedspk.errors import FedspkError
from fedspk.features import FrontEndConfig
from fedspk.generator_description import NetworkConfig
from fedspk.model_file import GENERATOR
from fedspk.release import Manifest, check_model_file, draft_manifest
from fedspk.weights import load_model
from gan.generator_file import check_front_end, generator_origin, load_generator
from gan.invented import file_hash
from gan.manifest import write_draft
from gan.network import Generator

DRAFT = {"kind": "gan", "created": "2026-01-01T00:00:00Z"}


def checked_on_a_device(path: Path) -> None:
    """Check a file as a download, with a manifest that agrees with it in every number."""
    manifest = Manifest.model_construct(
        kind="gan",
        version=1,
        architecture=None,
        generator=release.Generator(
            front_end=asdict(TINY_FRONT_END), corpus="fingerprint", speakers=3
        ),
        content_hash=file_hash(path),
        length=path.stat().st_size,
    )
    check_model_file(path, manifest)


READERS: tuple[Callable[[Path], object], ...] = (
    load_generator,
    lambda path: draft_manifest(DRAFT, path, 1),
    checked_on_a_device,
)
"""As commands read a generator file, as it is published, and as a device fetches it."""


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
    tensors, metadata = load_model(file)
    description = json.loads(metadata[GENERATOR])
    change(description)
    path = folder / "changed.safetensors"
    save_file(tensors, path, {GENERATOR: json.dumps(description)})
    return path


CHANGES: dict[str, Callable[[dict[str, object]], object]] = {
    "another format": lambda d: d.update(format=9),
    "no network": lambda d: d.pop("network"),
    "sizes of another kind": lambda d: d.update(network={"channels": "wide"}),
    "a negative size": lambda d: d.update(network={**TINY_NETWORK.__dict__, "style_dim": -1}),
    "a broken size": lambda d: d.update(network={**TINY_NETWORK.__dict__, "style_dim": 6.0}),
    "a size of letters": lambda d: d.update(network={**TINY_NETWORK.__dict__, "style_dim": "6"}),
    "a million layers": lambda d: d.update(
        network={**TINY_NETWORK.__dict__, "channels": [1] * 1_000_000}
    ),
    "an unknown size": lambda d: d.update(network={**TINY_NETWORK.__dict__, "depth": 1}),
    "an impossible front end": lambda d: d.update(front_end={"bins": 0}),
    "no origin": lambda d: d.pop("origin"),
    "an origin of another kind": lambda d: d.update(origin=[]),
    "marks that are no list": lambda d: d.update(origin={"heard": 5}),
    "marks that are no text": lambda d: d.update(origin={"heard": [5]}),
    "a training without fields": lambda d: d.update(origin={"training": "long"}),
    "a seed of letters": lambda d: d.update(origin={"training": {"seed": "7"}}),
    "a plan of another kind": lambda d: d.update(origin={"plan": [1.0]}),
    "a plan without speeds": lambda d: d.update(origin={"plan": {"patches": 8}}),
    "no step": lambda d: d.update(origin={"reached": {}}),
    "a corpus that is no text": lambda d: d.update(corpus=5),
    "speakers that are no number": lambda d: d.update(speakers="3"),
    "a hash that is none": lambda d: d.update(weights="abc"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_foreign_description_is_refused(
    file: Path, tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    path = rewritten(file, tmp_path, change)
    for read in READERS:
        with pytest.raises(FedspkError, match=r"changed\.safetensors: is damaged or of") as refused:
            read(path)
        assert len(str(refused.value)) < 250
        assert "\n" not in str(refused.value)


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


def test_it_fits_a_phone(file: Path, tmp_path: Path) -> None:
    tensors, metadata = load_model(file)
    path = tmp_path / "generator.safetensors"
    save_file({**tensors, "more": torch.zeros(6 << 20, dtype=torch.uint8)}, path, metadata)
    for read in READERS:
        with pytest.raises(FedspkError, match="no impostor generator is longer than 5242880"):
            read(path)
    whole = draft_manifest(DRAFT, file, 1)
    with pytest.raises(FedspkError, match="no impostor generator is longer than 5242880"):
        Manifest.from_json(whole.model_copy(update={"length": path.stat().st_size}).to_json())


WEIGHTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "no number": (lambda t: t["output.bias"][0].fill_(torch.nan), "'output.bias' is not finite"),
    "without end": (lambda t: t["output.bias"][0].fill_(torch.inf), "'output.bias' is not finite"),
    "of another type": (lambda t: t.update({"output.bias": t["output.bias"].float()}), "type F32"),
    "of another shape": (lambda t: t.update({"output.bias": t["output.bias"][1:]}), "has shape"),
    "missing": (lambda t: t.pop("output.bias"), "lacks the weight 'output.bias'"),
    "unknown": (lambda t: t.update(more=torch.zeros(1)), "holds 'more', which no generator has"),
    "another": (lambda t: t["output.bias"][0].add_(1), "not those that were written into it"),
}


@pytest.mark.parametrize(("change", "fault"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_are_checked_wherever_a_file_is_read(
    file: Path,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], object],
    fault: str,
) -> None:
    tensors, metadata = load_model(file)
    change(tensors)
    path = tmp_path / "generator.safetensors"
    save_file(tensors, path, metadata)
    for read in READERS:
        with pytest.raises(FedspkError, match=rf"generator\.safetensors: .*{fault}"):
            read(path)


@pytest.mark.parametrize("style_dim", [7, 10**9, 10**30])
def test_no_size_is_believed_that_the_weights_have_not(
    file: Path, tmp_path: Path, style_dim: int
) -> None:
    sizes = {**TINY_NETWORK.__dict__, "style_dim": style_dim}
    path = rewritten(file, tmp_path, lambda d: d.update(network=sizes))
    for read in READERS:
        with pytest.raises(FedspkError, match=rf"its description needs \({style_dim}, "):
            read(path)


def test_files_of_before_weights_were_hashed_are_read(file: Path, tmp_path: Path) -> None:
    old = load_generator(rewritten(file, tmp_path, lambda d: d.pop("weights"))).state_dict()
    assert all(torch.equal(old[n], value) for n, value in load_generator(file).state_dict().items())


@pytest.mark.parametrize(
    "network", [TINY_NETWORK, NetworkConfig(), NetworkConfig(channels=(5,) * 11)], ids=repr
)
def test_a_description_knows_its_network_s_weights(network: NetworkConfig) -> None:
    with torch.device("meta"):
        made = Generator(network, TINY_FRONT_END).state_dict()
    found = {name: tuple(value.shape) for name, value in made.items()}
    assert network.weights(TINY_FRONT_END.bins) == found


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
