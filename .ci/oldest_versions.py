"""Print the lowest versions that pyproject.toml allows, as constraints for pip."""

import re
from pathlib import Path

import tomllib

with (Path(__file__).parents[1] / "pyproject.toml").open("rb") as file:
    project = tomllib.load(file)["project"]
stated = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
for requirement in sorted(set(stated)):
    found = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?>=([0-9.]+)(?:;.*)?", requirement)
    if found is None:
        raise SystemExit(f"{requirement!r} states no lowest version")
    print(f"{found[1]}=={found[2]}")
