"""What trials say of a model: the evaluation and the thresholds of its manifest."""

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
        corpus: fingerprint of the speech; EERs on different corpora are never compared.
        devices: how many devices or enrolments the trials are of.
        seed: seed of the bootstrap over trials.
        p_target: prior of a target trial in the detection cost.

    Raises:
        FedspkError: a list of scores is empty or holds something not finite.
    """
    found = error_rates(target.astype(np.float64), nontarget.astype(np.float64), p_target, seed)
    low, high = found["eer_interval"]
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

    Impostors' scores reach a threshold at most at its rate, which makes `FEWEST_ERRORS` errors or
    more. Of two rates between which equal scores leave no threshold, the lower is kept.

    >>> [round(cut.threshold, 4) for cut in thresholds(np.arange(600) / 600)]
    [0.9492, 0.8992]
    """
    falling = np.sort(np.asarray(nontarget, dtype=np.float64))[::-1]
    cuts: list[Threshold] = []
    for rate in FALSE_ACCEPT_RATES:
        accepted = int(rate * len(falling))
        if accepted < FEWEST_ERRORS:
            continue
        cut = _above(falling, accepted)
        if not cuts or cut < cuts[-1].threshold:
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
