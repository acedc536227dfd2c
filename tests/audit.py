"""Look up known vulnerabilities of all that the requirement files install, with pip-audit.

    pip install pip-audit==2.10.1 && python tests/audit.py

Needs a network. Exit code 0: everything was looked up, and nothing is known. 1: something is known.
2: not everything could be looked up (pip-audit itself calls that clean, with exit code 0).
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNS = [  # arguments of pip-audit; the peers are installed without their own requirements, too
    ["-r", "requirements.txt", "-r", "tests/requirements.txt"],
    ["--no-deps", "--disable-pip", "-r", "benchmarks/requirements.txt"],
]


def main() -> int:
    packages = []
    for arguments in RUNS:
        command = [sys.executable, "-m", "pip_audit", "-fjson", *arguments]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        try:
            packages += json.loads(run.stdout)["dependencies"]
        except ValueError:
            why = (run.stderr.strip().splitlines() or ["it said nothing"])[-1]
            print(f"NOT AUDITED: pip-audit could not run: {why[:300]}")
            return 2
    known = [(p["name"], p["version"], v["id"]) for p in packages for v in p.get("vulns", [])]
    for name, version, vulnerability in sorted(set(known)):
        print(f"VULNERABLE: {name} {version}: {vulnerability}")
    unknown = sorted({package["name"] for package in packages if "vulns" not in package})
    if unknown or not packages:
        some = ", ".join(unknown[:5])
        print(f"NOT AUDITED: {len(unknown)} packages could not be looked up, such as {some}")
    if not known and packages and not unknown:
        print(f"clean: nothing is known about these {len(packages)} packages")
        return 0
    return 1 if known else 2


if __name__ == "__main__":
    sys.exit(main())
