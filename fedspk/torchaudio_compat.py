"""torchaudio, also where its compiled extension does not fit the installed torch.

PyPI's torchaudio for Linux is linked against CUDA: beside a torch without CUDA its import ends in
an OSError. What of it front ends use is pure Python, and torchaudio itself supports running
without the extension, as it does where the file is not there. So the import is tried as it is,
and then once more with torchaudio's own loader saying that there is no extension.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

from fedspk.errors import FedspkError

_LOADER = "torchaudio._extension.utils"
_LOOKUP = "torchaudio._internal.module_utils"


def import_torchaudio() -> ModuleType:
    """Import torchaudio, with its compiled extension if that loads, else without.

    Raises:
        FedspkError: torchaudio is not installed, or fails for another reason.
    """
    try:
        return importlib.import_module("torchaudio")
    except ModuleNotFoundError as error:
        name = error.name or "torchaudio"
        raise FedspkError(
            f"{name} is not installed; install it with: pip install {name.partition('.')[0]}"
        ) from error
    except (OSError, ImportError, RuntimeError) as error:
        return _import_without_extension(error)


def torchaudio_status() -> str:
    """Say in one line which torchaudio was found and whether its compiled extension works."""
    try:
        torchaudio = import_torchaudio()
    except FedspkError as error:
        return str(error)
    version = getattr(torchaudio, "__version__", "of unknown version")
    if getattr(torchaudio._extension, "_IS_TORCHAUDIO_EXT_AVAILABLE", False):
        return f"torchaudio {version}, with its compiled extension"
    return f"torchaudio {version}, pure Python (its compiled extension does not fit this torch)"


def _import_without_extension(first: Exception) -> ModuleType:
    """Import torchaudio again, with its loader switched off.

    The failed import has left behind the two modules that look for the extension: up to
    torchaudio 2.8 the second one decides whether it is there, since 2.9 the first one alone.
    """
    loader: Any = sys.modules.get(_LOADER)
    lookup: Any = sys.modules.get(_LOOKUP)
    if loader is None or lookup is None:
        raise _unusable(first) from first
    load, found = loader._load_lib, lookup.is_module_available

    def is_available(*names: str) -> bool:
        return not any(name.startswith("torchaudio.lib") for name in names) and bool(found(*names))

    loader._load_lib, lookup.is_module_available = lambda _: False, is_available
    try:
        return importlib.import_module("torchaudio")
    except (OSError, ImportError, RuntimeError, AttributeError) as error:
        raise _unusable(error) from error
    finally:
        loader._load_lib, lookup.is_module_available = load, found


def _unusable(error: Exception) -> FedspkError:
    return FedspkError(
        f"torchaudio does not load beside this torch ({error}); install the versions of the two "
        "that belong together."
    )
