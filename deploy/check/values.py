"""Every value has a type in values.schema.json and a row in the chart's README, and the other way round.

    values.py CHART
"""

import json
import re
import sys
from pathlib import Path

import yaml

chart = Path(sys.argv[1])
values = yaml.safe_load((chart / "values.yaml").read_text())
schema = json.loads((chart / "values.schema.json").read_text())


def paths_of_values(value, schema, path=""):
    """The keys that the chart owns: below a free map, they are the user's."""
    schema = resolve(schema)
    if isinstance(value, dict) and schema.get("additionalProperties") is False:
        for key, below in value.items():
            yield from paths_of_values(below, schema["properties"].get(key, {}), f"{path}.{key}" if path else key)
    else:
        yield path


def resolve(schema):
    name = schema.get("$ref", "").removeprefix("#/definitions/")
    return globals()["schema"]["definitions"][name] if name else schema


def paths_of_schema(schema, path=""):
    schema = resolve(schema)
    if schema.get("additionalProperties") is False:
        for key, below in schema["properties"].items():
            yield from paths_of_schema(below, f"{path}.{key}" if path else key)
    else:
        yield path


faults = []
in_values = set(paths_of_values(values, schema))
# What has no default: what others hand in, and parts of objects that are given whole.
free = re.compile(r"^global$|(^|\.)resources\.|^updateStrategy\.rollingUpdate|^placement\.document|^imagePullSecrets")
every = in_values | set(paths_of_schema(schema))
in_schema = {path for path in paths_of_schema(schema) if not free.search(path)}
in_values = {path for path in in_values if not free.search(path)}
faults += [f"{path} is in values.yaml, and not in values.schema.json" for path in sorted(in_values - in_schema)]
faults += [f"{path} is in values.schema.json, and not in values.yaml" for path in sorted(in_schema - in_values)]

rows = set(re.findall(r"^\| `([^`]+)`", (chart / "README.md").read_text(), re.MULTILINE))
covered = lambda path: any(path == row or path.startswith(f"{row}.") for row in rows)
faults += [f"{path} has no row in README.md" for path in sorted(in_values) if not covered(path)]
known = every | {path.rsplit(".", depth)[0] for path in every for depth in range(1, 4)}
faults += [f"README.md has a row for {row}, which is no value" for row in sorted(rows) if row not in known]
if faults:
    sys.exit("\n".join(faults))
