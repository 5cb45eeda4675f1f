"""The rules of the house, read off the source: who imports whom, what is never called, one place for the version"""
import ast
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT/"clep_tutorial"
# a room imports from the floors below its own, never from its neighbours
FLOORS = [["files", "build"], ["windows", "miniature", "model", "losses", "metrics"], ["minibench", "features", "extract", "narrations", "embeddings"], ["pairs"],
          ["training"], ["baselines"], ["retrieval", "zeroshot", "egomcq", "report"], ["epic"], ["evaluation"], ["demo"], ["cli"]]
FLOOR = {room: n for n, rooms in enumerate(FLOORS) for room in rooms}
ROOMS = sorted(p for p in PACKAGE.glob("*.py") if p.stem[0] != "_")


def imports(tree):
    "Names of this package's modules that a module imports, anywhere in it"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("clep_tutorial")):
            inner = (node.module or "").removeprefix("clep_tutorial").strip(".")
            yield from [inner] if inner else [a.name for a in node.names]


@pytest.mark.parametrize("path", ROOMS, ids=lambda p: p.stem)
def test_rooms_import_only_from_below(path):
    used = set(imports(ast.parse(path.read_text(encoding="utf-8")))) & FLOOR.keys()
    assert path.stem in FLOOR, f"{path.stem} has no floor yet: give it one in this file"
    assert {m for m in used if FLOOR[m] >= FLOOR[path.stem]} == set()


@pytest.mark.parametrize("path", ROOMS, ids=lambda p: p.stem)
def test_nothing_of_a_stranger_is_unpickled(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call): continue
        name = ast.unparse(node.func)
        if name == "torch.load": assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), f"line {node.lineno}"
        assert name not in ("pickle.load", "pickle.loads", "pd.read_pickle", "eval", "exec"), f"line {node.lineno}: {name}"
        assert not any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords), f"line {node.lineno}"


def test_the_lightest_import_is_light():
    code = "import sys, clep_tutorial; print(clep_tutorial.__version__, *sorted({'torch', 'pandas', 'numpy', 'h5py'} & sys.modules.keys()))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT/"settings.ini", encoding="utf-8")
    assert said == [ini["DEFAULT"]["version"]]


def test_the_changelog_knows_this_version():
    from clep_tutorial import __version__
    assert re.findall(r"^## (\S+)", (ROOT/"CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)[0] == __version__


def test_make_help_lists_every_target():
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^make (\w+)", said, flags=re.M)) == {"help", "demo", "test", "export", "docs", "lab", "bench", "clean"}
