"""`fedspk device train`: vaults train in a real federation, and nothing of a voice stays behind."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import pytest
import toy_device
from handing_over import parties
from sounds import write_speakers
from tiny_federation import tiny_config, tiny_store
from tiny_generator import make_generator
from toy_device import new_device
from version_repository import publish_generator

from aggregator.record import RoundProgress
from clients.followed import MainServer, write_server
from clients.supernode import Federation, run_supernode
from clients.vault import Vault
from fedspk.features import FrontEndConfig
from fedspk.files import write_text
from fedspk.secagg.keys import DeviceRegister
from gan.invented import file_hash
from server.keyring import at_hand
from simulations.flower_deployment import FlowerDeployment
from simulations.flower_processes import free_ports

_ROOT = Path(__file__).parents[2]
_DEVICES = ("kitchen", "hall")


@pytest.mark.slow
def test_vaults_train_from_published_models_and_generators_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_device.quick_passphrases(monkeypatch)
    memory = tempfile.TemporaryDirectory(dir="/dev/shm")
    monkeypatch.setenv("XDG_RUNTIME_DIR", memory.name)
    generator = make_generator(
        tmp_path / "generator.safetensors", front_end=FrontEndConfig(frames=60, bins=40)
    )
    config = tiny_config(
        frames=60,
        bins=40,
        impostors="gan",
        generator=file_hash(generator),
        rounds=1,
        share_statistics=True,
        update_transport="message",
    )
    write_text(tmp_path / "config.json", config.to_json())
    write_speakers(tmp_path / "others", speakers=2, utterances=3)
    impostors = {"kitchen": tmp_path / "others", "hall": None}
    vaults = {name: new_device(tmp_path / name, "anna")._vault for name in _DEVICES}
    keys = {vault.device: vault.identity().public for vault in vaults.values()}
    DeviceRegister(keys).save(tmp_path / "register.json")
    stop = threading.Event()
    with parties(tmp_path / "server") as both, FlowerDeployment(tmp_path / "flower") as deployment:
        nodes = deployment.register_nodes(_DEVICES)
        faults: list[Exception] = []

        def take_part(name: str, vault: Vault, port: int) -> None:
            federation = Federation(
                deployment.address,
                tmp_path / "register.json",
                deployment.authority,
                nodes[name],
                minimum_cohort=2,
                port=port,
            )
            write_server(vault, MainServer(both.address, both.root.read_bytes()))
            try:
                run_supernode(vault, "anna", impostors[name], federation, stop)
            except Exception as error:
                faults.append(error)

        signers = at_hand(both.repository.keys, [both.key], None)
        publish_generator(both.repository, generator, signers)
        store, initial = tiny_store(tmp_path / "store", config)
        both.handover(tmp_path / "versions", config, store).offer(initial, RoundProgress(0), None)
        threads = [
            threading.Thread(target=take_part, args=(name, vaults[name], port))
            for name, port in zip(_DEVICES, free_ports(2), strict=True)
        ]
        for thread in threads:
            thread.start()

        def watch() -> None:
            if faults:
                raise faults[0]

        try:
            run_config = {
                **both.run_config(),
                "config": str(tmp_path / "config.json"),
                "register": str(tmp_path / "register.json"),
                "store": str(tmp_path / "store"),
                "checkpoints": str(tmp_path / "checkpoints"),
            }
            log = deployment.run(_ROOT, run_config, watch=watch, timeout=300)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert "of 2 devices trained" in log
        facts = both.manifest(3).training  # 2: the first with classes of invented speakers
        assert facts is not None and (facts.round, facts.survivors) == (1, 2)
    assert not faults
    with memory:
        assert not list(Path(memory.name).iterdir())
