"""Write the dashboards anew, or say which of the written ones are not what the code makes.

    python -m deploy.grafana.generate [--check]

Exit status 1 when `--check` finds a difference.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.adapters import adapters
from deploy.grafana.expressions import FOLDER
from deploy.grafana.overview import overview
from deploy.grafana.queries import queries
from deploy.grafana.stores import stores
from deploy.grafana.training import training

BOARDS: dict[str, Callable[[], dict[str, Any]]] = {
    "overview": overview,
    "queries": queries,
    "adapters": adapters,
    "training": training,
    "stores": stores,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.generate", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 when something differs")
    check = parser.parse_args(arguments).check
    different = [name for name, text in rendered().items() if text != _written(name)]
    for name in different:
        if not check:
            (FOLDER / f"{name}.json").write_text(rendered()[name], encoding="utf-8")
        print(f"{name}.json {'is not what the code makes' if check else 'written'}")
    return 1 if check and different else 0


def rendered() -> dict[str, str]:
    """The text of every dashboard's file, by name; the same whenever it is called."""
    return {
        name: json.dumps(make(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        for name, make in BOARDS.items()
    }


def _written(name: str) -> str:
    file = FOLDER / f"{name}.json"
    return file.read_text(encoding="utf-8") if file.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
