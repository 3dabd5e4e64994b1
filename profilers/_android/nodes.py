"""Where the time of a model goes: ONNX Runtime's own profile, read node by node."""

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NodeTime:
    """A node as the runtime runs it, after it has fused and replaced what it can."""

    name: str
    op: str
    provider: str
    us: tuple[int, ...]  # of each run; the runtime's own profile counts in whole microseconds


def read_node_times(text: str, warmup: int) -> list[NodeTime]:
    """ONNX Runtime's profile; the first `warmup` runs are left out."""
    suffix = "_kernel_time"
    taken: dict[str, list[dict[str, Any]]] = {}
    for event in json.loads(text):
        if event.get("cat") == "Node" and event["name"].endswith(suffix):
            taken.setdefault(event["name"].removesuffix(suffix), []).append(event)
    return [
        NodeTime(
            name, events[0]["args"]["op_name"], events[0]["args"]["provider"], tuple(event["dur"] for event in events[warmup:])
        )
        for name, events in taken.items()
    ]
