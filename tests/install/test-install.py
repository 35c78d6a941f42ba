#!/usr/bin/env python3
"""test-install.py BUILD PREFIX EXAMPLE: installs into an empty folder, and uses what is there as a stranger would: builds a
program against the library through pkg-config (shared and static), runs it against the installed daemon, reads manual
pages, completes commands, has systemd look at the unit."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time

build, prefix, example = sys.argv[1:]
WANTED = """
    bin/cistern bin/cisternd include/cistern.h lib*/libcistern.so lib*/libcistern.so.0 lib*/libcistern.a
    lib*/pkgconfig/cistern.pc lib/systemd/system/cistern.service lib/sysusers.d/cistern.conf lib/tmpfiles.d/cistern.conf
    share/man/man1/cistern.1 share/man/man8/cisternd.8 share/man/man5/cistern.conf.5 share/man/man3/libcistern.3
    share/bash-completion/completions/cistern share/doc/cistern/cistern.conf.example share/doc/cistern/alerts.yml
    share/doc/cistern/grafana-dashboard.json
    """.split()


def run(*command, **more):
    r = subprocess.run([str(c) for c in command], capture_output=True, text=True, **more)
    assert r.returncode == 0, (command, r.stdout, r.stderr)
    return r.stdout


def find(root, pattern):
    found = sorted(root.glob(pattern)) + sorted(root.glob(pattern.replace("lib*/", "lib/*/")))
    assert found, f"{pattern} was not installed; there are: " + " ".join(
        str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    return found[0]


def a_program_of_ones_own(root, folder, daemon):
    """The example, with nothing of the source tree in reach."""
    source = folder / "example.c"
    source.write_text(pathlib.Path(example).read_text().replace('"shm/cistern.h"', "<cistern.h>"))
    where = dict(os.environ, PKG_CONFIG_PATH=str(find(root, "lib*/pkgconfig/cistern.pc").parent),
                 PKG_CONFIG_SYSROOT_DIR=daemon["destdir"])
    flags = shlex.split(run("pkg-config", "--cflags", "--libs", "cistern", env=where))
    assert run("pkg-config", "--modversion", "cistern", env=where).strip()
    library = find(root, "lib*/libcistern.so")
    run("cc", "-Wall", "-Werror", source, "-o", folder / "shared", *flags, cwd=folder)
    cflags = shlex.split(run("pkg-config", "--cflags", "cistern", env=where))
    run("cc", "-Wall", "-Werror", source, "-o", folder / "static", *cflags, library.with_suffix(".a"), "-lpthread", cwd=folder)
    for name in ("shared", "static"):
        said = run(folder / name, env=dict(os.environ, CISTERN_SOCKET=daemon["socket"], LD_LIBRARY_PATH=str(library.parent)))
        assert "2 chunks put and got" in said, said
    linked = run("ldd", folder / "shared", env=dict(os.environ, LD_LIBRARY_PATH=str(library.parent)))
    assert f"libcistern.so.0 => {library.parent}/libcistern.so.0" in linked, linked


def the_library_shows_its_own_alone(root):
    library = find(root, "lib*/libcistern.so")
    symbols = [line.split() for line in run("nm", "-D", "--defined-only", library).splitlines()]
    names = [s[-1].split("@")[0] for s in symbols if s[-2] != "A"]
    declared = set(re.findall(r"\b(cistern_\w+)\(", re.sub(r"/\*.*?\*/", "", (root / "include/cistern.h").read_text(), flags=re.S)))
    assert set(names) == declared, set(names) ^ declared
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", library))
    assert set(needed) <= {"libc.so.6", "ld-linux-x86-64.so.2"}, needed


def manual_pages(root):
    pages = {p.name: p for p in (root / "share/man").rglob("*") if p.is_file()}
    assert set(pages) == {"cistern.1", "cisternd.8", "cistern.conf.5", "libcistern.3"}
    text = {name: p.read_text() for name, p in pages.items()}
    for command in re.findall(r"^  (\w[\w-]*)  +\S", run(root / "bin/cistern", "--help"), re.M):
        assert f".SS cistern {command}".replace("-", "\\-") in text["cistern.1"], command
    for key in re.findall(r"^#? ?(\w+) =", (root / "share/doc/cistern/cistern.conf.example").read_text(), re.M):
        assert f".BR {key} " in text["cistern.conf.5"], key
    for function in re.findall(r"\b(cistern_\w+)\(", (root / "include/cistern.h").read_text()):
        assert function in text["libcistern.3"], function
    if shutil.which("mandoc"):
        for name, page in pages.items():
            faults = subprocess.run(["mandoc", "-Tlint", "-Wwarning", str(page)], capture_output=True, text=True).stdout
            faults = [f for f in faults.splitlines() if "missing date" not in f]
            assert not faults, faults


def completion(root):
    if not shutil.which("bash"):
        return
    script = (f"source {root}/share/bash-completion/completions/cistern; COMP_WORDS=(%s); COMP_CWORD=%d; "
              f"_cistern {root}/bin/cistern; echo ${{COMPREPLY[@]}}")
    assert run("bash", "-c", script % ("cistern sta", 1)).split() == ["status"]
    assert "--json" in run("bash", "-c", script % ("cistern status --", 2)).split()
    assert "ipc" in run("bash", "-c", script % ("cistern bench ''", 2)).split()


def the_unit(root):
    unit = root / "lib/systemd/system/cistern.service"
    text = unit.read_text()
    assert f"ExecStart={prefix}/bin/cisternd --config " in text, text
    assert "@" not in re.sub(r"@(system-service|aio)\b", "", text), "a place that was not filled in"
    if not shutil.which("systemd-analyze"):
        return
    # Of a copy that names programs and a user which are here.
    copy = root / "cistern.service"
    copy.write_text(text.replace(f"{prefix}/bin/", f"{root}/bin/").replace("User=cistern\nGroup=cistern\n", ""))
    r = subprocess.run(["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True)
    said = [line for line in r.stderr.splitlines() if "cistern.service" in line]
    assert r.returncode == 0 and not said, r
    # Its exposure on systemd's scale of 0 (none) to 100; a hardened unit stays under 25.
    run("systemd-analyze", "security", "--offline=true", "--threshold=25", copy)


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    destdir = str(folder / "root")
    run("meson", "install", "-C", build, "--no-rebuild", "--quiet", "--destdir", destdir)
    root = pathlib.Path(destdir + prefix)
    for pattern in WANTED:
        find(root, pattern)
    socket = folder / "socket"
    config = folder / "cistern.conf"
    config.write_text(f"[daemon]\nsocket = {socket}\n[pool]\nsize = 16M\n")
    run(root / "bin/cisternd", "--check-config", "--config", root / "share/doc/cistern/cistern.conf.example")
    process = subprocess.Popen([root / "bin/cisternd", "--config", config], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not socket.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        a_program_of_ones_own(root, folder, {"destdir": destdir, "socket": str(socket)})
    finally:
        process.terminate()
        process.wait(20)
    the_library_shows_its_own_alone(root)
    manual_pages(root)
    completion(root)
    the_unit(root)
