"""Files that hold what agents said are their user's alone, unless the folder that they lie in says otherwise.

A folder says otherwise in two ways. With a default access control list, the list decides, as it does for every
program. With the set-group-ID bit, which makes its files belong to the folder's group, the group may do in a new file
what it may do in the folder. The usual umask, which lets everybody read, says nothing: nobody chose it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_DEFAULT_ACL = "system.posix_acl_default"
_PRIVATE = stat.S_IRUSR | stat.S_IWUSR


def create_file(path: Path) -> int:
    """Create a file that is not there yet, and return a descriptor to write to it.

    A symbolic link under this name counts as there, wherever it leads.

    Raises:
        FileExistsError: Something has this name.
        OSError: The file cannot be created.
    """
    mode = file_mode(path.parent)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666 if mode is None else mode)
    if mode is not None:
        os.fchmod(descriptor, mode)  # the umask may have taken the group's bits away
    return descriptor


def file_mode(folder: Path) -> int | None:
    """Return the mode of a new file in a folder; ``None`` where the folder's default ACL decides."""
    if _has_default_acl(folder):
        return None
    status = folder.stat()
    if not status.st_mode & stat.S_ISGID:
        return _PRIVATE
    return _PRIVATE | (status.st_mode & (stat.S_IRGRP | stat.S_IWGRP))


def folder_mode(parent: Path) -> int | None:
    """Return the mode of a new folder in a folder; ``None`` where the parent's default ACL decides."""
    mode = file_mode(parent)
    if mode is None:
        return None
    group = stat.S_IXGRP | stat.S_ISGID if mode & stat.S_IRGRP else 0
    return mode | stat.S_IXUSR | group


def _has_default_acl(folder: Path) -> bool:
    if not hasattr(os, "getxattr"):
        return False
    try:
        return bool(os.getxattr(folder, _DEFAULT_ACL))
    except OSError:  # there is none, or the file system knows none
        return False
