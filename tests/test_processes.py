"""What several processes agree on: threads stand for the processes, and a dictionary for the coordinator's store."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from diffusion_jax import processes
from diffusion_jax.errors import CheckpointError, DiffusionError


class Store:
    """The coordinator's: a key that is asked for is waited for."""

    def __init__(self):
        self._kept, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self._changed:
            assert key not in self._kept
            self._kept[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._kept, 10)
            return self._kept[key]


@pytest.fixture
def together(monkeypatch):
    """Call a function of the process's number in three processes, and return what each gives or raises."""
    here, store = threading.local(), Store()

    class Distributed:
        @property
        def global_state(self):
            return SimpleNamespace(client=store, process_id=here.number, num_processes=3)

    class Rounds:
        def __next__(self):
            return next(here.rounds)

    monkeypatch.setattr(processes, "distributed", Distributed())
    monkeypatch.setattr(processes, "_rounds", Rounds())

    def one(number, work, first):
        here.number, here.rounds = number, itertools.count(first)
        try:
            return work(number)
        except Exception as error:
            return error

    def run(work, firsts=itertools.count(0, 100)):  # noqa: B008
        with ThreadPoolExecutor(3) as pool:
            return list(pool.map(one, range(3), [work] * 3, [next(firsts)] * 3))

    return run


def test_the_first_process_decides(together):
    def work(number):
        return [processes.decide({"n": number}, lambda given: sum(d["n"] for d in given)), processes.decide(0, len)]

    assert together(work) == [[3, 3]] * 3


def test_what_the_first_process_refuses_all_refuse(together):
    def refuse():
        raise CheckpointError("not here")

    found = together(lambda number: processes.by_first(refuse))
    assert [type(error) for error in found] == [CheckpointError] * 3 and {str(error) for error in found} == {"not here"}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 1, "data": {"batch": 8}}, "seed is 0 in process 0, 1 in process 2"),
        ({"seed": 0, "data": {"batch": 16}}, "data.batch is 8 in process 0, 16 in process 2"),
        ({"seed": 0, "data": {"batch": 8}, "more": True}, "more is 'absent' in process 0, True in process 2"),
        ({"seed": 0, "data": {}}, "data.batch is 8 in process 0, 'absent' in process 2"),
    ],
)
def test_the_first_difference_is_named_everywhere(together, other, message):
    first = {"seed": 0, "data": {"batch": 8}}
    assert together(lambda number: processes.check_alike("the configuration", first)) == [None] * 3
    found = together(lambda number: processes.check_alike("what is trained", other if number == 2 else first))
    assert {type(error) for error in found} == {DiffusionError}
    assert {str(error).startswith(f"the processes differ in what is trained: {message}; start all") for error in found} == {
        True
    }


def test_one_process_alone():
    assert processes.decide(3, lambda given: given) == [3]
    processes.check_alike("anything", {"seed": 0})
    assert not processes.is_lost_peer(RuntimeError("Gloo: connection closed by peer"))
