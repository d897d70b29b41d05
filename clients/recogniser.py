"""Who is speaking? Enrolment, verification and identification on the device, and its model updates.

A `Recogniser` has one model version in memory and the vault's key. A new version first makes
profiles of all users from their stored recordings and then takes over in one step; the previous one
and its profiles stay at hand for an instant return.

A recording may be longer than the model hears: enrolment cuts it into clips and takes the mean over
all of them, verification hears the first clip, as calibrated thresholds were found.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

import numpy as np

from clients.compiled import CompiledEngine, CompiledModel
from clients.vault import UnknownUserError, User, Vault, from_pcm, to_pcm
from clients.vault_key import AskPassphrase, Protection
from clients.versions import (
    Threshold,
    Version,
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

_LOG = logging.getLogger(__name__)


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
    start_device(vault, model, thresholds, protection, ask)
    return vault


def start_device(
    vault: Vault,
    model: CompiledModel,
    thresholds: Sequence[Threshold],
    protection: Protection,
    ask: AskPassphrase,
    number: int | None = None,
) -> None:
    """Give a vault that was prepared its first model, and keep its key: it is a device's then.

    Raises:
        FedspkError: the vault key cannot be guarded as asked.
    """
    CompiledEngine(model)  # refused here if it does not load
    with vault.writing():
        write_versions(vault, Versions(store_model(vault.home, model, thresholds, number)))
        vault.keep(protection, ask)


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to take over: loaded, and with profiles of the users it has seen.

    Args:
        model: the model, compiled.
        engine: the same, loaded.
        thresholds: its calibrated decision thresholds.
        number: under which a main server published it; None if none did.
        profiles: by user id and revision.
    """

    model: CompiledModel
    engine: CompiledEngine
    thresholds: tuple[Threshold, ...]
    number: int | None
    profiles: Mapping[tuple[str, int], VersionedProfile]


@dataclass(frozen=True)
class _Serving:
    """What decides at present."""

    versions: Versions
    engine: CompiledEngine


class Recogniser:
    """The users of one device, under the model version in use; several threads may share it.

    Another process may take another version into use meanwhile: every call looks and follows. While
    one thread loads that version, the others go on with the one before. The first call that needs
    it loads it: a model that does not load can be changed for another one.

    Raises (all methods):
        VaultError: a box was altered.
        FedspkError: a file is missing or cannot be written.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._loading = Lock()
        self._serving: _Serving | None = None

    @property
    def versions(self) -> Versions:
        """The version that decides at present, and the one before."""
        return self._serving.versions if self._serving else read_versions(self._vault)

    def follow(self) -> None:
        """Load the version in use, where another process has changed it."""
        self._follow(wait=True)

    def enrol(self, name: str, recordings: Sequence[FloatArray]) -> User:
        """Enrol a user, or add recordings (samples,) float32 at 16 kHz to one who is.

        Raises:
            FedspkError: there is no recording, or one without speech, or the name will not do.
        """
        vault = self._vault
        sounds = [to_pcm(audio) for audio in recordings]
        with vault.writing():
            engine = self._follow(wait=True).engine
            before = next((user for user in vault.users() if user.is_called(name)), None)
            known = vault.recordings(before) if before else []
            profile = self._profile(engine, [*known, *map(from_pcm, sounds)])
            user = vault.enrol(before, name, sounds)
            vault.save_profile(user, profile)
            vault.commit(user)
        return user

    def verify(self, name: str, audio: FloatArray, cut: Threshold | float) -> Decision:
        """Compare a voice, (samples,) float32 at 16 kHz, with a user's profile.

        Args:
            name: whose voice it is said to be.
            audio: the voice.
            cut: the score to reach, or the false-accept rate (0 to 1) that the model's own
                calibration turns into one.

        Raises:
            FedspkError: nobody of this name is enrolled, there is no speech, or the model is not
                calibrated for the rate.
        """
        serving = self._follow()
        threshold = _threshold(serving, cut)
        user = self._vault.user(name)
        return self._decide(serving.engine, user, _embedding(serving.engine, audio), threshold)

    def identify(self, audio: FloatArray, cut: Threshold | float) -> list[Decision]:
        """Compare a voice, (samples,) float32 at 16 kHz, with all users' profiles; best first.

        Args:
            audio: the voice.
            cut: see `verify`.

        Raises:
            FedspkError: nobody is enrolled, there is no speech, or the model is not calibrated for
                the rate.
        """
        serving = self._follow()
        threshold = _threshold(serving, cut)
        users = self._vault.users()
        if not users:
            raise UnknownUserError("nobody is enrolled; do it with `fedspk device enroll`.")
        engine = serving.engine
        embedding = _embedding(engine, audio)
        decisions, faults = [], []
        for user in users:
            try:
                decisions.append(self._decide(engine, user, embedding, threshold))
            except FedspkError as error:  # forgotten just now, or damaged: the others are served
                faults.append(error)
        if not decisions:
            raise faults[0]
        return sorted(decisions, key=lambda each: -each.score)

    def prepare(
        self, model: CompiledModel, thresholds: Sequence[Threshold], number: int | None = None
    ) -> Prepared:
        """Load a model and make profiles of all users with it, in memory alone.

        The vault stays free meanwhile; `swap` catches up with what changes there.

        Args:
            model: the model, compiled.
            thresholds: its calibrated decision thresholds.
            number: under which a main server published it.
        """
        engine, vault = CompiledEngine(model), self._vault
        profiles = {}
        for user in vault.users():
            if not vault.has_profile(user, engine.model_hash):
                try:
                    recordings = vault.recordings(user)
                except FedspkError:
                    continue  # forgotten just now, or damaged: `swap` looks again, undisturbed
                profiles[user.id, user.revision] = self._profile(engine, recordings)
        return Prepared(model, engine, tuple(thresholds), number, profiles)

    def swap(self, prepared: Prepared) -> int:
        """Use a prepared model from now on; return how many users were re-enrolled for it.

        Up to the last step the old model serves, and a killed process leaves it in use. Users whose
        recordings do not open are passed over (`Vault.unserved`).
        """
        with self._vault.writing():
            old = read_versions(self._vault)
            version = store_model(
                self._vault.home, prepared.model, prepared.thresholds, prepared.number
            )
            is_same = version.model_hash == old.current.model_hash
            versions = Versions(version, old.previous if is_same else old.current)
            return self._change(versions, prepared.engine, prepared.profiles)

    def use_model(
        self, model: CompiledModel, thresholds: Sequence[Threshold], number: int | None = None
    ) -> int:
        """Re-enrol all users under a new model, then use it; return how many were.

        Args:
            model: the model, compiled.
            thresholds: its calibrated decision thresholds.
            number: under which a main server published it.
        """
        return self.swap(self.prepare(model, thresholds, number))

    def use_previous(self) -> int:
        """Go back to the version before; return how many users had to be re-enrolled.

        Those alone whose recordings changed since: it takes no time otherwise.

        Raises:
            FedspkError: there is no previous version.
        """
        with self._vault.writing():
            old = read_versions(self._vault)
            if old.previous is None:
                raise FedspkError("this device has had one model only; there is no previous one.")
            engine = self._engine(old.previous)
            return self._change(Versions(old.previous, old.current), engine, {})

    def use_kept(self, model_hash: str, number: int, thresholds: Sequence[Threshold]) -> int | None:
        """Use a model that the device still has, as a published version, in one step.

        Args:
            model_hash: content hash of the model.
            number: under which the main server published it.
            thresholds: its calibrated decision thresholds.

        Returns:
            How many users had to be re-enrolled; None if the device has no such model, or none that
            loads.
        """
        with self._vault.writing():
            old = read_versions(self._vault)
            kept = next((each for each in old.kept if each.model_hash == model_hash), None)
            if kept is None:
                return None
            version = replace(kept, number=number, thresholds=tuple(thresholds))
            is_current = kept == old.current
            try:
                engine = self._follow(wait=True).engine if is_current else self._engine(kept)
            except FedspkError as error:
                _LOG.warning("A model that was kept does not load: %s", error)
                return None
            previous = old.previous if is_current else old.current
            return self._change(Versions(version, previous), engine, {})

    def _change(
        self,
        versions: Versions,
        engine: CompiledEngine,
        profiles: Mapping[tuple[str, int], VersionedProfile],
    ) -> int:
        vault = self._vault
        users = [user for user in vault.users() if not vault.has_profile(user, engine.model_hash)]
        count = 0
        for user in users:
            made = profiles.get((user.id, user.revision))
            try:
                made = made or self._profile(engine, vault.recordings(user))
            except FedspkError as error:  # the others are not to wait for a damaged recording
                _LOG.warning("A user was not re-enrolled: %s", error)
                continue
            vault.save_profile(user, made)
            count += 1
        write_versions(vault, versions)
        self._serving = _Serving(versions, engine)
        drop_models(vault.home, versions)
        vault.drop_profiles({version.model_hash for version in versions.kept})
        return count

    def _follow(self, *, wait: bool = False) -> _Serving:
        """Return what decides; with `wait` the version in use, even if another thread loads it."""
        serving = self._serving
        if serving is not None and read_versions(self._vault) == serving.versions:
            return serving
        if not self._loading.acquire(wait or serving is None):
            assert serving is not None
            return serving
        try:
            versions, serving = read_versions(self._vault), self._serving
            is_loaded = serving and serving.versions.current.digest == versions.current.digest
            engine = serving.engine if serving and is_loaded else self._engine(versions.current)
            self._serving = _Serving(versions, engine)
            return self._serving
        finally:
            self._loading.release()

    def _engine(self, version: Version) -> CompiledEngine:
        return CompiledEngine(load_model(self._vault.home, version))

    def _decide(
        self, engine: CompiledEngine, user: User, embedding: FloatArray, threshold: Threshold
    ) -> Decision:
        try:
            profile = self._vault.profile(user, engine.model_hash)
        except FedspkError:
            profile = self._remade(engine, user.name)
        score = profile.score(embedding, engine.model_hash)
        return Decision(user.name, score, threshold, engine.model_hash)

    def _remade(self, engine: CompiledEngine, name: str) -> VersionedProfile:
        """Make the profile of a user anew that is missing or does not open, and keep it if it can.

        On a disk that is full or can only be read, it serves this once.
        """
        vault = self._vault
        user = vault.user(name)
        profile = self._profile(engine, vault.recordings(user))
        _LOG.warning("A profile did not open and was made anew from its recordings.")
        try:
            with vault.writing():
                if vault.user(name) == user:  # else enrolled anew or forgotten meanwhile
                    vault.save_profile(user, profile)
        except FedspkError as error:
            _LOG.warning("The profile could not be kept: %s", error)
        return profile

    @staticmethod
    def _profile(engine: CompiledEngine, recordings: Sequence[FloatArray]) -> VersionedProfile:
        clips = [
            clip for audio in recordings for clip in _clips(trim_silence(audio), engine.samples)
        ]
        if not clips:
            raise FedspkError("an enrolment needs at least one recording.")
        embeddings = np.stack([engine.embed(clip) for clip in clips])
        return VersionedProfile(engine.model_hash, SpeakerProfile.of(embeddings))


def _threshold(serving: _Serving, cut: Threshold | float) -> Threshold:
    return cut if isinstance(cut, Threshold) else serving.versions.current.threshold(cut)


def _embedding(engine: CompiledEngine, audio: FloatArray) -> FloatArray:
    return engine.embed(trim_silence(audio))


def _clips(speech: FloatArray, samples: int) -> list[FloatArray]:
    """Cut speech into clips of `samples`; what is left over counts from half a clip on."""
    count = max(1, round(len(speech) / samples))
    return [speech[start : start + samples] for start in range(0, count * samples, samples)]
