#!/usr/bin/env python3
"""test-top.py CISTERND CISTERN EXAMPLE: cistern top, on a terminal of 80x24 and without one; through a restart of the
daemon; and what it says when there is none."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

from daemon import Daemon

cisternd, cistern, example = sys.argv[1:4]


class Terminal:
    """A program on a terminal that is a VT52: cursor to a place, erase to the end of line or screen, that is all."""

    def __init__(self, command, rows=24, columns=80):
        self.rows, self.columns = rows, columns
        self.cells = [[" "] * columns for _ in range(rows)]
        self.row = self.column = 0
        self.rest = b""
        self.pid, self.fd = pty.fork()
        if not self.pid:
            os.environ["TERM"] = "vt52"
            for name in ("LINES", "COLUMNS"):
                os.environ.pop(name, None)
            time.sleep(0.2)  # until the size is set
            os.execv(command[0], command)
        self.resize(rows, columns)

    def resize(self, rows, columns):
        self.rows, self.columns = rows, columns
        self.cells = [[" "] * columns for _ in range(rows)]
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def feed(self, data):
        data, i = self.rest + data, 0
        self.rest = b""
        while i < len(data):
            c = data[i:i + 1]
            if c == b"\x1b":
                need = 4 if data[i + 1:i + 2] == b"Y" else 2
                if len(data) < i + need:
                    self.rest = data[i:]
                    return
                code = data[i + 1:i + 2]
                if code == b"Y":
                    self.row, self.column = data[i + 2] - 32, data[i + 3] - 32
                elif code == b"H":
                    self.row = self.column = 0
                elif self.row >= self.rows:
                    pass
                elif code == b"K":
                    self.cells[self.row][self.column:] = [" "] * (self.columns - self.column)
                elif code == b"J":
                    self.cells[self.row][self.column:] = [" "] * (self.columns - self.column)
                    for row in range(self.row + 1, self.rows):
                        self.cells[row] = [" "] * self.columns
                elif code in b"ABCDFG=>":  # F, G, = and >: character set and keypad
                    self.row += {b"A": -1, b"B": 1}.get(code, 0)
                    self.column += {b"C": 1, b"D": -1}.get(code, 0)
                else:
                    raise AssertionError(f"an escape that a VT52 has not: {code}")
                i += need
                continue
            if c == b"\r":
                self.column = 0
            elif c == b"\n":
                self.row = min(self.row + 1, self.rows - 1)
            elif c == b"\b":
                self.column -= 1
            elif c == b"\t":
                self.column = min(self.column // 8 * 8 + 8, self.columns - 1)
            elif c >= b" ":
                if self.row < self.rows and self.column < self.columns:  # else: written for the size before
                    self.cells[self.row][self.column] = c.decode("ascii")
                self.column = min(self.column + 1, self.columns - 1)
            i += 1

    def text(self):
        return "\n".join("".join(row).rstrip() for row in self.cells)

    def until(self, pattern, seconds=20):
        """Reads on until the screen matches; returns it."""
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text(), re.S):
            assert time.monotonic() < deadline, f"no {pattern!r} on:\n{self.text()}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.feed(os.read(self.fd, 65536))
        return self.text()

    def press(self, keys):
        os.write(self.fd, keys.encode())

    def end(self):
        """The exit status, once the program has ended."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    os.read(self.fd, 65536)
                except OSError:
                    pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("it did not end")


def run_example(d, name_space=None):
    subprocess.run([example], env=dict(os.environ, CISTERN_SOCKET=str(d.socket)), check=True, stdout=subprocess.DEVNULL)


def run(*arguments, **more):
    return subprocess.run([cistern, "top", *map(str, arguments)], capture_output=True, text=True, **more)


def on_a_terminal():
    with Daemon(cisternd) as d:
        run_example(d)
        t = Terminal([cistern, "top", "--socket", str(d.socket), "--interval", "0.2"])
        screen = t.until(r"my-model.*h help")
        lines = screen.split("\n")
        assert len(lines) == 24
        assert lines[0].startswith("cistern ") and "engines 0" in lines[0], screen
        assert re.match(r"pool \[ {11}\] +\d+K of +64M +0%  store \[#? +\]", lines[1]), screen
        assert re.match(r"NAMESPACE MODEL +HIT GET/s +p50 +p99 PUT/s", lines[4]), screen
        assert re.match(r"default   my-model +", lines[5]), screen
        assert re.search(r"default my-model: 2 chunks, 512 tokens, plain 8-bit codec", screen), screen
        assert re.search(r"tokens +plain 74% +sink 1% +window 25%", screen), screen

        t.press("s")
        t.until("sort: HIT")
        t.press("Sr")
        t.until("sort: NAMESPACE up")
        t.press("/nothing")
        t.until(r"filter: nothing_")
        t.press("\r")
        t.until("nothing here passes the filter")
        t.press("/MY-\r")
        t.until(r"default   my-model")
        t.press("/\r")
        t.until(r"/ filter$")
        t.press("h")
        t.until("page up, page down")
        t.press("h")
        t.until("NAMESPACE MODEL")
        t.press("p")
        t.until("PAUSED")
        t.press("p")

        # Any size, down to one that has room for nothing.
        for rows, columns in ((50, 132), (10, 40), (2, 10), (24, 80)):
            t.resize(rows, columns)
            t.until(r"cistern 0")
        t.until(r"my-model: 2 chunks")

        # The daemon is killed and comes back.
        d.end(signal.SIGKILL)
        t.until(r"no daemon, trying again .figures are old")
        d.start()
        t.until(r"^cistern 0.*up 0:00:")
        t.until(r"default [0-9a-f]{16}: 2 chunks, 512 tokens")  # found on disk; nameless until it is registered
        t.press("q")
        assert t.end() == 0

        t = Terminal([cistern, "top", "--socket", str(d.socket)])
        t.until("h help")
        os.kill(t.pid, signal.SIGTERM)
        assert t.end() == 0


def without_one():
    with Daemon(cisternd, store=False) as d:
        r = run("--once", "--interval", "0.1", "--socket", d.socket)
        assert r.returncode == 0 and "no store" in r.stdout, r
        assert "no chunk was ever put or looked up" in r.stdout, r
        run_example(d)
        time.sleep(0.1)
        r = run("--once", "--json", "--since-start", "--socket", d.socket)
        answer = json.loads(r.stdout)
        (cache,) = answer["caches"]
        assert (cache["model"], cache["puts"], cache["put_ns"]["count"]) == ("my-model", 1, 1)
        assert cache["per_second"]["puts"] > 0
        # A stream of objects, one a line.
        p = subprocess.Popen([cistern, "top", "--json", "--interval", "0.1", "--socket", str(d.socket)],
                             stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            assert json.loads(p.stdout.readline())["daemon"]["version"]
        p.terminate()
        p.wait(10)
        r = run("--socket", d.socket, stdin=subprocess.DEVNULL)
        assert r.returncode == 2 and "--once" in r.stderr, r
    for arguments in (["--interval", "0"], ["--interval", "x"], ["--interval", "61"], ["more"], ["--nonsense"],
                      ["--since-start"]):
        r = run(*arguments)
        assert r.returncode == 2 and r.stderr and not r.stdout, r
    r = run("--once", "--socket", "/nowhere/socket")
    assert r.returncode == 1 and "cannot reach a daemon at /nowhere/socket: No such file or directory" in r.stderr, r


without_one()
on_a_terminal()
