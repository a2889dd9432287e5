"""The report of an audit: its sentences, its table, its page."""
