"""Lets the API reference list the fields of a class by the comments behind them: shapes and units."""

from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Comments behind fields become the "Attributes" of a docstring that has none."""

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Add the comments to the docstring of a class, once all that is in it has been read."""
        del kwargs
        if cls.docstring is None or "Attributes:" in cls.docstring.value:
            return
        lines = []
        for name, attribute in cls.attributes.items():
            if attribute.is_alias or attribute.endlineno is None:
                continue
            source = cls.lines_collection[attribute.filepath][attribute.endlineno - 1]
            _, marked, comment = source.partition("  # ")
            if marked:
                lines.append(f"  {name}: {comment.strip()}")
        if lines:
            cls.docstring.value = "\n".join([cls.docstring.value, "", "Attributes:", *lines])
