"""Lets the API reference show the comment behind a field, which tells its shape and unit."""

from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """A field without a docstring takes the comment on its last line as one."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Called for every attribute that is read."""
        del kwargs
        if attr.docstring is not None or attr.parent is None or not attr.parent.is_class:
            return
        if attr.endlineno is None:
            return
        line = attr.lines_collection[attr.filepath][attr.endlineno - 1]
        _, marked, comment = line.partition("  # ")
        if marked:
            attr.docstring = griffe.Docstring(comment.strip(), lineno=attr.endlineno, parent=attr)
