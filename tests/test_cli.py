"""The command `clep`: help, exit codes, settings, hostile and broken input, a full disk, Ctrl-C in every stage"""
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers

from clep_tutorial import cli, embeddings, features, miniature, narrations, pairs, training, windows
from clep_tutorial.cli import INTERRUPTED, app, main
from clep_tutorial.extract import _write_video
from clep_tutorial.miniature import write_miniature

torch.set_num_threads(1)                            # the models here are tiny
SMALL = ["--epochs", "2", "--batch-size", "32", "--hidden", "16", "--dim", "8"]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    "A small download, and a work folder made from it"
    folder = tmp_path_factory.mktemp("world")
    write_miniature(folder/"mini", videos=8, dim=16)
    assert main(["prepare", "all", "--data", str(folder/"mini"), "--work", str(folder/"work"), "--text-model", "minilm", "--holdout", ".3"]) == 0
    assert main(["train", "--work", str(folder/"work"), "--out", str(folder/"run"), *SMALL]) == 0
    return folder


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    "An empty working folder with a copy of the small world beside it: mini, work, run"
    for name in ("mini", "work", "run"): shutil.copytree(world/name, tmp_path/name)
    monkeypatch.chdir(tmp_path)
    for name in ("CLEP_DATA", "CLEP_WORK", "CLEP_DEBUG"): monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def clep(here, capfd):
    "Call the command as a terminal does: (exit code, stdout, stderr)"
    def call(*argv):
        capfd.readouterr()
        code = main([str(a) for a in argv])
        return code, *capfd.readouterr()
    return call


def one_error(result, code=1):
    "The command failed in the way that was promised; returns the line"
    found, out, err = result
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert found == code and out == "" and len(lines) == 1 and "Traceback" not in err, (found, out, err)
    return lines[0]


def verbs(command, path=()):
    yield path, command
    for name, sub in getattr(command, "commands", {}).items(): yield from verbs(sub, (*path, name))


def commands():
    import typer
    return dict(verbs(typer.main.get_command(app)))


# ---------------------------------------------------------------- help, versions, streams

@pytest.mark.parametrize("path", commands())
def test_help_of_every_verb(clep, path):
    code, out, err = clep(*path, "--help")
    assert code == 0 and err == "" and "Usage: clep" in out
    for p in commands()[path].params:
        if p.param_type_name == "option": assert p.help and len(p.help) < 80, (path, p.name)


def test_the_verbs_are_those_promised():
    assert {"demo", "miniature", "prepare", "extract", "train", "evaluate", "search"} == set(commands()[()].commands)
    assert {"features", "narrations", "kinetics", "charades", "epic", "all"} == set(commands()[("prepare",)].commands)


def test_help_loads_no_torch():
    code = "import sys; from clep_tutorial.cli import main; assert main(['train', '--help']) == 0; assert not {'torch', 'numpy', 'pandas', 'matplotlib'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_defaults_are_those_of_the_rooms():
    config = training.TrainConfig()
    for p in commands()[("train",)].params:
        if p.name in ("loss", "epochs", "batch_size", "lr", "weight_decay", "warmup", "hidden", "dim", "dropout", "seed", "device", "eval_every"):
            assert getattr(p.default, "value", p.default) == getattr(config, p.name), p.name
    assert [m.value for m in cli._Window] == list(windows.STRATEGIES)
    assert [m.value for m in cli._Pool] == list(pairs.POOLS) and [m.value for m in cli._Loss] == list(training.LOSSES)


def test_version_and_bare_command(clep):
    import clep_tutorial
    assert clep("--version")[:2] == (0, f"clep {clep_tutorial.__version__}\n")
    assert clep()[0] == 0 and "Usage: clep" in clep()[1]


@pytest.mark.parametrize("argv, words", [(["fly"], "No such command 'fly'"), (["train", "--ephocs", "3"], "--ephocs"), (["train", "--epochs", "many"], "--epochs"), (["train", "--loss", "hope"], "hope"),
                                         (["search"], "Missing argument"), (["prepare"], "Missing command"), (["prepare", "features"], "which data?"), (["miniature"], "Missing argument"),
                                         (["prepare", "kinetics"], "which data?"), (["evaluate", "run", "--on", "imagenet"], "choose from retrieval, egomcq"), (["evaluate", "run", "--on", ","], "choose from"), (["extract"], "Missing")])
def test_wrong_usage_is_2_and_one_line(clep, argv, words):
    assert words in (line := one_error(clep(*argv), 2)) and "--help" in line


def test_results_alone_on_stdout(clep):
    code, out, err = clep("train", "--out", "again", *SMALL)
    assert code == 0 and out.count("\n") == 1 and out.startswith("again: 2 epochs") and "chance" in out and "epoch" in err
    code, out, err = clep("search", "run", "opens the fridge", "washes a cup", "--top", "2", "--json")
    hits = json.loads(out)
    assert code == 0 and len(hits) == 4 and {h["text"] for h in hits} == {"opens the fridge", "washes a cup"} and all(h["end_sec"] > h["start_sec"] for h in hits)
    code, out, err = clep("evaluate", "run", "--json")
    assert code == 0 and json.loads(out)[0]["numbers"]["R@5 t2v"]["chance"] > 0


def test_a_reader_that_stops_early_is_no_error(here):
    run = subprocess.Popen([sys.executable, "-c", "from clep_tutorial.cli import main; import sys; sys.exit(main())", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.stdout.close()
    assert run.wait(60) == 0 and run.stderr.read() == b""
    run.stderr.close()


def test_debug_shows_where(clep, monkeypatch):
    for argv in (["--debug", "train", "--work", "nowhere"], ["train", "--work", "nowhere", "--debug"]):
        code, out, err = clep(*argv)
        assert code == 1 and "Traceback" in err and "error: no file nowhere" in err
    monkeypatch.setenv("CLEP_DEBUG", "1")
    assert "Traceback" in clep("train", "--work", "nowhere")[2]


def test_a_bug_is_one_line_too(clep, monkeypatch):
    def broken(*args, **kwargs): raise KeyError("surprise")
    monkeypatch.setattr(training, "fit", broken)
    assert "unexpected KeyError: 'surprise'" in (line := one_error(clep("train", "--out", "x"))) and "--debug" in line


# ---------------------------------------------------------------- the road

def test_evaluate_prints_and_writes(clep, here):
    code, out, err = clep("evaluate", "run")
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["R@1", "R@5", "R@10", "median", "rank"] and sum("chance" in line for line in lines[1:]) == 2
    written = json.loads((here/"run"/"metrics.json").read_text())
    assert f"{100*written['retrieval']['text_to_video']['R@5']:.1f} %" in out and written["text_to_video"]["n"] > 0          # what training wrote is still there
    shutil.move(here/"work", here/"elsewhere")
    assert "clep prepare" in one_error(clep("evaluate", "run", "--work", "nothing"))
    assert clep("evaluate", "run", "--work", "elsewhere")[:2] == (0, out)


def test_benchmarks_from_files_to_one_table(clep, here):
    shutil.rmtree(here/"mini")
    assert clep("miniature", "mini", "--videos", "8")[0] == 0 and (here/"mini"/"miniature"/"benchmarks.json").is_file()
    code, out, err = clep("prepare", "all", "--data", "mini", "--work", "new", "--text-model", "minilm", "--holdout", ".3")
    assert code == 0 and all(f"new/{name}:" in out for name in ("kinetics", "charades", "epic")) and "missing 20" in out
    assert clep("train", "--work", "new", "--out", "judged", *SMALL)[0] == 0
    code, out, err = clep("evaluate", "judged", "--on", "all", "--data", "mini")
    assert code == 0 and out.startswith("  ") and all(word in out for word in ("median rank", "intra", "top-1", "mAP", "nDCG", "oracle", "HiERO", "missing 20"))
    found = json.loads((here/"judged"/"metrics.json").read_text())
    assert {r["benchmark"] for r in found["benchmarks"]} == {"egomcq", "kinetics", "charades", "epic"} and "text_to_video" in found["retrieval"] and found["text_to_video"]["n"] > 0
    assert (here/"judged"/"zeroshot_kinetics_classes.png").is_file() and not list((here/"judged").glob("*.tmp"))
    code, out, err = clep("evaluate", "judged", "--on", "kinetics,charades", "--json")
    assert code == 0 and [r["benchmark"] for r in json.loads(out)] == ["kinetics"]*2 + ["charades"]*7 and all(0 <= x["interval"][0] <= x["value"] <= x["interval"][1] <= 1 for r in json.loads(out) for x in r["numbers"].values())
    assert "which egomcq.json" in one_error(clep("evaluate", "judged", "--on", "egomcq"))


def test_benchmarks_that_are_not_there(clep, here):
    for name, folder in cli.FOLDERS.items():
        assert f"no folder mini/{folder}" in one_error(clep("prepare", name, "--data", "mini"))
        assert f"clep prepare {name}" in one_error(clep("evaluate", "run", "--on", name))
    (here/"mini"/"kinetics400").mkdir()
    assert "no file mini/kinetics400/val.csv" in one_error(clep("prepare", "kinetics", "--data", "mini"))


def test_a_store_of_another_width_is_refused(clep, here):
    assert clep("miniature", "wide", "--videos", "8")[0] == 0 and clep("prepare", "kinetics", "--data", "wide", "--work", "work")[0] == 0
    line = one_error(clep("evaluate", "run", "--on", "kinetics", "--work", "work"))
    assert "1536" in line and "16" in line


def test_extract_needs_weights_and_videos(clep, here, monkeypatch):
    assert "no video nothing.mp4" in one_error(clep("extract", "nothing.mp4", "--out", "x"))
    (here/"videos").mkdir()
    assert "videos" in one_error(clep("extract", "videos", "--out", "x")) and not (here/"x").exists()
    tiny = dict(image_size=32, num_frames=8, tubelet_size=2, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    transformers.VideoMAEModel(transformers.VideoMAEConfig(**tiny)).save_pretrained(here/"tiny")
    _write_video(here/"videos"/"good.mp4", 40)
    (here/"videos"/"bad.mp4").write_bytes(b"no video")
    code, out, err = clep("extract", "videos", "--out", "x", "--backbone", f"hf:{here/'tiny'}", "--device", "cpu")
    lines = [line for line in err.replace("\r", "\n").splitlines() if "left out" in line]
    assert code == 1 and "1 made" in out and (here/"x"/"good.pt").is_file() and not (here/"x"/"bad.pt").exists() and len(lines) == 2 and "bad.mp4" in lines[0] and lines[1].startswith("error: 1 of 2 videos")
    (here/"videos"/"bad.mp4").unlink()
    assert clep("extract", "videos", "--out", "x", "--backbone", f"hf:{here/'tiny'}", "--device", "cpu")[:1] == (0,)


def test_changed_files_are_noticed(clep, here):
    assert clep("prepare", "narrations", "--data", "mini", "--text-model", "minilm", "--holdout", ".3", "--unsure", "keep")[0] == 0
    code, out, err = clep("evaluate", "run", "--work", "work")
    assert code == 0 and "warning: work is not what run was trained on" in err


def test_the_pair_table_is_kept(clep, here, monkeypatch):
    kept = sorted(p.name for p in (here/"work").glob("pairs-*"))
    assert len(kept) == 1
    def never(*args, **kwargs): raise AssertionError("built again")
    with monkeypatch.context() as patch:
        patch.setattr(pairs, "build_pairs", never)
        assert clep("train", "--out", "a", *SMALL)[0] == 0
    assert clep("train", "--out", "b", "--window", "egovlp", *SMALL)[0] == 0 and len(list((here/"work").glob("pairs-*"))) == 2
    assert clep("train", "--out", "c", "--pool", "max", "--no-cache", *SMALL)[0] == 0 and len(list((here/"work").glob("pairs-*"))) == 2
    (here/"work"/kept[0]/"video.npy").write_bytes(b"broken")
    code, out, err = clep("train", "--out", "d", *SMALL)
    assert code == 0 and "warning:" in err and "damaged" in err


def test_a_run_is_not_mixed_up(clep, here):
    before = (here/"run"/"checkpoint.pt").read_bytes()
    assert clep("train", "--out", "run", *SMALL)[0] == 0             # finished: nothing to do
    assert "epochs was 2 and is now 3" in one_error(clep("train", "--out", "run", *SMALL, "--epochs", "3"))
    assert "already holds" in one_error(clep("train", "--out", "run", "--no-resume", *SMALL))
    assert (here/"run"/"checkpoint.pt").read_bytes() == before


def test_uids_and_dtype(clep, here):
    uids = features.feature_uids(here/"mini"/"omnivore_video_swinl")
    (here/"uids.txt").write_text(f"# two videos\n{uids[0]}\n\n{uids[1]}\n")
    code, out, err = clep("prepare", "features", "--data", "mini", "--work", "w2", "--uids", "uids.txt", "--dtype", "float16")
    assert code == 0 and "2 videos" in out and "float16" in out
    (here/"empty.txt").write_text("# none\n")
    assert "empty.txt holds no uid" in one_error(clep("prepare", "features", "--data", "mini", "--work", "w3", "--uids", "empty.txt"))


def test_a_real_download_has_a_v2(clep, here):
    (here/"ego4d").mkdir()
    shutil.move(here/"mini"/"ego4d.json", here/"ego4d"/"ego4d.json")
    shutil.move(here/"mini", here/"ego4d"/"v2")
    for data in ("ego4d", "ego4d/v2"):
        code, out, err = clep("prepare", "all", "--data", data, "--work", data.replace("/", "-"), "--text-model", "minilm")
        assert code == 0 and "read" in out and "kept" in out and "a benchmark holds the video out" in out


# ---------------------------------------------------------------- settings

def test_the_last_setting_wins(clep, here, monkeypatch):
    where = lambda *argv: one_error(clep("train", *argv)).split("no file ")[1].split("/")[0]
    (here/"work").rename(here/"away")
    assert where() == "work"
    (here/"clep.toml").write_text('work = "from-file"\n')
    assert where() == "from-file"
    (here/"clep.toml").write_text('work = "from-file"\n[train]\nwork = "from-its-section"\n')
    assert where() == "from-its-section"
    monkeypatch.setenv("CLEP_WORK", "from-environment")
    assert where() == "from-environment"
    assert where("--work", "from-line") == "from-line"


def test_settings_of_a_verb(clep, here):
    (here/"clep.toml").write_text('device = "cpu"\n[train]\nepochs = 1\nbatch-size = 32\nhidden = 16\ndim = 8\nloss = "siglip"\n[prepare.features]\ndtype = "float16"\nskip-bad = true\n')
    assert "s: 1 epochs" in clep("train", "--out", "s")[1]
    assert json.loads((here/"s"/"config.json").read_text())["train"]["loss"] == "siglip"
    assert "s2: 2 epochs" in clep("train", "--out", "s2", "--epochs", "2")[1]
    assert "float16" in clep("prepare", "features", "--data", "mini", "--work", "w2")[1]


@pytest.mark.parametrize("text, words", [
    ("work = ", "clep.toml is not valid TOML"), ('[train]\nephocs = 3\n', "unknown key 'ephocs' at [train]: did you mean 'epochs'?"), ("epochs = 3\n", "write it below [train]"),
    ('wrok = "x"\n', "did you mean 'work'?"), ('[fly]\nhigh = true\n', "unknown key 'fly'"), ("[train]\nepochs = [1, 2]\n", "train.epochs = [1, 2] should be"),
    ("[train]\ncache = 3\n", "true or false"), ("[train]\nepochs = true\n", "a text or a number"), ('work = 2022-06-14\n', "a text or a number"), ("[prepare]\ndtype = 'float16'\n", "write it below [features]")])
def test_wrong_settings(clep, here, text, words):
    (here/"clep.toml").write_text(text)
    assert words in one_error(clep("train", "--out", "x"))
    assert clep("--version")[0] == 0 and not (here/"x").exists()


def test_wrong_values_in_the_file_are_said_to_be_there(clep, here):
    (here/"clep.toml").write_text('[train]\nepochs = "many"\n')
    assert "clep.toml: " in one_error(clep("train"), 2)
    (here/"clep.toml").write_bytes(b"work = '\xff'\n")
    assert "clep.toml is not UTF-8" in one_error(clep("train"))


# ---------------------------------------------------------------- bad input

def feature_file(here): return sorted((here/"mini"/"omnivore_video_swinl").glob("*.pt"))[1]


class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (str(self.path),)


BAD_FILES = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:2000]), "truncated"), "no tensor": (lambda p: torch.save({"a": 1}, p), "not a tensor"),
    "evil": (lambda p: torch.save(Evil(p.parent/"evil-was-here"), p), "refused, nothing of it was run"), "evil pickle": (lambda p: p.write_bytes(pickle.dumps(Evil(p.parent/"evil-was-here"))), "refused, nothing"),
    "nan": (lambda p: torch.save(torch.full((9, 16), float("nan")), p), "row 0 holds NaN or infinity"), "infinity": (lambda p: torch.save(torch.full((9, 16), float("inf")), p), "row 0 holds NaN or infinity"),
    "empty": (lambda p: p.write_bytes(b""), "truncated")}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_feature_files(clep, here, kind):
    path, (spoil, words) = feature_file(here), BAD_FILES[kind]
    spoil(path)
    line = one_error(clep("prepare", "features", "--data", "mini", "--work", "new"))
    assert path.name in line and words in line and not (here/"new"/"features.h5").exists() and not list(here.rglob("evil-was-here"))
    code, out, err = clep("prepare", "features", "--data", "mini", "--work", "new", "--skip-bad")
    assert code == 0 and "6 videos" in out and err.count("warning:") == 1 and path.name in err


def test_two_widths(clep, here):
    torch.save(torch.zeros(5, 7), feature_file(here))
    assert "mixes two kinds of features" in one_error(clep("prepare", "features", "--data", "mini", "--work", "new"))
    assert not (here/"new"/"features.h5").exists()


def test_a_uid_that_is_no_file_name(clep, here):
    (here/"uids.txt").write_text("../x\n")
    assert "'../x' is no video uid" in one_error(clep("prepare", "features", "--data", "mini", "--work", "new", "--uids", "uids.txt"))


def test_missing_folders(clep, here):
    assert "no folder nowhere" in one_error(clep("prepare", "features", "--data", "nowhere"))
    assert "no annotations/narration.json in run" in one_error(clep("prepare", "narrations", "--data", "run", "--text-model", "minilm"))
    assert "clep prepare features" in one_error(clep("train", "--work", "nowhere"))
    for verb in (["evaluate", "nowhere"], ["search", "nowhere", "x"]): assert "no run in nowhere" in one_error(clep(*verb))
    assert not (here/"nowhere").exists()
    assert "work is not empty and no miniature" in one_error(clep("miniature", "work"))


@pytest.mark.parametrize("text, words", [("", "is empty"), ("[1, 2]", "JSON list"), ('{"videos": []}', "looks like ego4d.json"), ('{"a": {"narration_pass_1": {"narr', "not valid JSON"), ("{}", "no narration"), ("\x00\x01", "not valid JSON")])
def test_bad_narration_files(clep, here, text, words):
    (here/"mini"/"annotations"/"narration.json").write_text(text)
    line = one_error(clep("prepare", "narrations", "--data", "mini", "--work", "new", "--text-model", "minilm"))
    assert "narration.json" in line and words in line and not list(here.glob("new/*"))


def test_nothing_left(clep, here):
    assert "lower min_words" in one_error(clep("prepare", "narrations", "--data", "mini", "--work", "new", "--text-model", "minilm", "--min-words", "99"))
    write_miniature(here/"other", videos=4, seed=9, dim=16)
    assert clep("prepare", "features", "--data", "other", "--work", "work")[0] == 0
    assert "no pair left" in one_error(clep("train", "--out", "x")) and not (here/"x").exists()


def test_no_sentence_model(clep, here, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = one_error(clep("prepare", "narrations", "--data", "mini", "--work", "new", "--text-model", "no-such-model"))
    assert "'no-such-model' is not on this machine" in line and "--text-model minilm" in line and not list(here.glob("new/*"))


def test_a_damaged_run(clep, here):
    (here/"run"/"checkpoint.pt").write_bytes(pickle.dumps(Evil(here/"evil-was-here")))
    for argv in (["evaluate", "run"], ["search", "run", "x"], ["train", "--out", "run", *SMALL]): assert "checkpoint.pt" in one_error(clep(*argv))
    assert not (here/"evil-was-here").exists()
    (here/"run"/"config.json").write_text("{")
    assert "config.json is not valid JSON" in one_error(clep("evaluate", "run"))


# ---------------------------------------------------------------- a full disk

@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("argv, limit, left", [
    (["miniature", "new", "--videos", "4"], 20_000, []), (["prepare", "features", "--data", "mini", "--work", "new"], 20_000, ["new/features.h5"]),
    (["prepare", "narrations", "--data", "mini", "--work", "new", "--text-model", "minilm"], 4_000, ["new/narrations.parquet", "new/embeddings.h5"]),
    (["prepare", "narrations", "--data", "mini", "--work", "new", "--text-model", "minilm"], 40_000, ["new/embeddings.h5"]),
    (["train", "--out", "new", "--pool", "max", *SMALL], 10_000, ["new/checkpoint.pt"]), (["train", "--out", "new", *SMALL], 3_000, ["new/checkpoint.pt"])])
def test_full_disk(clep, here, argv, limit, left):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        result = clep(*argv)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = one_error(result)
    assert "no room left to write" in line and "the same command again" in line and not any((here/name).exists() for name in left)
    assert clep(*argv)[0] == 0 and all((here/name).exists() for name in left)
    assert not [p for p in here.rglob("*.tmp")]


# ---------------------------------------------------------------- Ctrl-C

STAGES = {
    "miniature": (["miniature", "new", "--videos", "4"], miniature, "feature_rows_of"), "features": (["prepare", "features", "--data", "mini", "--work", "new"], features, "_convert"),
    "narrations": (["prepare", "narrations", "--data", "mini", "--work", "new", "--text-model", "minilm"], narrations, "_first_reason"),
    "sentences": (["prepare", "narrations", "--data", "mini", "--work", "new", "--text-model", "minilm"], embeddings, "_encode_shard"),
    "all": (["prepare", "all", "--data", "mini", "--work", "new", "--text-model", "minilm"], narrations, "_store"),
    "pairs": (["train", "--out", "new", "--pool", "max", *SMALL], pairs, "pool_windows"), "train": (["train", "--out", "new", *SMALL], training, "train_step"),
    "evaluate": (["evaluate", "run"], training, "_encode"), "search": (["search", "run", "opens the fridge"], embeddings, "_encode")}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("calls", [1, 3])
def test_ctrl_c_then_the_same_command(clep, here, monkeypatch, name, calls):
    argv, module, attribute = STAGES[name]
    plain, count = getattr(module, attribute), [0]
    def interrupted(*args, **kwargs):
        count[0] += 1
        if count[0] == calls: os.kill(os.getpid(), signal.SIGINT)
        return plain(*args, **kwargs)
    with monkeypatch.context() as patch:
        patch.setattr(module, attribute, interrupted)
        code, out, err = clep(*argv)
    if count[0] >= calls:
        assert code == 130 and (out == "" or name == "all") and err.splitlines()[-1] == INTERRUPTED and "Traceback" not in err
    assert clep(*argv)[0] == 0
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and not list(here.rglob("*.tmp"))


def test_ctrl_c_that_a_library_turns_into_something_else(clep, monkeypatch):
    def swallows(*args, **kwargs):
        try: os.kill(os.getpid(), signal.SIGINT); signal.pause()
        except KeyboardInterrupt: raise RuntimeError("operation failed") from None
    monkeypatch.setattr(training, "fit", swallows)
    assert clep("train", "--out", "new")[::2] == (130, INTERRUPTED + "\n")


def test_a_stopped_training_ends_as_if_it_had_not_been(clep, here):
    "A real process, a real signal: the same weights as without it"
    argv = ["train", "--out", "new", *SMALL[2:], "--epochs", "6"]
    code = "import sys, clep_tutorial.training as t; s = t.train_step; t.train_step = lambda *a, **k: (__import__('time').sleep(.05), s(*a, **k))[1]; from clep_tutorial.cli import main; sys.exit(main())"
    run = subprocess.Popen([sys.executable, "-c", code, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while run.poll() is None and not (here/"new"/"log.csv").exists(): time.sleep(.01)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130 and out == "" and err.splitlines()[-1] == INTERRUPTED and (here/"new"/"checkpoint.pt").exists() and not (here/"new"/"metrics.json").exists()
    assert clep(*argv)[0] == 0 and clep(*[a if a != "new" else "whole" for a in argv])[0] == 0
    weights = [torch.load(here/name/"checkpoint.pt", weights_only=True)["model"] for name in ("new", "whole")]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
