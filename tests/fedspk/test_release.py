"""Manifests, channels and canaries; model files that are not what their manifests say."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_generator import TINY_FRONT_END, make_generator
from version_repository import DESCRIPTION, make_model

from fedspk.engine import DESCRIPTION as DESCRIPTION_KEY
from fedspk.engine import SpeechEngine
from fedspk.errors import FedspkError
from fedspk.release import (
    Channel,
    Manifest,
    channel_at,
    check_client,
    check_model_file,
    draft_manifest,
    in_canary,
    manifest_path,
    model_path,
    version_at,
)
from gan.invented import file_hash

CREATED = "2026-01-02T03:04:05Z"

_TEXT = st.text(min_size=1, max_size=20)
_SHARES = st.floats(0, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    make_model(path)
    return path


@pytest.fixture(scope="module")
def manifest(model: Path) -> Manifest:
    return draft_manifest({}, model, 3, created=CREATED)


@given(_TEXT, _SHARES, _SHARES, _TEXT)
def test_a_canary_stays_one_when_the_share_grows(
    device: str, a: float, b: float, salt: str
) -> None:
    small, great = sorted((a, b))
    assert in_canary(device, small, salt) == in_canary(device, small, salt)
    assert in_canary(device, great, salt) or not in_canary(device, small, salt)
    assert in_canary(device, 1.0, salt)
    assert not in_canary(device, 0.0, salt)


@given(st.floats(0.02, 0.98), _TEXT)
def test_the_canaries_are_about_the_stated_share(share: float, salt: str) -> None:
    found = sum(in_canary(f"device-{n}", share, salt) for n in range(2000)) / 2000
    assert abs(found - share) < 6 * (share * (1 - share) / 2000) ** 0.5


def test_another_salt_chooses_other_canaries() -> None:
    a, b = ({n for n in range(2000) if in_canary(str(n), 0.5, salt)} for salt in ("00", "01"))
    assert 0.4 < len(a & b) / len(a) < 0.6


def test_the_choice_of_canaries_is_pinned() -> None:
    """Devices and server of different releases must agree."""
    chosen = [device for device in map(str, range(20)) if in_canary(device, 0.25, "c0ffee")]
    assert chosen == ["0", "6", "9", "13", "17", "19"]


def test_a_manifest_survives_its_file(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.architecture is not None
    assert manifest.architecture.description() == DESCRIPTION
    assert manifest.created == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_the_content_hash_is_that_of_the_engine(model: Path, manifest: Manifest) -> None:
    assert manifest.content_hash == SpeechEngine.load(model).model_hash
    check_model_file(model, manifest)


WRONG_FIELDS: dict[str, dict[str, Any]] = {
    "unknown field": {"surprise": 1},
    "version below 1": {"version": 0},
    "unknown kind": {"kind": "onnx"},
    "architecture missing": {"architecture": None},
    "hash too short": {"content_hash": "ab"},
    "time without zone": {"created": "2026-01-02T03:04:05"},
    "time not in UTC": {"created": "2026-01-02T03:04:05+02:00"},
    "parent not older": {"parent": {"version": 3, "content_hash": "0" * 64}},
    "rolled back to itself": {"rolled_back_to": 3},
    "endless version of fedspk": {"minimum_client": "9" * 5000 + ".0.0"},
    "version of fedspk in other digits": {"minimum_client": "\u0661.0.0"},
    "no budget": {"privacy": {"epsilon": 0, "delta": 1e-5}},
    "infinite threshold": {"thresholds": [{"false_accept_rate": 0.01, "threshold": "inf"}]},
    "thresholds rise": {
        "thresholds": [
            {"false_accept_rate": 0.01, "threshold": 0.2},
            {"false_accept_rate": 0.1, "threshold": 0.5},
        ]
    },
    "EER outside its interval": {
        "evaluation": {
            "eer": 9,
            "eer_interval": [1, 2],
            "min_dcf": 1,
            "devices": 1,
            "corpus": "a",
        }
    },
}


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_a_wrong_manifest_is_refused(manifest: Manifest, name: str) -> None:
    fields = {**json.loads(manifest.to_json()), **WRONG_FIELDS[name]}
    with pytest.raises(FedspkError, match=r"^the manifest is wrong: "):
        Manifest.from_json(json.dumps(fields))


def test_a_wrong_channel_is_refused() -> None:
    assert Channel.from_json('{"name": "stable", "version": 2}').share == 1
    for text in (
        "{}",
        '{"name": "beta", "version": 2}',
        '{"name": "canary", "version": 2, "share": 2}',
    ):
        with pytest.raises(FedspkError, match=r"^the channel is wrong: "):
            Channel.from_json(text)
    with pytest.raises(FedspkError, match="is longer than"):
        Channel.from_json(" " * 100_000)


def rewritten(model: Path, folder: Path, how: str) -> Path:
    """Write a model file that differs from `model` in one respect."""
    path = folder / "changed.safetensors"
    state = load_file(model)
    metadata = {DESCRIPTION_KEY: DESCRIPTION.to_json()}
    name = next(each for each in sorted(state) if each.endswith("weight"))
    if how == "other weights":
        state[name] = state[name] + 1
    elif how == "another shape":
        state[name] = state[name].flatten().clone()
    elif how == "another type":
        state[name] = state[name].double()
    elif how == "a weight missing":
        del state[name]
    elif how == "a weight too many":
        state["encoder.surprise"] = torch.zeros(1)
    elif how == "another front end":
        fields = json.loads(metadata[DESCRIPTION_KEY])
        fields["front_end"]["kind"] = "fbank"
        metadata[DESCRIPTION_KEY] = json.dumps(fields)
    elif how == "another encoder":
        fields = json.loads(metadata[DESCRIPTION_KEY])
        fields["encoder"] = "vggm-pooled"
        metadata[DESCRIPTION_KEY] = json.dumps(fields)
    elif how == "an unknown encoder":
        fields = json.loads(metadata[DESCRIPTION_KEY])
        fields["encoder"] = "conformer"
        metadata[DESCRIPTION_KEY] = json.dumps(fields)
    elif how == "no description":
        metadata = {}
    elif how == "weights that are no numbers":
        state[name] = state[name] * float("nan")
    save_file(state, path, metadata)
    if how == "no safetensors":
        path.write_bytes(b"\x80\x04pickle")
    elif how == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    return path


DISAGREEMENTS = {
    "other weights": "do not have the content hash",
    "another shape": "has shape",
    "another type": "has type F64, its description needs F32",
    "a weight missing": "lacks the weight",
    "a weight too many": r"holds 'encoder\.surprise'",
    "another front end": "was made for the front end",
    "another encoder": "holds the encoder vggm-pooled",
    "an unknown encoder": "holds the encoder conformer",
    "no description": "does not say which encoder",
    "no safetensors": "is not a whole safetensors",
    "cut short": "is not a whole safetensors",
}


@pytest.mark.parametrize("how", DISAGREEMENTS)
def test_a_file_that_disagrees_with_its_manifest_is_refused(
    model: Path, manifest: Manifest, tmp_path: Path, how: str
) -> None:
    path = rewritten(model, tmp_path, how)
    stated = manifest.model_copy(update={"length": path.stat().st_size})
    with pytest.raises(FedspkError, match=DISAGREEMENTS[how]):
        check_model_file(path, stated)


def test_a_longer_file_is_refused_unread(model: Path, manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "longer"
    path.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(FedspkError, match="bytes long, its manifest says"):
        check_model_file(path, manifest)
    with pytest.raises(FedspkError, match="cannot be read"):
        check_model_file(tmp_path / "absent", manifest)


def test_versions_of_fedspk_are_compared_by_their_numbers(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedspk.release.__version__", "0.10.0")
    for good in ("0.9.0", "0.9.11", "0.10.0"):
        check_client(manifest.model_copy(update={"minimum_client": good}), "it")
    for newer in ("0.10.1", "0.11.0", "1.0.0"):
        with pytest.raises(FedspkError, match=f"it: needs fedspk {newer} or newer"):
            check_client(manifest.model_copy(update={"minimum_client": newer}), "it")


def test_a_manifest_of_an_unknown_encoder_is_refused(tmp_path: Path, model: Path) -> None:
    path = rewritten(model, tmp_path, "an unknown encoder")
    with pytest.raises(FedspkError, match="'conformer' is unknown"):
        draft_manifest({}, path, 1, created=CREATED)


def _described(**fields: Any) -> str:
    return json.dumps({**json.loads(DESCRIPTION.to_json()), **fields})


def _heard(**fields: Any) -> str:
    return _described(front_end={**json.loads(DESCRIPTION.to_json())["front_end"], **fields})


STRANGE = {
    "parameters are a number": _described(encoder_params=5),
    "parameters are a text": _described(encoder_params="abc"),
    "the encoder is a list": _described(encoder=["x"]),
    "parameters set the bins": _described(encoder_params={"bins": 40}),
    "parameters set the seed": _described(encoder_params={"seed": "x"}),
    "a negative size": _described(encoder_params={"embedding_dim": -3}),
    "too few blocks": _described(encoder="resnet1d-18", encoder_params={"blocks": [1]}),
    "half a frame": _heard(frames=60.5),
    "a day of sound": _heard(frames=10**9),
    "frames closer than samples": _heard(hop_s=1e-9),
    "a list": "[1, 2]",
    "brackets without end": "[" * 100_000,
}


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_a_strange_description_is_neither_signed_nor_believed(
    tmp_path: Path, model: Path, manifest: Manifest, text: str
) -> None:
    path = tmp_path / "strange.safetensors"
    save_file(load_file(model), path, {DESCRIPTION_KEY: text})
    stated = manifest.model_copy(update={"length": path.stat().st_size})
    try:
        fields = {**json.loads(stated.to_json()), "architecture": json.loads(text)}
    except RecursionError:
        fields = json.loads(stated.to_json())
    for refuse in (
        lambda: draft_manifest({}, path, 1, created=CREATED),
        lambda: check_model_file(path, Manifest.from_json(json.dumps(fields))),
    ):
        with pytest.raises(FedspkError) as caught:
            refuse()
        assert len(str(caught.value).splitlines()) == 1


def test_weights_that_are_no_numbers_are_not_signed(tmp_path: Path, model: Path) -> None:
    path = rewritten(model, tmp_path, "weights that are no numbers")
    with pytest.raises(FedspkError, match=r"weight 'encoder\..*' is not finite"):
        draft_manifest({}, path, 1, created=CREATED)


def test_a_head_that_is_no_number_is_not_signed(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "head.safetensors"
    state = {
        name: weights * float("nan") if name.startswith("head.") else weights
        for name, weights in load_file(model).items()
    }
    save_file(state, path, {DESCRIPTION_KEY: DESCRIPTION.to_json()})
    with pytest.raises(FedspkError, match=r"weight 'head\..*' is not finite"):
        draft_manifest({}, path, 1, created=CREATED)


def test_a_generator_is_known_by_the_hash_of_its_file(tmp_path: Path) -> None:
    path = make_generator(tmp_path / "gan.safetensors")
    manifest = draft_manifest({"kind": "gan"}, path, 1, created=CREATED)
    assert manifest.architecture is None
    assert manifest.generator is not None
    assert manifest.generator.front_end["bins"] == TINY_FRONT_END.bins
    check_model_file(path, manifest)
    make_generator(path, seed=2)
    with pytest.raises(FedspkError, match="content hash"):
        check_model_file(path, manifest)


def test_a_generator_for_another_front_end_than_its_manifest_says_is_refused(
    tmp_path: Path,
) -> None:
    path = make_generator(tmp_path / "gan.safetensors")
    manifest = draft_manifest({"kind": "gan"}, path, 1, created=CREATED)
    assert manifest.generator is not None
    other = {**manifest.generator.model_dump(), "front_end": {"kind": "mfcc"}}
    stated = Manifest.model_validate({**manifest.model_dump(), "generator": other})
    with pytest.raises(FedspkError, match=r"its front_end is .* its manifest says"):
        check_model_file(path, stated)


def test_a_draft_of_another_generator_is_refused(tmp_path: Path) -> None:
    described, other = (make_generator(tmp_path / f"{n}.safetensors", seed=n) for n in (1, 2))
    draft = {"kind": "gan", "content_hash": file_hash(described), "created": CREATED}
    assert draft_manifest(draft, described, 1).content_hash == file_hash(described)
    with pytest.raises(FedspkError, match=r"but 2\.safetensors would .* it is of another file"):
        draft_manifest(draft, other, 1)


def test_a_report_is_of_one_file(tmp_path: Path) -> None:
    path = make_generator(tmp_path / "gan.safetensors")
    draft = {"kind": "gan", "report": {"detector_eer": 3.5}, "created": CREATED}
    with pytest.raises(FedspkError, match="has no content_hash, so it may be of any file"):
        draft_manifest(draft, path, 1)
    manifest = draft_manifest({**draft, "content_hash": file_hash(path)}, path, 1)
    assert manifest.report == {"detector_eer": 3.5}


def test_a_file_that_is_no_generator_is_not_published_as_one(model: Path) -> None:
    with pytest.raises(FedspkError, match="fedspk gan train"):
        draft_manifest({"kind": "gan"}, model, 1, created=CREATED)


def test_a_draft_may_not_contradict_the_file(model: Path) -> None:
    for field, value in {"content_hash": "0" * 64, "length": 5, "version": 9}.items():
        with pytest.raises(FedspkError, match=f"the manifest's {field} is "):
            draft_manifest({field: value}, model, 3, created=CREATED)


def test_target_paths_are_read_back() -> None:
    assert version_at(model_path("model", 12)) == ("model", 12)
    assert version_at(manifest_path("gan", 1)) == ("gan", 1)
    assert channel_at("channels/canary.json") == "canary"
    for path in ("models/0/model.safetensors", "models/1/../x", "channels/beta.json", "models/1/x"):
        assert version_at(path) is None
        assert channel_at(path) is None
