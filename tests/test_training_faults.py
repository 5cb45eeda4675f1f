"""Training under kills, Ctrl-C, a full disk, damage and hostile files: what a notebook cannot show about itself"""
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import clep_tutorial.training as training
from clep_tutorial.files import DataError
from clep_tutorial.training import TrainConfig, _toy_pairs, fit, open_run

try: import resource
except ImportError: resource = None                  # Windows

CONFIG = TrainConfig(epochs=4, batch_size=32, hidden=24, dim=8, dropout=.3, device="cpu")    # 5 steps per epoch
STEPS = 5
unix = pytest.mark.skipif(resource is None, reason="needs Unix")


@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    return fit(_toy_pairs(), tmp_path_factory.mktemp("whole")/"run", CONFIG, progress=False)


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True))


def one_line(error): return "\n" not in str(error.value)


def files(folder): return sorted(p.name for p in Path(folder).iterdir())


ALL = ["checkpoint.pt", "config.json", "curve.png", "log.csv", "metrics.json", "train_videos.json"]

KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import clep_tutorial.training as training
from clep_tutorial.training import TrainConfig, _toy_pairs, fit
out, name, at = sys.argv[1], sys.argv[2], int(sys.argv[3])
plain, seen = getattr(training, name), []
def deadly(*args, **options):
    seen.append(1)
    if len(seen) == at: os.kill(os.getpid(), signal.SIGKILL)
    return plain(*args, **options)
setattr(training, name, deadly)
fit(_toy_pairs(), out, TrainConfig(**eval(sys.argv[4])), progress=False)
"""


@unix
@pytest.mark.parametrize("name, at, kept", [("train_step", 3, 0),                   # in the first epoch
                                            ("train_step", 2*STEPS + 3, 2),        # in the middle of the third
                                            ("_write_log", 2, 2),                  # between checkpoint and log
                                            ("_finish", 1, 4)])                    # all trained, nothing summed up
def test_killed_then_resumed_equals_uninterrupted(whole, tmp_path, name, at, kept):
    out = tmp_path/"run"
    settings = {k: v for k, v in CONFIG.__dict__.items()}
    done = subprocess.run([sys.executable, "-c", KILLED, str(out), name, str(at), repr(settings)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if kept:
        part = open_run(out, "cpu")
        assert len(part.log) == kept and not part.finished
    else: assert files(out) == ["config.json", "train_videos.json"]
    again = fit(_toy_pairs(), out, CONFIG, progress=False, resume=True)
    assert again.finished and same(again, whole) and files(out) == ALL
    assert again.log.loss.tolist() == whole.log.loss.tolist()


@unix
def test_killed_while_the_checkpoint_is_written(whole, tmp_path):
    out = tmp_path/"run"
    code = KILLED.replace("plain, seen = getattr(training, name), []", "plain, seen = os.replace, []").replace("setattr(training, name, deadly)", "os.replace = deadly")
    done = subprocess.run([sys.executable, "-c", code, str(out), "-", "5", repr(dict(CONFIG.__dict__))], capture_output=True, text=True)    # config, videos, checkpoint, log, checkpoint
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(out.glob(".checkpoint.pt.*.tmp"))) == 1 and len(open_run(out, "cpu").log) == 1
    assert same(fit(_toy_pairs(), out, CONFIG, progress=False, resume=True), whole) and files(out) == ALL    # the unfinished copy is gone too


@pytest.mark.parametrize("at", [1, STEPS, STEPS + 1, 2*STEPS + 3, 4*STEPS])
def test_ctrl_c_in_an_epoch(whole, tmp_path, monkeypatch, at):
    out, plain, seen = tmp_path/"run", training.train_step, []
    def interrupted(*args, **options):
        seen.append(1)
        if len(seen) == at: raise KeyboardInterrupt
        return plain(*args, **options)
    monkeypatch.setattr(training, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt): fit(_toy_pairs(), out, CONFIG, progress=False)
    monkeypatch.undo()
    assert not list(out.glob(".*.tmp"))
    again = fit(_toy_pairs(), out, CONFIG, progress=False, resume=True)
    assert same(again, whole) and len(seen) == at


def test_stopped_again_and_again(whole, tmp_path):
    out = tmp_path/"run"
    def stop(log, model): raise KeyboardInterrupt
    for _ in range(CONFIG.epochs):
        with pytest.raises(KeyboardInterrupt): fit(_toy_pairs(), out, CONFIG, progress=False, resume=True, callback=stop)
    assert same(fit(_toy_pairs(), out, CONFIG, progress=False, resume=True), whole)


@unix
@pytest.mark.parametrize("limit, named", [(100, "config.json"), (5_000, "checkpoint.pt")])
def test_full_disk_at_the_start(whole, tmp_path, limit, named):
    "RLIMIT_FSIZE makes every write beyond `limit` fail, as a full disk does"
    out, before = tmp_path/"run", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="no room left to write") as e: fit(_toy_pairs(), out, CONFIG, progress=False)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert named in str(e.value) and one_line(e) and files(out) in ([], ["config.json"], ["config.json", "train_videos.json"])
    assert same(fit(_toy_pairs(), out, CONFIG, progress=False), whole)


@unix
def test_disk_fills_up_later(whole, tmp_path):
    out, before = tmp_path/"run", resource.getrlimit(resource.RLIMIT_FSIZE)
    def fill(log, model):
        if len(log) == 2: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        with pytest.raises(OSError, match="no room left to write .*checkpoint.pt"): fit(_toy_pairs(), out, CONFIG, progress=False, callback=fill)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(out) == ["checkpoint.pt", "config.json", "log.csv", "train_videos.json"] and len(open_run(out, "cpu").log) == 2
    assert same(fit(_toy_pairs(), out, CONFIG, progress=False, resume=True), whole)


@pytest.fixture
def stopped(tmp_path):
    def stop(log, model):
        if len(log) == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(_toy_pairs(), tmp_path/"run", CONFIG, progress=False, callback=stop)
    return tmp_path/"run"


def refused(out, match):
    "Both ways into a run say in one line that it cannot be used"
    for use in (lambda: open_run(out, "cpu"), lambda: fit(_toy_pairs(), out, CONFIG, progress=False, resume=True)):
        with pytest.raises(DataError, match=match) as e: use()
        assert one_line(e)


@pytest.mark.parametrize("damage", ["empty", "half", "tail", "text", "zeros", "flipped"])
def test_damaged_checkpoint(stopped, damage):
    path = stopped/"checkpoint.pt"
    good = path.read_bytes()
    flipped = bytearray(good)
    at = good.index(open_run(stopped, "cpu").model.visual_proj[0].weight.detach().numpy().tobytes()[:64])
    flipped[at + 5] ^= 64
    path.write_bytes({"empty": b"", "half": good[:len(good)//2], "tail": good[:-10], "text": b"hello", "zeros": bytes(len(good)), "flipped": bytes(flipped)}[damage])
    refused(stopped, "checkpoint.pt is damaged")
    path.write_bytes(good)
    assert fit(_toy_pairs(), stopped, CONFIG, progress=False, resume=True).finished


def test_checkpoint_of_another_kind(stopped):
    path = stopped/"checkpoint.pt"
    good = torch.load(path, weights_only=True)
    for parts, match in [({"weights": torch.zeros(3)}, "no checkpoint of `fit`"), ([1, 2], "no checkpoint of `fit`"),
                         ({**good, "model": {k: v.reshape(-1)[:3] for k, v in good["model"].items()}}, "belong together|config.json"),
                         ({**good, "model": {}}, "belong together|config.json"), ({**good, "model": 7}, "belong together|config.json")]:
        torch.save(parts, path)
        refused(stopped, match)


class Stranger:
    "What a hostile file holds: something that runs when it is unpickled"
    def __init__(self, trace): self.trace = trace
    def __reduce__(self): return Path.touch, (Path(self.trace),)


@pytest.mark.parametrize("how", ["torch", "inside", "old torch", "pickle"])
def test_hostile_checkpoint_is_refused_and_not_run(stopped, tmp_path, how):
    path, trace = stopped/"checkpoint.pt", tmp_path/"it ran"
    parts = torch.load(path, weights_only=True)
    if how == "torch": torch.save(Stranger(trace), path)
    elif how == "inside": torch.save({**parts, "best": Stranger(trace)}, path)
    elif how == "old torch": torch.save({**parts, "log": Stranger(trace)}, path, _use_new_zipfile_serialization=False)
    else: path.write_bytes(pickle.dumps(Stranger(trace)))
    refused(stopped, "nothing in it was run")
    assert not trace.exists()
    pickle.loads(pickle.dumps(Stranger(trace)))      # and it would have
    assert trace.exists()


@pytest.mark.parametrize("text, match", [("", "config.json"), ("{", "config.json"), ("[]", "no run card"), ('{"train": 1}', "no run card")])
def test_damaged_run_card(stopped, text, match):
    (stopped/"config.json").write_text(text)
    refused(stopped, match)


def test_run_card_of_another_model(stopped):
    card = json.loads((stopped/"config.json").read_text())
    for change in ({"hidden": 25}, {"colour": "red"}, {"hidden": "many"}):
        (stopped/"config.json").write_text(json.dumps({**card, "model": {**card["model"], **change}}))
        with pytest.raises(DataError, match="belong together") as e: open_run(stopped, "cpu")
        assert one_line(e)
    (stopped/"config.json").unlink()
    refused(stopped, "no config.json")


def test_checkpoint_lost(stopped, whole):
    "Without it there is nothing to lose: the run begins again"
    (stopped/"checkpoint.pt").unlink()
    with pytest.raises(DataError, match="has not finished its first epoch"): open_run(stopped, "cpu")
    assert same(fit(_toy_pairs(), stopped, CONFIG, progress=False), whole)


def test_numbers_of_an_evaluation_do_not_finish_a_run(stopped, whole):
    (stopped/"metrics.json").write_text('{"retrieval": {}}')
    assert not open_run(stopped, "cpu").finished
    again = fit(_toy_pairs(), stopped, CONFIG, progress=False, resume=True)
    assert again.finished and same(again, whole) and again.metrics["epochs"] == CONFIG.epochs


def test_what_is_printed(tmp_path, capsys):
    run = fit(_toy_pairs(), tmp_path/"run", CONFIG)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 4 and all(w in line for line in lines for w in ("loss", "(chance 3.466)", "R@5", "lr", "scale", "examples/s")) and f"loss {run.log.loss.iloc[0]:.3f}" in lines[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda(tmp_path):
    config = TrainConfig(epochs=3, batch_size=32, hidden=64, dim=16, dropout=.3, device="cuda")
    whole = fit(_toy_pairs(), tmp_path/"whole", config, progress=False)
    def stop(log, model): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): fit(_toy_pairs(), tmp_path/"part", config, progress=False, callback=stop)
    again = fit(_toy_pairs(), tmp_path/"part", config, progress=False, resume=True)
    for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values()): torch.testing.assert_close(a, b)
    assert open_run(tmp_path/"whole", "cpu").model.logit_scale.device.type == "cpu"


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("torch.utils.tensorboard")
    fit(_toy_pairs(), tmp_path/"run", CONFIG, progress=False, tensorboard=True)
    assert any(p.name.startswith("events") for p in (tmp_path/"run"/"tensorboard").iterdir()) and os.path.getsize(next((tmp_path/"run"/"tensorboard").iterdir())) > 100
