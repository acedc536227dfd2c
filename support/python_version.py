"""Stop on a Python that the pinned packages have no release for, in one line.

Programs call this before other imports, so it must run on old Pythons.
"""

import sys
from importlib.util import find_spec

OLDEST = (3, 11)
NEWEST = {"torch": (3, 14), "chainlit": (3, 13)}  # of the versions in requirements.txt


def require_python(package: str) -> None:
    """Exit, and say what to install, unless this Python can run `package`.

    A newer Python may come with its own PyTorch, as in Colab. Chainlit fails there even if it is
    installed by force: its command applies nest_asyncio, which breaks asyncio from Python 3.14 on.
    """
    version, newest = sys.version_info[:2], NEWEST[package]
    too_new = version > newest and (package == "chainlit" or not find_spec(package))
    if version < OLDEST or too_new:
        what = "the page" if package == "chainlit" else "this project"
        sys.exit(
            f"This is Python {version[0]}.{version[1]}, but {what} needs 3.{OLDEST[1]} to "
            f"3.{newest[1]}: install one of these, or let uv do so (pip install uv, then "
            "uv venv --python 3.13), and follow Start in README.md"
        )
