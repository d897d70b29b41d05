from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_federation import tiny_config, tiny_fleet

from clients import local
from clients.dataset import DeviceDataset
from fedspk.errors import FedspkError
from fedspk.run_model import all_names, device_model, initial_vector, shared_names
from fedspk.weights import flatten


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def devices(tmp_path):
    return [DeviceDataset.open(path) for path in tiny_fleet(tmp_path / "fleet", 2)]


def _private(dataset, config):
    return sorted(path.name for path in dataset.folder.glob("*.safetensors"))


def test_an_update_is_a_flat_vector_a_weight_and_the_same_bits_every_time(devices):
    config = tiny_config()
    start = initial_vector(config)
    one = local.local_update(devices[0], start, config, round_number=1)
    two = local.local_update(devices[0], start, config, round_number=1)
    assert one.delta.shape == start.shape
    assert one.delta.dtype == np.float32
    assert one.weight == 4.0
    assert np.abs(one.delta).max() > 0
    np.testing.assert_array_equal(one.delta, two.delta)


def test_devices_and_rounds_draw_different_batches(devices):
    config = tiny_config(head="shared")
    start = initial_vector(config)
    deltas = [
        local.local_update(devices[0], start, config, round_number=1).delta,
        local.local_update(devices[0], start, config, round_number=2).delta,
        local.local_update(devices[1], start, config, round_number=1).delta,
    ]
    assert not np.array_equal(deltas[0], deltas[1])
    assert not np.array_equal(deltas[0], deltas[2])


def test_a_local_head_stays_and_a_shared_one_travels(devices):
    home, shared = tiny_config(head="local"), tiny_config(head="shared")
    dim = device_model(home).embedding_dim
    assert initial_vector(shared).size - initial_vector(home).size == dim
    local.local_update(devices[0], initial_vector(home), home, round_number=1)
    assert _private(devices[0], home) == ["federated-round-00001.safetensors"]
    local.local_update(devices[1], initial_vector(shared), shared, round_number=1)
    assert _private(devices[1], shared) == []


def test_the_next_round_goes_on_from_the_device_s_own_head(devices):
    config = tiny_config()
    start = initial_vector(config)
    local.local_update(devices[0], start, config, round_number=1)
    fresh = local.restored_model(devices[0], start, config, round_number=0)
    after = local.restored_model(devices[0], start, config, round_number=1)
    (name,) = after.local_parameters()
    assert not torch.equal(after.state_dict()[name], fresh.state_dict()[name])
    for shared in shared_names(after, config):
        assert torch.equal(after.state_dict()[shared], fresh.state_dict()[shared])


def test_a_repeated_round_gives_the_same_bits_as_the_first_time(devices):
    config = tiny_config()
    start = initial_vector(config)
    local.local_update(devices[0], start, config, round_number=1)
    first = local.local_update(devices[0], start, config, round_number=2)
    again = local.local_update(devices[0], start, config, round_number=2)
    np.testing.assert_array_equal(first.delta, again.delta)


def test_private_parts_older_than_the_best_round_are_forgotten(devices):
    config = tiny_config()
    start = initial_vector(config)
    for number, best in [(1, 0), (2, 0), (4, 2), (5, 3)]:
        local.local_update(devices[0], start, config, round_number=number, best_round=best)
    kept = [int(name[16:21]) for name in _private(devices[0], config)]
    assert kept == [2, 4, 5]


def test_a_new_run_of_the_same_name_starts_with_a_fresh_head(devices):
    config = tiny_config()
    start = initial_vector(config)
    first = local.local_update(devices[0], start, config, round_number=1)
    local.local_update(devices[0], start, config, round_number=2)
    again = local.local_update(devices[0], start, config, round_number=1)
    np.testing.assert_array_equal(first.delta, again.delta)
    assert _private(devices[0], config) == ["federated-round-00001.safetensors"]


@pytest.mark.parametrize("kind", ["binary", "softmax", "am", "aam"])
@pytest.mark.parametrize("impostors", ["speech", "none"])
def test_every_objective_trains(devices, kind, impostors):
    config = tiny_config(head_kind=kind, impostors=impostors, crop_frames=16)
    update = local.local_update(devices[1], initial_vector(config), config, round_number=1)
    assert np.isfinite(update.delta).all()
    loss, clips = local.validation_loss(
        devices[1], initial_vector(config) + update.delta, config, round_number=1
    )
    assert np.isfinite(loss)
    assert clips == (4 if impostors == "none" else 10)


def test_codewords_differ_between_devices_and_never_travel(devices):
    config = tiny_config(head_kind="aam", devices=2, codeword_seed=3, head="shared")
    labels = [device_model(config, index).owner_label for index in (0, 1)]
    assert labels == [3, 4]
    model = device_model(config)
    assert not [name for name in shared_names(model, config) if "codeword" in name]
    update = local.local_update(devices[1], initial_vector(config), config, round_number=1)
    assert update.delta.size == initial_vector(config).size


def test_the_proximal_term_holds_the_model_back(devices):
    free = tiny_config(local_steps=12, final_learning_rate=1e-2)
    held = free.changed(proximal_mu=20.0)
    start = initial_vector(free)
    far = local.local_update(devices[0], start, free, round_number=1).delta
    near = local.local_update(devices[0], start, held, round_number=1).delta
    assert np.linalg.norm(near) < np.linalg.norm(far)


def test_the_learning_rate_can_decay_over_the_run(devices):
    config = tiny_config(decay="run", rounds=5, learning_rate=1e-2, final_learning_rate=1e-6)
    start = initial_vector(config)
    first = local.local_update(devices[0], start, config, round_number=1).delta
    last = local.local_update(devices[0], start, config, round_number=5).delta
    assert np.linalg.norm(last) < 1e-2 * np.linalg.norm(first)


def test_epochs_count_the_owner_s_utterances(devices):
    config = tiny_config(local_steps=0, local_epochs=3.0)  # 4 utterances, 2 in a batch
    update = local.local_update(devices[0], initial_vector(config), config, round_number=1)
    assert update.result.steps == 6


def test_an_individual_model_ends_at_its_own_best(devices):
    config = tiny_config(learning_rate=2e-2, batch_size=8)
    plan = local.PersonalPlan(steps=60, validate_every=10, patience=0)
    trained = local.train_individual(devices[0], initial_vector(config), config, plan)
    assert trained.result.steps == 60
    assert trained.best_step > 0
    assert trained.result.best_validation_loss < trained.start_loss
    model = local.personal_model(devices[0], trained.vector, config)
    np.testing.assert_array_equal(flatten(model.state_dict(), all_names(model)), trained.vector)


def test_personalising_never_ends_worse_than_it_started(devices):
    config = tiny_config()
    vector = initial_vector(config)
    update = local.local_update(devices[0], vector, config, round_number=1)
    federated = vector + update.delta
    spoiling = local.PersonalPlan(steps=4, validate_every=2, learning_rate=1e-12)
    before = local.restored_model(devices[0], federated, config, round_number=1)
    expected = flatten(before.state_dict(), all_names(before))
    after = local.personalise(devices[0], federated, config, spoiling, round_number=1)
    loss, _ = local.validation_loss(devices[0], federated, config, round_number=1)
    assert after.start_loss == pytest.approx(loss)
    if after.best_step == 0:
        np.testing.assert_array_equal(after.vector, expected)
    else:
        assert after.result.best_validation_loss < after.start_loss


def test_a_class_that_the_model_does_not_know_is_an_error(devices):
    config = tiny_config(public=2)
    with pytest.raises(FedspkError, match="set it to the number of public speakers"):
        local.local_update(devices[0], initial_vector(config), config, round_number=1)


def test_a_vector_of_another_network_is_an_error(devices):
    with pytest.raises(FedspkError):
        local.local_update(devices[0], np.zeros(9, np.float32), tiny_config(), round_number=1)
