"""End with one line on a Python that is too old. Commands import this module first.

It runs on old Pythons, too, and so must parse the files that import it.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        f"This project needs Python 3.11 or newer, but this is Python {sys.version.split()[0]}. "
        "Get a newer one from https://www.python.org/downloads/ or with: uv venv --python 3.13"
    )
