"""Look up known vulnerabilities of all required packages with pip-audit, which needs a network.

    pip install pip-audit==2.10.1 && python tests/audit.py

Exit code 0: all packages were looked up, without a finding. 1: a vulnerability is known. 2: some
packages could not be looked up, which pip-audit itself reports as clean.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNS = [  # arguments of pip-audit; --no-deps, as the benchmark's peers are installed
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
            reason = (run.stderr.strip().splitlines() or ["no error message"])[-1]
            print(f"NOT AUDITED: pip-audit could not run: {reason[:300]}")
            return 2
    known = [(p["name"], p["version"], v["id"]) for p in packages for v in p.get("vulns", [])]
    for name, version, vulnerability in sorted(set(known)):
        print(f"VULNERABLE: {name} {version}: {vulnerability}")
    unknown = sorted({package["name"] for package in packages if "vulns" not in package})
    if unknown or not packages:
        examples = ", ".join(unknown[:5])
        print(f"NOT AUDITED: {len(unknown)} packages could not be looked up: {examples} ...")
    if not known and packages and not unknown:
        print(f"clean: no known vulnerability in {len(packages)} packages")
        return 0
    return 1 if known else 2


if __name__ == "__main__":
    sys.exit(main())
