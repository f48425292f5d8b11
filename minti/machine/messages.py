"""What a message can hold: text, values and errors of others, on one line and not too long."""


def shortened(text: str, most: int = 100) -> str:
    """The text as a message can hold it: what cannot be printed is escaped, and a long one is cut."""
    cut = text if len(text) <= most else text[:most] + " ..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def quoted(text: str, most: int = 100) -> str:
    """The text as Python writes it, or its beginning."""
    return repr(text[:most]) + (" ..." if len(text) > most else "")


def shown(value: object) -> str:
    """The value as Python writes it, shortened; its type where Python does not (an int of thousands of digits)."""
    try:
        return shortened(repr(value))
    except Exception:
        return f"a value of type {type(value).__name__}"


def one_line(error: BaseException) -> str:
    """What another library's error says, on one line; its name where it says nothing."""
    return shortened(" ".join(str(error).split()), 300) or type(error).__name__
