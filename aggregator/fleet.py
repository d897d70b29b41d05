"""The devices that a grid reaches, by name: who is there, and what they answer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping

from flwr.serverapp import Grid

from aggregator.exchange import Failure, Reply, exchange
from aggregator.record import RoundProgress
from aggregator.rounds import RoundFailed, require_replies
from fedspk.errors import FedspkError
from fedspk.rounds import DescribeReply, DescribeRequest, Record, RunConfig

_NODE_POLL_SECONDS = 1.0
_SILENT_ROUNDS = 10  # a node that did not say who it is is not asked again for so long


class Fleet:
    """The devices of one run.

    What is known of them is kept in memory: an aggregator that starts again asks all anew.
    """

    def __init__(self, grid: Grid, config: RunConfig) -> None:
        self._grid = grid
        self._config = config
        self._names: dict[int, str] = {}
        self._nodes: dict[str, int] = {}
        self._left_out: dict[str, str] = {}  # device: why
        self._silent_until: dict[int, int] = {}  # node: the round in which it is asked again

    def present(self, progress: RoundProgress) -> list[str]:
        """Return the sorted names of the devices that are there; asks new nodes who they are.

        A silent node costs the whole timeout, so it is left alone for some rounds. Nodes that claim
        one name are all left out while there are two of them, since any may be the impostor.

        Raises:
            FedspkError: no node is connected.
            RoundFailed: too few say who they are, or no device is left.
        """
        nodes = self._connected()
        self._names = {node: name for node, name in self._names.items() if node in nodes}
        quiet = {node for node, until in self._silent_until.items() if progress.round < until}
        reasons = self._introduce(sorted(nodes - self._names.keys() - quiet), progress)
        require_replies(len(self._names), len(nodes), self._config, progress.round, reasons)
        claims = Counter(self._names.values())
        self._nodes = {name: node for node, name in self._names.items()}
        left_out = {
            name: "claimed by two nodes; give each its own identity"
            for name in sorted(claims)
            if claims[name] > 1
        } | {name: why for name, why in self._left_out.items() if name in self._nodes}
        for name, why in left_out.items():
            progress.note(f"{name}: left out, {why}.")
        present = sorted(self._nodes.keys() - left_out.keys())
        if not present:
            raise RoundFailed(f"Round {progress.round}: no device is left; {progress.failures[0]}")
        return present

    def leave_out(self, device: str, reason: str) -> None:
        """Count a device as absent from now on; every round's failures say why."""
        self._left_out[device] = reason

    def ask(
        self,
        message_type: str,
        requests: Mapping[str, Record],
        reply_type: type[Reply],
        progress: RoundProgress,
        *,
        timeout: float | None = None,
    ) -> Iterator[tuple[str, Reply]]:
        """Send each device its request and yield what each answers, as it comes.

        A device without a usable answer is noted among the round's failures. The timeout is the
        round's unless another, in seconds, is given.
        """
        names = {self._nodes[device]: device for device in requests}
        answers = exchange(
            self._grid,
            message_type,
            {node: requests[device] for node, device in names.items()},
            reply_type,
            group=str(progress.round),
            timeout=timeout or self._config.round_timeout_seconds,
        )
        for answer in answers:
            if isinstance(answer, Failure):
                progress.failures.append(f"{names[answer.node_id]}: {answer.reason}")
            else:
                node, reply = answer
                yield names[node], reply

    def _connected(self) -> set[int]:
        deadline = time.monotonic() + self._config.round_timeout_seconds
        while not (nodes := set(self._grid.get_node_ids())):
            if time.monotonic() > deadline:
                raise FedspkError("No device is connected; start the devices first.")
            time.sleep(_NODE_POLL_SECONDS)
        return nodes

    def _introduce(self, nodes: list[int], progress: RoundProgress) -> list[str]:
        """Learn the nodes' names; return why some did not give theirs."""
        reasons = []
        answers = exchange(
            self._grid,
            "query.describe",
            dict.fromkeys(nodes, DescribeRequest(progress.round)),
            DescribeReply,
            group=str(progress.round),
            timeout=self._config.round_timeout_seconds,
        )
        for answer in answers:
            if isinstance(answer, Failure):
                reasons.append(answer.reason)
                if answer.is_silent:
                    self._silent_until[answer.node_id] = progress.round + _SILENT_ROUNDS
                continue
            node, reply = answer
            self._names[node] = reply.device
        for reason in reasons:
            progress.note(reason)
        return reasons
