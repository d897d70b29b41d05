"""Trial lists and score files as other toolkits write them.

Accepted lines, fields separated by blanks, tabs or commas; a header line is allowed:

    label score                       1 0.83            target 0.83
    label enrolment test [score]      1 a.wav b.wav 0.83          (VoxCeleb)
    enrolment test [score] label      a.wav b.wav 0.83 nontarget  (Kaldi, NIST)
    enrolment test label score        a.wav b.wav target 0.83

A label that is a digit stands in the column that holds 0 or 1 in most lines of the file, the first
column before the others.
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
    for number, fields, position in _labelled(path, places=(0, 2, 3)):
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
    for number, fields, position in _labelled(path, places=(0, 2)):
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


def _labelled(path: Path, places: Sequence[int]) -> Iterator[tuple[int, list[str], int | None]]:
    """Yield number and fields of every line and where its label stands: a word, else a digit."""
    lines = list(_lines(path))
    columns = _digit_columns(path, [fields for _, fields in lines], places)
    for number, fields in lines:
        words = [i for i, field in enumerate(fields) if _is_word(field)]
        if words:
            yield number, fields, words[0] if len(words) == 1 else None
        else:
            column = columns[len(fields)]
            yield number, fields, column if fields[column] in ("0", "1") else None


def _digit_columns(
    path: Path, lines: Sequence[Sequence[str]], places: Sequence[int]
) -> dict[int, int]:
    """Return, for each length of a line, the column of its labels."""
    counts: dict[int, dict[int, int]] = {}
    for fields in lines:
        count = counts.setdefault(len(fields), {i: 0 for i in places if i < len(fields)})
        for i in count:
            count[i] += fields[i] in ("0", "1")
    columns = {length: max(count, key=lambda i: count[i]) for length, count in counts.items()}
    for length, column in columns.items():
        rivals = [i for i in counts[length] if i > column > 0]
        if any(counts[length][i] == counts[length][column] > 0 for i in rivals):
            raise FedspkError(
                f"{path}: columns {column + 1} and {rivals[0] + 1} both hold only 0 and 1, so "
                "labels cannot be told from scores; write the labels as target and nontarget."
            )
    return columns


def _is_word(field: str) -> bool:
    return field.lower() in _TARGET | _NONTARGET and not field.isdigit()


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
