"""Extraction under broken files, kills and odd containers: what a notebook cannot show about itself"""
import builtins
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import clep_tutorial.extract as extract
from clep_tutorial.extract import FrameReader, extract_features, list_videos, read_clips, video_info, windows
from clep_tutorial.extract import _picture, _read_number, _write_video
from clep_tutorial.files import DataError

av = pytest.importorskip("av")
pytestmark = pytest.mark.filterwarnings("error::UserWarning:clep_tutorial")
KILLS = int(os.environ.get("CLEP_KILLS", 4))
SMALL = (64, 48)


def go(videos, out, backbone=None, **options):
    return extract_features(videos, out, backbone or FrameReader(), **{"device": "cpu", "progress": False, **options})


def why(path):
    "The reason why a video gives no features"
    with pytest.raises(DataError) as e: list(read_clips(path))
    assert "\n" not in str(e.value)
    return str(e.value)


def cut(path, share, to):
    data = Path(path).read_bytes()
    Path(to).write_bytes(data[:int(len(data)*share)])
    return Path(to)


def noise(i, width, height):
    return np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)


# ---- broken and odd files
def test_no_video_at_all(tmp_path):
    (tmp_path/"text.mp4").write_text("hello"); (tmp_path/"empty.mp4").touch()
    for name in "text.mp4", "empty.mp4": assert why(tmp_path/name).startswith("no video file")
    assert why(tmp_path/"nothing.mp4") == "no file"
    _write_video(tmp_path/"sound.mp4", 0, SMALL, audio=True)
    assert why(tmp_path/"sound.mp4") == "no frame" or why(tmp_path/"sound.mp4").startswith("no video stream")


def test_sound_only_and_cover_picture(tmp_path):
    with av.open(str(tmp_path/"a.mp4"), "w") as box:
        sound = box.add_stream("aac", rate=16_000)
        for i in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, 1024*i
            for packet in sound.encode(frame): box.mux(packet)
        for packet in sound.encode(): box.mux(packet)
    assert why(tmp_path/"a.mp4") == "no video stream (sound only)"
    with av.open(str(tmp_path/"b.mp4"), "w") as box, av.open(str(tmp_path/"a.mp4")) as old:
        sound, cover = box.add_stream_from_template(old.streams.audio[0]), box.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = *SMALL, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in cover.encode(av.VideoFrame.from_ndarray(_picture(0, *SMALL), format="rgb24")): box.mux(packet)
        for packet in old.demux(audio=0):
            if packet.dts is not None: packet.stream = sound; box.mux(packet)
    with av.open(str(tmp_path/"b.mp4")) as box: assert len(box.streams.video) == 1       # a video, says the container
    assert why(tmp_path/"b.mp4") == "no video stream (sound only)"


def test_zero_frames(tmp_path):
    with av.open(str(tmp_path/"zero.mkv"), "w") as box:
        video = box.add_stream("libx264", rate=30)
        video.width, video.height, video.pix_fmt = *SMALL, "yuv420p"
        box.start_encoding()
    assert why(tmp_path/"zero.mkv") in ("no frame", "no video file (or cut off before its index)", "no video stream")


@pytest.mark.parametrize("ending, options", [("mp4", {"movflags": "faststart"}), ("mkv", {}), ("mp4", {})])
def test_cut_off(tmp_path, ending, options):
    whole = _write_video(tmp_path/f"whole.{ending}", 90, (160, 120), picture=noise, options=options)
    assert len(list(read_clips(whole))) == 5
    for share in .3, .5, .8:
        assert why(cut(whole, share, tmp_path/f"part.{ending}")).startswith(("cut off", "damaged", "no video file"))


def test_damaged_in_the_middle(tmp_path):
    whole = _write_video(tmp_path/"whole.mp4", 90, (160, 120), picture=noise, options={"movflags": "faststart"})
    data = bytearray(whole.read_bytes())
    data[len(data)//2:len(data)//2 + 4000] = bytes(4000)
    (tmp_path/"hole.mp4").write_bytes(data)
    try: assert len(list(read_clips(tmp_path/"hole.mp4"))) == 5          # papered over by the decoder
    except DataError as e: assert str(e).startswith("damaged (decoding stops after")


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_is_never_a_crash(tmp_path, seed):
    rng = random.Random(seed)
    data = bytearray(_write_video(tmp_path/"a.mp4", 40, SMALL).read_bytes())
    for _ in range(rng.choice([1, 10, 200])): data[rng.randrange(len(data))] = rng.randrange(256)
    (tmp_path/"a.mp4").write_bytes(data)
    try: found = go(tmp_path/"a.mp4", tmp_path/"out")
    except DataError as e: assert "no features from any of 1" in str(e) and "\n" not in str(e)
    else: assert found["made"] == 1


def test_a_playlist_opens_nothing_else(tmp_path):
    _write_video(tmp_path/"other.mkv", 40, SMALL)
    for text in ("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{}\n", "ffconcat version 1.0\nfile '{}'\n"):
        for ending in "mp4", "m3u8":
            (tmp_path/f"list.{ending}").write_text(text.format(tmp_path/"other.mkv"))
            assert why(tmp_path/f"list.{ending}").startswith("no video file")


def test_names_that_look_like_protocols(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _write_video("-first.mp4", 33, SMALL)
    assert len(list(read_clips("-first.mp4"))) == 2
    if os.name == "nt": return
    os.rename("-first.mp4", "concat:a.mp4")
    assert len(list(read_clips("concat:a.mp4"))) == 2                    # a file, though ffmpeg would read it as a command
    with pytest.raises(DataError, match="cannot become a video uid"): list_videos("concat:a.mp4")


# ---- shapes, rates, orientation
@pytest.mark.parametrize("n", [1, 2, 31, 32, 33])
def test_short_videos(tmp_path, n):
    (x, *more) = read_clips(_write_video(tmp_path/"a.mp4", n, (160, 120)))
    assert len(more) == (n > 32) and _read_number(x).tolist() == [min(i, n - 1) for i in range(32)]


@pytest.mark.parametrize("size", [(161, 121), (2, 2), (640, 16), (16, 640), (97, 401)])
def test_odd_sizes(tmp_path, size):
    (x,) = read_clips(_write_video(tmp_path/"a.mp4", 3, size, picture=noise))
    assert x.shape == (32, 3, 224, 224)


@pytest.mark.parametrize("rotate", [0, 90, -90, 180])
def test_rotation_notes_are_followed(tmp_path, rotate):
    def turned(i, width, height):                    # stored lying down, as a phone does
        upright = _picture(i, *((width, height) if rotate in (0, 180) else (height, width)))
        return np.ascontiguousarray(np.rot90(upright, -rotate//90))
    (x,) = read_clips(_write_video(tmp_path/"a.mp4", 20, (320, 240), picture=turned, rotate=rotate))
    assert _read_number(x).tolist() == [min(i, 19) for i in range(32)]


def test_stereo_some(tmp_path):
    both = lambda i, width, height: np.concatenate([_picture(i, width//2, height), _picture(1023 - i, width//2, height)], 1)
    _write_video(tmp_path/"two.mp4", 32, (640, 240), picture=both); _write_video(tmp_path/"one.mp4", 32, (320, 240))
    go(tmp_path, tmp_path/"out", stereo={"two"})
    for name in "one", "two": assert torch.load(tmp_path/f"out/{name}.pt", weights_only=True).tolist() == [list(range(32))]
    with pytest.raises(DataError, match="stereo is"): go(tmp_path, tmp_path/"out", stereo=True)


def test_the_picture_may_change_its_size(tmp_path):
    "Two videos one after the other in a transport stream: 160x120, then 320x240"
    parts = b"".join(_write_video(tmp_path/f"{k}.ts", 20, size).read_bytes() for k, size in enumerate([(160, 120), (320, 240)]))
    (tmp_path/"a.ts").write_bytes(parts)
    try: clips = list(read_clips(tmp_path/"a.ts"))
    except DataError as e: assert str(e).startswith(("timestamps jump", "damaged", "cut off"))
    else: assert all(x.shape == (32, 3, 224, 224) for x in clips)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_variable_rate_is_read_by_the_clock(tmp_path, ending):
    times = [*range(0, 1000, 20), *range(1000, 3000, 100)]               # 50 frames per second, then 10
    path = _write_video(tmp_path/f"a.{ending}", len(times), (160, 120), times=times)
    clips = list(read_clips(path, fps=30))
    assert len(clips) == 5                           # 90 frames at 30 per second, to within the last frame's stay
    for row, x in enumerate(clips[:-1]):
        seconds = (16*row + torch.arange(32))/30
        want = torch.tensor([max(j for j, t in enumerate(times) if t <= 1000*float(s) + 9) for s in seconds])
        assert ((_read_number(x) - want).abs() <= 1).all()


def test_a_jump_of_the_clock_is_refused(tmp_path):
    path = _write_video(tmp_path/"a.mkv", 40, SMALL, times=[40*i + 3_600_000*(i > 20) for i in range(40)])
    assert why(path).startswith("timestamps jump (from 0.8 to 3600.8 s")


def test_slide_show(tmp_path):
    path = _write_video(tmp_path/"a.mp4", 5, (160, 120), fps=1)          # one picture a second: read as 30 frames per second
    info, clips = video_info(path), list(read_clips(path))
    assert info["rows_per_second"] == 1.875 and len(clips) == 9 and _read_number(clips[0])[[0, 29, 30]].tolist() == [0, 0, 1]


# ---- memory
def test_only_a_window_is_held():
    alive = peak = 0
    class Frame:
        def __init__(self):
            nonlocal alive, peak
            alive += 1; peak = max(peak, alive)
        def __del__(self):
            nonlocal alive
            alive -= 1
    for w in windows((Frame() for _ in range(3000)), 32, 16): del w
    assert peak <= 34


def test_memory_does_not_grow_with_the_video(tmp_path):
    peaks = []
    for n in 100, 1000:
        path = _write_video(tmp_path/f"{n}.mp4", n, SMALL, picture=lambda i, w, h: np.full((h, w, 3), i % 256, np.uint8))
        tracemalloc.start()
        for _ in read_clips(path, 4): pass
        peaks.append(tracemalloc.get_traced_memory()[1]); tracemalloc.stop()
    assert peaks[1] < 1.5*peaks[0] + 2e6


# ---- kills, disks, missing parts
PROGRAM = """
import sys, time, torch
from clep_tutorial.extract import FrameReader, extract_features
class Slow(FrameReader):
    def forward(self, x): time.sleep(.02); return super().forward(x)
print("ready", flush=True)
extract_features(sys.argv[1], sys.argv[2], Slow(), batch_size=2, device="cpu", progress=False)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_killed_and_run_again(tmp_path):
    (tmp_path/"in").mkdir()
    for k in range(8): _write_video(tmp_path/f"in/{k}.mp4", 60, (160, 120))
    class Slow(FrameReader): pass
    Slow.__qualname__ = "Slow"
    go(tmp_path/"in", tmp_path/"whole", Slow())
    (tmp_path/"program.py").write_text(PROGRAM)
    rng, kills = random.Random(0), 0
    for _ in range(KILLS):
        run = subprocess.Popen([sys.executable, str(tmp_path/"program.py"), str(tmp_path/"in"), str(tmp_path/"out")], stdout=subprocess.PIPE)
        run.stdout.readline(); time.sleep(rng.uniform(.05, .5))
        run.send_signal(signal.SIGKILL); kills += run.wait() == -signal.SIGKILL
        for path in (tmp_path/"out").glob("*.pt"): assert path.read_bytes() == (tmp_path/"whole"/path.name).read_bytes()
    done = go(tmp_path/"in", tmp_path/"out", Slow())
    assert done["made"] + done["kept"] == 8 and kills
    for path in (tmp_path/"whole").glob("*.pt"): assert path.read_bytes() == (tmp_path/"out"/path.name).read_bytes()


def test_an_error_of_the_backbone_is_not_the_videos_fault(tmp_path):
    _write_video(tmp_path/"a.mp4", 40, SMALL)
    class Broken(nn.Module):
        def forward(self, x): raise RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"): go(tmp_path/"a.mp4", tmp_path/"out", Broken())
    class Full(nn.Module):
        def forward(self, x): raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(DataError, match="try batch_size=1"): go(tmp_path/"a.mp4", tmp_path/"out2", Full(), batch_size=2)
    assert not list(tmp_path.glob("*/*.pt"))


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    _write_video(tmp_path/"a.mp4", 40, SMALL); go(tmp_path/"a.mp4", tmp_path/"out"); (tmp_path/"out/a.pt").unlink()
    def full(self, data): raise OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no room left to write .*a.pt"): go(tmp_path/"a.mp4", tmp_path/"out")
    assert [p.name for p in (tmp_path/"out").iterdir()] == ["extract.json"]


def test_without_pyav(tmp_path, monkeypatch):
    _write_video(tmp_path/"a.mp4", 2, SMALL)
    real = builtins.__import__
    def missing(name, *args, **kwargs):
        if name == "av": raise ImportError(name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(DataError, match=r'pip install "clep_tutorial\[video\]"'): go(tmp_path/"a.mp4", tmp_path/"out")
    assert not (tmp_path/"out").exists()


def test_importing_the_room_does_not_import_pyav():
    code = "import sys, clep_tutorial.extract; print(*sorted({'av', 'transformers', 'torchvision'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


def test_an_unreachable_hub_is_one_line_and_quick(monkeypatch, tmp_path):
    monkeypatch.setattr(extract, "_answers", lambda url, seconds=8.: False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load", lambda *a, **k: pytest.fail("went online"))
    path = _write_video(tmp_path/"a.mp4", 2, SMALL)
    with pytest.raises(DataError, match="Omnivore cannot be had .github.com does not answer.: connect this machine") as e: extract_features(path, tmp_path/"out", device="cpu", progress=False)
    assert "\n" not in str(e.value) and not (tmp_path/"out").exists()


def test_two_batches_of_a_video_equal_one(tmp_path):
    path = _write_video(tmp_path/"a.mp4", 131, (160, 120), Fraction(60))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(3, 4, (4, 16, 16), (4, 16, 16)), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(32, 6))
    x, y = (torch.load(go(path, tmp_path/f"{b}", net, batch_size=b) and tmp_path/f"{b}/a.pt", weights_only=True) for b in (1, 8))
    torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
    assert x.shape == (4, 6)
