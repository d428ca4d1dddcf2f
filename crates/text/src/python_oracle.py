"""Features of each line on stdin as Python has them, one JSON list a line on stdout.

python_oracle.py whitespace | isnumeric | qu-xie STOP_WORDS [WORDNET]
"""
import json
import os
import re
import sys

RULES = (("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"),
         ("ches", "ch"), ("shes", "sh"), ("men", "man"), ("ies", "y"))
NOT_WORD = re.compile(r"[\W_]+")


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


rule = sys.argv[1]
stop_words, nouns, exceptions = set(), set(), {}
if rule == "qu-xie":
    stop_words = set(read(sys.argv[2]).split())
    if len(sys.argv) > 3:
        for line in read(os.path.join(sys.argv[3], "index.noun")).split("\n"):
            if line and not line.startswith(" "):
                nouns.add(line.split(" ", 1)[0])
        for line in read(os.path.join(sys.argv[3], "noun.exc")).split("\n"):
            if line:
                form, *bases = line.split()
                exceptions[form] = bases


def lemma(word):
    bases = exceptions.get(word)
    if bases is None:
        bases = [word[: len(word) - len(end)] + new for end, new in RULES if word.endswith(end)]
    return min((base for base in [word, *bases] if base in nouns), key=len, default=word)


def features(text):
    if rule == "whitespace":
        return text.split()
    if rule == "isnumeric":
        return [word for word in text.split(" ") if word.isnumeric()]
    words = NOT_WORD.sub(" ", text).lower().split()
    return [lemma(word) for word in words
            if word not in stop_words and len(word) > 1 and not word.isnumeric()]


for line in sys.stdin.buffer.read().decode("utf-8").split("\n")[:-1]:
    print(json.dumps(features(line)))
