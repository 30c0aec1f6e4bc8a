"""`kubectl` as far as the pages use it: it judges what it is given as an API server would, and notes it.

    python -m tests.support.kubectl apply -f FILE | create secret generic NAME --from-file=FOLDER | get ...

KUBECTL_NOTES is the file that gets one JSON line per object; KUBERAY_DEFINITIONS the folder of KubeRay's own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support.kubernetes import judge


def note(value: dict[str, Any]) -> None:
    with Path(os.environ["KUBECTL_NOTES"]).open("a") as notes:
        notes.write(json.dumps(value) + "\n")


def main(words: list[str]) -> None:
    if words[:2] == ["apply", "-f"]:
        for manifest in yaml.safe_load_all(sys.stdin if words[2] == "-" else Path(words[2]).read_text()):
            judge(manifest, Path(os.environ["KUBERAY_DEFINITIONS"]))
            note(manifest)
    elif words[:3] == ["create", "secret", "generic"]:
        folder = Path(words[4].removeprefix("--from-file="))
        note({"kind": "Secret", "metadata": {"name": words[3]}, "keys": sorted(path.name for path in folder.iterdir())})
    elif words[0] != "get":
        raise SystemExit(f"kubectl {words} is not known here")


if __name__ == "__main__":
    main(sys.argv[1:])
