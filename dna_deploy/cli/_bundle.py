"""dna-export --verify and --rebuild: is a bundle whole, does it answer as it did, and is it what it says it was made from?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dna_deploy.contents import Contents


def verified(
    path: Path, device: str | None, max_difference: float | None, max_drop: float | None, max_ms: float | None, trust: bool
) -> dict[str, Any]:
    """The checks in the order of what they cost; raises CheckFailed at the first that fails."""
    from dna_deploy.contents import check, measured_ms, opened, spoken
    from dna_deploy.errors import CheckFailed, MachineError
    from dna_deploy.progress import say, show

    with opened(path) as contents:
        manifest = contents.manifest
        say(f"{path}: {len(manifest.files)} files as they were shipped")
        for name in contents.exported:
            _judge(contents, path, name, max_difference, max_drop)
        golden, left = check(contents, device, trust)
        rows = [
            [part.file, f"{part.largest_difference:.2g}", f"{part.tolerance:.2g}", "ok" if part.ok else "FAILED"]
            for part in golden
        ]
        show("golden images", ["model", "largest difference", "allowed", ""], rows)
        for line in left:
            say(line)
        if failed := spoken(golden):
            raise CheckFailed(f"{path}: {failed}")
        accuracy = contents.accuracy(manifest.newest)
        if accuracy is not None:
            say(
                f"{manifest.newest}: accuracy {accuracy.accuracy_before:.2%} in PyTorch, {accuracy.accuracy_after:.2%} exported; "
                f"lost {accuracy.drop:.2%} (95 % interval {accuracy.drop_low:.2%} to {accuracy.drop_high:.2%}, "
                f"McNemar p = {accuracy.p_value:.2g})"
            )
        ms = None
        if max_ms is not None or device is not None:
            ms, low, high = measured_ms(contents, device)
            where = device or ("cpu" if manifest.newest.endswith(".onnx") else "this machine")
            say(f"{manifest.newest} on {where}: {ms:.3g} ms an image ({low:.3g} to {high:.3g})")
            if max_ms is not None and ms > max_ms:
                raise CheckFailed(f"{path}: {ms:.3g} ms measured on {where}, --max-latency {max_ms:g} ms")
        if left:
            raise MachineError(f"{path}: {'; '.join(left)}")
        return {
            "bundle": str(path),
            "verified": True,
            "files": len(manifest.files),
            "models": {part.file: part.largest_difference for part in golden},
            "accuracy_drop": accuracy.drop if accuracy else None,
            "measured_ms": ms,
        }


def _judge(contents: "Contents", path: Path, name: str, max_difference: float | None, max_drop: float | None) -> None:
    """What was found when a model was exported, by the limits it had then and by those given now; nothing is run for it."""
    from dna_deploy.errors import CheckFailed, RequestError

    found = contents.verification(name)
    if max_difference is not None:
        links = (*found.links, *filter(None, [found.on_device]))
        worst = max((part.largest_difference, link.step, part.about) for link in links for part in link.comparisons)
        if worst[0] > max_difference:
            raise CheckFailed(
                f"{path}: {name}: step {worst[1]} differs by {worst[0]:.2g} of the spread on {worst[2]}, "
                f"--max-difference {max_difference:g}"
            )
    if max_drop is not None:
        accuracy = contents.accuracy(name)
        if accuracy is None:
            raise RequestError(f"--max-drop: {name} of {path} was exported without labels; its accuracy is not known")
        if accuracy.drop > max_drop:
            raise CheckFailed(f"{path}: {name} lost {accuracy.drop:.2%} of accuracy, --max-drop {max_drop:.2%}")


def rebuilt(path: Path, trust: bool) -> dict[str, Any]:
    """Make the ONNX files of a bundle again from what its manifest names; raises CheckFailed where one has other bytes."""
    from dna_deploy.contents import opened
    from dna_deploy.errors import CheckFailed
    from dna_deploy.progress import say, show
    from dna_deploy.rebuild import rebuild, surroundings

    with opened(path) as contents:
        others = surroundings(contents.manifest)
        if others:
            say(f"{path} was made elsewhere: {'; '.join(others)}")
        files = list(rebuild(contents, trust))
        rows = [[part.file, part.shipped[:16], part.found[:16], "same" if part.same else "DIFFERS"] for part in files]
        show("SHA-256", ["file", "shipped", "made again", ""], rows)
        if changed := [part.file for part in files if not part.same]:
            why = "it was made elsewhere" if others else "the network or the images it was made from have changed"
            raise CheckFailed(f"{path}: {', '.join(changed)}: made again the bytes are others; {why}")
        return {"bundle": str(path), "rebuilt": {part.file: part.found for part in files}, "made_elsewhere": others}
