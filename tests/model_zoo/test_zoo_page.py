"""docs/detectron2_zoo.md is up to date."""

from tests.model_zoo.zoo_page import PAGE, with_tables


def test_the_tables_are_up_to_date():
    text = PAGE.read_text()
    assert with_tables(text) == text, "python -m tests.model_zoo.zoo_page rewrites them"
