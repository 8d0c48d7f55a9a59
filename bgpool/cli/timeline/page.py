"""The picture as an HTML page: it loads nothing, runs nothing, and follows the reader's light or dark mode."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from bgpool.cli.timeline.picture import WIDTH, draw
from bgpool.cli.timeline.switchover import RecordedSwitchover
from bgpool.core.timeline import summary_table

__all__ = ["render"]

# Even with malicious content in a file of the run directory, the browser loads and runs nothing.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE: Final = """
:root{color-scheme:light dark}
body{margin:0 auto;max-width:%dpx;padding:8px 12px 40px;background:#fff;color:#1f2328;
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
svg{max-width:100%%;height:auto;display:block}
pre{overflow-x:auto;font-size:12.5px;padding:12px;border-radius:6px;background:#f6f8fa}
p{color:#59636e}
@media (prefers-color-scheme: dark){body{background:#0d1117;color:#e6edf3}pre{background:#161b22}p{color:#9198a1}}
"""


def render(stories: Sequence[RecordedSwitchover]) -> str:
    """Return the page of *stories*, each with its summary table as text."""
    parts = []
    for story in stories:
        parts.append(f"<figure style='margin:0'>{draw([story])}</figure>")
        parts.append(f"<pre>{escape(summary_table(story.events))}</pre>")
    title = f"Switchover of bg_id {stories[-1].bg_id!r}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>
<style>{_STYLE % WIDTH}</style></head>
<body>
{"".join(parts)}
<p>Checkouts per second and callers held are what each process wrote about four times a second, on one host. Times are
on the host's monotonic clock. Drawn by bgpool timeline.</p>
</body></html>
"""
