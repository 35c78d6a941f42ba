#!/usr/bin/env python3
"""test-service.py CISTERND [--no-systemd]: the daemon as a service: readiness, watchdog, signals, log lines in both forms,
and what --check-config finds."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time

from daemon import Daemon

cisternd = sys.argv[1]
LINE = re.compile(r'time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=(error|warning|info|debug) msg="(\\.|[^"\\])*"( \S+=.*)?')


def notifications(s, seconds):
    s.settimeout(seconds)
    try:
        return s.recv(4096).decode().split("\n")
    except TimeoutError:
        return []


def notifies():
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(folder + "/notify")
        d = Daemon(cisternd)
        try:
            d.start(env=dict(os.environ, NOTIFY_SOCKET=folder + "/notify", WATCHDOG_USEC="400000"))
            said = notifications(s, 20)
            assert said[0] == "READY=1" and said[1] == f"STATUS=serving on {d.socket}", said
            # Idle, it gives a sign of life every 200 ms or a little later.
            times = []
            while len(times) < 6:
                assert notifications(s, 5) == ["WATCHDOG=1"]
                times.append(time.monotonic())
            assert all(b - a < 0.4 for a, b in zip(times, times[1:])), times
            d.process.send_signal(signal.SIGTERM)
            while (said := notifications(s, 5)) == ["WATCHDOG=1"]:
                pass
            assert said == ["STOPPING=1"], said
            assert d.process.wait(20) == 0
            d.process = None
        finally:
            d.__exit__()


def logs():
    with Daemon(cisternd, "[policy]\ntarget_ratio = 8\n") as d:
        d.end()
        lines = d.log.read_text().splitlines()
        assert len(lines) >= 3 and all(LINE.fullmatch(line) for line in lines), lines
    # Where stderr is the journal, which is known by its inode: levels for sd-daemon, no time.
    d = Daemon(cisternd)
    try:
        with open(d.folder / "journal", "w") as journal:
            st = os.fstat(journal.fileno())
            p = subprocess.Popen([cisternd, "--config", d.config], stderr=journal,
                                 env=dict(os.environ, JOURNAL_STREAM=f"{st.st_dev}:{st.st_ino}"))
            deadline = time.monotonic() + 20
            while not d.socket.exists():
                assert p.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            p.send_signal(signal.SIGINT)
            assert p.wait(20) == 0
        lines = (d.folder / "journal").read_text().splitlines()
        assert len(lines) >= 3 and all(re.fullmatch(r'<[3-7]>msg=".*"', line) for line in lines), lines
    finally:
        d.__exit__()


def check(text, folder):
    path = pathlib.Path(folder, "c.conf")
    path.write_text(text.replace("FOLDER", folder))
    before = sorted(os.listdir(folder))
    r = subprocess.run([cisternd, "--config", path, "--check-config"], capture_output=True, text=True)
    assert sorted(os.listdir(folder)) == before, "it changed something"
    return r.returncode, r.stdout, r.stderr


def checks():
    sound = "[daemon]\nsocket = FOLDER/run/s\n[store]\npath = FOLDER/store\nsize = 4M\nsegment_size = 1M\n[pool]\nsize = 1M\n"
    cases = [
        # configuration, exit status, a part of what is said
        (sound, 0, ""),
        ("[daemon]\nsocket = FOLDER/s\n", 0, "[store] path is empty: nothing will survive a restart"),
        ("[daemon]\nwrokers = 3\n", 2, "c.conf:2: [daemon] wrokers: unknown key; did you mean workers?"),
        (sound + "[transforms]\npath = /no/such/file\n", 2, "[transforms] path = /no/such/file: No such file or directory"),
        (sound + "[transforms]\npath = FOLDER/c.conf\n", 2, "[transforms] path = FOLDER/c.conf: "),
        (sound.replace("1M\n", "8T\n") .replace("segment_size = 8T", "segment_size = 1M"), 2,
         "[pool] size is 8388608 MiB, but the machine has"),
        (sound.replace("size = 4M", "size = 1024T"), 0, "writes will fail when the disk is full"),
        ("[daemon]\nsocket = /proc/nowhere/s\n", 2, "[daemon] socket = /proc/nowhere/s: cannot be made"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for text, status, said in cases:
            if "/proc/nowhere" in text and os.geteuid() == 0:
                continue  # root may do everything, as far as access(2) knows
            r = check(text, folder)
            assert r[0] == status and said.replace("FOLDER", folder) in r[2], (text, r)
            assert (r[1] == f"{folder}/c.conf: sound\n") == (status == 0), r
            if text == sound:
                assert r[2] == ""


logs()
checks()
if "--no-systemd" in sys.argv:
    print("skipped: built without libsystemd")
    sys.exit(77)
notifies()
