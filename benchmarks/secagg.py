"""Secure sums: processor time of one device and of the aggregator, beside Flower's and the floor.

    python benchmarks/secagg.py [--devices 25,100,1000] [--sizes 1000000] [--dropouts 0,10,30]
    python benchmarks/secagg.py --memory

A row is a whole sum by the protocol's own classes: every device offers, shares, encodes, masks,
signs and unmasks, every message crosses as bytes, and the sum is compared with the sum of what was
masked. Devices that fail do so after they have shared their secrets, when it costs most. A device's
figure is the mean over the devices. The aggregator's is its processor time, helper processes
included, and the wall time of its steps.

A sum that would draw more than 1.05e11 numbers of masks is not run: the time that goes with the
length of the vector is then that of the next shorter vector, multiplied, and marked with a tilde.

Flower's figures are what its functions for SecAgg+ take, each timed alone on a million numbers,
times how often its modifier and its workflow call them, without its messages.

The floor counts, at the rates of this run, masks by AES-256-CTR, additions by NumPy, and the key
agreements behind the masks; no signatures, shares or messages.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import flower_secagg
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedspk.files import write_json
from fedspk.secagg.client import DevicePolicy, SumClient
from fedspk.secagg.keys import AgreementKey, DeviceRegister, Identity, derive_key
from fedspk.secagg.masks import MaskedVector
from fedspk.secagg.messages import (
    PROTOCOL_VERSION,
    KeyOffer,
    OfferRequest,
    ShareRequest,
    SharesReply,
    SurvivorsReply,
    SurvivorsRequest,
    Terms,
    UnmaskReply,
    UnmaskRequest,
    UploadReply,
    UploadRequest,
)
from fedspk.secagg.parameters import full_graph
from fedspk.secagg.quantise import Quantiser
from fedspk.secagg.server import SumServer, check_offer
from fedspk.secagg.unmask import Failed, MaskRemover, Survived

FULL_GRAPH_LIMIT = 200
SPARSE_DEGREE, SPARSE_THRESHOLD = 100, 51
MASKED_NUMBERS = 1.05e11
MODEL = CONFIG = "0" * 64
COUNTERS = [100, 2_000_000, 40, 1500, 0]


class Seconds(NamedTuple):
    """Time for a vector: what is the same for any length, and for each number."""

    same: float
    each: float

    def of(self, size: int) -> float:
        """Return the time for a vector of this length."""
        return self.same + size * self.each


@dataclass(frozen=True)
class Run:
    """One sum that was run.

    stages: a device's processor time by stage.
    device, aggregator: processor time.
    wall: the aggregator's wall time.
    """

    devices: int
    neighbours: int
    size: int
    failed: int
    stages: dict[str, float]
    device: Seconds
    aggregator: Seconds
    wall: Seconds


@dataclass(frozen=True)
class Row:
    """One row of the table, in seconds; `scaled` when the sum was run with fewer numbers."""

    devices: int
    neighbours: int
    size: int
    failed: int
    scaled: bool
    stages: dict[str, float]
    device: float
    device_floor: float
    device_flower: float
    aggregator: float
    wall: float
    aggregator_floor: float
    aggregator_flower: float


class Clock:
    """Adds up processor and wall time by part; also the processor time of helper processes."""

    def __init__(self, helpers: Sequence[int] = ()) -> None:
        self._helpers = helpers
        self.processor: defaultdict[str, float] = defaultdict(float)
        self.wall: defaultdict[str, float] = defaultdict(float)
        self.times: defaultdict[str, int] = defaultdict(int)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        wall, processor = time.perf_counter(), self._processor_seconds()
        yield
        self.processor[part] += self._processor_seconds() - processor
        self.wall[part] += time.perf_counter() - wall
        self.times[part] += 1

    def means(self) -> dict[str, float]:
        """Return the processor seconds of one time of each part."""
        return {part: self.processor[part] / self.times[part] for part in self.processor}

    def _processor_seconds(self) -> float:
        # The clock of another process: clock_getcpuclockid(3).
        helpers = sum(time.clock_gettime(~pid << 3 | 2) for pid in self._helpers)
        return time.process_time() + helpers


class TimedRemover(MaskRemover):
    """Times the removal of masks, and apart from it the part that is the same for any length."""

    clock = Clock()

    def remove(
        self,
        total: MaskedVector,
        context: bytes,
        survived: Sequence[Survived],
        failed: Sequence[Failed],
    ) -> None:
        with self.clock("keys"):
            super().remove(total[:0], context, survived, failed)
        with self.clock("all"):
            super().remove(total, context, survived, failed)

    def warm_up(self) -> list[int]:
        """Start the helper processes and return their numbers."""
        survived = [Survived(index, bytes(32)) for index in range(200)]
        super().remove(np.zeros(1 << 22, np.uint32), bytes(32), survived, [])
        return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


@dataclass(frozen=True)
class Rates:
    """What the floor counts: seconds a number masked, added in the cache or in memory; a key."""

    mask: float
    add_cached: float
    add: float
    agree: float

    @classmethod
    def measure(cls) -> Rates:
        """Measure this machine, now."""
        chunk, total = np.zeros(1 << 15, np.uint32), np.zeros(1_000_000, np.uint32)
        zeros, drawn = memoryview(bytes(chunk.nbytes)), chunk.copy().data.cast("B")
        arriving = itertools.cycle([total.copy() for _ in range(50)])  # more than caches hold
        cipher = Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()
        key, peer = AgreementKey.generate(), AgreementKey.generate().public
        return cls(
            mask=_typical(lambda: cipher.update_into(zeros, drawn), 5000) / chunk.size,
            add_cached=_typical(lambda: np.add(chunk, chunk, out=chunk), 5000) / chunk.size,
            add=_typical(lambda: np.add(total, next(arriving), out=total), 500) / total.size,
            agree=_typical(lambda: derive_key(key.agree(peer), bytes(32), "mask", 0, 1), 2000),
        )

    def device(self, neighbours: int, size: int) -> float:
        """Return the least that a device can take."""
        masks = (neighbours + 1) * size * (self.mask + self.add_cached)
        return masks + 2 * neighbours * self.agree

    def server(self, alive: int, pairs: int, size: int) -> float:
        """Return the least that the aggregator can take; pairs are of one failed, one alive."""
        masks = (alive + pairs) * size * (self.mask + self.add_cached)
        return alive * size * self.add + masks + pairs * self.agree


class Devices:
    """The devices of one sum: they answer bytes with bytes."""

    def __init__(self, count: int, size: int) -> None:
        identities = [Identity.generate(f"device-{index:04}") for index in range(count)]
        policy = DevicePolicy(corrupt_fraction=0.1 if count <= FULL_GRAPH_LIMIT else 0.0)
        self.register = DeviceRegister({i.device: i.public for i in identities})
        self.clients = {i.device: SumClient(i, self.register, policy) for i in identities}
        self.quantiser = _terms(count, size).quantiser
        self.update = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
        self.plain: MaskedVector = np.zeros(self.quantiser.length, self.quantiser.dtype)
        self.clock = Clock()

    def answer(self, step: str, name: str, request: bytes) -> tuple[bytes, MaskedVector | None]:
        """Return a device's reply, and its masked vector when it uploads."""
        client, vector = self.clients[name], None
        if step == "mask":
            with self.clock("encode"):
                vector = self.quantiser.encode(self.update, 100, COUNTERS, os.urandom(32))
            self.plain += vector
        with self.clock(step):
            if step == "offer":
                reply = client.offer(OfferRequest.decode(request)).encode()
            elif step == "share":
                cohort = ShareRequest.decode(request)
                reply = client.share(cohort, model=MODEL, config=CONFIG).encode()
            elif vector is not None:
                reply = client.mask(UploadRequest.decode(request), vector).encode()
            elif step == "sign":
                reply = client.sign_survivors(SurvivorsRequest.decode(request)).encode()
            else:
                reply = client.unmask(UnmaskRequest.decode(request)).encode()
            client.state()
        return reply, vector


class DevicesApart:
    """The devices of one sum in a process of their own."""

    def __init__(self, count: int, size: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        length = _terms(count, size).quantiser.length
        shared = spawn.RawArray("B", 4 * length)  # a pipe would hold copies of its own
        self._vector = np.frombuffer(shared, np.uint32)
        self._process = spawn.Process(target=_serve_devices, args=(theirs, shared, count, size))
        self._process.start()
        self.register = DeviceRegister(self._pipe.recv())

    def answer(self, step: str, name: str, request: bytes) -> tuple[bytes, MaskedVector | None]:
        """Return a device's reply, and its masked vector when it uploads: valid until the next."""
        self._pipe.send((step, name, request))
        reply: bytes = self._pipe.recv()
        return reply, self._vector if step == "mask" else None

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def run_sum(
    devices: Devices | DevicesApart,
    size: int,
    dropout: float,
    remover: MaskRemover,
    clock: Clock,
) -> MaskedVector:
    """Return the sum of the devices that do not fail; the clock runs for the aggregator alone."""
    register = devices.register
    names = list(register.keys)
    survivors = names[round(dropout * len(names)) :]
    request = _request()
    offers = []
    for name in names:
        reply, _ = devices.answer("offer", name, request.encode())
        with clock("offers"):
            offers.append(KeyOffer.decode(reply))
            check_offer(offers[-1], request, register)
    with clock("offers"):
        server = SumServer(_terms(len(names), size), offers, register)
        cohort = server.share_request().encode()
    for name in names:
        reply, _ = devices.answer("share", name, cohort)
        with clock("shares"):
            server.receive_shares(name, SharesReply.decode(reply))
    with clock("shares"):
        uploads = server.close_sharing()
    for name in survivors:
        with clock("shares"):
            upload = uploads.pop(name).encode()
        reply, vector = devices.answer("mask", name, upload)
        assert vector is not None
        with clock("add"):
            server.receive_vector(name, UploadReply.decode(reply), vector)
    with clock("signatures"):
        dead = server.close_uploads().encode()
    for name in survivors:
        reply, _ = devices.answer("sign", name, dead)
        with clock("signatures"):
            server.receive_signature(name, SurvivorsReply.decode(reply))
    with clock("signatures"):
        requests = server.close_signatures()
    for name, unmask in requests.items():
        with clock("signatures"):
            data = unmask.encode()
        reply, _ = devices.answer("unmask", name, data)
        with clock("unmask"):
            server.receive_unmask(name, UnmaskReply.decode(reply))
    with clock("unmask"):
        return server.finish(remover)


def measure(
    devices: int, size: int, dropout: float, remover: TimedRemover, helpers: Sequence[int]
) -> Run:
    """Run one sum and check it."""
    cohort, clock = Devices(devices, size), Clock(helpers)
    remover.clock = Clock(helpers)
    total = run_sum(cohort, size, dropout, remover, clock)
    if not np.array_equal(total, cohort.plain):
        raise RuntimeError("the sum is not the sum of the devices' vectors")
    stages = cohort.clock.means()

    def split(server: dict[str, float], removal: dict[str, float]) -> Seconds:
        # What is the same for any length was done twice by the remover.
        numbers = server["add"] + removal["all"] - removal["keys"]
        return Seconds(sum(server.values()) - removal["keys"] - numbers, numbers / size)

    return Run(
        devices=devices,
        neighbours=_graph(devices)[0],
        size=size,
        failed=round(dropout * devices),
        stages=stages,
        device=Seconds(
            sum(stages.values()) - stages["encode"] - stages["mask"],
            (stages["encode"] + stages["mask"]) / size,
        ),
        aggregator=split(clock.processor, remover.clock.processor),
        wall=split(clock.wall, remover.clock.wall),
    )


def compare(run: Run, size: int, rates: Rates, flower: flower_secagg.Costs) -> Row:
    """Return a row for this many numbers from a sum over as many, or fewer."""
    alive = run.devices - run.failed
    full = run.neighbours == run.devices - 1
    pairs = run.failed * (alive if full else round(run.neighbours * alive / run.devices))
    return Row(
        devices=run.devices,
        neighbours=run.neighbours,
        size=size,
        failed=run.failed,
        scaled=run.size < size,
        stages=run.stages,
        device=run.device.of(size),
        device_floor=rates.device(run.neighbours, size),
        device_flower=flower.device(run.neighbours, size),
        aggregator=run.aggregator.of(size),
        wall=run.wall.of(size),
        aggregator_floor=rates.server(alive, pairs, size),
        aggregator_flower=flower.server(run.neighbours, size, alive, run.failed),
    )


def device_memory(count: int, size: int) -> float:
    """Return the most memory that a device takes, its update included, over the update's."""
    devices = Devices(count, size)
    first, *_ = names = list(devices.clients)
    request = _request()
    offers = [KeyOffer.decode(devices.answer("offer", name, request.encode())[0]) for name in names]
    server = SumServer(_terms(count, size), offers, devices.register)
    cohort = server.share_request().encode()
    for name in names:
        server.receive_shares(name, SharesReply.decode(devices.answer("share", name, cohort)[0]))
    upload = server.close_sharing()[first]
    before = _reset_peak_memory()
    vector = devices.quantiser.encode(devices.update, 100, COUNTERS, os.urandom(32))
    devices.clients[first].mask(upload, vector)
    return 1 + (_memory("VmHWM") - before) / devices.update.nbytes


def server_memory(count: int, size: int, dropout: float) -> float:
    """Return the most memory that the aggregator takes, a vector on its way included, over it."""
    before = _reset_peak_memory()
    devices = DevicesApart(count, size)
    run_sum(devices, size, dropout, MaskRemover(), Clock())
    peak = _memory("VmHWM")
    devices.close()
    return (peak - before) / (4 * size)


def main() -> None:
    """Measure and print Markdown tables."""
    arguments = _arguments()
    if arguments.memory:
        print(_memory_table())
        return
    rates, rows = Rates.measure(), []
    print(_rates_line(rates), file=sys.stderr)
    with TimedRemover(workers=arguments.workers) as remover:
        helpers = remover.warm_up()
        for devices, dropout in itertools.product(arguments.devices, arguments.dropouts):
            neighbours, threshold = _graph(devices)
            costs = flower_secagg.Costs.measure(neighbours + 1, threshold, dropout)
            run = None
            for size in sorted(arguments.sizes):
                if run is None or devices * (neighbours + 1) * size <= MASKED_NUMBERS:
                    run = measure(devices, size, dropout, remover, helpers)
                rows.append(compare(run, size, rates, costs))
                print(_line(rows[-1]), file=sys.stderr)
    print(_rates_line(rates), _table(rows), sep="\n\n")
    if arguments.json:
        figures = {"rates": asdict(rates), "rows": [asdict(row) for row in rows]}
        write_json(arguments.json, {"machine": _machine(), **figures})


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    integers: Callable[[str], list[int]] = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--devices", type=integers, default=[25, 100, 1000])
    parser.add_argument("--sizes", type=integers, default=[10**5, 10**6, 10**7, 110 * 10**6])
    parser.add_argument(
        "--dropouts",
        type=lambda text: [part / 100 for part in integers(text)],
        default=[0.0, 0.1, 0.3],
        help="percentages of devices that fail",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that remove masks")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args()


def _graph(devices: int) -> tuple[int, int]:
    """Return the neighbours of a device, and the threshold."""
    if devices <= FULL_GRAPH_LIMIT:
        return full_graph(devices)
    return SPARSE_DEGREE, SPARSE_THRESHOLD


def _request() -> OfferRequest:
    return OfferRequest(PROTOCOL_VERSION, "00", "train", 1, 0)


def _terms(devices: int, size: int) -> Terms:
    quantiser = Quantiser.for_cohort(
        size=size,
        counters=len(COUNTERS),
        clients=devices,
        precision_bits=24,
        norm=10.0,
        maximum_weight=1024,
    )
    degree, threshold = _graph(devices)
    return Terms(
        version=PROTOCOL_VERSION,
        run="00",
        purpose="train",
        round=1,
        attempt=0,
        cohort=0,
        model=MODEL,
        config=CONFIG,
        size=size,
        counters=len(COUNTERS),
        precision_bits=quantiser.precision_bits,
        modulus_bits=32,
        norm=quantiser.norm,
        maximum_weight=quantiser.maximum_weight,
        noise_scale=0.0,
        clients=devices,
        degree=degree,
        threshold=threshold,
    )


def _serve_devices(pipe: Connection, shared: Any, count: int, size: int) -> None:
    devices = Devices(count, size)
    arriving = np.frombuffer(shared, np.uint32)
    pipe.send(dict(devices.register.keys))
    while (question := pipe.recv()) is not None:
        reply, vector = devices.answer(*question)
        if vector is not None:
            arriving[:] = vector
        pipe.send(reply)


def _typical(call: Callable[[], object], times: int) -> float:
    """Return the processor time of a call: the median of ten means."""
    means = []
    for _ in range(10):
        started = time.process_time()
        for _ in range(times // 10):
            call()
        means.append((time.process_time() - started) / (times // 10))
    return statistics.median(means)


def _memory(field: str) -> int:
    """Return a figure of this process, in bytes: resident memory now, VmRSS, or at most, VmHWM."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"this system does not tell {field}")


def _reset_peak_memory() -> int:
    """Let VmHWM begin again from the memory that is resident now; return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _apart(function: Callable[..., float], *arguments: float) -> float:
    """Return a function's result from a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def _memory_table() -> str:
    lines = ["| who | devices | numbers | failed | peak over one vector |", "|---|---|---|---|---|"]
    for count, size in ((8, 1_000_000), (8, 10_000_000), (8, 110_000_000)):
        peak = _apart(device_memory, count, size)
        lines.append(f"| device | {count} | {_number(size)} | | {peak:.2f} |")
    for size in (1_000_000, 10_000_000):
        for count, dropout in ((25, 0.0), (25, 0.3), (100, 0.0), (100, 0.3)):
            peak = _apart(server_memory, count, size, dropout)
            lines.append(f"| aggregator | {count} | {_number(size)} | {dropout:.0%} | {peak:.2f} |")
    return "\n".join(lines)


def _machine() -> dict[str, str | int]:
    return {
        "cpus": len(os.sched_getaffinity(0)),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }


def _rates_line(rates: Rates) -> str:
    return (
        f"AES-256-CTR {4e-9 / rates.mask:.2f} GB/s; a million numbers: masked in "
        f"{1e9 * rates.mask:.3f} ms, added in {1e9 * rates.add_cached:.3f} ms in the cache and "
        f"{1e9 * rates.add:.3f} ms in memory; a key agreement {1e6 * rates.agree:.1f} us."
    )


def _number(size: int) -> str:
    return f"{size / 1e6:g}M"


def _line(row: Row) -> str:
    tilde = "~" if row.scaled else ""
    graph = "full" if row.neighbours == row.devices - 1 else f"k={row.neighbours}"
    return (
        f"| {row.devices}, {graph} | {_number(row.size)} | {row.failed / row.devices:.0%} "
        f"| {tilde}{_seconds(row.device)} | {row.device / row.device_floor:.2f} "
        f"| {_seconds(row.device_flower)} "
        f"| {tilde}{_seconds(row.aggregator)} | {row.aggregator / row.aggregator_floor:.2f} "
        f"| {tilde}{_seconds(row.wall)} | {_seconds(row.aggregator_flower)} |"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.3g}"


def _table(rows: Sequence[Row]) -> str:
    head = (
        "| devices | numbers | failed | device, s | over floor | Flower, s "
        "| aggregator, s | over floor | wall, s | Flower, s |"
    )
    return "\n".join([head, "|---" * 10 + "|", *map(_line, rows)])


if __name__ == "__main__":
    main()
