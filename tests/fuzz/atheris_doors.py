"""Guided by coverage: `pip install atheris`, then `python tests/fuzz/atheris_doors.py [yaml|spec] -runs=100000`.

`yaml` checks the bytes as a config file; `spec` makes a spec of them and checks that. `--seeds FOLDER` starts from
valid files, and keeps there what reaches new code; the other arguments go to libFuzzer. Whatever breaks a rule of
`watch` ends the run, and leaves its bytes in a file.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Final

_TESTS: Final = Path(__file__).resolve().parents[1]
_DEEPEST: Final = 6
_KEYS: Final = [
    "type",
    "kwargs",
    "inputs",
    "weight",
    "name",
    "reduction",
    "schedule",
    "label_smoothing",
    "typ",
    1,
    None,
]


def value(source: Any, names: list[str], depth: int) -> Any:
    """Read from the bytes of a `FuzzedDataProvider` what stands for a spec, or for anything in it."""
    kind = source.ConsumeIntInRange(0, 9 if depth else 5)
    if kind >= 6:
        return _container(source, names, depth - 1, kind)
    if kind >= 4:
        return source.PickValueInList([None, True, False, "mean", "sum", (), b"", 10**400])
    if kind == 3:
        return source.ConsumeInt(12)
    if kind == 2:
        return source.ConsumeFloat()
    return source.PickValueInList(names) if kind else source.ConsumeUnicode(12)


def _container(source: Any, names: list[str], depth: int, kind: int) -> Any:
    if kind == 6:
        return {"type": source.PickValueInList(names), "kwargs": value(source, names, depth)}
    if kind == 7:
        count = source.ConsumeIntInRange(0, 4)
        return {source.PickValueInList(_KEYS): value(source, names, depth) for _ in range(count)}
    items = [value(source, names, depth) for _ in range(source.ConsumeIntInRange(0, 4))]
    return items if kind == 8 else {"type": "weighted_sum", "kwargs": {"losses": items}}


def main(arguments: list[str]) -> None:
    """Take the arguments apart and run."""
    atheris: Any = import_module("atheris")

    sys.path[:0] = [str(_TESTS), str(_TESTS.parent / "src")]
    with atheris.instrument_imports(include=["tensafe", "yaml"]):
        doors = import_module("fuzz.doors")
        names = list(import_module("fuzz.specs").NAMES)

    def read(data: bytes) -> None:
        doors.read_file(data, doors.POLICIES[len(data) % 2])

    def check(data: bytes) -> None:
        spec = value(atheris.FuzzedDataProvider(data), names, _DEEPEST)
        doors.check_data(spec, doors.POLICIES[len(data) % 2])

    tests = {"yaml": read, "spec": check}
    door = arguments.pop(1) if len(arguments) > 1 and arguments[1] in tests else "yaml"
    if "--seeds" in arguments:
        at = arguments.index("--seeds")
        arguments[at : at + 2] = [_seeded(Path(arguments[at + 1]))]
    atheris.Setup(arguments, tests[door])
    atheris.Fuzz()


def _seeded(corpus: Path) -> str:
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(import_module("fuzz.yaml_files").SEEDS):
        (corpus / f"seed_{number}").write_bytes(seed)
    return str(corpus)


if __name__ == "__main__":
    main(sys.argv)
