"""Reports of experiments: statistics, tables and figures, beside what the paper reports."""
