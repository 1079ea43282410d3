"""Writing outputs so that a failure never leaves half a file under its final name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from spikeexport.calibration.foundation.errors import SpikeExportError, one_line

_CHUNK_BYTES = 1 << 22
_SHORT_OF_SPACE_BYTES = 1 << 20


def explain_os_error(error: OSError, target: Path) -> SpikeExportError:
    """Turns an operating-system error met while writing `target` into a sentence with a cure."""
    if _is_out_of_space(error, target):
        free_mb = _free_bytes(target) // 2**20
        return SpikeExportError(
            f"No space left while writing {target} ({free_mb} MB free there): nothing was written under that name; "
            "free some space or choose another folder with -o."
        )
    return SpikeExportError(
        f"Cannot write {target}: {one_line(error.strerror or error)}; check the folder and its permissions."
    )


def _is_out_of_space(error: OSError, target: Path) -> bool:
    if error.errno is None:
        # numpy's tofile reports a short write without the system's error number.
        return _free_bytes(target) < _SHORT_OF_SPACE_BYTES
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _free_bytes(target: Path) -> int:
    folder = next((parent for parent in [target, *target.parents] if parent.exists()), Path("/"))
    return shutil.disk_usage(folder).free


@contextlib.contextmanager
def staged_outputs(*targets: Path) -> Iterator[Path]:
    """Yields a temporary folder beside the targets; on success its entries are renamed to their final names.

    The body writes each target into the yielded folder under the target's own file name. Targets share one parent
    folder, so each rename is atomic. They are renamed in the order given: name the file that others refer to first.
    When the body raises, nothing changes under the final names and the temporary folder is removed.

    Args:
        *targets: Final paths (files or folders), all in the same parent folder.

    Raises:
        SpikeExportError: The file system refused (full disk, permissions), or the body left a target unwritten.
    """
    parent = targets[0].parent
    assert all(target.parent == parent for target in targets), "staged targets share one folder"
    staging: Path | None = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{targets[0].name}.", suffix=".partial", dir=parent))
        yield staging
        for target in targets:
            if not (staging / target.name).exists():
                raise SpikeExportError(f"{target} was not written: the stage that makes it ended without it.")
        for target in targets:
            _move_into_place(staging / target.name, target)
    except OSError as error:
        raise explain_os_error(error, targets[0]) from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _move_into_place(staged: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        retired = staged.parent / f"{target.name}.retired"
        os.replace(target, retired)
    os.replace(staged, target)


def write_text(target: Path, text: str) -> None:
    """Writes `text` (UTF-8) to `target` atomically.

    Raises:
        SpikeExportError: The file system refused.
    """
    with staged_outputs(target) as staging:
        (staging / target.name).write_text(text, encoding="utf-8")


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
