"""A minimal classifier for `mt data classify`: the share of a text's words that are on a list."""

import json
import re
import sys

WORDS = {"hate", "kill", "stupid", "idiot", "damn", "hell", "shit", "fuck"}

for line in sys.stdin:
    words = re.findall(r"\w+", json.loads(line)["text"].lower())
    print(sum(word in WORDS for word in words) / max(1, len(words)))
