"""The words of a text, in the form in which posts are searched.

Posts store these forms in an indexed list, because a text index of MongoDB returns its results in
no order: to show the newest posts with a frequent word, it reads all of them. See docs/adr/0094.
"""

import re
import unicodedata

# Forms stored for a post: those of its first words. Each is one entry in the index.
MAX_WORDS = 500
# Characters of a word that are looked at.
LONGEST = 32

_WORD = re.compile(r"(?:[^\W_]|[\u0300-\u036f])+")
# Endings of German and English, also several. At least four characters of the word remain. The
# possessive quantifier keeps the time linear.
_ENDING = re.compile(r"(?<=....)(?:ern|en|er|em|es|ed|ing|e|s|n)++\Z")


def words_of(text: str, limit: int = MAX_WORDS) -> list[str]:
    """Return the first `limit` different forms of the words of the text, in order; empty for a text
    without words.

    A form has no case, no accents and no common ending, so that "Bäume" finds "Baum", and "posts"
    finds "posting". For languages that separate words.
    """
    forms: dict[str, None] = {}
    for word in dict.fromkeys(_WORD.findall(text)):
        if len(forms) == limit:
            break
        forms[_form(word[:LONGEST])] = None
    return [form for form in forms if form]


def _form(word: str) -> str:
    decomposed = unicodedata.normalize("NFKD", word.casefold())
    return _ENDING.sub("", "".join(each for each in decomposed if not unicodedata.combining(each)))
