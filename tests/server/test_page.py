"""The pages say what the API says, to those who have logged in, and to nobody else."""

from __future__ import annotations

import html
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from page_server import HOSTILE, PageServer, page_server, settled
from version_repository import evaluated

from fedspk.api import Failure, Report
from server import registry
from server.page.access import COOKIE
from server.page.catalogue import Catalogue
from server.page.charts import Pages, Scale
from server.page.fleet import QUIET, Device
from server.registry import SESSION

PAGES = ("/", "/versions", "/versions/2", "/generators/1", "/rounds", "/devices", "/audit")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    """A server that all tests only read."""
    with page_server(tmp_path_factory.mktemp("server")) as made:
        yield settled(made)


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[PageServer]:
    """A server of the test's own, with nothing published."""
    with page_server(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def visitor(server: PageServer) -> httpx.Client:
    return server.visitor()


def text_of(visitor: httpx.Client, path: str) -> str:
    """Return what a page says, without its markup, in single spaces."""
    answer = visitor.get(path)
    assert answer.status_code == 200, answer.text
    text = html.unescape(re.sub(r"<[^>]*>", " ", answer.text.partition("</head>")[2]))
    return " ".join(text.split())


def row_of(text: str, first: str, following: str) -> str:
    return text.partition(first)[2].partition(following)[0]


def log_in(server: PageServer, token: str, **form: str) -> httpx.Response:
    return httpx.post(f"{server.address}/login", data={"token": token, **form})


# Who is let in


@pytest.mark.parametrize("path", [*PAGES, "/devices/" + "0" * 32, "/versions/999"])
@pytest.mark.parametrize("cookies", [{}, {COOKIE: "fedspk_" + "A" * 43}], ids=["none", "invented"])
def test_without_a_session_every_page_leads_to_the_login(
    server: PageServer, path: str, cookies: dict[str, str]
) -> None:
    with httpx.Client(base_url=server.address, cookies=cookies) as stranger:
        answer = stranger.get(path)
    assert answer.status_code == 303
    assert answer.headers["location"].partition("?")[0] == "/login"
    assert answer.content == b""


def test_a_cookie_carries_the_session_and_no_token(server: PageServer) -> None:
    cookie = log_in(server, server.tokens["viewer"]).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert server.tokens["viewer"] not in cookie


def test_behind_tls_the_cookie_never_travels_in_clear(server: PageServer) -> None:
    form = {"token": server.tokens["viewer"]}
    behind = {"X-Forwarded-Proto": "https"}
    answer = httpx.post(f"{server.address}/login", data=form, headers=behind)
    assert "Secure" in answer.headers["set-cookie"].split("; ")


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_viewers_and_operators_see_the_pages(server: PageServer, role: str) -> None:
    assert server.visitor(role).get("/").status_code == 200


@pytest.mark.parametrize("token", ["", "fedspk_wrong", "x" * 300])
def test_a_wrong_token_is_refused(server: PageServer, token: str) -> None:
    answer = log_in(server, token)
    assert answer.status_code == 401
    assert "No operator has this token" in answer.text
    assert "set-cookie" not in answer.headers


def test_an_aggregator_is_refused(server: PageServer) -> None:
    answer = log_in(server, server.tokens["aggregator"])
    assert answer.status_code == 401
    assert "aggregator" in answer.text
    assert "set-cookie" not in answer.headers


def test_after_the_login_comes_the_page_that_was_asked_for(server: PageServer) -> None:
    with httpx.Client(base_url=server.address, follow_redirects=True) as client:
        asked = client.get("/devices?state=failed&q=a+b")
        wanted = re.search(r'name="next" value="([^"]*)"', asked.text)
        assert wanted
        form = {"token": server.tokens["viewer"], "next": html.unescape(wanted[1])}
        answer = client.post("/login", data=form)
    assert str(answer.url) == f"{server.address}/devices?state=failed&q=a+b"


@pytest.mark.parametrize("elsewhere", ["//evil.example", "https://evil.example", "/\\evil.example"])
def test_the_login_leads_to_no_other_site(server: PageServer, elsewhere: str) -> None:
    answer = log_in(server, server.tokens["viewer"], next=elsewhere)
    assert answer.headers["location"] == "/"
    shown = httpx.get(f"{server.address}/login", params={"next": elsewhere})
    assert "evil" not in shown.text


@pytest.mark.parametrize("path", ["/login", "/logout"])
def test_forms_of_other_sites_are_refused(server: PageServer, path: str) -> None:
    answer = httpx.post(
        server.address + path,
        data={"token": server.tokens["viewer"]},
        headers={"Sec-Fetch-Site": "cross-site"},
    )
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("path", ["/login", "/logout"])
def test_a_form_is_answered_with_a_page_when_the_database_is_away(
    empty: PageServer, path: str, tmp_path: Path
) -> None:
    cookies = {COOKIE: "fedspk_" + "A" * 43}
    with sqlite3.connect(next(tmp_path.rglob("registry.sqlite"))) as registry:
        registry.execute("DROP TABLE sessions")
        registry.execute("DROP TABLE operators")
    with httpx.Client(base_url=empty.address, cookies=cookies) as browser:
        answer = browser.post(path, data={"token": empty.tokens["viewer"]})
    assert answer.status_code == 503
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "its log says why" in html.unescape(answer.text)


def test_a_long_form_is_refused(server: PageServer) -> None:
    assert log_in(server, "x" * 5000).status_code == 413


def test_logging_out_ends_the_session_for_every_copy_of_the_cookie(server: PageServer) -> None:
    client = server.visitor()
    copied = {COOKIE: client.cookies[COOKIE]}
    client.post("/logout")
    with httpx.Client(base_url=server.address, cookies=copied) as thief:
        assert thief.get("/").status_code == 303


def test_a_session_ends_by_itself(empty: PageServer) -> None:
    client = empty.visitor()
    client.follow_redirects = False
    empty.clock.ahead = SESSION - timedelta(minutes=1)
    assert client.get("/").status_code == 200
    empty.clock.ahead = SESSION + timedelta(minutes=1)
    assert client.get("/").status_code == 303


def test_a_removed_operator_sees_nothing_more(empty: PageServer) -> None:
    client = empty.visitor()
    client.follow_redirects = False
    empty.service.registry.remove_operator("the-viewer")
    assert client.get("/").status_code == 303


@pytest.mark.parametrize("path", [*PAGES, "/login", "/versions/999"])
def test_pages_are_kept_nowhere_and_load_nothing_foreign(visitor: httpx.Client, path: str) -> None:
    answer = visitor.get(path)
    assert answer.headers["cache-control"] == "no-store"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script|<style|\sstyle=|\son[a-z]+=", answer.text)


def test_the_stylesheet_may_be_kept(visitor: httpx.Client) -> None:
    address = re.search(r'href="(/page\.css[^"]*)"', visitor.get("/").text)
    assert address
    answer = visitor.get(address[1])
    assert answer.headers["content-type"].startswith("text/css")
    assert "immutable" in answer.headers["cache-control"]


# What the pages say


def test_the_fleet_is_that_of_the_api(server: PageServer, visitor: httpx.Client) -> None:
    fleet = server.api("fleet")
    said = row_of(text_of(visitor, "/"), "Fleet by version", "in all")
    for version, counts in fleet["versions"].items():
        total = sum(counts.values())
        assert re.search(rf"\b{version}\b (canary |stable )*{total}\b", said), (version, said)
    assert f"{fleet['total']} devices" in said
    assert fleet["versions"]["1"]["failed"] == 1
    assert "1 failed" in said


def test_the_overview_names_what_the_channels_name(
    server: PageServer, visitor: httpx.Client
) -> None:
    said = text_of(visitor, "/")
    for channel in server.api("channels")["channels"]:
        assert re.search(
            rf"{channel['name']} ([\d.]+ % of the devices )?version {channel['version']}\b", said
        )
    assert "canary 10 % of the devices" in said


def test_the_versions_are_those_of_the_api(server: PageServer, visitor: httpx.Client) -> None:
    said = row_of(text_of(visitor, "/versions"), "Speaker model", "Impostor generator")
    models = [each for each in server.api("versions")["versions"] if each["kind"] == "model"]
    assert [each["version"] for each in models] == [1, 2, 3, 4, 5]
    for each in models:
        evaluation = each["evaluation"]
        if evaluation:
            low, high = evaluation["eer_interval"]
            assert f"{evaluation['eer']:.2f} {low:.2f}\N{EN DASH}{high:.2f}" in said
        if each["training"]:
            assert f"{each['training']['survivors']} of 96" in said
    assert "3.5" in said  # epsilon


def test_a_version_shows_its_whole_manifest(server: PageServer, visitor: httpx.Client) -> None:
    manifest = server.api("versions/model/2")
    said = text_of(visitor, "/versions/2")
    for key, value in _leaves(manifest):
        if key in ("kind", "format", "created", "length", "cut", "delta"):
            continue
        assert _as_shown(key, value) in said, (key, value)


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _leaves(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from _leaves(each, key)
    elif value is not None and not isinstance(value, bool):
        yield key, value


def _as_shown(key: str, value: Any) -> str:
    if key == "false_accept_rate":
        return f"{100 * value:g} %"
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_a_version_is_compared_with_its_parent_as_by_the_api(
    server: PageServer, visitor: httpx.Client
) -> None:
    compared = server.api("versions/1/compare/2")
    said = text_of(visitor, "/versions/2")
    assert compared["eer_difference"] == -0.75
    assert "\N{MINUS SIGN}0.75 points against its parent; the intervals overlap" in said
    for each in compared["configuration"]:
        assert "".join(each["field"].split()) in said.replace(". ", ".").replace(" ", "")
    for pair in compared["thresholds"]:
        assert f"{pair['b']:.4f} {pair['a']:.4f}" in said


def test_error_rates_on_two_corpora_are_not_compared(visitor: httpx.Client) -> None:
    said = text_of(visitor, "/versions/4")
    assert "measured on another corpus" in said
    assert "points against" not in said


def test_a_version_that_was_never_evaluated_says_so(visitor: httpx.Client) -> None:
    assert "It has not been evaluated." in text_of(visitor, "/versions/3")


@pytest.mark.parametrize("path", ["/versions", "/versions/2", "/versions/4", "/audit", "/rounds"])
def test_hostile_text_stays_text(visitor: httpx.Client, path: str) -> None:
    page = visitor.get(path).text
    assert HOSTILE not in page
    assert "<script" not in page
    if path not in {"/versions", "/rounds"}:
        assert str(html.escape(HOSTILE)[:30]) in page


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kitchen", "up to date Serves version 2; all its users are enrolled under it."),
        ("sparrow", "up to date Serves version 4; all its users are enrolled under it."),
        ("old", "behind Serves version 1; all its users are enrolled under it. Its channel"),
        ("busy", "updating Changes to version 2 now; version 1 answers meanwhile."),
        ("full", "failed Could not change to version 2 because its disk is full. It goes on with"),
        ("mute", "never reported Registered, but it has not reported yet."),
        ("gone", "revoked Revoked: the server takes no more reports from it."),
    ],
)
def test_a_device_says_in_words_how_it_is(
    server: PageServer, visitor: httpx.Client, name: str, words: str
) -> None:
    device = server.devices[name]
    said = text_of(visitor, f"/devices/{device}")
    assert words in said
    record = server.api(f"devices/{device}")
    assert record["public_key"] in said
    if record["report"]:
        assert record["report"]["content_hash"] in said


@pytest.mark.parametrize("failure", get_args(Failure))
def test_every_failure_has_words(server: PageServer, failure: Failure) -> None:
    record = server.service.registry.device(server.devices["full"])
    report = Report(
        version=1, content_hash="0" * 64, state="failed", failure=failure, client="0.1.0"
    )
    now = server.clock()
    device = Device.of(record.model_copy(update={"report": report}), _catalogue(server), now)
    assert device.standing == "failed"
    assert re.fullmatch(
        r"Could not change because .+\. It goes on with version 1\.", device.told(now)
    )


def test_a_device_that_is_long_silent_is_told(server: PageServer) -> None:
    record = server.service.registry.device(server.devices["kitchen"])
    later = server.clock() + QUIET + timedelta(days=2)
    device = Device.of(record, _catalogue(server), later)
    assert device.standing == "quiet"
    assert "Nothing has been heard of it for 9 days." in device.told(later)


def _catalogue(server: PageServer) -> Catalogue:
    return Catalogue.of(server.service.view())


def test_devices_are_found_by_name_state_and_version(
    server: PageServer, visitor: httpx.Client
) -> None:
    def found(query: str) -> set[str]:
        page = visitor.get(f"/devices?{query}").text
        return set(re.findall(r"<bdi>([a-z]+|W+)</bdi></?[at]", page))

    assert found("") == {"kitchen", "sparrow", "old", "busy", "full", "mute", "gone", "W" * 64}
    assert found("state=failed") == {"full"}
    assert found("state=invited") == {"W" * 64}
    assert found("version=1") == {"old", "busy", "full"}
    assert found("version=1&state=behind") == {"old"}
    assert found("q=KITCH") == {"kitchen"}
    assert found(f"q={server.devices['full']}") == {"full"}
    assert found("state=current") == {"kitchen", "sparrow"}
    assert found("q=nobody") == set()
    assert found("state=nonsense&version=x&page=-3") == set()


def test_a_long_list_comes_in_pages_that_keep_the_filter(empty: PageServer) -> None:
    for number in range(101):
        empty.service.registry.invite(f"device-{number:03d}")
    client, seen, address = empty.visitor(), [], "/devices?state=invited&q=device"
    while address:
        page = client.get(address).text
        seen += re.findall(r"<bdi>(device-\d+)</bdi>", page)
        following = re.search(r'rel="next" href="([^"]*)"', page)
        address = html.unescape(following[1]) if following else ""
    assert seen == [f"device-{number:03d}" for number in range(101)]


def test_a_page_of_a_long_list_reads_no_more_records_than_it_shows(
    empty: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(101):
        empty.service.registry.invite(f"device-{number:03d}")
    client, read = empty.visitor(), []
    record = registry._record
    monkeypatch.setattr(registry, "_record", lambda row: read.append(row) or record(row))
    assert "101 devices" in text_of(client, "/devices?page=2")
    assert [row["name"] for row in read] == [f"device-{number:03d}" for number in range(50, 100)]


def test_rounds_outlive_their_versions(empty: PageServer) -> None:
    for number, survivors in ((0, 96), (1, 88), (2, 52)):
        training = {"config": "c", "round": number, "cohort_size": 96, "survivors": survivors}
        empty.publish("training", training=training, intermediate=True)
    empty.withdraw(1)
    client = empty.visitor()
    said = row_of(text_of(client, "/rounds"), "Published", "As of")
    assert re.findall(r"(\d+) (\d+) of 96", said) == [("2", "52"), ("1", "88"), ("0", "96")]
    assert '/versions/1"' not in client.get("/rounds").text
    assert client.get("/versions/1").status_code == 404


def test_a_round_whose_publication_was_killed_is_not_shown(empty: PageServer) -> None:
    training = {"round": 7, "cohort": 9, "survivors": 9}
    audit = empty.service.repository.audit
    audit.append("publish", 2, rounds=[{"version": 1, **training}])
    audit.note("register", device="kitchen")
    audit.settle(1)
    client = empty.visitor()
    assert "No version says which round" in text_of(client, "/rounds")
    assert "interrupted" in text_of(client, "/audit")


def test_the_audit_log_is_shown_whole_newest_first(server: PageServer) -> None:
    entries = server.api("audit?limit=1000")["entries"]
    said = text_of(server.visitor(), "/audit")
    places = []
    for entry in entries:
        assert f"{entry['action']} by {entry['who']}" in said
        if "release" in entry:
            places.append(said.index(f"release {entry['release']} "))
    assert places == sorted(places)
    assert "Forced past the gate" in said


def test_expired_metadata_are_told(empty: PageServer) -> None:
    client = empty.visitor()
    assert "All is well" in text_of(client, "/")
    empty.clock.ahead = timedelta(days=2, hours=6)
    client = empty.visitor()
    assert "timestamp metadata expire in 17 h" in text_of(client, "/")
    empty.clock.ahead = timedelta(days=4)
    client = empty.visitor()
    said = text_of(client, "/")
    assert "timestamp metadata expired 1 day ago: devices refuse every update" in said


def test_nothing_published_and_no_devices_is_no_error(empty: PageServer) -> None:
    client = empty.visitor()
    for path in ("/", "/versions", "/rounds", "/devices", "/audit"):
        assert client.get(path).status_code == 200, path
    assert "Nothing is published yet" in text_of(client, "/")


def test_what_is_not_there_is_told_on_a_page(visitor: httpx.Client) -> None:
    for path in ("/versions/999", "/generators/7", "/devices/" + "f" * 32):
        answer = visitor.get(path)
        assert answer.status_code == 404
        assert "Not found" in answer.text


def test_a_damaged_repository_is_told_on_a_page(empty: PageServer) -> None:
    client = empty.visitor()
    (empty.service.repository.metadata / "timestamp.json").write_text("{}")
    answer = client.get("/")
    assert answer.status_code == 503
    assert "its log says why" in html.unescape(answer.text)
    assert "Traceback" not in answer.text


def test_a_registry_that_fails_is_told_on_a_page(
    empty: PageServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = empty.visitor()
    with sqlite3.connect(next(tmp_path.rglob("registry.sqlite"))) as registry:
        registry.execute("DROP TABLE sessions")
    answer = client.get("/")
    assert answer.status_code == 503
    assert answer.headers["content-type"].startswith("text/html")
    assert "its log says why" in html.unescape(answer.text)
    assert "no such table" in caplog.text
    assert "no such table" not in answer.text


def test_another_sites_form_logs_nobody_in(empty: PageServer) -> None:
    form, host = {"token": empty.tokens["viewer"]}, empty.address.partition("://")[2]
    for origin, status in (("http://evil.example", 403), ("null", 403), (f"http://{host}", 303)):
        answer = httpx.post(f"{empty.address}/login", data=form, headers={"Origin": origin})
        assert answer.status_code == status, origin
        assert ("set-cookie" in answer.headers) == (status == 303)


def test_a_new_version_shows_at_once(empty: PageServer) -> None:
    client = empty.visitor()
    empty.publish("stable")
    assert "version 1" in text_of(client, "/")
    empty.publish("stable")
    assert "version 2" in text_of(client, "/")


def test_the_page_is_no_part_of_the_apis_description(server: PageServer) -> None:
    paths = httpx.get(f"{server.address}/openapi.json").json()["paths"]
    assert not {"/", "/login", "/versions", "/page.css"} & set(paths)


# Drawings


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([4.1, 5.2], (4.0, 4.5, 5.0, 5.5)),
        ([0.0, 100.0], (0.0, 50.0, 100.0)),
        ([3.0, 3.0], (3.0, 4.0)),
        ([0.012, 0.013], (0.012, 0.0125, 0.013)),
        ([], (0.0, 0.5, 1.0)),
    ],
)
def test_a_scale_has_round_marks_around_all_values(
    values: list[float], marks: tuple[float, ...]
) -> None:
    scale = Scale.over(values)
    assert scale.marks == marks
    assert all(0 <= scale.at(value) <= 100 for value in values)


@pytest.mark.parametrize(
    ("total", "wanted", "shown"),
    [(0, "1", (0, 0)), (101, "1", (0, 50)), (101, "3", (100, 101)), (101, "99", (100, 101))]
    + [(101, text, (0, 50)) for text in ("", "0", "-1", "x", "9" * 40, "\N{SUPERSCRIPT TWO}")],
)
def test_a_page_of_a_list_is_always_one_that_there_is(
    total: int, wanted: str, shown: tuple[int, int]
) -> None:
    pages = Pages.cut(total, wanted, 50)
    assert (pages.first, pages.last) == shown
    assert replace(pages, number=1).total == total


def test_a_version_on_another_corpus_is_hollow_though_a_channel_names_it(
    empty: PageServer,
) -> None:
    empty.publish("stable")
    empty.publish("canary", **evaluated(4.0, corpus="another"))
    overview = empty.visitor().get("/").text
    points = re.findall(r'<g class="(point[^"]*)"', overview)
    named = {each for each in points if "canary" in each or "stable" in each}
    assert named in ({"point canary other", "point stable"}, {"point canary", "point stable other"})
