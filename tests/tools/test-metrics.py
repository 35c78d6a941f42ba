#!/usr/bin/env python3
"""test-metrics.py CISTERND CISTERN EXAMPLE [--prometheus]: the daemon's metrics, scraped over a loopback port and over a
unix socket, and what bad and slow clients of the port do to it. With --prometheus: scraped by a real one."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request

from daemon import Daemon

SKIP = 77
cisternd, cistern, example = sys.argv[1:4]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(self.path)


def ask(connection, url="/metrics", method="GET", body=None):
    connection.request(method, url, body)
    answer = connection.getresponse()
    return answer.status, answer.getheader("Content-Type"), answer.read().decode()


def samples(text):
    """{name with labels: value}, the format checked line by line."""
    found, typed, last = {}, {}, None
    for line in text.splitlines():
        if m := re.fullmatch(r"# HELP ([a-z_]+) (\S.*)", line):
            last = m[1]
            assert last not in typed, f"{last} stands in two places"
        elif m := re.fullmatch(r"# TYPE ([a-z_]+) (counter|gauge|histogram)", line):
            assert m[1] == last, line
            typed[last] = m[2]
        else:
            m = re.fullmatch(r'([a-z_]+)((?:\{(?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)+\})?) ([0-9.e+-]+)', line)
            assert m, line
            assert m[1] == last or m[1] in [last + end for end in ("_bucket", "_sum", "_count")], line
            assert m[1] + m[2] not in found, f"twice: {line}"
            found[m[1] + m[2]] = float(m[3])
    return found


def histograms_add_up(found):
    ends = {}
    for name, value in found.items():
        if m := re.fullmatch(r'(.*)_bucket\{(.*?),?le="([^"]+)"\}', name):
            ends.setdefault((m[1], m[2]), []).append((float(m[3]), value))
    for (name, labels), buckets in ends.items():
        counts = [value for _, value in sorted(buckets)]
        assert counts == sorted(counts), name
        braces = "{" + labels + "}" if labels else ""
        assert counts[-1] == found[f"{name}_count{braces}"], name
        assert (found[f"{name}_sum{braces}"] > 0) == (counts[-1] > 0), name
    assert len(ends) > 5


def run_example(daemon):
    subprocess.run([example], env=dict(os.environ, CISTERN_SOCKET=str(daemon.socket)), check=True)
    time.sleep(0.2)  # publication is at most 50 ms behind


def check_values(daemon, text):
    found = samples(text)
    histograms_add_up(found)
    status = json.loads(subprocess.run([cistern, "status", "--json", "--socket", daemon.socket], check=True,
                                       capture_output=True).stdout)
    (labels,) = {re.search(r"\{(.*)\}", name)[1] for name in found if name.startswith("cistern_put_chunks_total{")}
    assert 'namespace="default",model="my-model"' in labels, labels
    put = found[f"cistern_put_chunks_total{{{labels}}}"]
    assert put == status["chunks"]["encoded"] > 0
    assert found[f"cistern_get_chunks_total{{{labels}}}"] == status["chunks"]["decoded"] > 0
    assert found[f"cistern_put_raw_bytes_total{{{labels}}}"] == status["chunks"]["encoded_raw_bytes"]
    assert found["cistern_pool_limit_bytes"] == status["pool"]["limit_bytes"]
    assert found[f'cistern_request_duration_seconds_count{{{labels},op="put"}}'] == 1
    assert abs(found["cistern_start_time_seconds"] - time.time()) < 300
    assert found["process_resident_memory_bytes"] > 1e6


def over_both_kinds_of_address():
    port = free_port()
    with Daemon(cisternd, f"[metrics]\nlisten = 127.0.0.1:{port}\n") as d:
        run_example(d)
        status, kind, text = ask(http.client.HTTPConnection("127.0.0.1", port, timeout=10))
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        check_values(d, text)
        assert ask(http.client.HTTPConnection("127.0.0.1", port, timeout=10), "/")[0] == 404
        assert ask(http.client.HTTPConnection("127.0.0.1", port, timeout=10), method="HEAD")[0] == 200
        assert ask(http.client.HTTPConnection("127.0.0.1", port, timeout=10), method="POST", body="x" * 100000)[0] == 405

        # Clients that say nothing, or nonsense: nobody but them waits.
        idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        for s in idle[::2]:
            try:
                s.sendall(b"\0\xff garbage\r\n\r\n")
            except OSError:
                pass
        run_example(d)
        for s in idle:
            s.close()
        deadline = time.monotonic() + 20
        while True:
            try:
                assert ask(http.client.HTTPConnection("127.0.0.1", port, timeout=5))[0] == 200
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)

        # The port is taken: the second daemon says so and does not start.
        other = Daemon(cisternd, f"[metrics]\nlisten = 127.0.0.1:{port}\n")
        assert subprocess.run([cisternd, "--config", other.config], stderr=open(other.log, "w")).returncode == 1
        assert f"metrics on 127.0.0.1:{port}: Address already in use" in other.log.read_text()
        shutil.rmtree(other.folder)
    with Daemon(cisternd, "[metrics]\nlisten = unix:FOLDER/metrics\n") as d:
        path = d.folder / "metrics"
        run_example(d)
        check_values(d, ask(UnixConnection(str(path)))[2])
        d.end()
        assert not path.exists()


def with_prometheus():
    if not shutil.which("prometheus") or not shutil.which("promtool"):
        print("skipped: no prometheus here (apt-get install prometheus)")
        sys.exit(SKIP)
    port, own = free_port(), free_port()
    with Daemon(cisternd, f"[metrics]\nlisten = 127.0.0.1:{port}\n") as d:
        run_example(d)
        text = ask(http.client.HTTPConnection("127.0.0.1", port, timeout=10))[2]
        check = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True)
        assert (check.returncode, check.stdout, check.stderr) == (0, "", ""), check
        config = d.folder / "prometheus.yml"
        rules = os.path.join(os.path.dirname(__file__), "../../docs/operations/alerts.yml")
        config.write_text("global: {scrape_interval: 1s}\n"
                          f"rule_files: ['{os.path.abspath(rules)}']\n"
                          "scrape_configs:\n- job_name: cistern\n"
                          f"  static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n")
        subprocess.run(["promtool", "check", "config", config], check=True, stdout=subprocess.DEVNULL)
        with open(d.folder / "prometheus.log", "w") as log:
            server = subprocess.Popen(
                ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={d.folder}/tsdb",
                 f"--web.listen-address=127.0.0.1:{own}"], stdout=log, stderr=log)
        try:
            def query(expression):
                url = f"http://127.0.0.1:{own}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
                try:
                    with urllib.request.urlopen(url, timeout=5) as answer:
                        return json.load(answer)["data"]["result"]
                except OSError:
                    return []

            deadline = time.monotonic() + 60
            while not (result := query("cistern_put_chunks_total")):
                assert server.poll() is None and time.monotonic() < deadline, (d.folder / "prometheus.log").read_text()
                time.sleep(0.2)
            assert result[0]["metric"]["namespace"] == "default"
            assert float(result[0]["value"][1]) > 0
            assert query('up{job="cistern"}')[0]["value"][1] == "1"
            (slow,) = query('histogram_quantile(0.99, cistern_request_duration_seconds_bucket{op="put"})')
            assert 0 < float(slow["value"][1]) < 17
            # Every expression of rules and dashboard is one that Prometheus can evaluate.
            dashboard = json.load(open(os.path.join(os.path.dirname(rules), "grafana-dashboard.json")))
            expressions = [t["expr"] for p in dashboard["panels"] for t in p.get("targets", [])]
            assert len(expressions) > 10
            for e in expressions:
                e = e.replace("$__rate_interval", "1m").replace("$namespace", ".*").replace("$model", ".*")
                names = re.findall(r"\b(?:cistern|process)_[a-z_]+", e)
                assert names, e
                for name in names:
                    assert query(f"count({name})"), f"{name}, in the dashboard, is no metric"
                url = f"http://127.0.0.1:{own}/api/v1/query?" + urllib.parse.urlencode({"query": e})
                with urllib.request.urlopen(url, timeout=5) as answer:
                    assert json.load(answer)["status"] == "success", e
            with urllib.request.urlopen(f"http://127.0.0.1:{own}/api/v1/rules", timeout=5) as answer:
                groups = json.load(answer)["data"]["groups"]
            alerts = [rule for g in groups for rule in g["rules"]]
            assert len(alerts) > 5
            for rule in alerts:
                for name in re.findall(r"\bcistern_[a-z_]+", rule["query"]):
                    assert query(f"count({name})"), f"{name}, in the alerts, is no metric"
        finally:
            server.terminate()
            server.wait(30)


if "--prometheus" in sys.argv:
    with_prometheus()
else:
    over_both_kinds_of_address()
