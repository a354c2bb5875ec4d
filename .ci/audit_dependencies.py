"""Known vulnerabilities of the installed packages, by pip-audit: exit code 1 if there are any.

    python .ci/audit_dependencies.py

pip-audit ends with success when it could not ask about a single package, so its exit code says
nothing; what it reports of each package does.
"""

import json
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

TIMEOUT_S = 120


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [Path(sys.executable).parent / "pip-audit", "--skip-editable"]
        command += ["--progress-spinner", "off", "--format", "json", "--output", found]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, timeout=TIMEOUT_S, capture_output=True, check=False)
        packages = json.loads(found.read_text())["dependencies"] if found.exists() else []
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        print("skipped: dependency audit, because no advisories can be reached", file=sys.stderr)
    elif len(asked) < len(packages):
        left = len(packages) - len(asked)
        print(f"dependency audit: {left} of {len(packages)} packages not known", file=sys.stderr)
    vulnerable = [package for package in asked if package["vulns"]]
    for package in vulnerable:
        ids = ", ".join(vulnerability["id"] for vulnerability in package["vulns"])
        print(f"{package['name']} {package['version']}: {ids}", file=sys.stderr)
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
