#!/usr/bin/env python3
"""Run a command, and fail if it has changed any file in the working directory.

.ci/unchanged.py make test

Files that git ignores count as well, such as those in output/ and datasets/. The environment and
the caches of tools do not.
"""

import os
import subprocess
import sys

NOT_COMPARED = {
    *(".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", ".hypothesis"),
}


def main() -> int:
    before = snapshot()
    status = subprocess.run(sys.argv[1:]).returncode
    after = snapshot()
    changed = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    if changed:
        listed = "\n".join(f"  {path}" for path in changed)
        print(f"{sys.argv[1:]} has changed {len(changed)} files:\n{listed}", file=sys.stderr)
    return status or bool(changed)


def snapshot() -> dict:
    """Size and time of each file below the working directory, by its path."""
    found = {}
    for folder, folders, files in os.walk("."):
        folders[:] = sorted(name for name in folders if name not in NOT_COMPARED)
        for name in files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            found[os.path.relpath(path)] = status.st_size, status.st_mtime_ns
        if not folders and not files:
            found[os.path.relpath(folder) + os.sep] = ()
    return found


if __name__ == "__main__":
    sys.exit(main())
