from common.data.text import token_ids


def test_words_and_marks_become_ids_that_never_change() -> None:
    ids = token_ids("Café, 3.5%!", vocabulary=32_000, length=10)
    assert ids.dtype == "int32"
    assert ids.tolist() == [3687, 22770, 13192, 8355, 1138, 10802, 9033, 0, 0, 0]


def test_case_and_spaces_do_not_matter_but_order_does() -> None:
    one, other = token_ids("ink  helps\nASIA", 1000, 4), token_ids("Ink helps Asia", 1000, 4)
    assert one.tolist() == other.tolist()
    assert token_ids("Asia helps ink", 1000, 4).tolist() == [*one[2::-1].tolist(), 0]


def test_long_text_is_cut_and_empty_text_is_padding() -> None:
    assert token_ids("a b c d e", 1000, 3).tolist() == token_ids("a b c", 1000, 3).tolist()
    assert token_ids(" \n", 1000, 3).tolist() == [0, 0, 0]


def test_ids_fill_the_vocabulary_except_padding() -> None:
    assert set(token_ids(" ".join(map(str, range(500))), vocabulary=5, length=500).tolist()) == {1, 2, 3, 4}
