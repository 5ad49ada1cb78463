"""The report: its data, and its text, JSON and Markdown forms."""
