"""What trials say of a model: the evaluation and the thresholds of its manifest.

All of it holds for the speakers and sounds of these trials. Rule of 30, rule of three and bootstrap
take trials for independent; those of one speaker are not, so with few speakers the intervals are
too narrow. A rate of a fleet's own speakers says nothing of strangers, who may do better.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedspk.evaluation import error_rates, trials_fingerprint
from fedspk.release import Evaluation, Threshold
from fedspk.trials import Trial

FALSE_ACCEPT_RATES = (0.001, 0.01, 0.05, 0.1)
"""Rates for which a manifest gives thresholds, where there are trials enough."""

FEWEST_ERRORS = 30
"""A rate found with fewer errors is not believed: with 30, the true one lies within 30 per cent of
it with a confidence of 90 per cent.

Source: Doddington et al., "The NIST speaker recognition evaluation", 2000, "the rule of 30".
"""

RULE_OF_THREE = 3.0
"""Of n trials without an error, the true rate is at most 3 / n with a confidence of 95 per cent.

Source: Hanley and Lippman-Hand, "If nothing goes wrong, is everything all right?", 1983.
"""

Scores = npt.NDArray[np.floating]


def model_card(
    target: Scores,
    nontarget: Scores,
    *,
    corpus: str,
    devices: int,
    seed: int,
    p_target: float = 0.01,
) -> dict[str, Any]:
    """Return the fields `evaluation` and `thresholds` of a manifest, as JSON.

    Args:
        target: scores of target trials, (n,).
        nontarget: scores of non-target trials, (m,).
        corpus: fingerprint of the trials; EERs on different ones are never compared.
        devices: how many devices or enrolments the trials are of.
        seed: seed of the bootstrap over trials.
        p_target: prior of a target trial in the detection cost.

    Raises:
        FedspkError: a list of scores is empty or holds something not finite.
    """
    found = error_rates(target.astype(np.float64), nontarget.astype(np.float64), p_target, seed)
    low, high = found["eer_interval"]
    if found["eer"] == 0:  # redrawing finds no error that is not there
        high = min(100.0, 100 * RULE_OF_THREE / min(len(target), len(nontarget)))
    evaluation = Evaluation(
        eer=found["eer"],
        # Redrawn trials may all do better, or worse, than those at hand.
        eer_interval=(min(low, found["eer"]), max(high, found["eer"])),
        min_dcf=found["min_dcf"],
        devices=devices,
        corpus=corpus,
    )
    cuts = thresholds(nontarget)
    return {
        "evaluation": evaluation.model_dump(mode="json"),
        "thresholds": [cut.model_dump(mode="json") for cut in cuts],
    }


def card_of_trials(
    trials: Sequence[Trial],
    root: Path,
    target: Scores,
    nontarget: Scores,
    *,
    seed: int,
    p_target: float = 0.01,
) -> dict[str, Any]:
    """Return the `model_card` of the scores of a trial list, whose audio lies under `root`."""
    return model_card(
        target,
        nontarget,
        corpus=trials_fingerprint(trials, root),
        devices=len({trial.enrolment for trial in trials}),
        seed=seed,
        p_target=p_target,
    )


def thresholds(nontarget: Scores) -> list[Threshold]:
    """Return thresholds by rising false-accept rate, for the rates that the trials support.

    Of these scores at most this rate reaches the threshold, and `FEWEST_ERRORS` or more do: where
    equal scores leave no such threshold, the rate is left out.

    >>> [round(cut.threshold, 4) for cut in thresholds(np.arange(600) / 600)]
    [0.9492, 0.8992]
    """
    falling = np.sort(np.asarray(nontarget, dtype=np.float64))[::-1]
    cuts: list[Threshold] = []
    for rate in FALSE_ACCEPT_RATES:
        cut = _above(falling, int(rate * len(falling)))
        errors = np.count_nonzero(falling >= cut)
        if errors >= FEWEST_ERRORS and (not cuts or cut < cuts[-1].threshold):
            cuts.append(Threshold(false_accept_rate=rate, threshold=cut))
    return cuts


def _above(falling: npt.NDArray[np.float64], accepted: int) -> float:
    """Return a threshold that at most the first `accepted` of these scores reach."""
    refused = falling[accepted]
    higher = falling[:accepted][falling[:accepted] > refused]
    if not higher.size:
        return float(np.nextafter(refused, np.inf))
    middle = float(refused / 2 + higher[-1] / 2)
    return middle if middle > refused else float(higher[-1])
