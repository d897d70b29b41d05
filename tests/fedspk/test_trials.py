"""Score files and trial lists in the forms that other toolkits write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedspk.errors import FedspkError
from fedspk.trials import Trial, read_scores, read_trials

FORMS = {
    "label score": "1 0.9\n0 0.1\n",
    "words, commas, header": "label,score\ntarget,0.9\nnontarget,0.1\n",
    "score label": "0.9 target\n0.1 nontarget\n",
    "VoxCeleb with scores": "1 a.wav b.wav 0.9\n0 a.wav c.wav 0.1\n",
    "Kaldi": "a.wav b.wav 0.9 target\na.wav c.wav 0.1 nontarget\n",
    "NIST": "a b target 0.9\na c imp 0.1\n",
    "digit label last": "a b 0.9 1\na c 0.1 0\n",
    "digit enrolments": "1 b 0.9 target\n0 c 0.1 nontarget\n",
    "blank lines and tabs": "\n1\t0.9\n\n0\t0.1\n",
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same_scores(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.txt"
    path.write_text(text)
    target, nontarget = read_scores(path)
    np.testing.assert_array_equal(target, [0.9])
    np.testing.assert_array_equal(nontarget, [0.1])


WHOLE_SCORES = {
    "label last": "a b 1 1\na c 0 0\na d -2 0\n",
    "label before the score": "a b 1 1\na c 0 0\na d 0 -2\n",
    "label first": "1 a b 1\n0 a c 0\n0 a d -2\n",
}


@pytest.mark.parametrize("text", WHOLE_SCORES.values(), ids=WHOLE_SCORES)
def test_whole_scores_are_told_from_labels_by_the_whole_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scores.txt"
    path.write_text(text)
    target, nontarget = read_scores(path)
    np.testing.assert_array_equal(target, [1])
    np.testing.assert_array_equal(nontarget, [0, -2])


def test_scores_that_look_like_labels_everywhere_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.txt"
    path.write_text("a b 1 0\na c 0 1\n")
    with pytest.raises(FedspkError, match="columns 3 and 4 both hold only 0 and 1"):
        read_scores(path)


BROKEN = {
    "no label": ("0.9 0.8\n", "line 1"),
    "score is not a number": ("1 0.9\n0 high\n", "line 2"),
    "score is not finite": ("1 nan\n0 0.1\n", "line 1"),
    "targets only": ("1 0.9\n1 0.8\n", "no non-target"),
    "non-targets only": ("0 0.9\n", "no target"),
    "empty": ("", "no target"),
}


@pytest.mark.parametrize(("text", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_score_file_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "scores.txt"
    path.write_text(text)
    with pytest.raises(FedspkError, match=words) as caught:
        read_scores(path)
    assert str(path) in str(caught.value)


def test_a_missing_or_binary_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FedspkError, match="cannot be read"):
        read_scores(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(FedspkError, match="cannot be read"):
        read_scores(tmp_path / "binary")


def test_trial_lists_of_both_orders(tmp_path: Path) -> None:
    path = tmp_path / "trials"
    path.write_text("1 a/1.wav a/2.wav\n0 a/1.wav b/1.wav\n")
    expected = [Trial("a/1.wav", "a/2.wav", True), Trial("a/1.wav", "b/1.wav", False)]
    assert read_trials(path) == expected
    path.write_text("a/1.wav a/2.wav target\na/1.wav b/1.wav nontarget\n")
    assert read_trials(path) == expected


def test_a_scored_list_is_not_a_trial_list(tmp_path: Path) -> None:
    path = tmp_path / "trials"
    path.write_text("1 a b 0.3\n")
    with pytest.raises(FedspkError, match="label enrolment test"):
        read_trials(path)
