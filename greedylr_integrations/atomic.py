"""Files that are written whole or not at all, even if the process is killed."""

from __future__ import annotations

import contextlib
import os
import tempfile


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all.

    The content first goes to a new file beside it, whose name cannot be predicted, so that no existing file or link is
    written through.

    Raises:
        OSError: if it cannot be written; the file is unchanged then.
    """
    folder, name = os.path.split(os.fspath(path))
    descriptor, temporary = tempfile.mkstemp(dir=folder or ".", prefix=name + ".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp's is for the user alone
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
