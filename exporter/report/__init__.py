"""Reports to read: self-contained HTML files with their plots inside."""
