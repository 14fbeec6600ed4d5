"""Strings that are no text: halves of UTF-16 pairs, as a terminal or a JSON file may hand them on."""


def replace_surrogates(text: str) -> str:
    """`text` with surrogate pairs joined and lone surrogates as U+FFFD, so that UTF-8 can spell it: tiktoken's rule."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
