"""A bundle by another recipe than its target's, for measurements that ask which is better:
`python -m benchmarks.build_variant '{"decodes_batched": true}' CHECKPOINT ...`.

Behind the changed fields of `export.targets.Recipe`, as JSON, come the words of
`export/build_engine.py`.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from export import build_engine
from export.targets import TARGETS


def main() -> int:
    """Build. The exit status is that of `export/build_engine.py`; 2 for other JSON than fields."""
    try:
        changes = json.loads(sys.argv[1])
        for name, target in [*TARGETS.items()]:
            recipes = {
                precision: dataclasses.replace(recipe, **changes)
                for precision, recipe in target.recipes.items()
            }
            TARGETS[name] = dataclasses.replace(target, recipes=recipes)
    except (IndexError, ValueError, TypeError) as error:
        print(f"error: first come fields of a recipe as JSON: {error}", file=sys.stderr)
        return 2
    return build_engine.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
