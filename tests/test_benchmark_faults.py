"""EgoMCQ and EPIC-KITCHENS with files as the world delivers them: damaged, hostile, half-written, of another kind"""
import copy
import json
import random
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import clep_tutorial.epic as epic
from clep_tutorial.egomcq import COLUMNS, _toy_mcq, answerable, build_egoclip, build_egomcq, egomcq_report, read_egoclip, read_egomcq, tag_ids
from clep_tutorial.epic import _toy_epic, _ToyKitchen, epic_report, open_epic, prepare_epic, read_epic
from clep_tutorial.features import FeatureStore
from clep_tutorial.files import DataError
from clep_tutorial.model import ClipModel
from clep_tutorial.retrieval import _toy_run


def refused(call, *args, **kwargs):
    "The one line that `call` says"
    with pytest.raises(DataError) as e: call(*args, **kwargs)
    assert "\n" not in str(e.value) and len(str(e.value)) < 600
    return str(e.value)


@pytest.fixture
def toy(tmp_path):
    "A run with its prepared files, and questions of which every clip is there"
    run, words = _toy_run(tmp_path)
    pd.read_parquet(tmp_path/"narrations.parquet").assign(split="val").to_parquet(tmp_path/"narrations.parquet")
    (tmp_path/"egomcq.json").write_text(json.dumps(_toy_mcq(("video-1", *["video-2"]*4))))
    return run, words, tmp_path


def ask(toy, **options): return egomcq_report(toy[0], toy[2], toy[2], **{"sentence_model": toy[1], "progress": False, "n": 20, "split": "all"} | options)


VALUES = [None, True, -1, 2, 5, 1e400, float("nan"), 10**400, "", "1", "video-1", "\ud800", "x"*5000, [], [None], {}, {"0": 1}, [[[]]], {"video_uid": "video-1"}]


def places(tree, at=()):
    "Every path in a tree of dicts and lists"
    yield at
    for k, x in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else (): yield from places(x, (*at, k))


def test_any_single_damage_is_refused_or_counted(tmp_path):
    "Whatever stands in one place of the file: a line of explanation, or a count, and never another answer"
    rng, good = random.Random(0), {k: {**q, "query": {**q["query"]}} for k, q in _toy_mcq(("video-1", *["video-2"]*4)).items()}
    spots = [p for p in places(good) if p]
    path, ways = tmp_path/"q.json", {"refused": 0, "counted": 0, "harmless": 0}
    for _ in range(400):
        made, spot = copy.deepcopy(good), rng.choice(spots)
        place = made
        for k in spot[:-1]: place = place[k]
        if rng.random() < .2: del place[spot[-1]]
        else: place[spot[-1]] = rng.choice(VALUES)
        path.write_text(json.dumps(made))
        try: frame, left_out = read_egomcq(path)
        except DataError as e:
            assert "\n" not in str(e)
            ways["refused"] += 1
            continue
        assert len(frame)//5 + sum(left_out.values()) == len(made) and set(frame.type) <= {1, 2} and frame.answer.between(0, 4).all()
        assert np.isfinite(frame[["clip_start", "clip_end"]]).all(axis=None) and (frame.clip_end >= frame.clip_start).all()
        ways["counted" if sum(left_out.values()) else "harmless"] += 1
    assert all(n > 20 for n in ways.values()), ways


@pytest.mark.parametrize("text, message", [(b"", "not valid JSON"), (b"\xff\xfe", "not UTF-8"), (b"[" * 100000, "too deep|not valid JSON"), (b'{"0": 1}', "has no query"), (b'"x"', "no questions by number"), (b'{"videos": []}', "has no query"), (b"\x1f\x8b\x08", "not UTF-8")])
def test_files_of_another_kind(tmp_path, text, message):
    import re
    (tmp_path/"q.json").write_bytes(text)
    assert re.search(message, refused(read_egomcq, tmp_path/"q.json"))


def test_a_question_is_never_scored_on_another_video(toy):
    "A uid that the store does not hold drops the question, even if it is only a wrong choice"
    run, words, here = toy
    for choice in "01234":
        made = _toy_mcq(("video-1", *["video-2"]*4))
        made["0"]["choices"][choice]["video_uid"] = "../features"
        (here/"egomcq.json").write_text(json.dumps(made))
        r = ask(toy)
        assert r["counts"]["inter"] == 0 and r["counts"]["left out"] == {"no features": 1} and list(r["numbers"]) == ["intra"] and r["counts"]["questions"] == 2


def test_counts_add_up(toy):
    made = {str(i): q for i, q in enumerate([*_toy_mcq(("video-1", *["video-2"]*4)).values()]*3)}
    made = json.loads(json.dumps(made))              # no two share a dict
    made["0"]["choices"]["1"] = None
    made["1"]["choices"]["1"]["clip_end"] = float("nan")
    made["2"]["choices"]["1"].update(clip_start=1e6, clip_end=1e6)
    made["3"]["choices"]["1"]["video_uid"] = "gone"
    (toy[2]/"egomcq.json").write_text(json.dumps(made))
    r = ask(toy)
    assert r["counts"]["questions"] == 6 and r["counts"]["kept"] == 2 and r["counts"]["left out"] == {"missing choice": 1, "no time": 1, "no features": 1, "past end": 1}


def test_wrong_widths_and_missing_parts(toy):
    run, words, here = toy
    assert "text width 9, got 4" in refused(egomcq_report, ClipModel(9, 4, hidden=4, dim=4), here, here, sentence_model=words, split="all", progress=False)
    assert "video width 9, got 4" in refused(egomcq_report, ClipModel(4, 9, hidden=4, dim=4), here, here, sentence_model=words, split="all", progress=False)
    assert "no run in" in refused(egomcq_report, here/"nowhere", here, here, sentence_model=words)
    assert "no file" in refused(egomcq_report, run, here/"run", here, sentence_model=words)
    assert "no file" in refused(egomcq_report, run, here, here/"run", sentence_model=words)
    assert 'window=' in refused(ask, toy, window="wide")
    (here/"narrations.parquet").write_bytes(b"PAR1")
    assert "is damaged or no parquet" in refused(ask, toy)               # and not: nobody was trained on


def test_a_model_that_says_nan(toy):
    run, words, here = toy

    class Broken(_ToyKitchen):
        def encode_video(self, x): return x*float("nan")
    assert "not finite" in refused(egomcq_report, Broken(), here, here, sentence_model=words, split="all", progress=False)


@pytest.mark.parametrize("text", ["[1", "__import__('os').getcwd()", "[" * 5000 + "]" * 5000, "[1, 2.5]", "{1}", "(1,)", "", "['a']", "[True]", "9" * 10000])
def test_lists_that_are_none(text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(tag_ids, text)


def test_egoclip_of_another_kind(tmp_path):
    path, line = tmp_path/"e.csv", "0\tu\t9\tnarration_pass_1\t0\t1.5\t1\t2\t#C C \"sits\t[]\t[]"
    for text in (b"", b"\x00\x01\x02", b"a,b\n1,2\n", "\t".join(COLUMNS).encode() + b"\n" + line.replace("\t1\t2\t", "\tx\t2\t").encode(), b"\xff\xfe\xfd"):
        path.write_bytes(text)
        refused(read_egoclip, path)
    refused(build_egomcq, path, tmp_path/"q.json", 1, 1)
    assert not (tmp_path/"q.json").exists()


def test_a_quiz_is_whole_or_not_there(tmp_path, monkeypatch):
    lines = pd.DataFrame([dict(clip_idx=i, video_uid=f"v{i//5}", narration_source="narration_pass_1", narration_time=float(i), clip_start=float(i), clip_end=i + 1., clip_text=f"#C C does thing {i}") for i in range(40)])
    monkeypatch.setattr(Path, "write_text", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt): build_egomcq(lines, tmp_path/"q.json", 3, 3)
    assert not list(tmp_path.iterdir())


def test_egoclip_from_strange_narrations(tmp_path):
    (tmp_path/"ego4d.json").write_text(json.dumps({"videos": [{"video_uid": "a", "duration_sec": None, "split_em": None}, {"video_uid": "b"}]}))
    frame = pd.DataFrame({"uid": ["b", "a", "a"], "pass": [1, 2, 2], "timestamp_sec": [3., np.nan, 1.], "narration_text": ["#C C\tputs it there", "#C C puts it there", "#C C puts it\nthere \"now\""]})
    path, counts = build_egoclip(frame, tmp_path/"ego4d.json", tmp_path/"e.csv", progress=False)
    clips, skipped = read_egoclip(path)
    assert clips.video_uid.tolist() == ["a", "b"] and clips.clip_text.tolist() == ['#C C puts it there "now"', "#C C puts it there"] and counts["narrations"]["no time"] == 1 and skipped == 0
    assert "no list of videos" in refused(build_egoclip, frame, path_of(tmp_path, "{}"), tmp_path/"e.csv", progress=False)
    (tmp_path/"narration.json").write_text(json.dumps({"a": {"narration_pass_1": {"narrations": [{"timestamp_sec": 2., "narration_text": "#C C opens the box"}]}, "status": "complete"}}))
    assert build_egoclip(tmp_path/"narration.json", tmp_path/"ego4d.json", tmp_path/"e.csv", progress=False)[1]["videos"] == {"un-narrated": 1, "written": 1}


def path_of(folder, text):
    (folder/"other.json").write_text(text)
    return folder/"other.json"


def test_epic_files_of_another_kind(tmp_path):
    here = _toy_epic(tmp_path)
    for name in ("EPIC_100_retrieval_test.csv", "EPIC_100_retrieval_test_sentence.csv"):
        good = (here/name).read_bytes()
        for text in (b"", b"\xff\xfe\x00", b"a,b\n1,2\n", good.split(b"\n")[0], good.replace(b"narration_id", b"id"), b'"' + good):
            (here/name).write_bytes(text)
            refused(read_epic, here)
        (here/name).unlink()
        assert name in refused(read_epic, here)
        (here/name).write_bytes(good)
    assert len(read_epic(here)[0]) == 3


def test_epic_stopped_in_the_middle(tmp_path, monkeypatch):
    "counts.json comes last: without it nothing is scored, and the same call again goes on"
    _toy_epic(tmp_path)
    want = prepare_epic(tmp_path, tmp_path, progress=False)
    plain = pd.DataFrame.to_parquet

    def stop(frame, path, *args, **kwargs):
        if "sentences" in str(path): raise KeyboardInterrupt
        return plain(frame, path, *args, **kwargs)
    monkeypatch.setattr(pd.DataFrame, "to_parquet", stop)
    with pytest.raises(KeyboardInterrupt): prepare_epic(tmp_path, tmp_path, progress=False)
    assert "prepare EPIC-KITCHENS first" in refused(open_epic, tmp_path)
    monkeypatch.undo()
    assert prepare_epic(tmp_path, tmp_path, progress=False) == want and not [p for p in (tmp_path/"epic").iterdir() if p.name.endswith(".tmp")]


def test_epic_damaged_stores(tmp_path):
    _toy_epic(tmp_path)
    prepare_epic(tmp_path, tmp_path, progress=False)
    kitchen, folder = _ToyKitchen(), tmp_path/"epic"
    for name in ("captions.parquet", "sentences.parquet", "features.h5", "counts.json"):
        good = (folder/name).read_bytes()
        (folder/name).write_bytes(good[:20])
        refused(epic_report, kitchen, tmp_path, sentence_model=kitchen, progress=False)
        (folder/name).write_bytes(good)
    torch.save({"a": 1}, folder/"omnivore_video_swinl"/"a.pt")
    assert "holds a dict" in refused(prepare_epic, tmp_path, tmp_path, progress=False)


def test_epic_without_any_exact_pair(tmp_path):
    here = _toy_epic(tmp_path)
    prepare_epic(tmp_path, tmp_path, progress=False)
    folder = tmp_path/"epic"
    pd.read_parquet(folder/"sentences.parquet").assign(verb_class=9).to_parquet(folder/"sentences.parquet")
    kitchen = _ToyKitchen()
    assert "exactly right" in refused(epic_report, kitchen, tmp_path, sentence_model=kitchen, progress=False)
    assert here == folder


def test_epic_reversed_and_endless_times(tmp_path):
    here = _toy_epic(tmp_path)
    path = here/"EPIC_100_retrieval_test.csv"
    path.write_text(path.read_text().replace("00:00:12.50,00:00:14.00", "00:00:14.50,00:00:14.00").replace("00:00:03.00", "99:00:00.00"))
    counts = prepare_epic(tmp_path, tmp_path, progress=False)
    assert counts["left out"]["no time"] == 1 and counts["kept"] == 2
    captions, sentences, store, _ = open_epic(tmp_path)
    kitchen = _ToyKitchen()
    assert epic.epic_scores(kitchen, store, captions, sentences, kitchen).shape == (2, 2)            # a stop past the end: the rows that are there


def test_answerable_keeps_the_order(toy):
    frame, _ = read_egomcq(toy[2]/"egomcq.json")
    kept, lost = answerable(frame, FeatureStore(toy[2]/"features.h5"))
    assert kept.equals(frame) and not any(lost.values())
