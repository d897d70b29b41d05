"""The evaluation gate: no worse model takes a channel unless somebody says why."""

from __future__ import annotations

from fedspk.errors import FedspkError
from fedspk.release import Manifest

MARGIN = 0.5
"""Points of EER by which a model may be worse than the one before it: chance between two runs."""


def check_promotion(candidate: Manifest, present: Manifest) -> None:
    """Accept a model whose EER is at most `MARGIN` points above that of the channel's present one.

    A model that goes back to a version before the present one is accepted: it is a way out.

    Raises:
        FedspkError: it is worse, or it was not evaluated on the same corpus.
    """
    to = candidate.rolled_back_to
    if present.evaluation is None or (to is not None and to < present.version):
        return
    before, after = present.evaluation, candidate.evaluation
    if after is None:
        raise FedspkError(
            f"version {candidate.version} was never evaluated, version {present.version} was; "
            "add an evaluation to its manifest, or use --force with --reason."
        )
    if after.corpus != before.corpus:
        raise FedspkError(
            f"version {candidate.version} was evaluated on {after.corpus}, version "
            f"{present.version} on {before.corpus}: their EERs cannot be compared; "
            "use --force with --reason."
        )
    if after.eer > before.eer + MARGIN:
        raise FedspkError(
            f"version {candidate.version} has an EER of {after.eer:g} % and version "
            f"{present.version} one of {before.eer:g} %: worse by more than {MARGIN:g} points; "
            "use --force with --reason."
        )
