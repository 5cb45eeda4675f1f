"""The build in a small project of its own: what falls behind, what git does not know, what is not clean"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clep_tutorial.build import write_notebook

SETTINGS = """[DEFAULT]
repo = toy
lib_name = toy
lib_path = toy
version = 0.0.1
user = somebody
author = somebody
author_email = somebody@example.org
description = A toy
doc_host = https://somebody.example.org
doc_baseurl = /toy
branch = main
git_url = https://github.com/%(user)s/%(repo)s
title = %(lib_name)s
nbs_path = nbs
custom_sidebar = True
update_pyproject = False
tst_flags = notest slow cuda
procs = clep_tutorial.build:TestTitles
"""
SIDEBAR = "website:\n  sidebar:\n    contents: [index.ipynb, 01_a.ipynb, reference.md]\n"
A = ("# Doubling\n\n> Twice as much", "#| default_exp a", '#| exports\ndef double(x): return 2*x', "#| test doubles\nassert double(2) == 4", "md See [home](index.ipynb).")


def build(root, verb):
    "Run a verb as the Makefile does; (exit code, what it said)"
    here = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "IN_TEST"))}
    env = {**here, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run([sys.executable, "-m", "clep_tutorial.build", verb], cwd=root, env=env, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def git(root, *args):
    return subprocess.run(["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b.c", *args], check=True, capture_output=True, text=True).stdout


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A project whose generated files are in step and committed"
    root = tmp_path_factory.mktemp("toy")
    (root/"settings.ini").write_text(SETTINGS)
    (root/".gitignore").write_text("_proc/\n__pycache__/\nnbs/nbdev.yml\n")
    (root/"_quarto.yml").write_text("project:\n  type: website\nmetadata-files: [nbdev.yml, sidebar.yml]\n")
    write_notebook(root/"nbs"/"index.ipynb", "# Toy\n\n> A project to break", "md Read [doubling](01_a.ipynb).")
    write_notebook(root/"nbs"/"01_a.ipynb", *A)
    (root/"nbs"/"sidebar.yml").write_text(SIDEBAR)
    (root/"nbs"/"_quarto.yml").symlink_to("../_quarto.yml")
    build(root, "clean")
    assert build(root, "export") == (0, "")
    git(root, "init", "-q"), git(root, "add", "-A"), git(root, "commit", "-qm", "all")
    return root


@pytest.fixture
def project(made, tmp_path):
    "A clone of it, free to break"
    git(tmp_path, "clone", "-q", str(made), "toy")
    return tmp_path/"toy"


def test_a_fresh_clone_is_in_step_and_stays_untouched(project):
    code, said = build(project, "all")
    assert code == 0, said
    assert git(project, "status", "--porcelain") == ""
    assert {p.name for p in (project/"toy").glob("*.py")} == {"__init__.py", "_modidx.py", "a.py"}
    assert (project/"nbs"/"_quarto.yml").is_symlink() and "website" in (project/"_proc"/"_quarto.yml").read_text()
    cells = json.loads((project/"_proc"/"01_a.ipynb").read_text())["cells"]
    page = "\n".join("".join(c["source"]) for c in cells)
    assert page.startswith("---\n") and "title: Doubling" in page and 'code-summary: "Test: doubles"' in page and "#| test" not in page


def test_stale_module_and_tests_are_named_and_mended(project):
    edit(project/"nbs"/"01_a.ipynb", "2*x", "x + x")
    edit(project/"nbs"/"01_a.ipynb", "double(2) == 4", "double(3) == 6")
    code, said = build(project, "sync")
    assert code == 1 and "toy/a.py (changed)" in said and "tests/nb/test_a.py (changed)" in said and "Traceback" not in said
    assert "x + x" in (project/"toy"/"a.py").read_text()
    assert build(project, "sync")[0] == 0


def test_module_edited_by_hand_is_named_and_put_back(project):
    edit(project/"toy"/"a.py", "2*x", "3*x")
    code, said = build(project, "sync")
    assert code == 1 and "toy/a.py (changed)" in said and "2*x" in (project/"toy"/"a.py").read_text()


def test_module_that_git_does_not_know_is_named(project):
    write_notebook(project/"nbs"/"02_b.ipynb", "# B\n\n> b", "#| default_exp b", "#| export\ny = 1", "#| test y\nassert y == 1")
    assert build(project, "export")[0] == 0
    code, said = build(project, "sync")
    assert code == 1 and "unknown to git" in said and "toy/b.py" in said and "tests/nb/test_b.py" in said
    git(project, "add", "toy", "tests")
    assert build(project, "sync")[0] == 0


def test_module_without_a_notebook_is_named_and_removed(project):
    (project/"nbs"/"01_a.ipynb").unlink()
    code, said = build(project, "sync")
    assert code == 1 and "toy/a.py (gone)" in said and "tests/nb/test_a.py (gone)" in said and not (project/"toy"/"a.py").exists()


def test_unclean_notebook_is_named_and_cleaned(project):
    nb = project/"nbs"/"01_a.ipynb"
    edit(nb, '"execution_count": null', '"execution_count": 7')
    code, said = build(project, "clean")
    assert code == 1 and "not clean: nbs/01_a.ipynb (changed)" in said and "index" not in said
    assert build(project, "clean")[0] == 0 and git(project, "status", "--porcelain") == ""


def test_a_test_that_cannot_stand_alone_stops_the_export(project):
    edit(project/"nbs"/"01_a.ipynb", "double(2) == 4", "double(other) == 4")
    code, said = build(project, "export")
    assert code == 1 and "nbs/01_a.ipynb: test doubles uses `other`" in said and "Traceback" not in said


def test_pages_that_would_mislead_are_named(project):
    edit(project/"nbs"/"01_a.ipynb", "index.ipynb", "gone.ipynb")
    (project/"nbs"/"sidebar.yml").write_text(SIDEBAR.replace("01_a.ipynb, ", ""))
    code, said = build(project, "check")
    assert code == 1 and "nbs/01_a.ipynb: a link to gone.ipynb, which is not there" in said and "sidebar.yml does not list 01_a.ipynb" in said


def test_page_that_fails_while_it_is_made_is_named(project):
    edit(project/"nbs"/"01_a.ipynb", "return 2*x", "return 2*x\\nimport no_such_module")
    code, said = build(project, "check")
    assert code == 1 and "Doubling" in said and "no_such_module" in said


def test_outside_a_project(tmp_path):
    code, said = build(tmp_path, "sync")
    assert code == 1 and "no settings.ini" in said and "Traceback" not in said
