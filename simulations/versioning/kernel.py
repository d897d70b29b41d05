"""The event loop of the default model, in plain Python that numba compiles as it stands.

Requests come in order of dispatch, with all times drawn beforehand, and a worker's server is given
to a request as it is dispatched, so most requests are one event. The heap holds what the rest
needs: writes of renewed profiles, renewals in the background, requests that are sent again, and
handshakes. What can never be reached lies at infinity.

Profiles are sets of versions in an int: bit v stands for a profile of version v. Arguments are
lists in plain Python and arrays under numba, whichever is faster there.
"""

from __future__ import annotations

import heapq
import math
from typing import Any

# Kinds of events on the heap, in the order in which they happen at one time.
_WRITE, _WAKE, _RENEW, _AGAIN, _UPLOADED, _HANDSHAKE = range(6)
_GOLDEN = 0.6180339887498949  # multiples of it, modulo 1, fill the unit interval evenly

# Places in the counts that `serve` returns.
BACKWARD, FORWARD, FOREGROUND, BACKGROUND, FAILED = range(5)
COUNTS = 5


def serve(  # noqa: PLR0912, PLR0915 (one function: a call for each request would cost as much again)
    ready: Any,
    transfer: Any,
    user: Any,
    first: Any,
    second: Any,
    work: Any,
    upload: Any,
    workers: int,
    concurrency: int,
    changes: int,
    change_at: Any,
    change_to: Any,
    polled_at: Any,
    polled_worker: Any,
    polled_version: Any,
    crash_from: Any,
    crash_until: Any,
    stop_from: Any,
    stop_until: Any,
    stop_version: Any,
    synchronised: bool,
    double: bool,
    keeps: bool,
    on_device: bool,
    handshake_s: float,
    newest: int,
    fetch_s: float,
    compute_s: float,
    write_s: float,
    timeout_s: float,
    retries: int,
    end_s: float,
    bin_s: float,
    profile: Any,
    phase: Any,
    free: Any,
    attempts: Any,
    table: Any,
    candidates: Any,
    arrived: Any,
    start: Any,
    end: Any,
    served_by: Any,
    scored: Any,
    renewals: Any,
    background_s: Any,
    pending: Any,
    crashed: Any,
    head: Any,
    tail: Any,
    count: Any,
) -> float:
    """Serve all requests; return when all profiles became of the newest version, or -1.

    Args, in order, each list of one element a request, worker, user or event:
        ready, transfer, user, second, work, upload (requests,): when the frontend dispatches it,
            seconds to the worker, whose it is, a uniform number, seconds of computing, and
            seconds until a device's enrolment audio is there once it was asked for.
        first (requests,): the worker it is meant for.
        concurrency: servers a worker; 0: infinite.
        change_*: updates, `changes` a worker. polled_*: what the frontend learns, and infinity.
        crash_* : crashes, equally many a worker, the last at infinity.
        stop_*: when the service is stopped, what all workers and profiles are of afterwards, and
            infinity.
        synchronised, double, keeps, on_device, handshake_s: the strategy; 0: no handshake.
        newest: version that all profiles should have.
        fetch_s, compute_s, write_s: parts of a re-enrolment.
        timeout_s, retries: until a lost request is sent again, and how often.
        end_s, bin_s: end of the run, and length of the parts that `background_s` counts in.
        profile, phase (users,): profiles; first handshake.
        The rest is room for what is found: free (workers * servers,), attempts (requests,), table
        and candidates (workers,): the polled versions, and the workers by these, or those that
        have the newest version; arrived, start, end, served_by, scored, renewals (requests,): at
        the worker, in service, done or -1 where failed, by whom, the set of profiles that may be
        scored, of which the newest is, and re-enrolments that it set off; background_s (workers *
        bins,): time spent on re-enrolments in the background; pending (users,): versions being
        renewed; crashed (workers,): crashes seen; head, tail (workers,): ends of the line of
        waiting renewals, -1 where there is none; count: as the constants of this module say.
    """
    requests, users = len(ready), len(profile)
    servers = max(concurrency, 1)
    crashes = len(crash_from) // workers
    faulty = crashes > 1
    bins = len(background_s) // workers
    bit = 1 << newest
    current = 0
    for u in range(users):
        if profile[u] & bit:
            current += 1
    consistent = 0.0 if current == users else -1.0
    heap = [(math.inf, 0, 0, 0, 0)]  # (time, kind, request or user, worker, version)
    if handshake_s > 0.0:
        for u in range(users):
            heapq.heappush(heap, (phase[u], _HANDSHAKE, u, 0, 0))
    waiting = [(0, 0, 0)]  # renewals in line: (request or -1 - user, version, who is behind or -1)
    next_change, leading, leaders = 0.0, 0, 0
    next_event = heap[0][0]
    next_request = polled = stop = 0
    in_order = True
    while True:
        if next_request < requests and ready[next_request] < next_event:
            i = next_request
            t = ready[i]
            w = first[i]
            kind, v = _AGAIN, 0
            next_request += 1
        else:
            if len(heap) == 1:
                break
            t, kind, i, w, v = heapq.heappop(heap)
            next_event = heap[0][0]

        while stop_until[stop] <= t:  # the service is back, with all workers and profiles renewed
            v_all = stop_version[stop]
            for u in range(users):
                profile[u] = 1 << v_all
            current = users if v_all == newest else 0
            consistent = stop_until[stop] if v_all == newest else -1.0
            stop += 1

        if kind == _WRITE:
            before = profile[i]
            after = before | (1 << v) if keeps else 1 << v
            profile[i] = after
            pending[i] &= ~(1 << v)
            if (before ^ after) & bit:
                if after & bit:
                    current += 1
                    if current == users:
                        consistent = t
                else:
                    current -= 1
                    consistent = -1.0
            continue

        if kind == _HANDSHAKE:
            if t + handshake_s < end_s:
                heapq.heappush(heap, (t + handshake_s, _HANDSHAKE, i, 0, v + 1))
            if t >= next_change:  # who has the newest version is another question now
                leading, leaders, next_change = 0, 0, math.inf
                for other in range(workers):
                    version = 1
                    for k in range(other * changes, other * changes + changes):
                        if change_at[k] <= t:
                            version = change_to[k]
                        elif change_at[k] < next_change:
                            next_change = change_at[k]
                    if version > leading:
                        leading, leaders = version, 0
                    if version == leading:
                        candidates[leaders] = other
                        leaders += 1
            turn = phase[i] / handshake_s + _GOLDEN * v
            w = candidates[int((turn - math.floor(turn)) * leaders)]
            version = leading
            if not (profile[i] | pending[i]) & (1 << version):
                pending[i] |= 1 << version
                # A handshake has no request; -1 - user stands for it.
                heapq.heappush(heap, (t + fetch_s, _RENEW, -1 - i, w, version))
            next_event = heap[0][0]
            continue

        if kind == _RENEW:
            waiting.append((i, v, -1))
            node = len(waiting) - 1
            if head[w] >= 0:  # the first in the line looks after those behind it
                before_i, before_v, _ = waiting[tail[w]]
                waiting[tail[w]] = (before_i, before_v, node)
                tail[w] = node
                next_event = heap[0][0]
                continue
            head[w] = tail[w] = node

        if kind in (_RENEW, _WAKE):
            version = 1
            for k in range(w * changes, w * changes + changes):
                if change_at[k] <= t:
                    version = change_to[k]
            while head[w] >= 0:
                i, v, behind = waiting[head[w]]
                u = user[i] if i >= 0 else -1 - i
                begin = t
                server = w * servers
                if concurrency > 0:
                    for k in range(w * servers + 1, w * servers + servers):
                        if free[k] < free[server]:
                            server = k
                    begin = max(t, free[server])  # requests go first
                down = w * crashes
                while crash_until[down] <= begin:
                    down += 1
                if crash_from[down] < begin + compute_s:
                    begin = max(begin, crash_until[down])
                if begin > t:
                    heapq.heappush(heap, (begin, _WAKE, 0, w, 0))
                    break
                head[w] = behind
                if (version != v and not (double and version == v + 1)) or profile[u] & (1 << v):
                    pending[u] &= ~(1 << v)  # the model is gone, or a profile is already there
                    continue
                if concurrency > 0:
                    free[server] = t + compute_s
                count[BACKGROUND] += 1
                if i >= 0:
                    renewals[i] += 1
                part = int(t / bin_s)
                while part < bins and part * bin_s < t + compute_s:
                    overlap = min(t + compute_s, (part + 1) * bin_s) - max(t, part * bin_s)
                    background_s[w * bins + part] += overlap
                    part += 1
                heapq.heappush(heap, (t + compute_s + write_s, _WRITE, u, 0, v))
            next_event = heap[0][0]
            continue

        # A request: sent for the first time, again, or with the enrolment audio of its user.
        u = user[i]
        has = profile[u]
        if synchronised and kind == _AGAIN:
            while polled_at[polled] <= t:
                table[polled_worker[polled]] = polled_version[polled]
                polled += 1
                in_order = False
            if has >> (table[w] + 1):  # newer than the worker is known to be
                if not in_order:
                    place = 0
                    for polled_as in range(3, 0, -1):  # the newest first
                        for other in range(workers):
                            if table[other] == polled_as:
                                candidates[place] = other
                                place += 1
                    in_order = True
                fit = 0
                while fit < workers and not has >> (table[candidates[fit]] + 1):
                    fit += 1
                if fit:
                    w = candidates[int(second[i] * fit)]
        arrival = t + transfer[i]
        begin = arrival
        server = w * servers
        if concurrency == 1:
            if free[w] > begin:  # noqa: PLR1730 (max costs more)
                begin = free[w]
        elif concurrency > 1:
            for k in range(server + 1, server + servers):
                if free[k] < free[server]:
                    server = k
            if free[server] > begin:  # noqa: PLR1730
                begin = free[server]
        if stop_from[stop] <= begin:  # what still waits is lost when the service stops
            end[i] = -1.0
            count[FAILED] += 1
            continue
        version = 1
        if stop:
            version = stop_version[stop - 1]
        for k in range(w * changes, w * changes + changes):
            if change_at[k] <= begin:
                version = change_to[k]
        have_now = 1 << version
        serves = have_now | (have_now >> 1) if double else have_now
        renews = not has & serves
        duration = work[i]
        if renews and (kind == _UPLOADED or not on_device):
            duration += compute_s if on_device else fetch_s + compute_s + write_s
        if faulty:
            down = w * crashes + crashed[w]
            while crash_until[down] <= arrival:
                down += 1
            crashed[w] = down - w * crashes
            if crash_from[down] < begin + duration:
                lost_at = max(arrival, crash_from[down])
                if concurrency > 0 and begin < crash_until[down]:
                    free[server] = crash_until[down]
                attempts[i] += 1
                if attempts[i] > retries:
                    end[i] = -1.0
                    count[FAILED] += 1
                else:
                    turn = second[i] + _GOLDEN * attempts[i]
                    other = w + 1 + int((turn - math.floor(turn)) * (workers - 1))
                    again = (lost_at + timeout_s, _AGAIN, i, other % workers, 0)
                    heapq.heappush(heap, again)
                    next_event = heap[0][0]
                continue
        if renews and kind == _AGAIN:
            if has > have_now:
                count[BACKWARD] += 1
            else:
                count[FORWARD] += 1
        if renews and on_device and kind == _AGAIN:
            heapq.heappush(heap, (begin + upload[i], _UPLOADED, i, w, 0))
            next_event = heap[0][0]
            continue
        done = begin + duration
        if concurrency > 0:
            free[server] = done
        arrived[i] = arrival
        start[i] = begin
        end[i] = done
        served_by[i] = w
        scored[i] = have_now if renews else has & serves
        if renews:
            count[FOREGROUND] += 1
            renewals[i] += 1
            written = done + write_s if on_device else done - work[i]
            heapq.heappush(heap, (written, _WRITE, u, 0, version))
            next_event = heap[0][0]
        elif double and not (has | pending[u]) & have_now:
            pending[u] |= have_now
            asked = upload[i] if on_device else fetch_s
            heapq.heappush(heap, (done + asked, _RENEW, i, w, version))
            next_event = heap[0][0]
    while stop_until[stop] < math.inf:  # stopped after the last request
        consistent = stop_until[stop] if stop_version[stop] == newest else -1.0
        stop += 1
    return consistent
