"""Which provider of ONNX Runtime runs which node: a node that runs elsewhere than asked is a failure, not a detail."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dna_deploy.session import open_session, require_onnxruntime

RECORD = "session.record_ep_graph_assignment_info"  # ONNX Runtime keeps the assignment only where it is told to


@dataclass(frozen=True)
class Placement:
    asked: str
    nodes: dict[str, int]  # provider -> how many nodes of the graph, before the runtime fuses them
    elsewhere: list[str]  # the nodes that another provider runs, each with its op and provider

    @property
    def text(self) -> str:
        shown = ", ".join(self.elsewhere[:3]) + (", ..." if len(self.elsewhere) > 3 else "")
        return f"{len(self.elsewhere)} of {sum(self.nodes.values())} nodes do not run on {self.asked}: {shown}"


def placement(path: Path, provider: str) -> Placement | None:
    """Where the nodes of an ONNX file would run; None where this ONNX Runtime is too old to say."""
    if not hasattr(require_onnxruntime().InferenceSession, "get_provider_graph_assignment_info"):
        return None
    session = open_session(path, provider, entries={RECORD: "1"})
    nodes: Counter[str] = Counter()
    elsewhere = []
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes():
            nodes[part.ep_name] += 1
            if part.ep_name != provider:
                elsewhere.append(f"{node.name} ({node.op_type}) on {part.ep_name}")
    return Placement(provider, dict(nodes), elsewhere)
