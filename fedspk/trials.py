"""Trial lists and score files as other toolkits write them.

Accepted lines, fields separated by blanks, tabs or commas; a header line is allowed:

    label score                       1 0.83            target 0.83
    label enrolment test [score]      1 a.wav b.wav 0.83          (VoxCeleb)
    enrolment test [score] label      a.wav b.wav 0.83 nontarget  (Kaldi, NIST)
    enrolment test label score        a.wav b.wav target 0.83
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedspk.errors import FedspkError

_TARGET = {"1", "target", "tgt", "true"}
_NONTARGET = {"0", "nontarget", "non-target", "imp", "impostor", "false"}


@dataclass(frozen=True)
class Trial:
    """One comparison: the two utterances as written, and whether one speaker speaks both."""

    enrolment: str
    test: str
    is_target: bool


def read_scores(path: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the target and the non-target scores of a score file.

    Raises:
        FedspkError: the file cannot be read, a line has no label or no finite score, or one of
            the two kinds of trial is missing.
    """
    scores: dict[bool, list[float]] = {True: [], False: []}
    for number, fields in _lines(path):
        position = _label_position(fields, of_scores=True)
        rest = [field for i, field in enumerate(fields) if i != position]
        score = _number(rest[-1]) if position is not None and len(rest) in (1, 3) else None
        if position is None or score is None:
            raise FedspkError(
                f"{path}, line {number}: expected a label (target or nontarget, 1 or 0) and a "
                "finite score; see `fedspk evaluate --help` for the accepted lines."
            )
        scores[fields[position].lower() in _TARGET].append(score)
    _require_both(path, {kind: len(found) for kind, found in scores.items()})
    return np.array(scores[True]), np.array(scores[False])


def read_trials(path: Path) -> list[Trial]:
    """Return the trials of a list without scores.

    Raises:
        FedspkError: the file cannot be read, a line is not a label and two utterances, or one of
            the two kinds of trial is missing.
    """
    trials = []
    for number, fields in _lines(path):
        position = _label_position(fields, of_scores=False)
        if position is None or len(fields) != 3:
            raise FedspkError(
                f"{path}, line {number}: expected `label enrolment test`, for example "
                "`1 anna/1.wav anna/2.wav`."
            )
        enrolment, test = (field for i, field in enumerate(fields) if i != position)
        trials.append(Trial(enrolment, test, fields[position].lower() in _TARGET))
    targets = sum(trial.is_target for trial in trials)
    _require_both(path, {True: targets, False: len(trials) - targets})
    return trials


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FedspkError(f"{path}: cannot be read as text ({error}).") from error
    for number, line in enumerate(text.splitlines(), 1):
        fields = [field for field in re.split(r"[\s,]+", line.strip()) if field]
        is_header = number == 1 and {"label", "score"} & {field.lower() for field in fields}
        if fields and not is_header:
            yield number, fields


def _label_position(fields: Sequence[str], of_scores: bool) -> int | None:
    """Return where the label stands: a word anywhere, else a digit where the forms allow one."""
    lowered = [field.lower() for field in fields]
    words = [i for i, f in enumerate(lowered) if f in _TARGET | _NONTARGET and not f.isdigit()]
    if words:
        return words[0] if len(words) == 1 else None
    places = (0, 2, 3) if of_scores else (0, 2)
    return next((i for i in places if i < len(fields) and lowered[i] in ("0", "1")), None)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _require_both(path: Path, counts: dict[bool, int]) -> None:
    for is_target, count in counts.items():
        if not count:
            kind = "target" if is_target else "non-target"
            raise FedspkError(f"{path}: holds no {kind} trial; an error rate needs both kinds.")
