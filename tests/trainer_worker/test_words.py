import pytest

from trainer_worker.words import content_words, words_of


def test_content_words_keep_their_order_and_drop_the_rest() -> None:
    assert content_words("The wheel of the mill is made of larch") == ["wheel", "mill", "made", "larch"]


def test_writing_without_blanks_has_a_word_in_each_two_letters() -> None:
    assert content_words("Hadle的屋顶是铜的。1820年") == ["Hadle", "的屋", "屋顶", "顶是", "是铜", "铜的", "1820"]


@pytest.mark.parametrize("text", ["हिन्दी भाषा भारत", "كِتَابٌ قَدِيمٌ", "סֵפֶר יָשָׁן", "தமிழ் மொழி", "Adébọ̀lá Ògún"])
def test_vowel_signs_and_points_belong_to_their_words(text: str) -> None:
    assert content_words(text) == list(words_of(text)) == text.split()
