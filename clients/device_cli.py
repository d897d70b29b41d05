"""The commands `fedspk device`: speakers enrolled and verified on the device, in its vault."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clients.device_options import (
    HomeOption,
    JsonOption,
    PassphraseOption,
    home_folder,
    open_vault,
    print_json,
)
from fedspk.errors import FedspkError

if TYPE_CHECKING:
    from clients.compiled import CompiledModel
    from clients.quality import Quality
    from clients.recogniser import Recogniser
    from clients.versions import Threshold, Version
    from fedspk.audio import FloatArray

_REFUSED = 1

UserOption = Annotated[str, typer.Option("--user", help="Who it is.")]
ModelOption = Annotated[Path, typer.Option("--model", help="Model file, as fedspk writes it.")]
ManifestOption = Annotated[
    Path | None,
    typer.Option("--manifest", help="The model's manifest: it is checked, and gives thresholds."),
]
FalseAcceptOption = Annotated[
    float,
    typer.Option(
        "--false-accept",
        min=0.0,
        max=1.0,
        help="Share of impostors to accept at most; the model's calibration gives the threshold.",
    ),
]
ThresholdOption = Annotated[
    float | None,
    typer.Option("--threshold", min=-1.0, max=1.0, help="Score to reach, in place of that."),
]


def register(app: typer.Typer) -> None:
    """Add the group `device` to `fedspk`."""
    device = typer.Typer(
        no_args_is_help=True, help="Enrol and verify speakers on this device; nothing leaves it."
    )
    device.command(
        epilog="Example: fedspk device init --model version-1.safetensors --manifest manifest.json"
    )(init)
    device.command(epilog="Example: fedspk device enroll --user anna anna-*.wav")(enroll)
    device.command(epilog="Example: fedspk device verify --user anna door.wav --json")(verify)
    device.command(epilog="Example: fedspk device identify door.wav")(identify)
    device.command(epilog="Example: fedspk device status --json")(status)
    device.command(epilog="Example: fedspk device forget --user anna")(forget)
    device.command(
        "use-model", epilog="Example: fedspk device use-model --model version-2.safetensors"
    )(use_model)
    app.add_typer(device, name="device")


def init(
    model: ModelOption,
    manifest: ManifestOption = None,
    home: HomeOption = None,
    protect: Annotated[
        Literal["keyring", "passphrase"] | None,
        typer.Option(
            help="What guards the vault's key [default: the keyring where there is one that "
            "encrypts and no --passphrase-file is given, else a passphrase]."
        ),
    ] = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Make this machine a device: an encrypted vault, and the model that it starts with."""
    from clients.recogniser import create_device
    from clients.vault_key import default_protection, passphrase_source

    folder = home_folder(home)
    protection = protect or ("passphrase" if passphrase_file else default_protection())
    compiled, thresholds = _read_model(model, manifest)
    ask = passphrase_source(passphrase_file, twice=True)
    vault = create_device(folder, compiled, thresholds, protection, ask)
    typer.echo(
        f"{folder}: device {vault.device[:8]} with model {compiled.model_hash[:12]}; its vault's "
        f"key is guarded by a {protection}."
    )


def enroll(
    user: UserOption,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recordings.")],
    home: HomeOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Enrol a user from recordings, or add recordings to one; none is taken unless all are good."""
    from clients.quality import measure
    from fedspk.audio import load_audio

    recordings = [load_audio(path) for path in files]
    qualities = [measure(audio) for audio in recordings]
    faulty = [
        f"{path}: {fault}"
        for path, quality in zip(files, qualities, strict=True)
        for fault in quality.faults
    ]
    if faulty:
        raise FedspkError(f"nothing was enrolled: {'; '.join(faulty)}.")
    enrolled = _open(home, passphrase_file).enrol(user, recordings)
    for path, quality in zip(files, qualities, strict=True):
        typer.echo(f"{path}: {quality.speech_s:.1f} s of speech, {quality.snr_db:.0f} dB")
    typer.echo(
        f"{enrolled.name}: enrolled with {len(enrolled.recordings)} recordings, "
        f"{enrolled.seconds:.0f} s."
    )


def verify(
    user: UserOption,
    file: Annotated[Path, typer.Argument(help="Recording of who claims to be the user.")],
    home: HomeOption = None,
    passphrase_file: PassphraseOption = None,
    false_accept: FalseAcceptOption = 0.01,
    threshold: ThresholdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say whether a recording is a user's voice; exit code 0 if it is, 1 if not."""
    from clients.answers import verification

    recogniser = _open(home, passphrase_file)
    cut = _threshold(recogniser, false_accept, threshold)
    audio, quality = _heard(file)
    decision = recogniser.verify(user, audio, cut)
    if as_json:
        print_json(**verification(decision, quality.faults))
    else:
        verdict = "accepted" if decision.accepted else "refused"
        typer.echo(f"{decision.user}: {verdict}, score {decision.score:.3f}, {_in_words(cut)}.")
    raise typer.Exit(0 if decision.accepted else _REFUSED)


def identify(
    file: Annotated[Path, typer.Argument(help="Recording of somebody.")],
    home: HomeOption = None,
    passphrase_file: PassphraseOption = None,
    false_accept: FalseAcceptOption = 0.01,
    threshold: ThresholdOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which user speaks in a recording, if any; exit code 0 if one does, 1 if none."""
    from clients.answers import identification

    recogniser = _open(home, passphrase_file)
    cut = _threshold(recogniser, false_accept, threshold)
    audio, quality = _heard(file)
    decisions = recogniser.identify(audio, cut)
    best = decisions[0]
    if as_json:
        print_json(**identification(decisions, quality.faults))
    else:
        typer.echo(f"{best.user if best.accepted else 'nobody enrolled'}; {_in_words(cut)}:")
        for each in decisions:
            typer.echo(f"{each.score:7.3f}  {each.user}")
    raise typer.Exit(0 if best.accepted else _REFUSED)


def status(
    home: HomeOption = None, passphrase_file: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """Show the model versions and who is enrolled."""
    from clients.vault_key import protection_of
    from clients.versions import read_versions

    vault = open_vault(home, passphrase_file)
    versions, users = read_versions(vault), vault.users()
    protection = protection_of(vault.home)
    previous = versions.previous.model_hash if versions.previous else None
    if as_json:
        print_json(
            home=str(vault.home),
            device=vault.device,
            protection=protection,
            model=versions.current.model_hash,
            previous=previous,
            thresholds=[
                {"false_accept": each.false_accept, "score": each.score}
                for each in versions.current.thresholds
            ],
            users=[
                {"name": user.name, "recordings": len(user.recordings), "seconds": user.seconds}
                for user in users
            ],
        )
        return
    typer.echo(f"device    {vault.device[:8]} in {vault.home}, key guarded by a {protection}")
    typer.echo(f"model     {versions.current.model_hash[:12]}, {_calibration(versions.current)}")
    typer.echo(f"previous  {previous[:12] if previous else 'none'}")
    for user in users:
        typer.echo(
            f"user      {user.name}, {len(user.recordings)} recordings, {user.seconds:.0f} s"
        )


def forget(
    user: UserOption, home: HomeOption = None, passphrase_file: PassphraseOption = None
) -> None:
    """Destroy a user's key, and with it recordings and profiles; there is no way back."""
    vault = open_vault(home, passphrase_file)
    with vault.writing():
        vault.forget(vault.user(user))
    typer.echo(f"{user}: forgotten.")


def use_model(
    model: Annotated[Path | None, typer.Option("--model", help="Model file to change to.")] = None,
    manifest: ManifestOption = None,
    previous: Annotated[
        bool, typer.Option("--previous", help="Go back to the version before, at once.")
    ] = False,
    home: HomeOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Re-enrol all users under another model version and change to it in one step."""
    if previous == (model is not None) or (previous and manifest):
        raise FedspkError("give either --model FILE, with its --manifest if any, or --previous.")
    recogniser = _open(home, passphrase_file)
    if model is None:
        count = recogniser.use_previous()
    else:
        count = recogniser.use_model(*_read_model(model, manifest))
    current = recogniser.versions.current
    typer.echo(f"model {current.model_hash[:12]} is in use; users re-enrolled: {count}.")


def _open(home: Path | None, passphrase_file: Path | None) -> Recogniser:
    from clients.recogniser import Recogniser

    return Recogniser(open_vault(home, passphrase_file))


def _read_model(model: Path, manifest: Path | None) -> tuple[CompiledModel, Sequence[Threshold]]:
    """Compile a model file; with a manifest, check it first and take its thresholds."""
    from clients.compiled import compile_model
    from clients.versions import Threshold

    if manifest is None:
        return compile_model(model), ()
    from fedspk.release import Manifest, check_client, check_model_file

    stated = Manifest.from_json(manifest.read_bytes(), str(manifest))
    if stated.kind != "model":
        raise FedspkError(f"{manifest}: describes no speaker model; use one that does.")
    check_client(stated, str(manifest))
    check_model_file(model, stated)
    thresholds = [Threshold(each.threshold, each.false_accept_rate) for each in stated.thresholds]
    return compile_model(model), thresholds


def _threshold(recogniser: Recogniser, false_accept: float, given: float | None) -> Threshold:
    from clients.versions import Threshold

    if given is not None:
        return Threshold(given, None)
    return recogniser.versions.current.threshold(false_accept)


def _heard(file: Path) -> tuple[FloatArray, Quality]:
    """Return a recording that a model can use; say on standard error what is wrong with it."""
    from clients.quality import measure
    from fedspk.audio import load_audio

    audio = load_audio(file)
    quality = measure(audio)
    if quality.unusable:
        raise FedspkError(f"{file}: {'; '.join(quality.unusable)}.")
    for fault in quality.faults:
        typer.echo(f"fedspk: {file}: {fault}.", err=True)
    return audio, quality


def _in_words(threshold: Threshold) -> str:
    if threshold.false_accept is None:
        return f"threshold {threshold.score:.3f} as given, at an unknown false-accept rate"
    return (
        f"threshold {threshold.score:.3f}, which {100 * threshold.false_accept:g} % of impostors "
        "reach"
    )


def _calibration(version: Version) -> str:
    rates = [f"{100 * each.false_accept:g} %" for each in version.thresholds if each.false_accept]
    return f"calibrated for {', '.join(rates)} false accepts" if rates else "not calibrated"
