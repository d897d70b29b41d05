"""What an operator may set in `DIR/server.toml`; without that file all is kept in DIR.

database = "postgresql+psycopg://fedspk:PASSWORD@db.example/fedspk"
artefacts = "s3://bucket/versions"
aggregator-canary = true
"""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedspk.errors import FedspkError, first_fault

_FILE = "server.toml"


class Settings(BaseModel):
    """Where the main server keeps registry and target files, and what an aggregator may do.

    Args:
        database: SQLAlchemy URL; empty for a SQLite file in DIR.
        artefacts: fsspec URL of a folder for target files; None for DIR/public/targets.
        aggregator_canary: whether a token of the role aggregator may move the channel canary.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: str = ""
    artefacts: str | None = Field(default=None, min_length=1)
    aggregator_canary: bool = Field(default=False, alias="aggregator-canary", strict=True)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the settings of a repository's folder.

        Raises:
            FedspkError: the file is wrong, or holds a password and is not its owner's alone.
        """
        folder = Path(folder)
        path = folder / _FILE
        try:
            text, mode = path.read_text(encoding="utf-8"), stat.S_IMODE(path.stat().st_mode)
        except FileNotFoundError:
            text, mode = "", 0o600
        except (OSError, UnicodeDecodeError) as error:
            raise FedspkError(f"{path}: cannot be read ({error}).") from error
        try:
            found = cls.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise FedspkError(f"{path}: is not TOML ({error}).") from error
        except ValidationError as error:
            raise FedspkError(f"{path}: is wrong: {first_fault(error)}.") from error
        if mode & 0o077 and any(map(_has_password, (found.database, found.artefacts or ""))):
            raise FedspkError(
                f"{path}: holds a password and can be read by others; run `chmod 600 {path}`."
            )
        default = f"sqlite:///{folder.absolute() / 'registry.sqlite'}"
        return found.model_copy(update={"database": found.database or default})


def _has_password(url: str) -> bool:
    try:
        parts = urlsplit(url)
        options = parse_qsl(parts.query)
    except ValueError:
        return False
    return parts.password is not None or any("password" in name.lower() for name, _ in options)
