"""The kernel's accounts of a thread, as the host's meter reads them."""

from __future__ import annotations

import gc
import threading
import time

from kelpie.host.meter import HostMeter


def test_what_a_thread_computes_waits_and_collects_is_told_apart() -> None:
    meter = HostMeter()
    before = meter.read()
    until_ns = time.thread_time_ns() + 20_000_000
    while time.thread_time_ns() < until_ns:
        pass
    computed = meter.read()
    assert computed.cpu_ns - before.cpu_ns >= 20_000_000
    assert computed.queued_ns >= before.queued_ns >= 0
    threading.Event().wait(0.01)
    waited = meter.read()
    assert waited.waits > computed.waits
    assert waited.cpu_ns - computed.cpu_ns < 10_000_000
    gc.collect()
    assert meter.read().collecting_ns > waited.collecting_ns
    meter.close()


def test_a_closed_meter_leaves_no_hook_behind() -> None:
    before = list(gc.callbacks)
    meter = HostMeter()
    assert len(gc.callbacks) == len(before) + 1
    meter.close()
    meter.close()
    assert gc.callbacks == before
    heard_ns = meter.read().collecting_ns
    gc.collect()
    assert meter.read().collecting_ns == heard_ns, "it hears of no collection any more"
