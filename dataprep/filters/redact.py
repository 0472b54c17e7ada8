"""Replace email addresses, IP addresses and telephone numbers in a text.

Each is replaced by one that is reserved for examples: `email@example.com` (RFC 2606), `192.0.2.1` and
`2001:db8::1` (RFC 5737, 3849), `555-0100` (reserved for fiction in North America), so that the sentence
remains natural. Private and reserved IP addresses are kept. Only the usual notations are found: not an
address that is spelled out in words. An email address must end in a top-level domain of the Internet or of
private networks (RFC 6762, appendix G), so `react@next.js` is none. Public IPv6 addresses are in 2000::/3
(IANA's global unicast space), so `xs[::2]` and `f::a` are none. `version 1.2.3.4` is no IP address.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from pathlib import Path

from .phone_numbers import replace_phone_numbers

# The quantifiers are bounded and a match begins at a boundary, so that search time is linear in the text.
# `git@HOST:OWNER/REPOSITORY` is where a repository lies.
EMAIL = re.compile(
    r"(?<![\w.%+-])(?!(?:git|hg)@[\w.-]{1,255}:[\w~.-]{1,64}/)(?:[\w.%+'-]{1,64}|[\w.%+'!#$&*/=?^`{|}~-]{0,63}[!#$&*/=?^`{|}~])@"
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,126}(?:[xX][nN]--[a-zA-Z0-9-]{1,59}|[^\W\d_]{2,24})(?![\w-])"
)
IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
# what before four numbers says that they are not an address
VERSION = re.compile(
    r"(?:\b(?:versions?|ver|rel(?:ease)?|build|firmware|sec(?:tion)?|chapter|clause|assembly)\b[.:]?|§|[=~<>]=)"
    r"[ \t]?\Z",
    re.IGNORECASE,
)
IPV6 = re.compile(r"(?<![\w:.])(?<![\w)\]]\[)(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:]|\.\d)")
PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
PRIVATE_DOMAINS = frozenset(
    ("corp", "home", "internal", "intranet", "lan", "local", "localdomain", "private")
)


def redact(
    text: str,
    *,
    email: bool = True,
    ip: bool = True,
    phone: bool = True,
    private_ip: bool = False,
    phone_regions: tuple[str, ...] = (),
) -> str:
    """The text with the chosen kinds of addresses replaced.

    private_ip: also replace private and reserved IP addresses.
    phone_regions: regions (ISO 3166) whose national telephone numbers need no word such as `Tel.` before
    them.
    """
    if email and "@" in text:
        text = EMAIL.sub(_replace_email, text)
    if ip and text.count(".") >= 3:
        text = IPV4.sub(functools.partial(_replace_ipv4, private_ip), text)
    if ip and text.count(":") >= 2:
        text = IPV6.sub(lambda found: _replace_ip(found[0], "2001:db8::1", private_ip), text)
    if phone and DIGIT.search(text):
        text = replace_phone_numbers(text, "555-0100", phone_regions)
    return text


DIGIT = re.compile("[0-9]{2}")


def _replace_email(found: re.Match[str]) -> str:
    return "email@example.com" if _is_top_level(found[0].rpartition(".")[2].lower()) else found[0]


@functools.lru_cache(maxsize=4096)
def _is_top_level(label: str) -> bool:
    try:
        label = label.encode("idna").decode()
    except UnicodeError:
        return False
    return label in _top_level_domains() or label in PRIVATE_DOMAINS


@functools.cache
def _top_level_domains() -> frozenset[str]:
    lines = (Path(__file__).parent / "lists/top_level_domains.txt").read_text(encoding="utf-8").split("\n")
    return frozenset(line for line in lines if line and not line.startswith("#"))


def _replace_ipv4(private_too: bool, found: re.Match[str]) -> str:
    if VERSION.search(found.string, max(0, found.start() - 12), found.start()):
        return found[0]
    return _replace_ip(found[0], "192.0.2.1", private_too)


def _replace_ip(address: str, replacement: str, private_too: bool) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # not an address: 300.1.1.1, 12:30:45
        return address
    if parsed.version == 6 and parsed not in PUBLIC_IPV6 and not (private_too and parsed.is_private):
        return address
    return replacement if parsed.is_global or private_too else address
