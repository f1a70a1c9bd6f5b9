"""Characters of a text that cannot be seen, or that a terminal obeys, as pictures."""

# A terminal obeys these: they clear the screen, set its title, or write elsewhere. rich leaves the escape in.
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
_CONTROLS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
# The separators of lines and paragraphs are no controls, and a layout of one line of text fails at them.
_SPACES = str.maketrans({"\n": "\u21b5", "\t": "\u21e5", " ": "\u2423", "\u2028": "\u21b5", "\u2029": "\u00b6"})


def show_controls(text: str) -> str:
    """The text with control characters as pictures, `␛` for escape. Tabs and ends of lines stay."""
    return text.translate(_CONTROLS)


def show_spaces(token: str) -> str:
    """A token with its white space and control characters as pictures."""
    return show_controls(token.translate(_SPACES)) or "(empty)"
