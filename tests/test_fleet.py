"""The training processes and the queue before them: order, leaving, pausing, rewinding, crashes, limits, disobedience.

One fleet with one place serves nearly all tests, since a process takes seconds to start.
"""

import io
import json
import os
import queue
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from spectral_core.demo import worker as worker_module
from spectral_core.demo.fleet import Fleet
from spectral_core.demo.race import Race
from spectral_core.demo.settings import ROLES, Settings, to_query
from spectral_core.demo.worker import Worker

PLAIN = Settings(arms=("plain",))
TWO = Settings(arms=("plain", "shaped"), kind="identity", lam=dict.fromkeys(ROLES, 1.0))
LONG = 60  # seconds: generous, for a loaded machine


def wait_for(condition, seconds=LONG):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def frames_of(ticket, step, seconds=LONG):
    """All frames until the whole one at `step`."""
    got = []

    def done():
        got.extend(ticket.take())
        return any(f["step"] >= step and is_whole(f) for f in got) or ticket.state == "ended"

    wait_for(done, seconds)
    assert ticket.state != "ended", ticket.why
    return got


def frames_after_turning_back(ticket, step):
    """As `frames_of`, without those that were on their way before: the first of the new ones says `changed`."""
    got = []

    def done():
        got.extend(ticket.take())
        while got and not got[0]["changed"]:
            got.pop(0)
        return any(f["step"] >= step and is_whole(f) for f in got)

    wait_for(done)
    return got


def all_until_quiet(ticket):
    got, last = [], time.monotonic()
    while time.monotonic() - last < 1.0:
        if fresh := ticket.take():
            got, last = got + fresh, time.monotonic()
        time.sleep(0.01)
    return got


def is_whole(frame):
    return all(v["loss"] is not None for v in frame["arms"].values())


def whole(frames):
    return {frame["step"]: frame["arms"] for frame in frames if is_whole(frame)}


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="module")
def shared():
    made = Fleet(1)
    yield made
    pids = [process.pid for process in made._processes]
    made.close()
    wait_for(lambda: not any(map(is_alive, pids)))  # no process is left
    assert made._processes


@pytest.fixture
def fleet(shared):
    shared.seconds, shared.idle, shared.obey = 300.0, 30.0, 5.0
    tickets, enter = [], shared.enter

    def remembered(settings):
        tickets.append(enter(settings))
        return tickets[-1]

    shared.enter = remembered
    yield shared
    shared.enter = enter
    for ticket in tickets[::-1]:
        ticket.leave()
    wait_for(lambda: not shared._processes or not shared._processes[0].is_stopping)
    assert shared.waiting == []


def pid(fleet):
    return fleet._processes[0].pid


def race(settings, count):
    made = Race(settings)
    out = {0: made.frame()["arms"]}
    for _ in range(count):
        frame = made.advance()
        out[frame["step"]] = frame["arms"]
    return out


# ---- the queue


def test_first_come_first_served(fleet):
    first, second, third = (fleet.enter(replace(PLAIN, seed=seed)) for seed in (1, 2, 3))
    assert [t.state for t in (first, second, third)] == ["running", "waiting", "waiting"]
    assert [t.ahead for t in (first, second, third)] == [0, 0, 1]
    frames_of(first, 5)
    first.leave()
    first.take()
    assert (first.state, first.why) == ("ended", "stopped")
    got = frames_of(second, 0)
    assert (second.state, third.state, third.ahead) == ("running", "waiting", 0)
    assert got[0]["arms"] == race(replace(PLAIN, seed=2), 0)[0]  # none of the first run's frames
    assert first.take() == []
    second.leave()
    assert frames_of(third, 0)[0]["arms"] == race(replace(PLAIN, seed=3), 0)[0]


def test_who_leaves_the_queue_makes_room_in_it(fleet):
    running, second, third = (fleet.enter(PLAIN) for _ in range(3))
    second.leave()
    assert (second.state, second.why, third.ahead) == ("ended", "stopped", 0)
    second.leave()  # again: nothing happens
    frames_of(running, 0)
    running.leave()
    wait_for(lambda: third.state == "running")
    frames_of(third, 0)
    assert second.take() == []


def test_a_stopped_run_frees_its_place_within_a_second(fleet):
    running, second = fleet.enter(replace(TWO, arms=("plain", "shaped", "identity", "polar"))), fleet.enter(PLAIN)
    frames_of(running, 5)
    start = time.monotonic()
    running.leave()
    wait_for(lambda: second.state == "running")
    assert time.monotonic() - start < 1.0
    running.take()
    frames_of(second, 0)
    assert running.take() == []  # nothing more comes of it


# ---- a run


def test_a_run_is_a_race(fleet):
    ticket = fleet.enter(TWO)
    got = frames_of(ticket, 10)
    assert {step: arms for step, arms in whole(got).items() if step <= 10} == race(TWO, 2)
    assert any(not is_whole(frame) for frame in got)  # arm by arm
    assert not ticket.is_over()
    assert ticket.can_go_on()


def test_paused_turned_back_and_resumed_it_is_as_if_undisturbed(fleet):
    ticket = fleet.enter(TWO)
    got = frames_of(ticket, 10)
    ticket.pause()
    ticket.pause()
    assert (ticket.state, ticket.can_go_on(), ticket.is_over()) == ("paused", True, False)
    got += all_until_quiet(ticket)
    assert max(whole(got)) < 300
    assert ticket.state == "paused"
    ticket.resume()
    reached = max(whole(got)) + 5
    got += frames_of(ticket, reached)
    ticket.rewind(5)  # while it runs: it pauses there
    assert ticket.state == "paused"
    ticket.resume()
    again = frames_after_turning_back(ticket, 15)
    undisturbed = race(TWO, reached // 5)
    assert {s: a for s, a in whole(got).items() if s <= reached} == undisturbed
    assert {s: a for s, a in whole(again).items() if s <= 15} == {s: undisturbed[s] for s in (10, 15)}
    assert next(f for f in again if is_whole(f))["changed"]


def test_settings_reach_a_run_that_is_paused(fleet):
    ticket = fleet.enter(TWO)
    frames_of(ticket, 5)
    ticket.rewind(5)
    moved = replace(TWO, lam=dict.fromkeys(ROLES, 3.0))
    ticket.update(moved)
    ticket.resume()
    frame = next(f for f in frames_after_turning_back(ticket, 10) if is_whole(f))
    assert (frame["step"], frame["changed"], frame["query"]) == (10, True, to_query(moved))
    driven = Race(TWO)
    driven.advance()
    driven.update(moved)
    assert frame["arms"] == driven.advance()["arms"]


def test_settings_changed_while_waiting_are_those_of_the_start(fleet):
    running, second = fleet.enter(PLAIN), fleet.enter(PLAIN)
    second.update(replace(PLAIN, seed=8))
    running.leave()
    assert frames_of(second, 0)[0]["arms"] == race(replace(PLAIN, seed=8), 0)[0]


def test_no_roles_are_no_roles_in_the_other_process_too(fleet):
    ticket = fleet.enter(replace(TWO, roles=""))
    arms = whole(frames_of(ticket, 5))[5]
    assert arms["plain"] == arms["shaped"]


def test_a_run_that_has_ended_has_no_say_in_the_next_one(fleet):
    first, second = fleet.enter(TWO), fleet.enter(TWO)
    frames_of(first, 0)
    first.leave()
    wait_for(lambda: second.state == "running")
    first.update(replace(TWO, kind="polar"))
    first.rewind(0)
    first.pause()
    first.resume()
    assert (first.state, first.why, second.state) == ("ended", "stopped", "running")
    got = frames_of(second, 10)
    assert {step: arms for step, arms in whole(got).items() if step <= 10} == race(TWO, 2)
    assert not any(frame["changed"] for frame in got)


# ---- limits


def test_a_paused_run_gives_way_when_someone_waits_for_long(fleet):
    fleet.idle = 0.3
    ticket = fleet.enter(PLAIN)
    frames_of(ticket, 0)
    ticket.pause()
    time.sleep(1.0)
    assert ticket.state == "paused"  # nobody waits
    second = fleet.enter(PLAIN)
    wait_for(lambda: ticket.state == "ended")
    assert ticket.why == "others were waiting"
    frames_of(second, 0)
    fleet.enter(PLAIN)
    time.sleep(0.8)
    assert second.state == "running"  # one at work keeps its place


def test_a_finished_run_keeps_its_place_until_someone_comes(fleet):
    ticket = fleet.enter(PLAIN)
    frames_of(ticket, 0)
    process = fleet._processes[0]
    fleet.hear(process, {"id": process.number, "ended": "finished"})
    assert (ticket.state, ticket.why, ticket.is_over(), ticket.can_go_on()) == ("finished", "finished", True, True)
    time.sleep(0.5)
    assert ticket.state == "finished"
    second = fleet.enter(PLAIN)  # at once, whatever `idle`
    assert (ticket.state, ticket.why) == ("ended", "others were waiting")
    frames_of(second, 0)


def test_a_run_ends_after_its_time_at_work(fleet):
    ticket = fleet.enter(PLAIN)
    frames_of(ticket, 0)
    ticket.pause()
    fleet.seconds = 0.5 + ticket._ran
    time.sleep(1.2)
    assert ticket.state == "paused"  # rest does not count
    ticket.resume()
    wait_for(lambda: ticket.state == "ended")
    assert ticket.why == "time"
    fleet.seconds = 300.0
    frames_of(fleet.enter(PLAIN), 0)


# ---- processes that fail


def test_a_process_that_is_killed_fails_its_run_alone(fleet):
    ticket, second = fleet.enter(PLAIN), fleet.enter(replace(PLAIN, seed=4))
    frames_of(ticket, 0)
    old = pid(fleet)
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: ticket.state == "ended")
    assert ticket.why == "failed: the training process ended unexpectedly"
    assert frames_of(second, 0)[0]["arms"] == race(replace(PLAIN, seed=4), 0)[0]
    assert pid(fleet) != old
    assert len(fleet._processes) == 1


def test_a_process_that_does_not_obey_is_replaced(fleet):
    fleet.obey = 0.5
    ticket, second = fleet.enter(PLAIN), fleet.enter(replace(PLAIN, seed=5))
    frames_of(ticket, 0)
    old = pid(fleet)
    os.kill(old, signal.SIGSTOP)  # it hears nothing
    ticket.leave()
    assert ticket.why == "stopped"
    assert second.state == "waiting"
    wait_for(lambda: second.state == "running")
    assert not is_alive(old)
    assert frames_of(second, 0)[0]["arms"] == race(replace(PLAIN, seed=5), 0)[0]
    assert (ticket.state, ticket.why) == ("ended", "stopped")  # the first reason stays


def test_a_run_that_fails_in_its_process_says_why_and_frees_it(fleet):
    ticket, second = fleet.enter(PLAIN), fleet.enter(PLAIN)
    frames_of(ticket, 0)
    process, old = fleet._processes[0], pid(fleet)
    fleet.hear(process, {"id": process.number, "ended": "failed: RuntimeError: no memory"})
    assert (ticket.state, ticket.why) == ("ended", "failed: RuntimeError: no memory")
    frames_of(second, 0)
    assert pid(fleet) == old


def test_answers_of_an_earlier_run_are_not_heard(fleet):
    ticket = fleet.enter(PLAIN)
    frames_of(ticket, 0)
    ticket.pause()
    all_until_quiet(ticket)
    process = fleet._processes[0]
    for stale in ({"id": process.number - 1, "frame": {"step": 999}}, {"id": process.number - 1, "ended": "finished"},
                  {"error": "expected one of …"}, {"id": None, "ended": "stopped"}):
        fleet.hear(process, stale)
    assert ticket.take() == []
    assert ticket.state == "paused"


def test_frames_from_before_a_rewind_are_dropped(fleet):
    ticket = fleet.enter(PLAIN)
    frames_of(ticket, 5)
    ticket.rewind(0)
    process = fleet._processes[0]
    fleet.hear(process, {"id": process.number, "epoch": 0, "frame": {"step": 999}})
    fleet.hear(process, {"id": process.number, "epoch": 0, "ended": "finished"})
    assert ticket.take() == []
    assert ticket.state == "paused"
    ticket.resume()
    assert frames_of(ticket, 5)[0]["step"] == 5


def test_a_process_that_reads_no_more_stops_no_slider(fleet):
    ticket = fleet.enter(PLAIN)
    frames_of(ticket, 0)
    old = pid(fleet)
    os.kill(old, signal.SIGSTOP)
    long = replace(PLAIN, drawn=dict.fromkeys(ROLES, tuple(i / 10 for i in range(32, 0, -1))))
    began = time.monotonic()
    for _ in range(1000):  # several times what a pipe holds
        ticket.update(long)
    assert time.monotonic() - began < 2
    wait_for(lambda: ticket.state == "ended")
    assert ticket.why == "failed: the training process ended unexpectedly"
    assert not is_alive(old)


def test_a_closed_fleet_starts_nothing():
    closed = Fleet(2)
    closed.close()
    ticket = closed.enter(PLAIN)
    assert closed._processes == []
    assert (ticket.state, ticket.why) == ("ended", "stopped")


# ---- the worker: one real process, and one without a process


def test_lines_that_mean_nothing_are_answered_and_survived():
    process = subprocess.Popen([sys.executable, "-m", "spectral_core.demo.worker"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
    run = json.dumps({"run": "arms=plain&seed=1", "id": 7}).encode()
    garbage = [b"garbage", b"\xff\xfe", b"[1, 2]", b"3", b"{}", b'{"what": 1}', b"[" * 100_000, b""]
    lines = [*garbage, run, b'{"rewind": 7}', b'{"rewind": []}', *garbage, b'{"stop": true}', b""]
    process.stdin.write(b"\n".join(lines))
    process.stdin.flush()
    answers = []
    while not answers or answers[-1].get("ended") != "stopped":
        answers.append(json.loads(process.stdout.readline()))
    process.stdin.close()  # the process ends with its input
    assert process.wait(LONG) == 0
    errors = [answer["error"] for answer in answers if "error" in answer]
    wanted = "expected one of run, settings, pause, rewind, stop, got "
    said = [f"{wanted}{names}" for names in (["unreadable"],) * 4 + ([], ["what"]) + (["unreadable"],) * 2]
    back = ["expected a step with a frame, 0 to 0 by 5, got 7", "unhashable type: 'list'"]
    assert errors[: len(said)] == said
    assert errors[-len(said) :] == said
    assert len(errors) == 2 * len(said) + len(back)
    assert errors[len(said)].startswith("expected a step with a frame, 0 to ")
    assert errors[len(said) + 1] == back[1]
    assert answers[len(said)]["id"] == 7
    assert answers[len(said)]["frame"]["arms"] == race(Settings(arms=("plain",), seed=1), 0)[0]
    assert answers[-1] == {"id": 7, "epoch": 0, "ended": "stopped"}


class Bench:
    """A worker without a process."""

    def __init__(self):
        self.out, self.commands = io.StringIO(), queue.Queue()
        self.worker = Worker(self.commands, self.out)

    def say(self, **command):
        """The answers to one command."""
        self.out.seek(0)
        self.out.truncate()
        self.worker.obey(command)
        return self.answers()

    def advance(self):
        self.out.seek(0)
        self.out.truncate()
        self.worker._advance()
        return self.answers()

    def answers(self):
        return [json.loads(line) for line in self.out.getvalue().splitlines()]


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(worker_module, "Race", lambda settings: Race(settings, steps=10))
    return Bench()


RUN = "arms=plain,shaped&kind=identity&seed=0"


def test_a_finished_race_can_be_turned_back_and_run_again(bench):
    [start] = bench.say(run=RUN, id=1)
    assert (start["id"], start["frame"]["step"]) == (1, 0)
    assert [a["frame"]["step"] for a in bench.advance()] == [5, 5]
    *frames, end = bench.advance()
    assert [a["frame"]["step"] for a in frames] == [10, 10]
    assert end == {"id": 1, "epoch": 0, "ended": "finished"}
    assert bench.say(pause=False) == [{"id": 1, "epoch": 0, "ended": "finished"}]  # there is nothing to go on with
    assert bench.say(pause=True) == bench.say(rewind=5) == bench.say(pause=False) == []
    again = bench.advance()
    assert [a["frame"]["arms"] for a in again[:2]] == [a["frame"]["arms"] for a in frames]
    assert again[-1] == end


def test_a_new_run_ends_the_one_before(bench):
    bench.say(run=RUN, id=1)
    stopped, start = bench.say(run="arms=plain&seed=2", id=2)
    assert stopped == {"id": 1, "epoch": 0, "ended": "stopped"}
    assert (start["id"], list(start["frame"]["arms"])) == (2, ["plain"])
    assert bench.say(stop=True) == [{"id": 2, "epoch": 0, "ended": "stopped"}]


def test_commands_without_a_run_are_late_and_do_nothing(bench):
    for command in ({"stop": True}, {"pause": True}, {"rewind": 5}, {"settings": "kind=polar"}):
        assert bench.say(**command) == []
    said = "expected one of run, settings, pause, rewind, stop, got ['what']"
    assert bench.say(what=1) == [{"error": said}]


def test_a_race_that_cannot_be_made_or_goes_wrong_fails_alone(bench, monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory " * 100)

    bench.say(run=RUN, id=1)
    with monkeypatch.context() as patch:
        patch.setattr(Race, "go", fail)
        [end] = bench.advance()
    assert end == {"id": 1, "epoch": 0, "ended": "failed: RuntimeError: " + ("no memory " * 100)[:200]}
    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "Race", fail)
        assert bench.say(run=RUN, id=2)[0]["ended"].startswith("failed: RuntimeError: no memory")
    assert bench.say(run=RUN, id=3)[0]["frame"]["step"] == 0


def test_a_stop_need_not_wait_for_all_arms(bench):
    bench.say(run=RUN, id=1)
    bench.commands.put({"stop": True})
    assert len(bench.advance()) == 1
    assert bench.say(stop=True) == [{"id": 1, "epoch": 0, "ended": "stopped"}]


def test_a_race_takes_any_address(bench):
    for i, query in enumerate(("", "%%%", "seed=nan&arms=&kind=7", "=&=&&;", "arms=plain&drawn_q=" + "9" * 5000)):
        answers = bench.say(run=query, id=i)
        assert answers[-1]["frame"]["step"] == 0
        assert bench.say(settings=query) == []
