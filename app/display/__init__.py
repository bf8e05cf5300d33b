"""What of a study is shown, and how: tables, charts, contexts."""
