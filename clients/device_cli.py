"""The commands `fedspk device`: speakers enrolled and verified on the device, in its vault."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clients import model_cli, service_cli, training_cli
from clients.device_options import (
    HomeOption,
    JsonOption,
    PassphraseOption,
    open_vault,
    print_json,
)
from fedspk.errors import FedspkError

if TYPE_CHECKING:
    from clients.quality import Quality
    from clients.recogniser import Recogniser
    from clients.versions import Threshold
    from fedspk.audio import FloatArray

_REFUSED = 1

UserOption = Annotated[str, typer.Option("--user", help="Who it is.")]
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
    device.command(epilog="Example: fedspk device enroll --user anna anna-*.wav")(enroll)
    device.command(epilog="Example: fedspk device verify --user anna door.wav --json")(verify)
    device.command(epilog="Example: fedspk device identify door.wav")(identify)
    device.command(epilog="Example: fedspk device forget --user anna")(forget)
    model_cli.register(device)
    service_cli.add_commands(device)
    training_cli.add_commands(device)
    app.add_typer(device, name="device")


def enroll(
    user: UserOption,
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE...", help="Recordings.")
    ] = None,
    microphone: Annotated[
        bool, typer.Option("--microphone", help="Record now, in place of files.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=1.0, max=120.0, help="How long to record.")] = 10.0,
    home: HomeOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Enrol a user from recordings, or add recordings to one; none is taken unless all are good."""
    from clients.quality import measure
    from fedspk.audio import load_audio

    if bool(files) == microphone:
        raise FedspkError("give either recordings or --microphone.")
    recogniser = _open(home, passphrase_file)
    names = [str(path) for path in files] if files else ["microphone"]
    recordings = [load_audio(path) for path in files] if files else [_recorded(seconds)]
    qualities = [measure(audio) for audio in recordings]
    faulty = [
        f"{name}: {fault}"
        for name, quality in zip(names, qualities, strict=True)
        for fault in quality.faults
    ]
    if faulty:
        raise FedspkError(f"nothing was enrolled: {'; '.join(faulty)}.")
    enrolled = recogniser.enrol(user, recordings)
    for name, quality in zip(names, qualities, strict=True):
        above = "" if quality.snr_db is None else f", {quality.snr_db:.0f} dB above the background"
        typer.echo(f"{name}: {quality.speech_s:.1f} s of speech{above}")
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
    audio, quality = _heard(file)
    decision = recogniser.verify(user, audio, _cut(false_accept, threshold))
    if as_json:
        print_json(**verification(decision, quality.faults))
    else:
        verdict = "accepted" if decision.accepted else "refused"
        why = _in_words(decision.threshold)
        typer.echo(f"{decision.user}: {verdict}, score {decision.score:.3f}, {why}.")
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
    audio, quality = _heard(file)
    decisions = recogniser.identify(audio, _cut(false_accept, threshold))
    best = decisions[0]
    if as_json:
        print_json(**identification(decisions, quality.faults))
    else:
        speaker = best.user if best.accepted else "nobody enrolled"
        typer.echo(f"{speaker}; {_in_words(best.threshold)}:")
        for each in decisions:
            typer.echo(f"{each.score:7.3f}  {each.user}")
    raise typer.Exit(0 if best.accepted else _REFUSED)


def forget(
    user: UserOption, home: HomeOption = None, passphrase_file: PassphraseOption = None
) -> None:
    """Destroy a user's key, and with it recordings and profiles; there is no way back."""
    vault = open_vault(home, passphrase_file)
    with vault.writing():
        if user in vault.damaged():
            vault.forget_damaged(user)
        else:
            vault.forget(vault.user(user))
    typer.echo(f"{user}: forgotten.")


def _open(home: Path | None, passphrase_file: Path | None) -> Recogniser:
    from clients.recogniser import Recogniser

    recogniser = Recogniser(open_vault(home, passphrase_file))
    recogniser.follow()  # a model that does not load is told before anybody is recorded
    return recogniser


def _cut(false_accept: float, given: float | None) -> Threshold | float:
    from clients.versions import Threshold

    if math.isnan(false_accept) or (given is not None and math.isnan(given)):
        raise FedspkError("--threshold and --false-accept must be numbers.")
    return false_accept if given is None else Threshold(given, None)


def _recorded(seconds: float) -> FloatArray:
    """Record from the microphone, with a level meter on a terminal."""
    import sys

    from clients.microphone import meter, record

    is_shown = sys.stderr.isatty()
    typer.echo(f"Speak now, for {seconds:g} s.", err=True)
    audio = record(
        seconds,
        lambda at, level: (
            typer.echo(f"\r{meter(at, level)}", err=True, nl=False) if is_shown else None
        ),
    )
    typer.echo("\nThat will do." if is_shown else "That will do.", err=True)
    return audio


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
