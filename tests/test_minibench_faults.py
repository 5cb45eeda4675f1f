"What a notebook cannot show of `write_benchmarks`: full disks, Ctrl-C, kills, other hash seeds, links"
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clep_tutorial import minibench
from clep_tutorial.minibench import write_benchmarks
from clep_tutorial.miniature import write_miniature

FEW = dict(kinetics=4, charades=1, mcq=3, epic=1)

@pytest.fixture
def mini(tmp_path): return write_miniature(tmp_path/"mini", videos=8, seed=0, dim=8)

def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}

def fresh(tmp_path):
    write_benchmarks(write_miniature(tmp_path/"fresh", videos=8, seed=0, dim=8), **FEW)
    return contents(tmp_path/"fresh")

def after(n, error, real):
    "A stand-in for `real` that raises `error` at call n"
    calls = iter(range(n))
    def call(*args, **kwargs):
        if next(calls, None) is None: raise error
        return real(*args, **kwargs)
    return call

@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("name,n", [("_write_tensor", 2), ("_write_csv", 3), ("_write_mcq", 0), ("_write_json", 1)])
def test_an_interrupted_write_leaves_nothing_and_the_same_call_mends_it(mini, tmp_path, monkeypatch, error, name, n):
    before = contents(mini)
    with monkeypatch.context() as patch:
        patch.setattr(minibench, name, after(n, error, getattr(minibench, name)))
        with pytest.raises(type(error)) as e: write_benchmarks(mini, **FEW)
    if isinstance(error, OSError): assert "no room left to write" in str(e.value) and str(mini) in str(e.value) and "\n" not in str(e.value)
    assert contents(mini) == before and not (mini/minibench._PART).exists()
    write_benchmarks(mini, **FEW)
    assert contents(mini) == fresh(tmp_path)

@pytest.mark.parametrize("n", range(6))
def test_ctrl_c_between_the_moves_looks_unfinished_and_is_mended(mini, tmp_path, monkeypatch, n):
    write_benchmarks(mini, 3, **FEW)
    with monkeypatch.context() as patch:
        patch.setattr(minibench.os, "replace", after(n, KeyboardInterrupt(), os.replace))
        with pytest.raises(KeyboardInterrupt): write_benchmarks(mini, **FEW)
    assert not (mini/"miniature"/"benchmarks.json").exists()
    write_benchmarks(mini, **FEW)
    assert contents(mini) == fresh(tmp_path)

def test_a_killed_write_is_mended(mini, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", f"from clep_tutorial.minibench import write_benchmarks; write_benchmarks({str(mini)!r}, kinetics=3000, epic=0)"])
    while not list((mini/minibench._PART).rglob("*.pt")) and child.poll() is None: time.sleep(.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    if child.returncode == -signal.SIGKILL: assert not {p.name for p in mini.iterdir()} & set(minibench._OWN) and not (mini/"miniature"/"benchmarks.json").exists()
    write_benchmarks(mini, **FEW)
    assert contents(mini) == fresh(tmp_path)

def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    for seed in ("1", "2"):
        call = f"from clep_tutorial.minibench import write_benchmarks; from clep_tutorial.miniature import write_miniature; write_benchmarks(write_miniature({str(tmp_path/seed)!r}, videos=8, seed=0, dim=8), **{FEW!r})"
        subprocess.run([sys.executable, "-c", call], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert contents(tmp_path/"1") == contents(tmp_path/"2")

def test_a_damaged_list_of_files_means_writing_again(mini):
    listed = write_benchmarks(mini, **FEW)
    whole = contents(mini)
    for text in ("", "[]", "{}", '{"simulated": true}', json.dumps({**json.loads(listed.read_text()), "files": []})):
        listed.write_text(text)
        write_benchmarks(mini, **FEW)
        assert contents(mini) == whole

def test_a_missing_or_shortened_clip_means_writing_again(mini):
    write_benchmarks(mini, **FEW)
    whole = contents(mini)
    clip = next((mini/"kinetics400").rglob("*.pt"))
    for harm in (clip.unlink, lambda: clip.write_bytes(b"half")):
        harm()
        write_benchmarks(mini, **FEW)
        assert contents(mini) == whole

def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(mini, tmp_path):
    write_benchmarks(mini, **FEW)
    elsewhere = tmp_path/"elsewhere"
    (mini/"epic").rename(elsewhere)
    (mini/"epic").symlink_to(elsewhere)
    write_benchmarks(mini, 9, **FEW)
    assert not (mini/"epic").is_symlink() and (elsewhere/"EPIC_100_retrieval_test.csv").is_file()

def test_a_miniature_without_a_list_is_refused(tmp_path):
    (tmp_path/"miniature").mkdir()
    with pytest.raises(ValueError, match="is no miniature"): write_benchmarks(tmp_path)
