"""Narrations and embeddings under interruptions, a full disk and a missing hub: what a notebook cannot show about itself"""
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from clep_tutorial.embeddings import EmbeddingStore, encode_sentences
from clep_tutorial.files import DataError
from clep_tutorial.narrations import open_narrations, prepare_narrations


class LetterCounter:
    "An encoder without weights: entry j counts the j-th letter"
    clep_name = "letters"
    def encode(self, texts, **kwargs): return np.array([[t.count(chr(97 + j)) for j in range(26)] for t in texts], np.float32)


def say(t, text): return {"timestamp_sec": t, "narration_text": text, "annotation_uid": "piece"}


@pytest.fixture
def world(tmp_path):
    "A hand-made narration.json and ego4d.json: two plain videos, one of each kind of trouble"
    good = [say(1, "#C C opens the Oven"), say(4, "#O a man X walks"), say(2, "# C c opens the Oven."), say(9.6, "the light goes on")]
    odd = [say(3, "#C C lifts #Unsure"), say(3, "#C C "), say(3, "#C C sits")]
    one = lambda *ns: {"narrations": list(ns), "summaries": []}
    videos = {"good": {"narration_pass_2": one(good[0]), "narration_pass_1": one(*odd, *good), "status": "complete"}, "fine": {"narration_pass_1": one(*good[:2])},
              **{uid: {"narration_pass_1": one(good[0])} for uid in ("multi", "exam", "stranger", "no rows")}}
    splits = {"good": {}, "fine": {"split_em": "train"}, "multi": {"split_fho": "multi"}, "exam": {"split_av": "test"}, "no rows": {}}
    (tmp_path/"narration.json").write_text(json.dumps(videos))
    (tmp_path/"ego4d.json").write_text(json.dumps({"videos": [{"video_uid": u, "duration_sec": 10., **s} for u, s in splits.items()]}))
    return tmp_path


def prepare(world, out="n.parquet", **options):
    return prepare_narrations(world/"narration.json", world/"ego4d.json", world/out, progress=False, **options)


@pytest.mark.parametrize("options, kept", [
    ({}, 8), ({"unsure": "keep"}, 8), ({"unsure": "keep", "min_words": 1}, 10), ({"min_words": 0}, 9), ({"min_words": 4}, 3), ({"keep_benchmark": True}, 11),
    ({"feature_rows": {"good": 4, "fine": 4}}, 4), ({"feature_rows": {"good": 18}}, 5)])
def test_options_change_what_is_kept(world, options, kept):
    frame, counts = prepare(world, **options)
    assert counts["kept"] == len(frame) == kept and sum(counts.values()) == 14


def test_tags_can_be_removed(world):
    assert set(prepare(world, tags="remove")[0].text) == {"opens the Oven", "a man X walks", "the light goes on"}


def test_same_bytes_twice(world):
    for name in ("a", "b"): prepare(world, name)
    assert (world/"a").read_bytes() == (world/"b").read_bytes()


@pytest.mark.parametrize("options, message", [
    ({"min_words": 99}, "narration.json is left: .*fewer words than asked for.*lower min_words"), ({"feature_rows": {}}, "no feature file; convert or download"),
    ({"tags": "no"}, 'tags is "name" or "remove"'), ({"unsure": "maybe"}, '"drop" or "keep"'), ({"holdout": 1}, "0 <= holdout < 1")])
def test_a_wrong_setting_is_one_line_and_writes_nothing(world, options, message):
    with pytest.raises(DataError, match=message) as e: prepare(world, **options)
    assert "\n" not in str(e.value) and not (world/"n.parquet").exists()


def test_unknown_videos_are_not_trusted(world):
    (world/"ego4d.json").write_text('{"videos": []}')
    with pytest.raises(DataError, match="not in ego4d.json.*same release"): prepare(world)
    assert prepare(world, keep_benchmark=True)[1]["kept"] == 11


def test_hostile_values_do_not_stop_the_reader(world):
    odd = {"a": {"narration_pass_1": {"narrations": [say(1e308, "#C C lifts it up"), say(-1e308, "#C C lifts it up"), say(2, "x"*10_000_000), say(2, "#"*100_000 + "C opens the Oven"),
                                                     say(2, "#C" + " C"*50_000 + " opens it"), say([], {}), say(2, "=cmd|'/c calc'!A1 \x00 \ud800 \u202e y z")]}}}
    (world/"narration.json").write_text(json.dumps(odd))
    (world/"ego4d.json").write_text(json.dumps({"videos": [{"video_uid": "a", "duration_sec": "long"}]}))
    frame, counts = prepare(world)
    assert counts["kept"] == 4 and counts["before 0"] == counts["no time"] == counts["too short"] == 1      # an unknown duration ends nothing
    assert {"Camera wearer opens the Oven", "Camera wearer opens it"} < set(frame.text) and not frame.text.str.contains("#", regex=False).any()
    assert len(open_narrations(world/"n.parquet")) == 4


CHILD = """
import sys, time
import numpy as np
from clep_tutorial.embeddings import encode_sentences
class Slow:
    clep_name = "letters"
    def encode(self, texts, **kwargs):
        print("batch", flush=True); time.sleep({pause})
        return np.array([[t.count(chr(97 + j)) for j in range(26)] for t in texts], np.float32)
encode_sentences([f"sentence {{i:03}}" for i in range(100)], sys.argv[1], Slow(), shard_size=10, progress=False)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_encoding_resumes_to_the_same_bytes(tmp_path, how):
    "Two real interruptions in one piece of work, then the same command again"
    said = [f"sentence {i:03}" for i in range(100)]
    whole = encode_sentences(said, tmp_path/"whole.h5", LetterCounter(), shard_size=10, progress=False).read_bytes()
    out, done = tmp_path/"work"/"e.h5", []
    for batches in (3, 4):
        child = subprocess.Popen([sys.executable, "-c", CHILD.format(pause=.05), str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(batches): assert child.stdout.readline() == "batch\n"
        child.send_signal(how)
        assert child.wait(30) != 0 and not out.exists()
        done.append(len(list(out.parent.glob("e.h5.shards/0*.h5"))))
    assert 2 <= done[0] < done[1] < 10                           # finished shards stayed, and the second run did not redo them
    class Counts(LetterCounter):
        seen = 0
        def encode(self, texts, **kwargs): self.seen += len(texts); return super().encode(texts)
    last = Counts()
    assert encode_sentences(said, out, last, shard_size=10, progress=False).read_bytes() == whole
    assert last.seen == 100 - 10*done[1] and not out.with_name("e.h5.shards").exists()
    assert EmbeddingStore(out).sentences == said


FULL_DISK = """
import resource, sys
import numpy as np
from clep_tutorial.embeddings import encode_sentences
from clep_tutorial.narrations import prepare_narrations
folder = sys.argv[1]
class Letters:
    clep_name = "letters"
    def encode(self, texts, **kwargs): return np.ones((len(texts), 400), np.float32)
def attempt(work):
    try: work(); print("no error")
    except OSError as e: print(str(e))
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
attempt(lambda: prepare_narrations(folder + "/narration.json", folder + "/ego4d.json", folder + "/out/n.parquet", progress=False))
for limit, size in ((30_000, 1000), (60_000, 25)):               # the disk is full in a shard; when the shards are joined
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    attempt(lambda: encode_sentences([f"s{i}" for i in range(100)], folder + "/out/e.h5", Letters(), shard_size=size, progress=False))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_full_disk_is_one_line_and_leaves_no_half_file(world):
    run = subprocess.run([sys.executable, "-c", FULL_DISK, str(world)], capture_output=True, text=True, timeout=60)
    lines = run.stdout.splitlines()
    assert run.returncode == 0 and len(lines) == 3, run.stderr
    for line, name in zip(lines, ("n.parquet", "00000.h5", "e.h5")):
        assert f"no room left to write {world}" in line and f"{name}: free some space" in line
    left = {str(p.relative_to(world/"out")) for p in (world/"out").rglob("*") if p.is_file()}
    assert left == {f"e.h5.shards/{i:05}.h5" for i in range(4)}  # finished shards wait for the next try; nothing else does
    encode_sentences([f"s{i}" for i in range(100)], world/"out"/"e.h5", LetterCounter(), progress=False)
    assert os.listdir(world/"out") == ["e.h5"]


NO_HUB = """
import sys
from clep_tutorial.embeddings import load_sentence_model
from clep_tutorial.files import DataError
try: load_sentence_model("all-mpnet-base-v2", device="cpu")
except DataError as e: print(e)
load_sentence_model("minilm", device="cpu")
"""


def test_a_hub_that_does_not_answer_is_one_line_and_quiet(tmp_path):
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    run = subprocess.run([sys.executable, "-c", NO_HUB], capture_output=True, text=True, timeout=90, env=env)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\n") == 1 and "'all-mpnet-base-v2' is not on this machine and the hub does not answer: connect" in run.stdout and "--text-model minilm" in run.stdout
    assert run.stderr == ""                                      # no retries told, no bars, no warnings
