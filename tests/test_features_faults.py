"""Features under kills, a full disk, Ctrl-C and a second process: what a notebook cannot show about itself"""
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import torch

import clep_tutorial.features as features
from clep_tutorial.features import FeatureStore, feature_uids, save_features_to_hdf5, verify_features
from clep_tutorial.files import DataError

KILLS = int(os.environ.get("CLEP_KILLS", 20))        # more of them: CLEP_KILLS=500 pytest tests/test_features_faults.py
fork = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
unix = pytest.mark.skipif(fork is None, reason="needs fork")


@pytest.fixture
def download(tmp_path):
    "Thirty videos of a megabyte or less, all forms among them, and what else lies in such a folder"
    folder, g = tmp_path/"omnivore_video_swinl", torch.Generator().manual_seed(0)
    folder.mkdir()
    for i in range(30):
        x = torch.randn(1 + 37*i % 700, 384, generator=g)
        torch.save((x, x.half(), x[:, None], x.double())[i % 4], folder/f"video-{i:02}.pt")
    (folder/"manifest.csv").write_text("video_uid,type,s3_path,benchmarks\n")
    (folder/"config.yaml").write_text("stride: 16\n")
    return folder


def convert(download, out, **options):
    return save_features_to_hdf5(feature_uids(download), download, out, progress=False, **{"workers": 2, **options})


def child(download, out, pause=0., **options):
    "Convert in a forked process, a little slower if asked, and say how it ended"
    def work():
        torch.set_num_threads(1)
        plain = features._pieces
        def slowly(x, dtype):
            for piece in plain(x, dtype): time.sleep(pause); yield piece
        if pause: features._pieces = slowly
        try: convert(download, out, **options)
        except KeyboardInterrupt: os._exit(130)
        except (DataError, OSError) as e: (out.parent/"error.txt").write_text(f"{type(e).__name__}: {e}"); os._exit(1)
        os._exit(0)
    process = fork.Process(target=work)
    process.start()
    return process


@unix
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_killed_at_random_moments(download, tmp_path, dtype):
    whole, out, r = convert(download, tmp_path/"whole.h5", dtype=dtype), tmp_path/"work"/"features.h5", random.Random(dtype)
    took = time.perf_counter()
    process = child(download, out, .002, dtype=dtype); process.join()
    assert process.exitcode == 0 and out.read_bytes() == whole.read_bytes()
    took, killed = time.perf_counter() - took, 0
    for _ in range(KILLS):
        out.unlink(missing_ok=True)
        process = child(download, out, .002, dtype=dtype)
        time.sleep(r.random()**2*took)               # mostly early: several kills for each file that gets finished
        process.kill(); process.join()
        killed += process.exitcode == -signal.SIGKILL
        if process.exitcode: assert not out.exists() or out.read_bytes() == whole.read_bytes()      # (killed between the last two lines)
        else: assert out.read_bytes() == whole.read_bytes()
    convert(download, out, dtype=dtype)
    assert killed >= KILLS//2
    assert out.read_bytes() == whole.read_bytes() and sorted(p.name for p in out.parent.iterdir()) == ["features.h5", "features.index.json"]
    assert json.loads(out.with_suffix(".index.json").read_text()) == json.loads(whole.with_suffix(".index.json").read_text())
    assert verify_features(out, download, progress=False)["different"] == verify_features(out, progress=False)["different"] == {}


@unix
@pytest.mark.parametrize("name", ["_finish", "_begin", "_lay_out", "_fill", "write_json", "_survey"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_every_step(download, tmp_path, monkeypatch, name, when):
    whole, out, plain = convert(download, tmp_path/"whole.h5"), tmp_path/"features.h5", getattr(features, name)
    def deadly(*args, **options):
        if when == "after": plain(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    monkeypatch.setattr(features, name, deadly)
    process = child(download, out); process.join()
    monkeypatch.undo()
    assert process.exitcode == -signal.SIGKILL and (out.exists() == ((name, when) == ("_finish", "after")))
    assert convert(download, out).read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.glob("features*")) == ["features.h5", "features.index.json"]


@unix
@pytest.mark.parametrize("name", ["write_json", "_finish"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_replacing_an_older_file(download, tmp_path, monkeypatch, name, when):
    "A source changes its numbers but not its shape: an old file must never pass for the new one"
    out, plain = convert(download, tmp_path/"features.h5"), getattr(features, name)
    torch.save(torch.ones(1, 384), download/"video-00.pt")
    def deadly(*args, **options):
        if when == "after": plain(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    monkeypatch.setattr(features, name, deadly)
    process = child(download, out); process.join()
    monkeypatch.undo()
    assert process.exitcode == -signal.SIGKILL
    assert verify_features(convert(download, out), download, progress=False)["different"] == {} and (FeatureStore(out).read("video-00") == 1).all()
    assert sorted(p.name for p in tmp_path.glob("features*")) == ["features.h5", "features.index.json"]


@unix
@pytest.mark.parametrize("limit", [100, 5_000, 300_000, 3_000_000])
def test_full_disk(download, tmp_path, limit):
    "RLIMIT_FSIZE with SIGXFSZ ignored makes every write beyond `limit` fail, as a full disk does"
    whole, out, before = convert(download, tmp_path/"whole.h5"), tmp_path/"features.h5", resource.getrlimit(resource.RLIMIT_FSIZE)
    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try: convert(download, out)
        except OSError as e:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            (tmp_path/"error.txt").write_text(str(e)); os._exit(1)
        os._exit(0)
    process = fork.Process(target=work); process.start(); process.join()
    error = (tmp_path/"error.txt").read_text()
    assert process.exitcode == 1 and "no room left to write" in error and "features.h5" in error and "the same command" in error and "\n" not in error
    assert not out.exists() and not out.with_suffix(".index.json").exists()
    assert convert(download, out).read_bytes() == whole.read_bytes()


def test_disk_fills_up_while_writing(download, tmp_path, monkeypatch):
    whole, out, plain, left = convert(download, tmp_path/"whole.h5"), tmp_path/"features.h5", features._pieces, [12]
    def until_full(x, dtype):
        for piece in plain(x, dtype):
            left[0] -= 1
            if left[0] < 0: raise OSError(28, "No space left on device")
            yield piece
    monkeypatch.setattr(features, "_pieces", until_full)
    with pytest.raises(OSError, match="no room left to write .*features.h5: free some space") as e: convert(download, out)
    assert "\n" not in str(e.value) and not out.exists()
    left[0] = 10**9
    assert convert(download, out).read_bytes() == whole.read_bytes()


@unix
def test_ctrl_c(download, tmp_path):
    whole, out = convert(download, tmp_path/"whole.h5"), tmp_path/"features.h5"
    journal = tmp_path/"features.h5.journal"
    finished = lambda: journal.read_bytes().count(b"]\n") if journal.exists() else 0
    for _ in range(2):
        before, process = finished(), child(download, out, .05)
        while finished() < before + 4: time.sleep(.002); assert process.is_alive()
        os.kill(process.pid, signal.SIGINT); process.join(10)
        assert process.exitcode == 130 and not out.exists() and not (tmp_path/"features.h5.lock").exists()
    assert convert(download, out).read_bytes() == whole.read_bytes()


@unix
def test_second_process_says_so(download, tmp_path):
    out = tmp_path/"features.h5"
    process = child(download, out, .02)
    while not (tmp_path/"features.h5.journal").exists(): time.sleep(.005)
    with pytest.raises(DataError, match="another process is writing .*features.h5: wait"): convert(download, out)
    process.join()
    assert process.exitcode == 0 and len(FeatureStore(convert(download, out))) == 30 and not list(tmp_path.glob("*.lock"))


def test_evil_file_among_good_ones(download, tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path/"evil-was-here"),)
    torch.save(Evil(), download/"evil.pt")
    with pytest.raises(DataError, match=r"1 of 31 feature files cannot be used: .*evil\.pt asks to call \w+\.mkdir: refused, nothing of it was run"): convert(download, tmp_path/"x.h5")
    with pytest.warns(UserWarning, match="1 of 31"): store = FeatureStore(convert(download, tmp_path/"x.h5", skip_bad=True))
    assert len(store) == 30 and list(store.skipped) == ["evil"] and not (tmp_path/"evil-was-here").exists()


def test_more_videos_change_of_mind_and_changed_sources(download, tmp_path):
    "Whatever is left of other work, the result holds what the sources hold now"
    out, uids, r = tmp_path/"features.h5", feature_uids(download), random.Random(0)
    def stopped(*args): raise KeyboardInterrupt
    for i in range(25):
        some, dtype = r.sample(uids, r.randint(1, 30)), r.choice(["float16", "float32", "float32"])
        uid = r.choice(uids)
        if i % 3 == 0: torch.save(torch.randn(r.randint(1, 50), 384), download/f"{uid}.pt")
        with pytest.MonkeyPatch.context() as patch:
            if r.random() < .6: patch.setattr(features, "_finish", stopped)
            try: save_features_to_hdf5(some, download, out, dtype=dtype, progress=False)
            except KeyboardInterrupt: continue
        store = FeatureStore(out)
        assert store.has_index and store.uids == sorted(some) and store.dtype == dtype and verify_features(out, download, progress=False)["different"] == {}
        with h5py.File(out) as f: assert sorted(f) == sorted(some)


def test_thousands_of_videos_leave_memory_flat(tmp_path):
    "Ten times the videos: the same peak, within what the index itself takes"
    code = """
import resource, sys, torch
from pathlib import Path
from clep_tutorial.features import feature_uids, save_features_to_hdf5
folder = Path(sys.argv[1]); folder.mkdir()
for i in range(int(sys.argv[2])): torch.save(torch.zeros(700, 768), folder/f"{i:05}.pt")
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save_features_to_hdf5(feature_uids(folder), folder, folder/"x.h5", dtype="float16", progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""
    run = lambda n: int(subprocess.run([sys.executable, "-c", code, tmp_path/str(n), str(n)], capture_output=True, text=True, check=True).stdout)
    few, many = run(20), run(200)                    # KiB; 43 and 430 MB of features
    assert many < few + 40_000


@unix
def test_a_folder_of_strange_things(download, tmp_path):
    "Links are followed, folders are no videos; a pipe, a broken link, an empty file are named, and none makes us wait or crash"
    (download/"link.pt").symlink_to(download/"video-03.pt")
    (download/"folder.pt").mkdir()
    (download/"надпись ☕ 1.pt").write_bytes((download/"video-05.pt").read_bytes())
    assert {"link", "надпись ☕ 1"} == set(feature_uids(download)) - {f"video-{i:02}" for i in range(30)}
    os.mkfifo(download/"pipe.pt"); (download/"gone.pt").symlink_to(download/"nowhere"); (download/"zero.pt").touch()
    with pytest.raises(DataError, match=r"3 of 35 .*gone\.pt cannot be opened.*pipe\.pt is no ordinary file.*zero\.pt is truncated") as e: convert(download, tmp_path/"x.h5")
    assert "\n" not in str(e.value)
    with pytest.warns(UserWarning, match="3 of 35"): store = FeatureStore(convert(download, tmp_path/"x.h5", skip_bad=True))
    np.testing.assert_array_equal(store.read("link"), store.read("video-03"))
    np.testing.assert_array_equal(store.read("надпись ☕ 1"), store.read("video-05"))


@unix
def test_killed_again_and_again_with_bad_numbers_left_out(download, tmp_path):
    "A NaN is found late, and the work begins anew without that file: kills on the way must not make it endless"
    for i in (7, 19): torch.save(torch.full((5, 384), float("nan")), download/f"video-{i:02}.pt")
    with pytest.warns(UserWarning): whole = convert(download, tmp_path/"whole.h5", skip_bad=True).read_bytes()
    out, r = tmp_path/"work"/"features.h5", random.Random(1)
    for _ in range(KILLS//2):
        process = child(download, out, .001, skip_bad=True); time.sleep(r.random()*.3); process.kill(); process.join()
    with pytest.warns(UserWarning) if not out.exists() else pytest.MonkeyPatch.context(): assert convert(download, out, skip_bad=True).read_bytes() == whole
    assert sorted(FeatureStore(out).skipped) == ["video-07", "video-19"] and verify_features(out, progress=False)["different"] == {}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is read-only for root")
def test_read_only_folder_is_one_line(download, tmp_path):
    (tmp_path/"locked").mkdir(mode=0o500)
    with pytest.raises(OSError, match="Permission denied.*locked") as e: convert(download, tmp_path/"locked"/"x.h5")
    assert "\n" not in str(e.value)


def test_numbers_are_those_of_the_files(download, tmp_path):
    store = FeatureStore(convert(download, tmp_path/"x.h5"))
    for uid in store: np.testing.assert_array_equal(store.read(uid), torch.load(download/f"{uid}.pt", weights_only=True).reshape(-1, 384).float().numpy())
