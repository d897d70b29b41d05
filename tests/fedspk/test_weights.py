"""Weights: flat vector and back, files whole or refused, the store by content hash."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fedspk.errors import FedspkError
from fedspk.weights import (
    WeightStore,
    content_hash,
    flatten,
    load_model,
    save_model,
    unflatten,
)


def _state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    convolution = torch.randn(4, 3, 2, 2, generator=generator)
    return {
        "convolution": convolution.contiguous(memory_format=torch.channels_last),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "empty": torch.zeros(0, 7),
        "scalar": torch.tensor(2.5),
    }


def _vector(size: int = 1000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def test_flatten_and_unflatten_are_inverse() -> None:
    state = _state()
    names = ["half", "convolution", "empty", "scalar"]
    vector = flatten(state, names)
    assert vector.dtype == np.float32
    assert vector.shape == (5 + 48 + 1,)
    back = unflatten(vector, state, names)
    assert list(back) == names
    for name in names:
        assert back[name].dtype == state[name].dtype
        assert torch.equal(back[name], state[name])


def test_order_is_that_of_the_names_and_row_major() -> None:
    state = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).t(), "b": torch.tensor([9.0])}
    assert flatten(state, ["b", "a"]).tolist() == [9.0, 1.0, 3.0, 2.0, 4.0]


def test_vector_of_another_model_is_refused() -> None:
    state = _state()
    with pytest.raises(FedspkError, match="another encoder or head"):
        unflatten(np.zeros(3, np.float32), state, ["half"])


def test_unflattened_tensors_do_not_share_memory_with_the_vector() -> None:
    state = _state()
    vector = flatten(state, ["scalar"])
    back = unflatten(vector, state, ["scalar"])
    vector[:] = 0
    assert back["scalar"].item() == 2.5


def test_content_hash_is_that_of_the_bytes() -> None:
    vector = _vector()
    assert content_hash(vector) == content_hash(vector.tobytes())
    assert content_hash(vector[::2]) == content_hash(vector[::2].copy())
    assert content_hash(vector) != content_hash(-vector)


def test_model_file_holds_tensors_and_metadata(tmp_path: Path) -> None:
    state = _state()
    save_model(tmp_path / "model.safetensors", state, {"config": "x"})
    loaded, metadata = load_model(tmp_path / "model.safetensors", state)
    assert metadata == {"config": "x"}
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_missing_broken_or_foreign_model_file_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(FedspkError, match="no such model file"):
        load_model(path)
    save_model(path, _state(), {})
    with pytest.raises(FedspkError, match="'half'"):
        load_model(path, {"half": torch.zeros(6)})
    with pytest.raises(FedspkError, match="nothing for 'other'"):
        load_model(path, {"other": torch.zeros(6)})
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(FedspkError, match="not a whole safetensors"):
        load_model(path)
    path.write_bytes(b"RIFF")
    with pytest.raises(FedspkError, match="not a whole safetensors"):
        load_model(path)


def test_store_gives_back_what_was_put_and_refuses_writing(tmp_path: Path) -> None:
    vector = _vector()
    digest = WeightStore(tmp_path).put(vector)
    found = WeightStore(tmp_path).get(digest)
    assert np.array_equal(found, vector)
    assert digest == content_hash(vector)
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_damaged_weights_are_noticed_and_can_be_put_again(tmp_path: Path) -> None:
    vector = _vector()
    digest = WeightStore(tmp_path).put(vector)
    path = WeightStore(tmp_path).path(digest)
    path.write_bytes(bytes(4000))
    with pytest.raises(FedspkError, match="damaged"):
        WeightStore(tmp_path).get(digest)
    WeightStore(tmp_path).put(vector)
    assert np.array_equal(WeightStore(tmp_path).get(digest), vector)


def test_missing_weights_and_a_wrong_hash_are_clear_errors(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    with pytest.raises(FedspkError, match="missing"):
        store.get("0" * 64)
    with pytest.raises(FedspkError, match="not a content hash"):
        store.get("../secret")
    with pytest.raises(FedspkError, match="not empty"):
        store.put(np.zeros(0, np.float32))


def test_removed_weights_are_gone_but_open_maps_stay(tmp_path: Path) -> None:
    store, vector = WeightStore(tmp_path), _vector()
    digest = store.put(vector)
    found = store.get(digest)
    store.remove(digest)
    assert digest not in store
    assert np.array_equal(found, vector)


def test_concurrent_writers_of_one_vector_leave_it_whole(tmp_path: Path) -> None:
    vector = _vector(200_000)
    threads = [threading.Thread(target=lambda: WeightStore(tmp_path).put(vector)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == [f"{content_hash(vector)}.f32"]
    assert np.array_equal(WeightStore(tmp_path).get(content_hash(vector)), vector)
