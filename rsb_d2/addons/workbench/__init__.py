"""Work with data sets and results: convert, browse, report, sample data."""
