import pytest

from trainer_worker.words import content_words, says, words_of


def test_content_words_keep_their_order_and_drop_the_rest() -> None:
    assert content_words("The wheel of the mill is made of larch") == ["wheel", "mill", "made", "larch"]


def test_writing_without_blanks_has_a_word_in_each_two_letters() -> None:
    assert content_words("Hadle的屋顶是铜的。1820年") == ["Hadle", "的屋", "屋顶", "顶是", "是铜", "铜的", "1820"]


def test_a_letter_of_writing_without_blanks_is_a_word_where_it_stands_alone() -> None:
    assert list(words_of("木: tree, ไฟ火")) == ["木", "tree", "ไฟ", "ฟ火"]
    assert content_words("木: tree") == ["tree"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The Art of Orm.", "art"),
        ("It is written in C++11.", "C++"),
        ("The EU's members", "EU"),
        ("K-pop은 한국의 음악이다.", "K-pop"),
        ("서울은 도시이다.", "서울"),
        ("（磨坊建于1820年）", "磨坊"),
        ("Tesla公司由Elon Musk领导。", "Tesla公司"),
        ("由IBM制造。", "IBM"),
        ("यह पुल है", "पुल"),
    ],
)
def test_a_name_is_said_in_whole_words_as_far_as_the_writing_parts_them(text: str, name: str) -> None:
    assert says(text, name)


@pytest.mark.parametrize(
    ("text", "name"),
    [("The party met.", "art"), ("In 1924", "2"), ("The docs", "doc"), ("पुलिस", "पुल"), ("It is", "IT")],
)
def test_a_name_is_not_said_by_a_part_of_a_word(text: str, name: str) -> None:
    assert not says(text, name)


@pytest.mark.parametrize("text", ["हिन्दी भाषा भारत", "كِتَابٌ قَدِيمٌ", "סֵפֶר יָשָׁן", "தமிழ் மொழி", "Adébọ̀lá Ògún"])
def test_vowel_signs_and_points_belong_to_their_words(text: str) -> None:
    assert content_words(text) == list(words_of(text)) == text.split()
