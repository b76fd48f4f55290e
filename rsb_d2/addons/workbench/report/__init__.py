"""HTML pages about a data set and about the results of an evaluation."""
