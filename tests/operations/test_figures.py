"""Figures of one process, of several, of the last seconds; and in Prometheus's words, read by its own parser."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from compoff.edge.server import serve
from compoff.operations.figures import Figures, add_live, behind, counted_only, figures_of, merge, only
from compoff.operations.metrics import exposition
from compoff.wire.client import open_client
from tests.edge.peers import ID, Echo


def measured(requests: int = 10) -> Figures:
    with serve(Echo()) as server, open_client(server.address, [ID]) as client:
        for _ in range(requests):
            client.request(b"payload", timeout=30)
        return figures_of(server.stats(), {ID: {"model": "Net", "split": "layer2"}})


def samples(text: bytes) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            place = sample.labels.get("le") or sample.labels.get("error")
            found[sample.name if place is None else f"{sample.name} {place}"] = sample.value
    return found


def test_a_process_tells_what_it_counted() -> None:
    figures = measured()
    tail = figures["tails"][0]
    assert (tail["artifact"], tail["model"], tail["split"]) == (ID.hex()[:8], "Net", "layer2")
    assert (tail["requests"], tail["replies"], tail["bytes_in"], tail["bytes_out"]) == (10, 10, 70, 70)
    assert sum(tail["latency_counts"]) == 10
    assert (figures["accepted"], figures["ready"]) == (1, True)


def test_processes_add_up() -> None:
    one, other = measured(3), measured(4)
    other["tails"][0]["errors"] = {"busy": 2}
    figures = merge([one, other], processes=2)
    tail = figures["tails"][0]
    assert (len(figures["tails"]), tail["requests"], tail["errors"]) == (1, 7, {"busy": 2})
    assert sum(tail["latency_counts"]) == 7
    assert (figures["processes"], figures["ready"], figures["accepted"]) == (2, True, 2)


@pytest.mark.parametrize("parts", [0, 1])
def test_a_process_that_does_not_answer_makes_the_server_not_ready(parts: int) -> None:
    figures = merge([measured(1)] * parts, processes=2)
    assert (figures["processes"], figures["ready"]) == (parts, False)


def test_the_last_seconds_are_differences() -> None:
    before, now = measured(4), measured(10)
    live = add_live(now, before, 2.0)["tails"][0]["live"]
    assert live is not None
    assert (live["requests"], live["replies"], live["bytes_in"], live["mean_batch"]) == (3.0, 3.0, 21.0, 1.0)
    assert live["errors"] == 0


def test_without_an_earlier_look_nothing_has_happened() -> None:
    live = add_live(measured(4), None, 0.0)["tails"][0]["live"]
    assert live is not None
    assert set(live.values()) == {0.0}


def test_a_tail_that_was_not_served_at_the_earlier_look_began_at_nothing() -> None:
    live = add_live(measured(6), {**measured(4), "tails": []}, 2.0)["tails"][0]["live"]
    assert live is not None
    assert (live["requests"], live["bytes_in"], live["mean_batch"]) == (3.0, 21.0, 1.0)
    assert 0 < live["p50"] < 1


def test_a_process_that_started_anew_is_no_negative_rate() -> None:
    live = add_live(measured(1), measured(9), 1.0)["tails"][0]["live"]
    assert live is not None
    assert min(live.values()) == 0.0


def test_what_was_slow_before_a_new_start_says_nothing_of_now() -> None:
    before, now = measured(1), measured(1)
    buckets = len(now["tails"][0]["latency_counts"])
    now["tails"][0]["latency_counts"] = [0, 0, 5, *[0] * (buckets - 3)]
    before["tails"][0]["latency_counts"] = [*[0] * (buckets - 3), 9, 0, 0]
    alone, after = (add_live(now, one, 1.0)["tails"][0]["live"] for one in ({**before, "tails": []}, before))
    assert alone is not None
    assert after is not None
    assert [alone[name] for name in ("p50", "p90", "p99")] == [after[name] for name in ("p50", "p90", "p99")]


def loaded(requests: int, **changes: Any) -> Figures:
    """As `measured`, while some wait and others run."""
    figures = measured(requests)
    figures["tails"][0].update({"waiting": 3, "running": 2, "busy_seconds": 5.0, "batch_sizes": {"2": 9}})
    return {**figures, "connections": 4, "pending": 5, "held_bytes": 6, "unread_bytes": 7, **changes}


def test_a_process_that_ended_keeps_what_it_counted_and_holds_nothing() -> None:
    figures = loaded(2, uptime=8.0)
    left = counted_only(figures)
    held = ("uptime", "connections", "pending", "held_bytes", "unread_bytes")
    assert left == {**figures, **dict.fromkeys(held, 0), "tails": [{**figures["tails"][0], "waiting": 0, "running": 0}]}
    artifact = figures["tails"][0]["artifact"]
    assert (len(only(figures, {artifact})["tails"]), only(figures, {"another"})["tails"]) == (1, [])


def test_fronts_count_requests_and_the_keeper_knows_how_busy_a_tail_is() -> None:
    fronts, keeper = loaded(4), measured(7)
    keeper["tails"][0].update({"waiting": 10, "running": 1, "busy_seconds": 9.0, "batch_sizes": {"4": 1}})
    (tail,) = behind(fronts, keeper)["tails"]
    assert (tail["requests"], tail["waiting"], tail["running"], tail["busy_seconds"]) == (4, 13, 1, 9.0)
    assert tail["batch_sizes"] == {"4": 1}
    (alone,) = behind(fronts, {**keeper, "tails": []})["tails"]
    assert (alone["requests"], alone["waiting"], alone["running"], alone["busy_seconds"]) == (4, 3, 0, 0.0)


def test_a_server_is_as_old_as_its_oldest_process_and_ready_when_all_are() -> None:
    one, other = loaded(1, uptime=8.0), loaded(1, uptime=3.0, ready=False)
    figures = merge([one, other], processes=2)
    assert (figures["uptime"], figures["ready"], figures["pending"]) == (8.0, False, 10)


def test_a_tail_without_a_name_is_told_all_the_same() -> None:
    with serve(Echo()) as server:
        (tail,) = figures_of(server.stats(), {})["tails"]
    assert (tail["artifact"], tail["model"], tail["split"]) == (ID.hex()[:8], "", "")


def test_prometheus_reads_the_same_numbers() -> None:
    figures = measured(10)
    figures["tails"][0]["errors"] = {"busy": 3}
    figures["tails"][0]["batch_sizes"] = {"1": 4, "3": 2, "200": 1}
    figures["tails"][0].update({"bytes_out": 90, "busy_seconds": 1.5, "latency_seconds": 2.5, "waiting": 8})
    found = samples(exposition(figures))
    expected: dict[str, Any] = {
        "compoff_ready": 1,
        "compoff_requests_total": 10,
        "compoff_replies_total": 10,
        "compoff_errors_total busy": 3,
        "compoff_received_bytes_total": 70,
        "compoff_latency_seconds_count": 10,
        "compoff_latency_seconds_bucket +Inf": 10,
        "compoff_batch_requests_bucket 1": 4,
        "compoff_batch_requests_bucket 2": 4,
        "compoff_batch_requests_bucket 4": 6,
        "compoff_batch_requests_bucket 128": 6,
        "compoff_batch_requests_bucket +Inf": 7,
        "compoff_batch_requests_count": 7,
        "compoff_batch_requests_sum": 210,
        "compoff_sent_bytes_total": 90,
        "compoff_tail_busy_seconds_total": 1.5,
        "compoff_latency_seconds_sum": 2.5,
        "compoff_waiting_requests": 8,
    }
    assert {name: found[name] for name in expected} == expected


def test_a_strange_name_breaks_nothing() -> None:
    figures = measured(1)
    figures["tails"][0]["model"] = 'a"b\\c\nd'
    (family,) = [family for family in text_string_to_metric_families(exposition(figures).decode())
                 if family.name == "compoff_requests"]  # fmt: skip
    assert family.samples[0].labels["model"] == 'a"b\\c\nd'
