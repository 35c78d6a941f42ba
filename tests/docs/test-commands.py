#!/usr/bin/env python3
"""test-commands.py CISTERN CISTERND: every command that a document shows is one that there is: its subcommand exists, and
its --help knows every option that the document gives it."""

import pathlib
import re
import subprocess
import sys

programs = {"cistern": sys.argv[1], "cisternd": sys.argv[2]}
root = pathlib.Path(__file__).resolve().parent.parent.parent
helps, faults, seen = {}, [], set()


def help_of(*command):
    if command not in helps:
        helps[command] = subprocess.run([programs[command[0]], *command[1:], "--help"], capture_output=True, text=True)
    return helps[command]


def check(page, program, words):
    command = (program,)
    for word in words:
        # A word is a subcommand of its own where its help is.
        longer = (*command, word)
        if not re.fullmatch(r"[a-z][a-z-]*", word) or len(command) == 3:
            break
        if len(command) == 2 and (help_of(*longer).returncode or help_of(*longer).stdout == help_of(*command).stdout):
            break
        command = longer
    if program == "cisternd":
        command = command[:1]
    options = [w.split("=")[0] for w in words if re.match(r"--[a-z]", w)]
    seen.add(" ".join(command))
    r = help_of(*command)
    if r.returncode != 0:
        faults.append(f"{page}: `{' '.join(command)}`: there is no such command")
        return
    known = set(re.findall(r"--[a-z][a-z-]*", r.stdout)) | {"--help", "--version"}
    faults.extend(f"{page}: `{' '.join(command)} {o}`: no such option" for o in options if o not in known)


for page in [root / "README.md", *sorted(root.glob("docs/*.md")), root / "docs/cistern.conf.example"]:
    text = page.read_text()
    shown = re.findall(r"```sh\n(.*?)```", text, re.S) + re.findall(r"^    (\S.*)$", text, re.M)
    shown += [m for m in re.findall(r"`([^`\n]+)`", text) if re.match(r"(?:\S*/)?cisternd? ", m)]
    for block in shown:
        for line in re.sub(r"<<'?END'?.*?^END$", "", block, flags=re.S | re.M).splitlines():
            line = line.split(" # ")[0]
            for m in re.finditer(r"(?:^|[\s/])(cisternd?)((?: +[^\s|;&<>`]+)+)", line):
                check(page.name, m[1], [w for w in m[2].split() if w not in ("COMMAND", "NAME")])

# README's other commands are make's; each is a target.
make = (root / "Makefile").read_text()
for target in re.findall(r"(?:`|^    )make ([a-z]+)", (root / "README.md").read_text(), re.M):
    if not re.search(rf"^{target}:", make, re.M):
        faults.append(f"README.md: make {target}: no such target")
for fault in faults:
    print(fault)
print(f"{len(seen)} commands: {', '.join(sorted(seen))}")
assert len(seen) > 5, "the documents show next to none"
sys.exit(bool(faults))
