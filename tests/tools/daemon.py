"""A cisternd of a test's own, in a temporary folder, for tests in Python."""

import pathlib
import shutil
import signal
import subprocess
import tempfile
import time


class Daemon:
    """Runs while the with-block does. sections: text to add to the configuration."""

    def __init__(self, program, sections="", store=True):
        self.program = program
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="cistern-test-"))
        self.socket = self.folder / "socket"
        self.config = self.folder / "cistern.conf"
        self.log = self.folder / "log"
        store_lines = f"[store]\npath = {self.folder}/store\nsize = 256M\nsegment_size = 16M\n" if store else ""
        self.config.write_text(
            f"[daemon]\nsocket = {self.socket}\nworkers = 1\n[pool]\nsize = 64M\n{store_lines}"
            + sections.replace("FOLDER", str(self.folder)))
        self.process = None

    def start(self, **more):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([self.program, "--config", self.config], stderr=log, **more)
        deadline = time.monotonic() + 30
        while not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("the daemon did not start: " + self.log.read_text())
            time.sleep(0.01)

    def end(self, how=signal.SIGTERM):
        if self.process:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            shutil.rmtree(self.folder)
            raise
        return self

    def __exit__(self, *_):
        self.end()
        shutil.rmtree(self.folder)
