"""What the daemon shows over HTTP: metrics that add up, in a form that Prometheus likes, and health."""
import json
import os
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request

import numpy as np
import pytest

from harness import ROOT, TIMEOUT, Peer, same_bytes

CASE, WINDOW = "seed-46032", 8
promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool (Debian: prometheus)")


def address(daemon):
    """HOST and port at which the daemon shows its metrics."""
    host, port = daemon.ask("status")["sockets"]["metrics"].rsplit(":", 1)
    return host, int(port)


def get(daemon, path, method="GET", body=None):
    """Status, content type and text."""
    request = urllib.request.Request("http://%s:%d%s" % (*address(daemon), path), body, method=method)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def metrics(daemon):
    """{"name{label}": value}."""
    status, kind, text = get(daemon, "/metrics")
    assert status == 200 and kind.startswith("text/plain; version=0.0.4")
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    assert len({name for name, _ in lines}) == len(lines)
    return {name: float(value) for name, value in lines}


@pytest.fixture
def daemon(daemons):
    return daemons(CASE, window=WINDOW, **{"metrics.listen": "127.0.0.1:0"})


@pytest.fixture
def rows(golden):
    return golden(CASE).rows[:44]  # five windows and half of one


def test_rows_and_windows_are_counted(daemon, rows):
    peer = Peer(daemon)
    peer.data(b"one", rows)
    peer.ack(b"one", done=40)
    peer.data(b"one", rows[30:], pos=30, flush=True)
    peer.ack(b"one", done=44)
    seen = metrics(daemon)
    want = {"mamba2d_messages_in_total": 2, "mamba2d_rows_in_total": 44, "mamba2d_rows_out_total": 44,
            "mamba2d_windows_in_total": 5, "mamba2d_windows_computed_total": 5, "mamba2d_windows_out_total": 5,
            "mamba2d_duplicate_rows_total": 14, 'mamba2d_streams{place="device"}': 1, "mamba2d_peers": 1,
            "mamba2d_batch_rows_sum": 44, 'mamba2d_batch_rows_bucket{le="4"}': 1,
            "mamba2d_window_latency_seconds_count": 6, "mamba2d_serving": 1}
    assert {name: seen[name] for name in want} == want
    assert seen["mamba2d_batches_total"] == seen["mamba2d_batch_rows_count"] >= 2
    assert seen["mamba2d_worker_busy_seconds_total"] > 0 and seen["mamba2d_cache_bytes"] > 0
    assert seen["process_resident_memory_bytes"] > 1 << 20


def test_stages_add_up_to_the_latency(daemon, rows):
    Peer(daemon).encode(np.tile(rows, (50, 1)))
    seen = metrics(daemon)
    stages = [seen['mamba2d_window_stage_seconds_sum{stage="%s"}' % s] for s in ("wait", "compute", "send")]
    assert min(stages) > 0
    assert abs(sum(stages) - seen["mamba2d_window_latency_seconds_sum"]) < 1e-6 * sum(stages) + 1e-8
    buckets = [value for name, value in seen.items() if name.startswith("mamba2d_window_latency_seconds_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] == seen["mamba2d_window_latency_seconds_count"]


def test_refusals_gaps_and_stalls_are_counted(daemons, rows):
    daemon = daemons(CASE, window=WINDOW, **{"metrics.listen": "127.0.0.1:0", "limits.credit_rows": 20})
    peer = Peer(daemon)
    peer.data(b"s", rows[:20])
    peer.ack(b"s", done=16)
    peer.data(b"s", rows[30:32], pos=30)
    peer.refusal(b"s", "gap")
    peer.data(b"s", rows[:, :3])
    peer.refusal(b"s", "bad_shape")
    seen = metrics(daemon)
    want = {'mamba2d_refused_total{code="gap"}': 1, 'mamba2d_refused_total{code="bad_shape"}': 1,
            'mamba2d_refused_total{code="denied"}': 0, "mamba2d_gaps_total": 1, "mamba2d_credit_stalls_total": 1}
    assert {name: seen[name] for name in want} == want


def test_states_are_counted(daemons, rows, tmp_path):
    daemon = daemons(CASE, window=WINDOW, **{"metrics.listen": "127.0.0.1:0", "state.dir": str(tmp_path)})
    peer = Peer(daemon)
    peer.data(b"kept", rows)
    peer.ack(b"kept", done=40)
    assert daemon.ask("snapshot")["ok"]
    seen = metrics(daemon)
    assert seen["mamba2d_state_writes_total"] == 1 and seen["mamba2d_state_errors_total"] == 0
    (file,) = tmp_path.glob("*.safetensors")
    header = file.stat().st_size - seen["mamba2d_state_written_bytes_total"]
    assert header == 4096, "a block"
    assert seen['mamba2d_streams{place="disk"}'] == 1


def test_the_control_socket_has_the_same(daemon, rows):
    Peer(daemon).encode(rows)
    answer, seen = daemon.ask("metrics"), metrics(daemon)
    assert answer["mamba2d_rows_in_total"] == seen["mamba2d_rows_in_total"] == len(rows)
    assert answer["mamba2d_refused_total"]["gap"] == 0
    latency = answer["mamba2d_window_latency_seconds"]
    assert len(latency["count"]) == len(latency["le"]) + 1
    assert sum(latency["count"]) == seen["mamba2d_window_latency_seconds_count"]


@promtool
def test_promtool_finds_nothing_to_complain_about(daemon, rows):
    Peer(daemon).encode(rows)
    checked = subprocess.run(["promtool", "check", "metrics"], input=get(daemon, "/metrics")[2], text=True,
                             capture_output=True, timeout=TIMEOUT)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@promtool
def test_the_alerts_are_rules(tmp_path):
    """And so are the dashboard's expressions."""
    expressions = re.findall(r'"expr": "(.*)"', open(os.path.join(ROOT, "etc/grafana-mamba2d.json")).read())
    assert expressions
    rules = [{"record": "x%d" % i, "expr": json.loads('"%s"' % e).replace("$__rate_interval", "5m")}
             for i, e in enumerate(expressions)]
    (tmp_path / "dashboard.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", os.path.join(ROOT, "etc/mamba2d-alerts.yml"),
                    tmp_path / "dashboard.yml"], check=True, timeout=TIMEOUT)


@pytest.mark.parametrize("file", ["etc/mamba2d-alerts.yml", "etc/grafana-mamba2d.json", "daemon/page.html"])
def test_nobody_asks_for_metrics_that_there_are_not(daemon, file):
    with open(os.path.join(ROOT, file)) as f:
        text = f.read()
    known = {name.split("{")[0] for name in metrics(daemon)}
    used = set(re.findall(r"\bmamba2d_[a-z0-9_]+|\bprocess_[a-z0-9_]+", text))
    histograms = {name[:-len("_bucket")] for name in known if name.endswith("_bucket")}
    assert used and used <= known | histograms


def test_the_dashboard_is_json():
    with open(os.path.join(ROOT, "etc/grafana-mamba2d.json")) as f:
        dashboard = json.load(f)
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in panels}) == len(panels) and all(panel["targets"] for panel in panels)


def test_health_and_readiness(daemon):
    assert get(daemon, "/healthz")[0] == get(daemon, "/readyz")[0] == 200
    assert daemon.ask("drain")["ok"]
    assert get(daemon, "/healthz")[0] == 200
    assert get(daemon, "/readyz")[::2] == (503, "draining\n")
    assert metrics(daemon)["mamba2d_serving"] == 0


def test_status_and_streams_are_those_of_the_control_socket(daemon, rows):
    peer = Peer(daemon)
    for stream in (b"a-1", b"a-2", b"b"):
        peer.data(stream, rows)
        peer.ack(stream, done=40)
    assert json.loads(get(daemon, "/status")[2])["rows_in"] == daemon.ask("status")["rows_in"]
    listed = json.loads(get(daemon, "/streams?prefix=a-")[2])
    assert sorted(s["stream"] for s in listed["streams"]) == ["a-1", "a-2"] and listed["total"] == 2
    assert json.loads(get(daemon, "/streams")[2])["total"] == 3


def test_other_requests_are_answered_too(daemon):
    assert get(daemon, "/nothing")[0] == 404
    assert get(daemon, "/", method="POST")[0] == 405
    assert get(daemon, "/", method="POST", body=bytes(100000))[0] == 405
    assert get(daemon, "/metrics", method="HEAD") == (200, "text/plain; version=0.0.4; charset=utf-8", "")
    with socket.create_connection(address(daemon)) as s:
        s.sendall(b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n")
        s.settimeout(TIMEOUT)
        while s.recv(4096):
            pass
    assert get(daemon, "/healthz")[0] == 200


def test_scrapers_that_stand_still_cost_the_others_nothing(daemon, rows):
    """Some send half a request, some do not read the answer; rows flow, and others are answered."""
    still = [socket.create_connection(address(daemon)) for _ in range(20)]
    for i, s in enumerate(still):
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        s.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + (b"\r\n" * (i % 2)))
    peer = Peer(daemon)
    want = peer.encode(rows)
    assert same_bytes(peer.encode(rows), want)
    assert metrics(daemon)["mamba2d_rows_in_total"] == 2 * len(rows)
    for s in still:
        s.close()


def test_more_connections_than_there_are_places(daemon):
    """Those that stand still are closed, and then others are served."""
    still = [socket.create_connection(address(daemon)) for _ in range(60)]
    assert get(daemon, "/healthz")[0] == 200
    for s in still:
        s.close()


def test_an_address_in_use_or_wrong_is_named(daemons, daemon):
    for listen in ("%s:%d" % address(daemon), "nonsense", "127.0.0.1:", "::1:80", "127.0.0.1:http", "*:65536"):
        with pytest.raises(AssertionError, match="metrics.listen") as failed:
            daemons(CASE, **{"metrics.listen": listen})
        assert "warm in" not in str(failed.value)


def test_ipv6(daemons):
    try:
        socket.socket(socket.AF_INET6).bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    assert "metrics on http://[::1]:" in daemons(CASE, **{"metrics.listen": "[::1]:0"}).log()


def test_stream_ids_stay_on_this_machine(daemons, rows):
    """Numbers are for whoever may connect; who is streaming is not."""
    daemon = daemons(CASE, window=WINDOW, **{"metrics.listen": "0.0.0.0:0"})
    peer = Peer(daemon)
    peer.data(b"secret", rows)
    peer.ack(b"secret", done=40)
    answer = json.loads(get(daemon, "/streams")[2])
    assert answer["ok"] is False and answer["code"] == "denied"
    assert all("secret" not in get(daemon, path)[2] for path in ("/", "/metrics", "/status", "/streams"))
    assert metrics(daemon)["mamba2d_rows_in_total"] == len(rows)
