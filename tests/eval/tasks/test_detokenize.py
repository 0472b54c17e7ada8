"""The detokenizers, compared with Megatron-LM's regular expressions."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from mt.eval.tasks.detokenize import ptb, wikitext


def megatron_wikitext(string):
    """The rules of tasks/zeroshot_gpt/detokenizer.py of Megatron-LM."""
    string = string.replace("s '", "s'")
    string = string.replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".")
    for mark in ":;.!?,":
        string = string.replace(f" {mark} ", f"{mark} ")
    string = re.sub(r"\(\s*([^\)]*?)\s*\)", r"(\1)", string)
    string = re.sub(r"\[\s*([^\]]*?)\s*\]", r"[\1]", string)
    string = re.sub(r"{\s*([^}]*?)\s*}", r"{\1}", string)
    string = re.sub(r"\"\s*([^\"]*?)\s*\"", r'"\1"', string)
    string = re.sub(r"'\s*([^']*?)\s*'", r"'\1'", string)
    string = string.replace("= = = =", "====").replace("= = =", "===").replace("= =", "==")
    string = string.replace(" " + chr(176) + " ", chr(176))
    string = string.replace(" \n", "\n").replace("\n ", "\n")
    return string.replace(" N ", " 1 ").replace(" 's", "'s")


@settings(deadline=None)
@given(st.text(alphabet=" ab()[]{}\"'=@,-.;:!?\n°Ns\u00a0\x1c", max_size=60))
def test_wikitext_is_detokenized_as_by_megatron(text):
    assert wikitext(text) == megatron_wikitext(text)


def test_the_real_wikitext_file_is_detokenized_as_by_megatron(shared):
    text = (shared / "data/wikitext/valid.txt").read_text(encoding="utf-8")
    assert wikitext(text) == megatron_wikitext(text)


def test_a_wikitext_line_becomes_plain_text():
    line = ' = = Size = = \n The lobster \'s claws ( 24 in ) weigh 1 @.@ 5 – 4 @,@ 000 kg , or " more " . \n'
    assert wikitext(line) == ' == Size ==\nThe lobster\'s claws (24 in) weigh 1.5 – 4,000 kg, or "more".\n'


def test_a_penn_treebank_line_becomes_plain_text():
    assert (
        ptb("it did n't cost $ N at the company 's N shops \n")
        == "it didn't cost $1 at the company's1 shops\n"
    )


def test_unclosed_parentheses_take_linear_time():
    text = "(" * 1_000_000  # Megatron-LM's pattern would take hours
    assert wikitext(text) == text
