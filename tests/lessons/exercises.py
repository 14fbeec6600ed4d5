"""Runs one lesson without its figures: every stub, every wrong answer and then the answer against each check.

    python tests/lessons/exercises.py NAME

Prints a line per exercise. The wrong answers are in wrong_answers.py, for each lesson one list per exercise.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "lessons")]


def fails(check: str, names: dict[str, Any], *kinds: type[BaseException]) -> bool:
    """Whether the check fails in one of these ways."""
    try:
        exec(check, names)
    except kinds:
        return True
    return False


def main(name: str) -> None:
    """Runs the lesson."""
    import jupytext

    from tests.lessons.wrong_answers import WRONG

    warnings.simplefilter("error")
    names: dict[str, Any] = {"__name__": "lesson"}
    wrong = iter(WRONG[name])
    stub = check = ""
    cells = jupytext.read(ROOT / "lessons" / f"{name}.py").cells
    for cell in (cell for cell in cells if cell.cell_type == "code"):
        tags = cell.metadata.get("tags", [])
        if "plot" in tags or "picture" in tags:
            continue
        if "check" in tags:
            check = cell.source
            continue
        code = compile(cell.source, f"{name}: {cell.source.splitlines()[0] if cell.source else ''}", "exec")
        if "answer" in tags:
            assert fails(check, names, NotImplementedError), f"the check passes with the stub:\n{stub}"
            candidates = next(wrong)
            for candidate in candidates:
                exec(candidate, names)
                rejected = fails(check, names, AssertionError, RuntimeError)  # RuntimeError: PyTorch's, of shapes
                assert rejected, f"the check passes with a wrong answer:\n{candidate}"
            exec(code, names)
            exec(check, names)
            print(f"exercise: the stub and {len(candidates)} wrong answers fail, the answer passes", flush=True)
            continue
        stub = cell.source if "exercise" in tags else stub
        exec(code, names)
    assert next(wrong, None) is None, "wrong answers for more exercises than there are"


if __name__ == "__main__":
    main(sys.argv[1])
