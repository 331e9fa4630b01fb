"""`python -m demo`: tells the story, checks it, and leaves nothing behind.

Exit status 0 if every claim was checked and holds, 1 if one does not, 2 for a wrong call, 130 when
interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

from letta_client import LettaError

from demo.claims import ClaimError, Narrator, narrator_for
from demo.machine import remove_tree
from demo.models import SCRIPTED_BANNER, RealModel, find_real_model
from demo.plan_story import PlanStory
from demo.proofs import prove, show_timeline
from demo.scene import Scene, load_scene
from demo.stage import Stage
from demo.story import AgentStory

HERE = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    """Run the demonstration and return the exit status."""
    options = _parse(arguments)
    try:
        scene = load_scene(options.scene)
    except (ValueError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    real = find_real_model(os.environ)
    narrator = narrator_for(as_json=options.json)
    _print_banner(narrator, real)
    _catch_signals()
    failure = _play(scene, real, narrator, keep=options.keep)
    if isinstance(failure, KeyboardInterrupt):
        narrator.line("interrupted")
        return 130
    if failure is None:
        narrator.summarize()
    else:
        narrator.confess(failure)
    if options.json:
        _print_json(narrator, real, failure)
    return 1 if failure else 0


def _play(
    scene: Scene, real: RealModel | None, narrator: Narrator, *, keep: bool
) -> ClaimError | KeyboardInterrupt | None:
    """Tell the story in a temporary directory and clean up; return what ended it early."""
    root = Path(tempfile.mkdtemp(prefix="kelpie-demo-"))
    stage = Stage(root, scene, real)
    try:
        _tell(stage, scene, narrator)
    except (ClaimError, KeyboardInterrupt) as error:
        return error
    except (LettaError, OSError, ValueError, subprocess.SubprocessError) as error:
        seen = f"{type(error).__name__}: {error}\n{stage.log_tail()}"
        return ClaimError("the story runs to its end", "no error", seen)
    finally:
        # From here on it takes seconds at most, and an impatient Ctrl-C would leave half of it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        stage.close()
        if not keep:
            remove_tree(root)
        if root.exists():
            narrator.line(f"\nkept: {root}")
    return None


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__)
    parser.add_argument(
        "--scene", type=Path, default=HERE / "scene.json", help="another scene to play"
    )
    parser.add_argument("--keep", action="store_true", help="keep the temporary directory")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object on stdout, the story on stderr"
    )
    return parser.parse_args(arguments)


def _print_banner(narrator: Narrator, real: RealModel | None) -> None:
    narrator.line(narrator.paint("Kelpie: a durable agent, end to end", "bold"))
    if real is not None:
        narrator.line(f"MODEL: {real.handle}")
        return
    narrator.line(SCRIPTED_BANNER)
    if handle := os.environ.get("KELPIE_MODEL"):
        narrator.line(f"(KELPIE_MODEL is {handle}, but its provider has no key here)")


def _tell(stage: Stage, scene: Scene, narrator: Narrator) -> None:
    told = AgentStory(stage, scene, narrator).run()
    PlanStory(stage, scene.plan, narrator).run()
    show_timeline(stage, narrator, told)
    prove(stage, scene, narrator, told)


def _print_json(narrator: Narrator, real: RealModel | None, failure: ClaimError | None) -> None:
    failed = None
    if failure is not None:
        failed = {"claim": failure.claim, "expected": failure.expected, "seen": failure.seen}
    summary = {
        "ok": failure is None,
        "model": real.handle if real else "scripted",
        "claims": [held._asdict() for held in narrator.held],
        "failed": failed,
        "seconds": round(narrator.elapsed_s, 1),
    }
    print(json.dumps(summary))


def _catch_signals() -> None:
    """Have what ends a process end the story, so that it cleans up; what is ignored stays so."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _stop)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
