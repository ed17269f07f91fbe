"""TensorRT's one logger: it speaks to whoever listens, and nothing that is raised there arrives in C++."""

from __future__ import annotations

import threading
from types import ModuleType

import pytest

from deploykit.trt.log import Messages, hearing, logger


def test_there_is_one_logger_and_it_speaks_to_whoever_listens(stand_in: ModuleType) -> None:
    first, second = Messages(), Messages()
    severity = stand_in.ILogger.Severity
    log = logger()
    assert logger() is log
    log.log(severity.ERROR, "nobody listens")
    with hearing(first):
        log.log(severity.ERROR, "the first")
        with hearing(second):
            log.log(severity.WARNING, "the second's")
            log.log(severity.INFO, "that nobody asked for")
            # TensorRT builds in threads of its own, which never began to listen.
            builder = threading.Thread(target=log.log, args=(severity.ERROR, "of a thread of TensorRT's"))
            builder.start()
            builder.join()
        log.log(severity.ERROR, "the first again")
    assert (first.errors, first.warnings) == (["the first", "the first again"], [])
    assert (second.errors, second.warnings) == (["of a thread of TensorRT's"], ["the second's"])


def test_who_listens_in_a_thread_hears_that_thread(stand_in: ModuleType) -> None:
    here, there = Messages(), Messages()
    log = logger()

    def other() -> None:
        with hearing(there):
            both.wait()
            log.log(stand_in.ILogger.Severity.ERROR, "there")
            both.wait()

    both = threading.Barrier(2, timeout=10)
    with hearing(here):
        thread = threading.Thread(target=other)
        thread.start()
        both.wait()
        log.log(stand_in.ILogger.Severity.ERROR, "here")
        both.wait()
        thread.join()
    assert (here.errors, there.errors) == (["here"], ["there"])


def test_what_is_raised_in_the_logger_is_raised_afterwards(
    stand_in: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    messages = Messages()
    monkeypatch.setattr(Messages, "take", interrupted)
    reached = False
    with pytest.raises(KeyboardInterrupt), hearing(messages):
        logger().log(stand_in.ILogger.Severity.ERROR, "while Ctrl-C is pressed")
        reached = True
    assert reached
    assert messages.stopped == []
