from framework.report.table import paragraph, table


def test_the_widest_column_is_wrapped_until_all_fits() -> None:
    text = table([["short", "word " * 30, "end"], ["x", "y", "z"]], width=60)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[0].startswith("  short  word word")
    assert lines[0].endswith("  end")
    assert lines[-1].split() == ["x", "y", "z"]
    assert " ".join(text.split()).count("word") == 30


def test_no_rows_give_nothing() -> None:
    assert table([]) == ""


def test_paragraphs_are_indented_and_wrapped() -> None:
    lines = paragraph("one  two\nthree " * 20, width=40, indent=4).splitlines()
    assert all(line.startswith("    ") and len(line) <= 40 for line in lines)
