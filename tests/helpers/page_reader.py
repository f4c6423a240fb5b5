"""Reads a self-contained page: whether its tags are closed, and what it would load."""

import html.parser

_ALONE = ("path", "use", "line", "rect", "circle")


class Reader(html.parser.HTMLParser):
    """After `feed`: `open` the tags that are not closed, `links` to other files, `tags` all of them in order."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        """Notes a tag and its links."""
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href") and not v.startswith("#")]
        if tag not in ("meta", "br", *_ALONE):
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Closes the last open tag, which has to be this one."""
        if tag not in _ALONE:
            assert self.open.pop() == tag
