"""How a report is written down: Markdown, CSV, LaTeX, HTML and figures."""
