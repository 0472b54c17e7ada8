"""Digests of a Content-Security-Policy, against the example of the specification."""

from mt.core.content_security import inline_source


def test_the_digest_is_that_of_the_specification():
    """https://www.w3.org/TR/CSP2/#script-src-hash-usage"""
    source = inline_source("alert('Hello, world.');")
    assert source == "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"
