"""Who is speaking? Enrolment, verification and identification on the device, and its model updates.

A `Recogniser` has one model version in memory and the vault's key. A new version first makes
profiles of all users from their stored recordings and then takes over in one step; the previous one
and its profiles stay at hand for an instant return.

A recording may be longer than the model hears: enrolment cuts it into clips and takes the mean over
all of them, verification hears the first clip, as calibrated thresholds were found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clients.compiled import CompiledEngine, CompiledModel
from clients.vault import User, Vault, from_pcm, to_pcm
from clients.vault_key import AskPassphrase, Protection
from clients.versions import (
    Threshold,
    Versions,
    drop_models,
    load_model,
    read_versions,
    store_model,
    write_versions,
)
from fedspk.audio import FloatArray, trim_silence
from fedspk.errors import FedspkError
from fedspk.profiles import SpeakerProfile, VersionedProfile


@dataclass(frozen=True)
class Decision:
    """Whether a voice is a user's: the cosine with the profile and the threshold it was held to."""

    user: str
    score: float
    threshold: Threshold
    model_hash: str

    @property
    def accepted(self) -> bool:
        """Whether the score reaches the threshold."""
        return self.score >= self.threshold.score


def create_device(
    home: Path,
    model: CompiledModel,
    thresholds: Sequence[Threshold],
    protection: Protection,
    ask: AskPassphrase,
) -> Vault:
    """Make a folder a device's, with its first model, and return its vault.

    The key is written last: a folder that an interrupted call leaves can be used again.

    Raises:
        FedspkError: the folder is a device's already or holds other files, or the vault key cannot
            be guarded as asked.
    """
    vault = Vault.prepare(home)
    CompiledEngine(model)  # refused here if it does not load
    with vault.writing():
        write_versions(vault, Versions(store_model(vault.home, model, thresholds)))
        vault.keep(protection, ask)
    return vault


class Recogniser:
    """The users of one device, under the model version in use.

    Another process may take another version into use meanwhile: every call looks and follows.

    Raises (all methods):
        VaultError: a box was altered.
        FedspkError: a file is missing or cannot be written.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self.versions = read_versions(vault)
        self._engine = CompiledEngine(load_model(vault.home, self.versions.current))

    def enrol(self, name: str, recordings: Sequence[FloatArray]) -> User:
        """Enrol a user, or add recordings (samples,) float32 at 16 kHz to one who is.

        Raises:
            FedspkError: there is no recording, or one without speech, or the name will not do.
        """
        vault = self._vault
        sounds = [to_pcm(audio) for audio in recordings]
        with vault.writing():
            self._follow()
            before = next((user for user in vault.users() if user.is_called(name)), None)
            known = vault.recordings(before) if before else []
            profile = self._profile(self._engine, [*known, *map(from_pcm, sounds)])
            user = vault.enrol(before, name, sounds)
            vault.save_profile(user, profile)
            vault.commit(user)
        return user

    def verify(self, name: str, audio: FloatArray, threshold: Threshold) -> Decision:
        """Compare a voice, (samples,) float32 at 16 kHz, with a user's profile.

        Raises:
            FedspkError: nobody of this name is enrolled, or there is no speech.
        """
        self._follow()
        return self._decide(self._vault.user(name), self._embed(audio), threshold)

    def identify(self, audio: FloatArray, threshold: Threshold) -> list[Decision]:
        """Compare a voice, (samples,) float32 at 16 kHz, with all users' profiles; best first.

        Raises:
            FedspkError: nobody is enrolled, or there is no speech.
        """
        self._follow()
        users = self._vault.users()
        if not users:
            raise FedspkError("nobody is enrolled; do it with `fedspk device enroll`.")
        embedding = self._embed(audio)
        decisions = [self._decide(user, embedding, threshold) for user in users]
        return sorted(decisions, key=lambda each: -each.score)

    def use_model(self, model: CompiledModel, thresholds: Sequence[Threshold]) -> int:
        """Re-enrol all users under a new model, then use it; return how many were.

        Up to the last step the old model serves, and a killed process leaves it in use.
        """
        engine = CompiledEngine(model)
        with self._vault.writing():
            self._follow()
            old = self.versions
            version = store_model(self._vault.home, model, thresholds)
            is_same = version.model_hash == old.current.model_hash
            return self._swap(Versions(version, old.previous if is_same else old.current), engine)

    def use_previous(self) -> int:
        """Go back to the version before; return how many users had to be re-enrolled.

        Those alone whose recordings changed since: it takes no time otherwise.

        Raises:
            FedspkError: there is no previous version.
        """
        with self._vault.writing():
            self._follow()
            old = self.versions
            if old.previous is None:
                raise FedspkError("this device has had one model only; there is no previous one.")
            engine = CompiledEngine(load_model(self._vault.home, old.previous))
            return self._swap(Versions(old.previous, old.current), engine)

    def _swap(self, versions: Versions, engine: CompiledEngine) -> int:
        vault = self._vault
        users = [user for user in vault.users() if not vault.has_profile(user, engine.model_hash)]
        for user in users:
            vault.save_profile(user, self._profile(engine, vault.recordings(user)))
        write_versions(vault, versions)
        self.versions, self._engine = versions, engine
        drop_models(vault.home, versions)
        vault.drop_profiles({version.model_hash for version in versions.kept})
        return len(users)

    def _follow(self) -> None:
        versions = read_versions(self._vault)
        if versions.current != self.versions.current:
            self._engine = CompiledEngine(load_model(self._vault.home, versions.current))
        self.versions = versions

    def _decide(self, user: User, embedding: FloatArray, threshold: Threshold) -> Decision:
        model_hash = self._engine.model_hash
        score = self._vault.profile(user, model_hash).score(embedding, model_hash)
        return Decision(user.name, score, threshold, model_hash)

    def _embed(self, audio: FloatArray) -> FloatArray:
        return self._engine.embed(trim_silence(audio))

    @staticmethod
    def _profile(engine: CompiledEngine, recordings: Sequence[FloatArray]) -> VersionedProfile:
        clips = [
            clip for audio in recordings for clip in _clips(trim_silence(audio), engine.samples)
        ]
        if not clips:
            raise FedspkError("an enrolment needs at least one recording.")
        embeddings = np.stack([engine.embed(clip) for clip in clips])
        return VersionedProfile(engine.model_hash, SpeakerProfile.of(embeddings))


def _clips(speech: FloatArray, samples: int) -> list[FloatArray]:
    """Cut speech into clips of `samples`; what is left over counts from half a clip on."""
    count = max(1, round(len(speech) / samples))
    return [speech[start : start + samples] for start in range(0, count * samples, samples)]
