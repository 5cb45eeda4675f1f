"""Search under kills, Ctrl-C, a full disk, a second process and files that change: what a notebook cannot show about itself"""
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

import clep_tutorial.retrieval as retrieval
from clep_tutorial.features import FeatureStore
from clep_tutorial.files import DataError
from clep_tutorial.retrieval import MomentIndex, moment_vectors, search
from clep_tutorial.training import TrainConfig, _toy_pairs, fit

fork = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
unix = pytest.mark.skipif(fork is None, reason="needs fork")


@pytest.fixture
def toy(tmp_path): return retrieval._toy_run(tmp_path)


def ask(run, words, **options): return search(run, ["cuts the onion", "opens the fridge"], 3, sentence_model=words, progress=False, **options)


def left(run): return sorted(p.name for p in run.path.iterdir())


def child(work):
    "Run `work` in a forked process and say how it ended"
    def body():
        torch.set_num_threads(1)
        try: work()
        except KeyboardInterrupt: os._exit(130)
        except (DataError, OSError) as e: os.write(2, str(e).encode()); os._exit(1)
        os._exit(0)
    process = fork.Process(target=body)
    process.start()
    process.join()
    return process.exitcode


@unix
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle(toy, how, monkeypatch):
    "Nothing under the index's name, and the next search makes it"
    run, words = toy
    want, plain = ask(run, words, save=False), moment_vectors

    def stop(run, features, uid, step=1.):
        if uid == "video-1": os.kill(os.getpid(), how)
        return plain(run, features, uid, step)

    def work():
        retrieval.moment_vectors = stop
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ask(run, words)

    assert child(work) == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert "moments.h5" not in left(run) and (how == signal.SIGKILL or left(run) == [])
    pd.testing.assert_frame_equal(ask(run, words), want)
    assert MomentIndex(run.path/"moments.h5").uids == ["video-0", "video-1", "video-2"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from clep_tutorial.retrieval import _toy_run, search
run, words = _toy_run(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for save in (True, False):
    try: print(len(search(run, ["cuts the onion", "opens the fridge"], 3, sentence_model=words, progress=False, save=save)))
    except OSError as e: print(e)
"""


@unix
def test_full_disk(toy, tmp_path):
    "One line, nothing half-written; the same search with save=False works. In a process of its own: the limit cannot be taken back"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path/"full")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "no room left to write" in first and "moments.h5" in first and second == "6"
    assert not [p for p in (tmp_path/"full").rglob("*moments*")]


def test_folder_that_may_not_be_written(toy, monkeypatch):
    run, words = toy
    def refuse(*args, **kwargs): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(retrieval, "new_h5", refuse)
    with pytest.raises(DataError, match="moments.h5 cannot be written: search with save=False"): ask(run, words)
    assert len(ask(run, words, save=False)) == 6


@unix
def test_two_processes_at_once(toy):
    "Both answer, and one whole index is left"
    run, words = toy
    want = ask(run, words, save=False)
    processes = [fork.Process(target=lambda: (torch.set_num_threads(1), pd.testing.assert_frame_equal(ask(run, words), want))) for _ in range(4)]
    for p in processes: p.start()
    for p in processes: p.join()
    assert [p.exitcode for p in processes] == [0]*4 and left(run) == ["moments.h5"]


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other"])
def test_damaged_index_is_made_anew(toy, damage):
    run, words = toy
    want, path = ask(run, words), run.path/"moments.h5"
    if damage == "cut": os.truncate(path, path.stat().st_size//2)
    if damage == "empty": path.write_bytes(b"")
    if damage == "text": path.write_text("not an index")
    if damage == "other":
        with h5py.File(path, "w") as f: f["something"] = 1
    pd.testing.assert_frame_equal(ask(run, words), want)


def test_other_features_are_noticed(toy, tmp_path):
    "A changed feature file, or another one of the same size, is searched, not the memory of the old one"
    run, words = toy
    before = ask(run, words)
    with h5py.File(tmp_path/"features.h5", "r+") as f:
        rows = f["video-2"][:]
        f["video-2"][:] = rows[::-1]                 # the fridge is at the other end now
    os.utime(tmp_path/"features.h5", ns=(1, 1))
    after = ask(run, words)
    assert after[after.text == "opens the fridge"].start_sec.iloc[0] > before[before.text == "opens the fridge"].start_sec.iloc[0] + 5
    with h5py.File(tmp_path/"features.h5", "r+") as f: del f["video-1"]
    assert "video-1" not in set(ask(run, words).uid)


def test_features_with_nan_name_the_video(toy, tmp_path):
    run, words = toy
    with h5py.File(tmp_path/"features.h5", "r+") as f: f["video-2"][3] = np.nan
    with pytest.raises(DataError, match="video video-2 of .*features.h5 has moments that are not finite"): ask(run, words)
    assert left(run) == []
    assert set(ask(run, words, uids=["video-1"]).uid) == {"video-1"}


def test_one_video_at_a_time(toy, monkeypatch):
    "However many videos there are, only one is in memory, and each is read once"
    run, words = toy
    alive, most, seen, plain = [0], [0], [], moment_vectors

    class Counted(torch.Tensor):
        def __del__(self): alive[0] -= 1

    def counted(run, features, uid, step=1.):
        t, v = plain(run, features, uid, step)
        seen.append(uid)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return t, v.as_subclass(Counted)
    monkeypatch.setattr(retrieval, "moment_vectors", counted)
    many = {f"copy-{i:02}": None for i in range(20)}
    with h5py.File(run.card["data"]["work"] + "/features.h5", "r+") as f:
        for name in many: f[name] = f["video-1"][:]
    hits = ask(run, words, save=False)
    assert sorted(seen) == sorted(["video-0", "video-1", "video-2", *many]) and most[0] <= 2          # one in use while the next is made
    assert len(hits) == 6 and hits.attrs["moments"] == 21*38 + 28 + 2


def test_many_videos_give_the_best_of_all(toy):
    "The stream keeps what a look at everything at once would find"
    run, words = toy
    rng, path = np.random.default_rng(0), run.card["data"]["work"] + "/features.h5"
    with h5py.File(path, "r+") as f:
        for i in range(30): f[f"noise-{i:02}"] = rng.standard_normal((40, 4)).astype(np.float32)
    store = FeatureStore(path)
    q = retrieval.embed_queries(run, ["cuts the onion"], sentence_model=words)[0]
    everything = []
    for uid in store.uids:
        t, v = moment_vectors(run, store, uid)
        s = (v.float() @ q).numpy()
        everything += [(-s[i], uid, i) for i in retrieval.non_overlapping(s, len(s), 4)]
    hits = search(run, "cuts the onion", 12, sentence_model=words, progress=False)
    assert [(u, t) for u, t in zip(hits.uid, hits.end_sec)] == [(u, min(i + 2., store.seconds(u))) for _, u, i in sorted(everything)[:12]]


def test_run_directory_of_a_real_training(tmp_path):
    "search takes the path of a run that `fit` wrote; moved prepared files are an error with the way out"
    run, words = retrieval._toy_run(tmp_path/"work")
    pairs = _toy_pairs(dim=4)
    card = {"pairs": {"strategy": "offset", "offset": 2., "pool": "mean"}, "data": {"work": str(tmp_path/"work"), "text_model": "toy"}}
    fit(pairs, tmp_path/"run", TrainConfig(epochs=1, batch_size=64, hidden=8, dim=8, device="cpu"), card=card, progress=False)
    hits = search(tmp_path/"run", "cuts the onion", sentence_model=words, progress=False)
    assert len(hits) == 5 and (tmp_path/"run"/"moments.h5").is_file()
    pd.testing.assert_frame_equal(search(str(tmp_path/"run"), "cuts the onion", sentence_model=words, progress=False), hits)
    shutil.move(tmp_path/"work", tmp_path/"elsewhere")
    with pytest.raises(DataError, match="if it was moved, give its new place"): search(tmp_path/"run", "cuts the onion", sentence_model=words, progress=False)
    pd.testing.assert_frame_equal(search(tmp_path/"run", "cuts the onion", work=tmp_path/"elsewhere", sentence_model=words, progress=False), hits)


def test_sentences_without_tags_get_no_subject(toy, tmp_path, monkeypatch):
    "Where narrations were prepared with tags removed, queries are left as they are"
    run, words = toy
    seen = []
    monkeypatch.setattr(retrieval, "embed_texts", lambda texts, model: seen.append(texts) or words.encode(texts))
    ask(run, words)
    monkeypatch.setattr(retrieval, "narration_counts", lambda path: {"settings": {"tags": "remove"}})
    ask(run, words)
    ask(run, words, subject="Somebody")
    assert seen == [["Camera wearer cuts the onion", "Camera wearer opens the fridge"], ["cuts the onion", "opens the fridge"], ["Somebody cuts the onion", "Somebody opens the fridge"]]


def test_sentence_model_is_loaded_once(toy, monkeypatch):
    run, words = toy
    loads = []
    retrieval._sentence_model.cache_clear()
    monkeypatch.setattr(retrieval, "load_sentence_model", lambda name: loads.append(name) or words)
    for _ in range(3): search(run, "cuts the onion", progress=False)
    retrieval._sentence_model.cache_clear()
    assert loads == ["toy"]
