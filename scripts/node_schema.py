"""The nodes as saved workflows know them, and what would break those workflows.

`python scripts/node_schema.py` compares the nodes with those of the last release
(tests/released/nodes.json); with `--write` it also writes that file, which is part of a release.
A change that breaks is never written: append an optional input instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from check_release import project_version

ROOT = Path(__file__).resolve().parent.parent
RELEASED = ROOT / "tests" / "released" / "nodes.json"
# Their choices are the files of a machine.
FILES = {"classifier_name", "model_name", "folder"}
Nodes = dict[str, dict[str, list[dict[str, Any]]]]


def describe(info: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """A node's inputs and outputs, from what /object_info says of it.

    The inputs are in the order in which the page saves their values: the optional ones last.
    """
    inputs = []
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            inputs.append(_input(name, group == "optional", *info["input"][group][name]))
    outputs = [
        {"name": name, "type": kind} | ({"list": True} if is_list else {})
        for name, kind, is_list in zip(
            info["output_name"], info["output"], info["output_is_list"], strict=True
        )
    ]
    return {"inputs": inputs, "outputs": outputs}


def _input(name: str, optional: bool, kind: Any, about: dict[str, Any]) -> dict[str, Any]:
    """What has to stay of an input; the text on it may change."""
    said: dict[str, Any] = {"name": name, "type": kind}
    if optional:
        said["optional"] = True
    for key in ("default", "min", "max", "forceInput"):
        if key in about:
            said[key] = about[key]
    if about.get("control_after_generate"):
        said["control_after_generate"] = True  # a second value in saved workflows
    if "options" in about and name not in FILES:
        said["options"] = about["options"]
    return said


def breaks(released: Nodes, current: Nodes) -> list[str]:
    """Why workflows saved with the released nodes would not run the same with the current ones."""
    found = []
    for node, before in released.items():
        if node not in current:
            found.append(f"{node} is gone.")
            continue
        after = current[node]
        found += _places(f"{node}: input", before["inputs"], after["inputs"])
        found += _places(f"{node}: output", before["outputs"], after["outputs"])
        known = {one["name"]: one for one in before["inputs"]}
        for one in after["inputs"]:
            what = f"{node}: input {one['name']}"
            if one["name"] in known:
                found += _changes(what, known[one["name"]], one)
            elif not one.get("optional"):
                found.append(f"{what} is new, so it has to be optional.")
    return found


def _places(what: str, before: list[dict], after: list[dict]) -> list[str]:
    """Names that are gone, and names at another place than before."""
    names = [one["name"] for one in after]
    found = []
    for place, one in enumerate(before):
        if one["name"] not in names:
            found.append(f"{what} {one['name']} is gone.")
        elif (now := names.index(one["name"])) != place:
            found.append(f"{what} {one['name']} was number {place + 1} and is number {now + 1}.")
    if what.endswith("output"):
        found += [
            f"{what} {old['name']} changed from {_kind(old)} to {_kind(new)}."
            for old, new in zip(before, after, strict=False)
            if old["name"] == new["name"] and _kind(old) != _kind(new)
        ]
    return found


def _kind(output: dict[str, Any]) -> str:
    return output["type"] + (" list" if output.get("list") else "")


def _changes(what: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What an input no longer takes, or takes otherwise."""
    found = [
        f"{what}: {key} changed from {before.get(key)} to {after.get(key)}."
        for key in ("type", "forceInput", "control_after_generate")
        if before.get(key) != after.get(key)
    ]
    if before.get("optional") and not after.get("optional"):
        found.append(f"{what} was optional.")
    if before.get("optional") and before.get("default") != after.get("default"):
        # workflows older than the input run with its default
        found.append(
            f"{what}: default changed from {before.get('default')} to {after.get('default')}."
        )
    gone = [one for one in before.get("options", ()) if one not in after.get("options", ())]
    if gone:
        found.append(f"{what} no longer offers {', '.join(map(str, gone))}.")
    low, high = after.get("min"), after.get("max")
    if low is not None and ("min" not in before or low > before["min"]):
        found.append(f"{what}: min {before.get('min')} became {low}.")
    if high is not None and ("max" not in before or high < before["max"]):
        found.append(f"{what}: max {before.get('max')} became {high}.")
    return found


def written(version: str, nodes: Nodes) -> str:
    """The file's text: one input or output a line, so that a diff shows which changed."""
    blocks = []
    for node, about in sorted(nodes.items()):
        parts = []
        for group in ("inputs", "outputs"):
            lines = ",\n".join("    " + json.dumps(one) for one in about[group])
            parts.append(f'   "{group}": [\n{lines}\n   ]' if lines else f'   "{group}": []')
        blocks.append(f"  {json.dumps(node)}: {{\n" + ",\n".join(parts) + "\n  }")
    return f'{{\n "version": "{version}",\n "nodes": {{\n' + ",\n".join(blocks) + "\n }\n}\n"


def nodes_now() -> Nodes:
    """The nodes of this checkout, from a ComfyUI that is started for it."""
    from comfy_server import PACK, ComfyServer
    from comfyui import find_comfyui

    with ComfyServer(find_comfyui()) as server:
        _, known = server.request("/object_info")
    return {
        node: describe(info)
        for node, info in known.items()
        if info["python_module"] == f"custom_nodes.{PACK}"
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the file for this release")
    options = parser.parse_args(arguments)
    current = nodes_now()
    released = json.loads(RELEASED.read_text("utf-8"))["nodes"] if RELEASED.exists() else {}
    found = breaks(released, current)
    for line in found:
        print(line)
    if found:
        return 1
    if options.write:
        RELEASED.parent.mkdir(parents=True, exist_ok=True)
        version = project_version()
        assert version is not None
        RELEASED.write_text(written(version, current), "utf-8")
    print(f"{len(current)} nodes; workflows of the last release run with them.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
