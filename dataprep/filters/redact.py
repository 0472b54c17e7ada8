"""Replace email addresses, IP addresses and telephone numbers in a text.

Each is replaced by one that is reserved for examples: `email@example.com` (RFC 2606), `192.0.2.1` and
`2001:db8::1` (RFC 5737, 3849), `555-0100` (reserved for fiction in North America), so that the sentence
remains natural. Private and reserved IP addresses are kept. The patterns match the usual notations only: an
address spelled out in words is not found, and a version number of four parts is taken for an IP address.
"""

from __future__ import annotations

import ipaddress
import re

# The quantifiers are bounded and a match begins at a boundary, so that search time is linear in the text.
EMAIL = re.compile(
    r"(?<![\w.%+-])(?:[\w.%+'-]{1,64}|[\w.%+'!#$&*/=?^`{|}~-]{0,63}[!#$&*/=?^`{|}~])@"
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,126}(?:[xX][nN]--[a-zA-Z0-9-]{1,59}|[^\W\d_]{2,24})(?![\w-])"
)
IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{0,4}(?![\w:]|\.\d)")
PHONE = re.compile(
    r"(?<![\w.,/#$€£+-])(?:"
    # +49 (0)30 123456, +44 20 7946 0958
    r"(?:\+|00)[1-9]\d{0,2}(?:[ .-]?\(0?\d{0,4}\))?(?:[ .-]?\d{1,6}){2,6}"
    r"|(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[.-]\d{4}"  # (212) 555-0123, 212-555-0123, 212.555.0123
    r")(?![\w/-]|[.,]\d)"
)


def redact(
    text: str, *, email: bool = True, ip: bool = True, phone: bool = True, private_ip: bool = False
) -> str:
    """The text with the chosen kinds of addresses replaced.

    private_ip: also replace private and reserved IP addresses.
    """
    if email and "@" in text:
        text = EMAIL.sub("email@example.com", text)
    if ip and text.count(".") >= 3:
        text = IPV4.sub(lambda found: _replace_ip(found[0], "192.0.2.1", private_ip), text)
    if ip and text.count(":") >= 2:
        text = IPV6.sub(lambda found: _replace_ip(found[0], "2001:db8::1", private_ip), text)
    if phone and DIGIT.search(text):
        text = PHONE.sub(
            lambda found: "555-0100" if 8 <= sum(map(str.isdigit, found[0])) <= 15 else found[0], text
        )
    return text


DIGIT = re.compile("[0-9]{2}")


def _replace_ip(address: str, replacement: str, private_too: bool) -> str:
    try:
        return replacement if ipaddress.ip_address(address).is_global or private_too else address
    except ValueError:  # not an address: 300.1.1.1, 12:30:45
        return address
