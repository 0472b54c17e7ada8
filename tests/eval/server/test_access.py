"""Who may use the server: keys, names in the Host header, requests of other sites' pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mt.core.config import UserError
from mt.eval.server.access import Access, check_hosts, hosts_of
from mt.eval.server.app import ServeConfig
from mt.eval.server.client import read_keys
from mt.eval.server.requests import RequestError
from mt.tests.eval.server.running_server import Running, small_model

LOOPBACK = hosts_of("127.0.0.1", loopback=True)


def status(access, *headers, method="POST", path="/v1/completions"):
    """The status of a refusal, or 200."""
    try:
        access.check(method, path, [(name, value.encode("latin-1")) for name, value in headers])
    except RequestError as error:
        return error.status
    return 200


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:5000",
        "localhost:",  # RFC 3986, section 3.2.3: the port may be empty
        "localhost.",
        "app.localhost:1",
        "127.0.0.1:5000",
        "127.9.9.9",
        "[::1]:5000",
    ]
    + ["[::1]", "10.0.0.7:80", "192.0.2.1", "[2001:db8::1]:443"],
)
def test_addresses_and_localhost_are_always_allowed(host):
    assert status(Access([], LOOPBACK), (b"host", host)) == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:5000", "127.0.0.1.evil.example", "localhost.evil.example", "evillocalhost"]
    + ["2130706433", "0x7f.1", "127.1", "", " ", "[evil]", "a,localhost", "localhost@evil", "localhost/", "é"]
    + ["127.0.0.1:5000:1", "localhost:x", "localhost:\t1", "[::1", "[::1].evil", "xn--localhost"],
)
def test_any_other_name_is_refused_for_all_paths_but_health(host):
    access = Access(["key"], LOOPBACK)
    for path in ("/", "/v1/completions", "/metrics"):
        for method in ("GET", "POST"):
            assert status(access, (b"host", host), method=method, path=path) == 421
    assert status(access, (b"host", host), method="GET", path="/health") == 200
    assert status(Access([], ["*"]), (b"host", host)) == 200


@given(st.text(st.characters(max_codepoint=255), max_size=30))
def test_no_text_but_an_allowed_name_passes(host):
    access = Access([], {"llm.example", "*.corp.example"})
    name = host.lower().strip().rpartition(":")[0] or host.lower().strip()
    if status(access, (b"host", host)) == 200:
        name = name.removesuffix(".").strip("[]")
        assert name.endswith(("localhost", "llm.example", ".corp.example")) or name.replace(":", ".").strip(
            "."
        )


def test_names_can_be_allowed():
    access = Access([], {"LLM.example", "*.corp.example"})
    assert status(access, (b"host", "llm.EXAMPLE:80")) == 200
    assert status(access, (b"host", "a.b.corp.example")) == 200
    assert status(access, (b"host", "corp.example")) == 421
    assert status(access, (b"host", "evilcorp.example")) == 421
    assert status(access, (b"host", "llm.example"), (b"host", "evil.example")) == 421
    assert status(access) == 200, "HTTP/1.0 without a name, which no browser sends"


def test_this_machines_names_are_allowed_where_others_can_reach_it(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Box.corp.example")
    assert hosts_of("0.0.0.0", loopback=False) == {"0.0.0.0", "box.corp.example", "box"}
    assert hosts_of("localhost", loopback=True) == {"localhost"}


@pytest.mark.parametrize("name", ["http://a", "a:80", "a/b", "", "a b", "[::1]", "*a", "a*", "*.", "é", "-a"])
def test_a_name_that_no_header_can_have_is_refused_when_the_server_starts(name):
    with pytest.raises(UserError, match=r"allowed_hosts = .* must be a name without scheme and port"):
        ServeConfig(load="x", allowed_hosts=(name,))


def test_names_that_a_header_can_have_are_taken():
    check_hosts(["*", "a", "a.b", "*.a.b", "A-1.b_c", "xn--bcher-kva.example"])


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({b"sec-fetch-site": "same-origin", b"origin": "https://llm.example"}, True),  # through a proxy
        ({b"sec-fetch-site": "none"}, True),
        ({b"sec-fetch-site": "cross-site"}, False),
        ({b"sec-fetch-site": "same-site", b"origin": "http://localhost:3000"}, False),
        ({b"sec-fetch-site": "anything"}, False),
        ({b"origin": "http://localhost:5000"}, True),
        ({b"origin": "http://LOCALHOST:5000"}, True),
        ({b"origin": "http://localhost:3000"}, False),
        ({b"origin": "http://evil.example"}, False),
        ({b"origin": "null"}, False),
        ({b"origin": ""}, False),
        ({b"origin": "http://[evil"}, False),
        ({b"origin": "http://llm.example:8443"}, True),
    ],
)
def test_a_page_of_another_site_cannot_ask(headers, allowed):
    access = Access([], {"llm.example"})
    given = [(b"host", "localhost:5000"), *headers.items()]
    for method in ("POST", "PUT", "DELETE"):
        assert status(access, *given, method=method) == (200 if allowed else 403)
    assert status(access, *given, method="GET") == 200, "the page cannot read the answer"
    assert status(Access([], "*"), *given) == 200


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ("Bearer secret", True),
        ("bearer secret", True),
        ("BEARER    secret", True),
        ("Bearer other key", True),
        ("secret", False),
        ("Bearersecret", False),
        ("Basic secret", False),
        ("Bearer", False),
        ("Bearer ", False),
        ("", False),
        ("Bearer secre", False),
        ("Bearer secret ", False),
        ("Bearer secrets", False),
        ("Bearer Bearer secret", False),
        ("Bearer\tsecret", False),
        ("Token Bearer secret", False),
    ],
)
def test_only_a_key_after_the_scheme_bearer_is_taken(given, allowed):
    assert status(Access(["secret", "other key"], LOOPBACK), (b"authorization", given)) == (
        200 if allowed else 401
    )


def test_two_keys_in_one_request_are_no_key():
    both = [(b"authorization", "Bearer secret")] * 2
    assert status(Access(["secret"], LOOPBACK), *both) == 401


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4), st.text(max_size=8))
def test_a_text_is_taken_exactly_if_it_is_a_key(keys, given):
    keys = [key.strip() for key in keys if key.strip() and key.isprintable()]
    access = Access(keys, LOOPBACK)
    header = f"Bearer {given}".encode().decode("latin-1")
    expected = not keys or (given in keys and not given.startswith(" "))
    assert status(access, (b"authorization", header)) == (200 if expected else 401)


def test_a_key_with_other_letters_than_ascii_works(tmp_path):
    (tmp_path / "keys").write_text("schlüssel\nключ\n", encoding="utf-8")
    keys = read_keys(str(tmp_path / "keys"))
    with Running(small_model(), keys=keys) as server:
        for key in ("schlüssel".encode(), "schlüssel".encode("latin-1"), "ключ".encode()):
            assert (
                server.client.get("/v1/models", headers={"Authorization": b"Bearer " + key}).status_code
                == 200
            )
        from mt.eval.generation.generate import GenerateConfig, generate

        for name, key in enumerate(keys):
            (tmp_path / str(name)).write_text(key, encoding="utf-8")
            ask = GenerateConfig(
                url=server.url, prompts=("a",), tokens_to_generate=2, api_key_file=str(tmp_path / str(name))
            )
            assert generate(ask)["counts"]["tokens"] == 2


def test_a_key_that_no_header_can_carry_is_refused(tmp_path):
    (tmp_path / "keys").write_text("good\nb\x07d\n")
    with pytest.raises(UserError, match="key 2 holds a character that no HTTP header can carry"):
        read_keys(str(tmp_path / "keys"))


def test_a_rebound_name_reaches_nothing_of_a_running_server():
    with Running(small_model()) as server:
        evil = {"Host": "evil.example:5000"}
        assert server.client.get("/", headers=evil).status_code == 421
        reply = server.client.post("/v1/completions", json={"prompt": "a"}, headers=evil)
        assert reply.status_code == 421
        assert "--allowed-hosts" in reply.json()["error"]["message"]
        assert server.client.put("/api", json={"prompts": ["a"]}, headers=evil).json().startswith("the Host")
        assert server.client.get("/health", headers=evil).status_code == 200
    with Running(small_model(), allowed_hosts=("evil.example",)) as server:
        assert server.client.get("/v1/models", headers=evil).status_code == 200
