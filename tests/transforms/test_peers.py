"""Waiting for other processes: what ends this one if they take too long, and when nothing does."""

import threading
import time

import mlx.core as mx
import pytest

import frostleaf as fl
from frostleaf.transforms import peers


@pytest.fixture
def ended(monkeypatch):
    """Return the waits that would have ended the process, in a job of several processes that wait for 20 ms."""
    found = []
    monkeypatch.setattr(peers.Patience, "_end", lambda self: found.append(self))
    monkeypatch.setattr(peers, "_everywhere", [peers.Patience("an evaluation", 0.02)])
    monkeypatch.setattr(peers, "in_use", [object()])
    return found


def test_a_wait_that_is_too_long_ends_the_process(ended):
    with peers.waiting():
        time.sleep(0.2)
    assert ended == peers._everywhere


def test_a_short_one_does_not(ended):
    for _ in range(3):
        fl.eval(mx.ones(2) + 1)
    time.sleep(0.1)
    assert ended == []


def test_nor_one_that_was_interrupted(ended):
    with pytest.raises(KeyboardInterrupt), peers.waiting():
        raise KeyboardInterrupt
    time.sleep(0.1)
    assert ended == []


def test_nobody_is_waited_for_in_a_process_by_itself(ended, monkeypatch):
    monkeypatch.setattr(peers, "in_use", [])
    with peers.waiting():
        time.sleep(0.1)
    assert ended == []


def test_a_process_that_ends_evaluates_without_a_watch(ended, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    x = mx.ones(2) + 1
    fl.eval(x)
    assert x.tolist() == [2, 2]
