"""What is left of the masks in a sum, and how it is removed with several processes.

Of the survivors' vectors remain their own masks, and the masks that they had in common with devices
that failed. Each process removes all masks from its part of the vector: `cryptography` draws a
mask without letting other threads run.
"""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Self, TypeVar

from fedspk.secagg.keys import AgreementKey
from fedspk.secagg.masks import MaskedVector, Stream, add_masks, common_mask, own_mask
from fedspk.signals import end_cleanly_on_sigterm, workers_deaf_to_ctrl_c

_Task = tuple[Any, ...]
_Result = TypeVar("_Result")

_PART = 1 << 22
"""Numbers that travel to another process at a time: bounds the memory of long vectors."""

_BYTES_PER_SECOND = 5e9
_AGREEMENTS_PER_SECOND = 3e4
_WORTH_SECONDS = 0.25
"""Work that takes longer alone is shared: about what the start of a process costs."""


class Survived(NamedTuple):
    """A device whose vector is in the sum, and the seed of its own mask."""

    device: int
    seed: bytes


class Failed(NamedTuple):
    """A device that failed after it had shared its secrets.

    masking_key: the private key, recovered.
    others: the survivors that have masked with it, and their public masking keys.
    """

    device: int
    masking_key: bytes
    others: tuple[tuple[int, bytes], ...]


class MaskRemover:
    """Removes masks from sums; its helper processes start with the first large one and then stay.

        with MaskRemover(workers=2) as remover:
            total = server.finish(remover)

    Args:
        workers: processes that work at a time, this one included. When a helper is killed, its work
            is done here.
    """

    def __init__(self, workers: int = 1) -> None:
        self._workers = workers
        self._helpers: list[_Helper] = []
        self._busy = threading.Lock()

    def remove(
        self,
        total: MaskedVector,
        context: bytes,
        survived: Sequence[Survived],
        failed: Sequence[Failed],
    ) -> None:
        """Remove the masks of the survivors from their sum (n,) uint16 or uint32, in place."""
        agreements = sum(len(device.others) for device in failed)
        seconds = agreements / _AGREEMENTS_PER_SECOND
        seconds += (len(survived) + agreements) * total.nbytes / _BYTES_PER_SECOND
        team = self._workers if seconds > _WORTH_SECONDS else 1
        streams = [
            own_mask(seed, context, device)._replace(negative=True) for device, seed in survived
        ]
        with self._busy:
            for found in self._map(
                _common_masks, [(context, failed[first::team]) for first in range(team)]
            ):
                streams += found
            for parts in _parts(len(total), team):
                tasks = [(total[part], streams, part.start) for part in parts]
                for part, values in zip(parts, self._map(_unmasked, tasks), strict=True):
                    total[part] = values

    def close(self) -> None:
        """End the helper processes."""
        while self._helpers:
            self._helpers.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _map(self, function: Callable[..., _Result], tasks: Sequence[_Task]) -> list[_Result]:
        """Return the results of the tasks: the first is done here, each other by a helper."""
        try:
            while len(self._helpers) < len(tasks) - 1:
                self._helpers.append(_Helper())
            asked = list(zip(self._helpers, tasks[1:], strict=False))
            for helper, task in asked:
                helper.ask(function, task)
            return [function(*tasks[0]), *(helper.answer() for helper, _ in asked)]
        except (OSError, EOFError):  # a helper was killed
            self.close()
            return [function(*task) for task in tasks]
        except BaseException:  # answers still under way would be taken for others
            self.close()
            raise


class _Helper:
    """A process that does one task at a time, and ends when its pipe does."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")  # the aggregator has threads: no fork
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
        with workers_deaf_to_ctrl_c():
            self._process.start()
        theirs.close()

    def ask(self, function: Callable[..., object], task: _Task) -> None:
        self._pipe.send((function, task))

    def answer(self) -> Any:
        return self._pipe.recv()

    def close(self) -> None:
        self._pipe.close()
        self._process.terminate()
        self._process.join()


def _serve(pipe: Connection) -> None:
    end_cleanly_on_sigterm()
    try:
        while True:
            function, task = pipe.recv()
            pipe.send(function(*task))
    except (OSError, EOFError):
        pass  # whoever asked is gone


def _common_masks(context: bytes, failed: Sequence[Failed]) -> list[Stream]:
    """Return what the failed devices would have added: just that cancels what is left of them."""
    streams = []
    for device, masking_key, others in failed:
        key = AgreementKey(masking_key)
        streams += [
            common_mask(key.agree(public), context, device, other) for other, public in others
        ]
    return streams


def _unmasked(values: MaskedVector, streams: Sequence[Stream], first: int) -> MaskedVector:
    values = values.copy()
    add_masks(values, streams, first=first)
    return values


def _parts(length: int, team: int) -> Iterator[list[slice]]:
    """Yield slices that cover the vector, one for each process at a time, all of a size."""
    rounds = max(1, -(-length // (team * _PART)))
    size = max(1, -(-length // (team * rounds)))
    slices = [slice(first, min(first + size, length)) for first in range(0, length, size)]
    for first in range(0, len(slices), team):
        yield slices[first : first + team]
