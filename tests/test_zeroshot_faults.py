"""Zero-shot on bad input, kills and files that change: what a notebook cannot show about itself"""
import json
import multiprocessing
import os
import shutil
import signal

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

import clep_tutorial.zeroshot as zeroshot
from clep_tutorial.files import DataError
from clep_tutorial.model import ClipModel
from clep_tutorial.zeroshot import charades_report, kinetics_report, open_labels, prepare_charades, prepare_kinetics, read_charades, read_charades_classes, read_kinetics

fork = multiprocessing.get_context("fork") if hasattr(os, "fork") else None
HEAD = "label,youtube_id,time_start,time_end,split\n"
MODEL, WORDS = zeroshot._ToySpace(), zeroshot._ToyClasses()


@pytest.fixture
def data(tmp_path): return zeroshot._toy_benchmarks(tmp_path/"data")


def files(folder): return {p.name: p.read_bytes() for p in folder.iterdir()}


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("text, message", [
    (b"", "no csv that can be read"), (b"\xff\xfe\x00label", "no csv that can be read"), (b"label,youtube_id\na,b\n", "has no column time_start, time_end: expected a first line with label,youtube_id"),
    (b"youtube_id,time_start,time_end,split\nx,1,2,test\n", "has no column label"), (HEAD.encode(), "lists no clip that can be used"), (HEAD.encode() + b"a,x,1,9,val\na,y,1,9,val,1,2,3\n", "line 3, saw 8"),
    (HEAD.encode() + b"a,x,-1,9,val\n,y,1,9,val\na,,1,9,val\na,z,9,1,val\n", "lists no clip that can be used"), (HEAD.encode() + b"a,x,1,9,val,1\na,y,1,9,val,1\n", "Length of header"), (HEAD.encode() + b'"a,x,1,9,val\n', "no csv that can be read")])
def test_kinetics_lists_that_are_none(tmp_path, text, message):
    (tmp_path/"val.csv").write_bytes(text)
    with pytest.raises(DataError) as e: read_kinetics(tmp_path/"val.csv")
    assert message in one_line(e) and "val.csv" in str(e.value)


def test_kinetics_list_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no file .*val.csv"): read_kinetics(tmp_path/"val.csv")


def test_kinetics_keys_are_file_names(tmp_path):
    "Text stays text: digits, leading zeros, a minus, what looks like a missing value, a formula; and a mark in front of the file"
    ids = ["0123456789a", "00000000001", "-abcdefghij", "NA", "nan", "1e5", "=1+1", "TRUE"]
    (tmp_path/"val.csv").write_bytes(b"\xef\xbb\xbf" + (HEAD + "".join(f"a,{i},{n},{n + 10},val\n" for n, i in enumerate(ids))).encode())
    assert [k[:-14] for k in read_kinetics(tmp_path/"val.csv").frame.key] == ids
    (tmp_path/"val.csv").write_text(" label , youtube_id,time_start,time_end,split\na, x ,3,13,val\nb,y,3,13\n")
    assert read_kinetics(tmp_path/"val.csv").frame.key.tolist() == ["x_000003_000013", "y_000003_000013"]
    (tmp_path/"val.csv").write_text(HEAD + "a,x,3.0,13.0,val\na,y,,13,val\na,z,0,inf,val\na,z,0,1000000,val\n")
    got = read_kinetics(tmp_path/"val.csv")
    assert got.frame.key.tolist() == ["x_000003_000013"] and got.counts["no time"] == 3


@pytest.mark.parametrize("classes, message", [
    ([], "holds no class names"), (["a", 3], "holds no class names"), (["a", "''"], "holds no class names"), (["a", "A"], "names a class twice"), (["new_york", "new york"], "names a class twice"),
    ({"a": 0, "b": 2}, "does not number its classes from 0 to 1"), ({"a": 0, "b": 0}, "does not number"), ({"a": 0, "b": True}, "does not number"), ({"a": "0"}, "does not number"), ({}, "holds no class names"), (3, "holds no class names")])
def test_class_lists_that_are_none(tmp_path, classes, message):
    (tmp_path/"val.csv").write_text(HEAD + "a,x,1,9,val\n")
    (tmp_path/"names.json").write_text(json.dumps(classes))
    for given in (classes, tmp_path/"names.json"):
        with pytest.raises(DataError) as e: read_kinetics(tmp_path/"val.csv", given)
        assert message in one_line(e)


@pytest.mark.parametrize("text, message", [("", "holds no classes"), ("Holding a dish\n", "line 1: 'Holding a dish' is no class"), ("c000 A\nc001\n", "line 2: 'c001' is no class"), ("c000 A\nc000 B\n", "one code twice"), ("c000,A\n", "is no class")])
def test_charades_classes_that_are_none(tmp_path, text, message):
    (tmp_path/"c.txt").write_text(text)
    with pytest.raises(DataError) as e: read_charades_classes(tmp_path/"c.txt")
    assert message in one_line(e)


def test_charades_classes_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="no file"): read_charades_classes(tmp_path/"c.txt")
    (tmp_path/"c.txt").write_bytes(b"c000 caf\xe9\n")
    with pytest.raises(DataError, match="not UTF-8"): read_charades_classes(tmp_path/"c.txt")
    (tmp_path/"c.txt").write_bytes(b"\xef\xbb\xbfc000 Opening a door \r\n\r\nc001 Eating\r\n")
    assert read_charades_classes(tmp_path/"c.txt") == [{"code": "c000", "text": "Opening a door"}, {"code": "c001", "text": "Eating"}]


@pytest.mark.parametrize("action, message", [("c9 0 1", "class 'c9'"), ("c000 0 1 2", "is not \"class start end\""), ("c000", "is not \"class start end\""), ("c000 x 1", "is not \"class start end\""), ("c999 0 1", "class 'c999' is not one of the 1 classes")])
def test_charades_actions_that_are_none(tmp_path, action, message):
    (tmp_path/"c.txt").write_text("c000 A\n")
    (tmp_path/"t.csv").write_text(f"id,actions\nA,c000 0 1\nB,c000 0 1;{action}\n")
    with pytest.raises(DataError) as e: read_charades(tmp_path/"t.csv", tmp_path/"c.txt")
    assert message in one_line(e) and "row 2" in str(e.value)


def test_charades_older_columns(tmp_path):
    with pytest.raises(DataError, match="has no column actions"):
        (tmp_path/"c.txt").write_text("c000 A\n"); (tmp_path/"t.csv").write_text("id,script\nA,x\n")
        read_charades(tmp_path/"t.csv", tmp_path/"c.txt")


def test_no_features(data, tmp_path):
    shutil.rmtree(data/"kinetics400"/"omnivore_video_swinl")
    with pytest.raises(DataError, match="no folder .*omnivore_video_swinl"): prepare_kinetics(data, tmp_path, progress=False)
    (data/"kinetics400"/"omnivore_video_swinl").mkdir()
    (data/"kinetics400"/"omnivore_video_swinl"/"other.pt").write_bytes(b"x")
    with pytest.raises(DataError, match=r"none of the 12 videos of val.csv has a file in .*\(such as 1000_000000_000010.pt\)") as e: prepare_kinetics(data, tmp_path, progress=False)
    one_line(e)
    assert not (tmp_path/"kinetics"/"counts.json").exists()


def test_feature_files_that_cannot_be_used(data, tmp_path):
    bad = data/"kinetics400"/"omnivore_video_swinl"/"1001_000001_000011.pt"
    bad.write_bytes(b"no tensor")
    with pytest.raises(DataError, match="1 of 11 feature files cannot be used"): prepare_kinetics(data, tmp_path, progress=False)
    with pytest.raises(DataError, match="prepare it with"): open_labels(tmp_path, "kinetics")
    with pytest.warns(UserWarning, match="left out"): counts = prepare_kinetics(data, tmp_path, progress=False, skip_bad=True)
    assert (counts["found"], counts["missing"], counts["unusable"]) == (10, 1, 1)
    r = kinetics_report(MODEL, tmp_path, sentence_model=WORDS, n=20)
    assert (r["counts"]["videos"], r["counts"]["missing"], r["counts"]["unusable"]) == (10, 1, 1)


def test_a_video_that_was_missing_comes(data, tmp_path):
    "Preparing again takes it in; what is there already stays"
    assert prepare_kinetics(data, tmp_path, progress=False)["missing"] == 1
    torch.save(torch.eye(4)[0].expand(3, 4).clone(), data/"kinetics400"/"omnivore_video_swinl"/"1011_000011_000021.pt")
    assert prepare_kinetics(data, tmp_path, progress=False)["missing"] == 0 and len(open_labels(tmp_path, "kinetics").frame) == 12


@pytest.mark.skipif(fork is None, reason="needs fork")
@pytest.mark.parametrize("where", ["save_features_to_hdf5", "write_json"])
def test_killed_in_the_middle(data, tmp_path, where):
    "No counts.json, so not ready; the same call finishes, to the same bytes"
    prepare_kinetics(data, tmp_path/"whole", progress=False)

    def work():
        plain = getattr(zeroshot, where)
        setattr(zeroshot, where, lambda *a, **kw: (plain(*a, **kw), os.kill(os.getpid(), signal.SIGKILL)))
        prepare_kinetics(data, tmp_path/"cut", progress=False)

    process = fork.Process(target=work); process.start(); process.join()
    assert process.exitcode == -signal.SIGKILL and not (tmp_path/"cut"/"kinetics"/"counts.json").exists()
    with pytest.raises(DataError, match="prepare it with"): open_labels(tmp_path/"cut", "kinetics")
    prepare_kinetics(data, tmp_path/"cut", progress=False)
    assert files(tmp_path/"cut"/"kinetics") == files(tmp_path/"whole"/"kinetics")


@pytest.mark.parametrize("name", ["labels.parquet", "classes.json", "features.h5"])
def test_prepared_files_that_are_damaged_or_gone(data, tmp_path, name):
    prepare_charades(data, tmp_path, progress=False)
    path = tmp_path/"charades"/name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError) as e: charades_report(MODEL, tmp_path, sentence_model=WORDS)
    assert name.split(".")[0] in one_line(e) or "charades" in one_line(e)
    path.unlink()
    with pytest.raises(DataError): charades_report(MODEL, tmp_path, sentence_model=WORDS)


def test_labels_without_features_are_counted(data, tmp_path):
    prepare_kinetics(data, tmp_path, progress=False)
    frame = pd.read_parquet(tmp_path/"kinetics"/"labels.parquet")
    pd.concat([frame, pd.DataFrame({"key": ["gone"], "label": [0]})]).to_parquet(tmp_path/"kinetics"/"labels.parquet")
    with pytest.warns(UserWarning, match="1 of 12 keys"): r = kinetics_report(MODEL, tmp_path, sentence_model=WORDS, n=20)
    assert r["counts"]["videos"] == 11 and r["counts"]["unusable"] == 1 and r["numbers"]["top-1"]["value"] == 1


def test_wrong_widths_and_numbers(data, tmp_path):
    prepare_kinetics(data, tmp_path, progress=False)
    with pytest.raises(DataError, match="holds rows of 4 numbers, the model expects 1536") as e: kinetics_report(ClipModel(4, 1536, hidden=8, dim=8), tmp_path, sentence_model=WORDS)
    one_line(e)
    with pytest.raises(DataError, match="model expects text width 7, got 4"): kinetics_report(ClipModel(7, 4, hidden=8, dim=8), tmp_path, sentence_model=WORDS)
    (tmp_path/"kinetics"/"features.index.json").unlink()
    with h5py.File(tmp_path/"kinetics"/"features.h5", "r+") as f: f["1002_000002_000012"][0] = np.nan
    with pytest.raises(DataError, match="video '1002_000002_000012' has scores that are not finite"): kinetics_report(MODEL, tmp_path, sentence_model=WORDS)


def test_a_view_that_is_not_there(data, tmp_path):
    prepare_charades(data, tmp_path, progress=False, csv=data/"charades_ego"/"CharadesEgo_v1_test_only1st.csv")
    assert charades_report(MODEL, tmp_path, which="ego", sentence_model=WORDS, n=20)["numbers"]["mAP"]["value"] == 1
    with pytest.raises(DataError, match="no third video"): charades_report(MODEL, tmp_path, which="third", sentence_model=WORDS)


def test_the_joint_list_is_optional(data, tmp_path):
    (data/"charades_ego"/"CharadesEgo_v1_test.csv").unlink()
    assert prepare_charades(data, tmp_path, progress=False)["source"] == "CharadesEgo_v1_test_only1st.csv"


def test_order_of_the_list_does_not_matter(data, tmp_path):
    prepare_kinetics(data, tmp_path/"a", progress=False)
    lines = (data/"kinetics400"/"val.csv").read_text().splitlines()
    (tmp_path/"back.csv").write_text("\n".join([lines[0], *lines[:0:-1]]) + "\n")
    prepare_kinetics(data, tmp_path/"b", progress=False, csv=tmp_path/"back.csv")
    a, b = (kinetics_report(MODEL, tmp_path/x, sentence_model=WORDS, n=20) for x in "ab")
    assert a["per_class"] == b["per_class"] and a["numbers"]["top-1"]["value"] == b["numbers"]["top-1"]["value"]
