"What a notebook cannot show of `write_miniature`: full disks, Ctrl-C, kills, other hash seeds, links"
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clep_tutorial import miniature
from clep_tutorial.miniature import write_miniature

SMALL = dict(videos=4, seed=0, dim=8)

def contents(folder): return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}

def after(n, error, real):
    "A stand-in for `real` that raises `error` at call n"
    calls = iter(range(n))
    def call(*args, **kwargs):
        if next(calls, None) is None: raise error
        return real(*args, **kwargs)
    return call

@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("name,n", [("_write_tensor", 2), ("_write_json", 0), ("_write_json", 2), ("_write_answers", 0)])
def test_an_interrupted_write_leaves_nothing_and_the_same_call_mends_it(tmp_path, monkeypatch, error, name, n):
    with monkeypatch.context() as patch:
        patch.setattr(miniature, name, after(n, error, getattr(miniature, name)))
        with pytest.raises(type(error)) as e: write_miniature(tmp_path/"mini", **SMALL)
    if isinstance(error, OSError): assert "no room left to write" in str(e.value) and str(tmp_path/"mini") in str(e.value) and "\n" not in str(e.value)
    assert not contents(tmp_path)
    assert contents(write_miniature(tmp_path/"mini", **SMALL)) == contents(write_miniature(tmp_path/"fresh", **SMALL))

@pytest.mark.parametrize("n", range(4))
def test_ctrl_c_between_the_moves_is_mended(tmp_path, monkeypatch, n):
    out = write_miniature(tmp_path/"mini", videos=3, seed=5, dim=8)
    with monkeypatch.context() as patch:
        patch.setattr(miniature.os, "replace", after(n, KeyboardInterrupt(), os.replace))
        with pytest.raises(KeyboardInterrupt): write_miniature(out, **SMALL)
    assert not miniature._is_written(out, dict(SMALL, simulated=True, version=miniature.VERSION))
    assert contents(write_miniature(out, **SMALL)) == contents(write_miniature(tmp_path/"fresh", **SMALL))

def test_a_killed_write_is_mended(tmp_path):
    out = tmp_path/"mini"
    child = subprocess.Popen([sys.executable, "-c", f"from clep_tutorial.miniature import write_miniature; write_miniature({str(out)!r}, videos=40, dim=64)"])
    while not list(out.rglob("*.pt")) and child.poll() is None: time.sleep(.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    if child.returncode == -signal.SIGKILL: assert [p.name for p in out.iterdir()] == [miniature._PART]
    assert contents(write_miniature(out, **SMALL)) == contents(write_miniature(tmp_path/"fresh", **SMALL))

def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    for seed in ("1", "2"):
        call = f"from clep_tutorial.miniature import write_miniature; write_miniature({str(tmp_path/seed)!r}, videos=8, dim=8)"
        subprocess.run([sys.executable, "-c", call], check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert contents(tmp_path/"1") == contents(tmp_path/"2")

def test_a_damaged_list_of_files_means_writing_again(tmp_path):
    out = write_miniature(tmp_path/"mini", **SMALL)
    whole = contents(out)
    for text in ("", "[]", "{}", '{"simulated": true}', whole["miniature/miniature.json"].decode().replace('"files"', '"other"')):
        (out/"miniature"/"miniature.json").write_text(text)
        assert contents(write_miniature(out, **SMALL)) == whole

def test_a_link_is_replaced_and_what_it_points_to_is_left_alone(tmp_path):
    out = write_miniature(tmp_path/"mini", **SMALL)
    elsewhere = tmp_path/"elsewhere"
    (out/"annotations").rename(elsewhere)
    (out/"annotations").symlink_to(elsewhere)
    write_miniature(out, videos=4, seed=1, dim=8)
    assert not (out/"annotations").is_symlink() and (elsewhere/"narration.json").is_file()

def test_an_empty_folder_is_fine_and_what_lies_beside_stays(tmp_path):
    (tmp_path/"notes.txt").write_text("mine")
    (tmp_path/"mini").mkdir()
    write_miniature(str(tmp_path/"mini"), **SMALL)
    assert {p.name for p in tmp_path.iterdir()} == {"notes.txt", "mini"}
    assert {p.name for p in (tmp_path/"mini").iterdir()} == {"ego4d.json", "annotations", "omnivore_video_swinl", "miniature"}
