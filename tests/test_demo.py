"""The demo from end to end, on a world of eight videos: what it leaves behind, how it goes on, what it refuses"""
import json
import os
import re
import shutil
import signal

import pytest
import torch

from clep_tutorial import demo
from clep_tutorial.cli import INTERRUPTED, main
from clep_tutorial.demo import PICTURES, Demo, Settings

torch.set_num_threads(1)                            # the models here are tiny
SMALL = ["--videos", "8", "--epochs", "2"]
STAGES = {"miniature": "make_miniature", "features": "make_features", "narrations": "make_narrations", "sentences": "make_sentences", "pairs": "make_pairs",
          "baselines": "make_baselines", "original": "make_original", "training": "make_run", "benchmarks": "make_benchmarks", "searches": "make_searches", "pictures": "make_pictures"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "A finished demo, made by the command"
    folder = tmp_path_factory.mktemp("demo")/"demo"
    assert main(["demo", "--out", str(folder), *SMALL]) == 0
    return folder


@pytest.fixture
def copy(done, tmp_path):
    "The same, to be spoiled"
    return shutil.copytree(done, tmp_path/"demo")


def test_what_it_prints(done, capfd):
    capfd.readouterr()
    assert main(["demo", "--out", str(done), *SMALL]) == 0
    out, err = capfd.readouterr()
    names = [line[:16].strip() for line in out.splitlines()]
    assert all(name in names for name in ("chance", "original recipe", "ours", "oracle")) and "R@5" in out and "MedR" in out
    assert len(re.findall(r"^  (?:right|wrong)  \d", out, re.M)) == 5*len(re.findall("a random moment is right", out)) and out.rstrip().splitlines()[-1] == f"open {(done/'index.html').as_uri()}"


def test_what_it_leaves(done):
    result = json.loads((done/"metrics.json").read_text())
    assert result["simulated"] is True and {"seed", "settings", "counts", "table", "report", "benchmarks", "searches", "log", "seconds", "peak_memory_gb", "hardware", "versions"} <= set(result)
    for way in ("text_to_video", "video_to_text"):
        assert list(result["table"][way]) == ["chance", "untrained", "ridge map", "original recipe", "nearest clips", "ours", "oracle"]
        for row in result["table"][way].values(): assert set(row) == {"R@1", "R@5", "R@10", "median_rank"} and 0 <= row["R@1"] <= row["R@5"] <= row["R@10"] <= 1
    assert set(result["seconds"]) == set(STAGES) and 0 < result["peak_memory_gb"] < 3
    for s in result["searches"]:
        assert 0 < s["chance"] < 1 and len(s["hits"]) == 5
        for h in s["hits"]: assert 0 <= h["start_sec"] < h["end_sec"] <= h["video_sec"] + 1 and h["right"] == (h["truth"] in (s["text"], f"another person {s['text']}"))
    for name in ("data/ego4d.json", "work/features.h5", "work/narrations.parquet", "work/embeddings.h5", "run/checkpoint.pt", "run/config.json", *(f"pictures/{p}.png" for p in PICTURES)): assert (done/name).is_file(), name
    assert not list(done.rglob("*.tmp"))


def test_the_page_needs_no_network(done):
    page = (done/"index.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and page.count("data:image/png;base64,") == len(PICTURES) and "imulated" in page
    assert not re.search(r"https?:|<script|<link|@import|url\(", page) and set(re.findall(r'src="([a-z]+):', page)) == {"data"}


def test_its_run_is_a_run_like_any_other(done, capfd, monkeypatch):
    result = json.loads((done/"metrics.json").read_text())
    capfd.readouterr()
    assert main(["evaluate", str(done/"run"), "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)[0]["numbers"]["R@5 t2v"]["value"] == pytest.approx(result["table"]["text_to_video"]["ours"]["R@5"]) and "warning" not in err
    assert main(["search", str(done/"run"), "opens the fridge", "--top", "2"]) == 0


def test_the_second_time_nothing_is_done_again(copy, monkeypatch):
    before = json.loads((copy/"metrics.json").read_text())
    for name in STAGES.values(): monkeypatch.setattr(demo, name, lambda *args: pytest.fail("done again"))
    assert main(["demo", "--out", str(copy), *SMALL]) == 0
    after = json.loads((copy/"metrics.json").read_text())
    assert {k: v for k, v in after.items() if k not in ("out", "data", "work", "run")} == {k: v for k, v in before.items() if k not in ("out", "data", "work", "run")}


@pytest.mark.parametrize("name", STAGES)
def test_ctrl_c_in_each_stage(copy, capfd, monkeypatch, name):
    "As if it had been stopped in this stage: before it, in it, and then the same command"
    before, plain = json.loads((copy/"metrics.json").read_text()), getattr(demo, STAGES[name])
    for path in (f"stages/{name}.json", "metrics.json", "index.html"): (copy/path).unlink()
    def stopped(*args):
        found = plain(*args)
        os.kill(os.getpid(), signal.SIGINT)
        return found
    with monkeypatch.context() as patch:
        patch.setattr(demo, STAGES[name], stopped)
        capfd.readouterr()
        assert main(["demo", "--out", str(copy), *SMALL]) == 130
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines()[-1] == INTERRUPTED and not (copy/"metrics.json").exists() and not (copy/"index.html").exists()
    assert main(["demo", "--out", str(copy), *SMALL]) == 0 and json.loads((copy/"metrics.json").read_text())["table"] == before["table"]


def test_training_goes_on_where_it_was(copy, monkeypatch):
    "Stopped after the first epoch, it trains one more, and the numbers are those of two epochs"
    from clep_tutorial import training
    before, plain, seen = json.loads((copy/"metrics.json").read_text()), training.train_epoch, []
    shutil.rmtree(copy/"run"); (copy/"stages"/"training.json").unlink()
    def counted(*args, **kwargs):
        seen.append(1)
        if len(seen) == 2: os.kill(os.getpid(), signal.SIGINT)
        return plain(*args, **kwargs)
    monkeypatch.setattr(training, "train_epoch", counted)
    assert main(["demo", "--out", str(copy), *SMALL]) == 130 and len(seen) == 2
    assert main(["demo", "--out", str(copy), *SMALL]) == 0 and len(seen) == 3
    assert json.loads((copy/"metrics.json").read_text())["table"] == before["table"]


def test_other_code_or_settings_start_anew(copy, monkeypatch, capfd):
    "Old results never pass for new ones"
    (copy/"mine.txt").write_text("not the demo's")
    monkeypatch.setattr(demo, "code_fingerprint", lambda: "another")
    monkeypatch.setattr(demo, "make_miniature", lambda d: 1/0)
    assert main(["demo", "--out", str(copy), *SMALL]) == 1
    assert sorted(p.name for p in copy.iterdir()) == ["mine.txt", "stages"]


def test_a_folder_of_somebody_else(tmp_path, capfd):
    (tmp_path/"thesis").mkdir(); (tmp_path/"thesis"/"data").mkdir()
    assert main(["demo", "--out", str(tmp_path/"thesis"), *SMALL]) == 1
    assert "holds something else than a demo: give another folder" in capfd.readouterr().err and (tmp_path/"thesis"/"data").is_dir()
    (tmp_path/"file").write_text("")
    assert main(["demo", "--out", str(tmp_path/"file"), *SMALL]) == 1


def test_full_disk(copy, monkeypatch, capfd):
    resource = pytest.importorskip("resource")
    (copy/"stages"/"pictures.json").unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, before[1]))
        capfd.readouterr()
        assert main(["demo", "--out", str(copy), *SMALL]) == 1
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "no room left to write" in capfd.readouterr().err and not list(copy.rglob("*.tmp"))
    assert main(["demo", "--out", str(copy), *SMALL]) == 0


def test_every_setting_counts(tmp_path):
    "What decides the result is in the settings, and the settings are in the folder"
    demo._begin(Demo(tmp_path/"d", Settings(code="a")))
    assert json.loads((tmp_path/"d"/"stages"/"settings.json").read_text()) == {"seed": 0, "videos": 60, "epochs": 15, "holdout": .2, "text_model": "minilm", "device": "auto", "code": "a"}
