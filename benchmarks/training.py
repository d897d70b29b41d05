"""The local training step: our loop against a bare PyTorch loop, and what speeds the step up.

    python benchmarks/training.py [--encoder vggm-small] [--repeats 15] [--json FILE]

One thread, the same network and the same ready-made batches everywhere; the variants take turns,
so that a busy machine disturbs them alike; seconds are of CPU time. Overhead is the median of the
turns' ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from fedspk.files import write_json
from fedspk.model import HeadConfig, SpeakerModel, build_model
from fedspk.training import Batch, TrainingConfig, fit

STEPS, BATCH, FRAMES, BINS, SPEAKERS = 6, 32, 200, 80, 48
Run = Callable[[], float]


class _ReadyBatches:
    """The same few batches, made beforehand, again and again."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ready: list[Batch] = [
            (
                torch.randn(BATCH, FRAMES, BINS, generator=generator),
                torch.randint(0, SPEAKERS, (BATCH,), generator=generator),
            )
            for _ in range(3)
        ]

    def batches(self, seed: int, batch_size: int) -> Iterator[Batch]:  # noqa: ARG002
        return itertools.cycle(self.ready)


def bare_loop(
    model: torch.nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    *,
    channels_last: bool = True,
    autocast: bool = False,
    **optimiser_options: bool,
) -> Run:
    """Return a run of the loop that anybody would write by hand; it returns seconds a step."""
    if channels_last:
        for parameter in model.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    batches = _ReadyBatches().batches(0, BATCH)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, **optimiser_options
    )

    def run() -> float:
        started = time.process_time()
        for _ in range(STEPS):
            features, labels = next(batches)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = loss_of(features, labels)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
        return (time.process_time() - started) / STEPS

    return run


def our_loop(model: SpeakerModel) -> Run:
    """Return a run of `fit`."""
    source = _ReadyBatches()
    config = TrainingConfig(STEPS, BATCH, learning_rate=1e-3, final_learning_rate=1e-4)

    def run() -> float:
        started = time.process_time()
        fit(model, source, config, seed=0)
        return (time.process_time() - started) / STEPS

    return run


def variants(encoder: str, *, compiled: bool) -> dict[str, Run]:
    """Return what is measured, by name; the first is the yardstick."""
    head = HeadConfig("aam", public=SPEAKERS - 1)

    def bare(**options: bool) -> Run:
        model = build_model(encoder, head, frames=FRAMES, bins=BINS, seed=1)
        return bare_loop(model, model.loss, **options)

    runs = {
        "bare loop: channels last, float32": bare(),
        "fedspk fit, the same": our_loop(
            build_model(encoder, head, frames=FRAMES, bins=BINS, seed=1)
        ),
        "bare, channels first": bare(channels_last=False),
        "bare, bfloat16 autocast": bare(autocast=True),
        "bare, bfloat16, channels first": bare(autocast=True, channels_last=False),
        "bare, SGD loop": bare(foreach=False, fused=False),
        "bare, SGD foreach": bare(foreach=True),
        "bare, SGD fused": bare(fused=True),
    }
    if compiled:
        model = build_model(encoder, head, frames=FRAMES, bins=BINS, seed=1)
        runs["bare, torch.compile"] = bare_loop(model, torch.compile(model.loss))
    return runs


def measure(runs: dict[str, Run], repeats: int) -> dict[str, dict[str, float]]:
    """Return median milliseconds a step and median ratio to the yardstick of each variant."""
    for run in runs.values():
        run()
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats):
        for name in names if turn % 2 else reversed(names):
            seconds[name].append(runs[name]())
    yardstick = seconds[names[0]]
    return {
        name: {
            "step_ms": 1e3 * statistics.median(times),
            "best_step_ms": 1e3 * min(times),
            "against_bare_percent": 100
            * (statistics.median(t / y for t, y in zip(times, yardstick, strict=True)) - 1),
        }
        for name, times in seconds.items()
    }


def main() -> None:
    """Print a markdown table; write the figures as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="vggm-small")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compile", action="store_true", help="torch.compile too (needs g++)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(variants(arguments.encoder, compiled=arguments.compile), arguments.repeats)
    print(
        f"{arguments.encoder}, batch {BATCH}, {FRAMES} x {BINS}, one thread, {platform.machine()}"
    )
    print(f"\n| variant | ms a step | best | ms a sample | against bare |\n|{'---|' * 5}")
    for name, row in figures.items():
        print(
            f"| {name} | {row['step_ms']:.1f} | {row['best_step_ms']:.1f} "
            f"| {row['step_ms'] / BATCH:.2f} | {row['against_bare_percent']:+.1f} % |"
        )
    if arguments.json:
        write_json(arguments.json, json.loads(json.dumps(figures)))


if __name__ == "__main__":
    main()
