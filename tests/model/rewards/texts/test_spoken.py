"""Pieces, their languages, and what is left open; sums of words say what the library says of the whole."""

from __future__ import annotations

import pytest

from model.rewards.texts import spoken
from model.rewards.texts.spoken import LANGUAGES, MAX_LETTERS, SCRIPT_OF, WordTable, language_of, read

SENTENCES = {
    "en": "First we add the two numbers, and then we divide the sum by three to find the mean.",
    "de": "Zuerst addieren wir die beiden Zahlen und teilen dann die Summe durch drei.",
    "fr": "On additionne d'abord les deux nombres, puis on divise la somme par trois.",
    "es": "Primero sumamos los dos números y luego dividimos la suma por tres.",
    "it": "Prima sommiamo i due numeri e poi dividiamo la somma per tre.",
    "pt": "Primeiro somamos os dois números e depois dividimos a soma por três.",
    "nl": "Eerst tellen we de twee getallen op en daarna delen we de som door drie.",
    "sv": "Först adderar vi de två talen och sedan dividerar vi summan med tre.",
    "pl": "Najpierw dodajemy dwie liczby, a potem dzielimy sumę przez trzy.",
    "cs": "Nejprve sečteme obě čísla a potom součet vydělíme třemi.",
    "ro": "Mai întâi adunăm cele două numere și apoi împărțim suma la trei.",
    "tr": "Önce iki sayıyı topluyoruz, sonra toplamı üçe bölüyoruz.",
    "vi": "Trước hết ta cộng hai số rồi chia tổng đó cho ba để tìm trung bình.",
    "id": "Pertama kita jumlahkan kedua bilangan itu, lalu hasilnya dibagi tiga.",
    "zh": "首先我们把这两个数加起来，然后除以三得到平均值。",
    "ja": "まず二つの数を足して、それから三で割って平均を求めます。",
    "ko": "먼저 두 수를 더한 다음 그 합을 셋으로 나누어 평균을 구합니다.",
    "ru": "Сначала мы складываем два числа, а затем делим сумму на три.",
    "uk": "Спочатку ми додаємо два числа, а потім ділимо їхню суму на три.",
    "bg": "Първо събираме двете числа, а след това делим сбора на три.",
    "ar": "أولا نجمع العددين ثم نقسم المجموع على ثلاثة لنجد المتوسط الحسابي.",
    "fa": "ابتدا دو عدد را با هم جمع می‌کنیم و سپس مجموع را بر سه تقسیم می‌کنیم.",
    "hi": "पहले हम दोनों संख्याओं को जोड़ते हैं और फिर योग को तीन से भाग देते हैं।",
    "el": "Πρώτα προσθέτουμε τους δύο αριθμούς και μετά διαιρούμε το άθροισμα με το τρία.",
    "he": "קודם מחברים את שני המספרים ואחר כך מחלקים את הסכום בשלוש.",
    "th": "ขั้นแรกเราบวกจำนวนทั้งสองเข้าด้วยกัน แล้วหารผลรวมด้วยสาม",
}


@pytest.mark.parametrize("code", SENTENCES)
def test_a_sentence_is_in_its_language_and_in_no_other_script(code: str) -> None:
    text = SENTENCES[code]
    assert language_of(text) == code
    pieces = read(text).pieces
    assert all(piece.is_in(code) for piece in pieces)
    others = [other for other in SENTENCES if SCRIPT_OF[other] != SCRIPT_OF[code]]
    assert not any(piece.is_in(other) for piece in pieces for other in others)


def test_english_is_not_taken_for_another_language_nor_another_for_english() -> None:
    for code in set(LANGUAGES["latin"]) & set(SENTENCES) - {"en"}:
        (piece,) = read(SENTENCES[code].replace(".", "").replace("d'a", "a")).pieces
        assert piece.is_in("en") is False
    (piece,) = read(SENTENCES["en"]).pieces
    assert [code for code in LANGUAGES["latin"] if piece.is_in(code) is not False] == ["en"]


@pytest.mark.parametrize("text", ["", "x", "3 + 4 = 7", "ok then", "\ud800\0", "𝑥 ∈ ℝ"])
def test_too_little_says_nothing(text: str) -> None:
    assert language_of(text) is None


def test_short_sentences_are_read_together_and_paragraphs_are_not() -> None:
    text = "Wait. No. Hmm. That is entirely wrong here. Now we go on with the next step of it.\nYes."
    found = [(piece.words, piece.paragraph) for piece in read(text).pieces]
    assert found == [(8, 0), (10, 0), (1, 1)]


def test_a_piece_is_shown_as_it_stands_in_the_text() -> None:
    reading = read("Wir zählen (erst einmal) alle 3 Äpfel, dann 因此 die Birnen.")
    assert [reading.span(piece) for piece in reading.pieces] == [
        "Wir zählen (erst einmal) alle 3 Äpfel, dann", "因此", "die Birnen",
    ]  # fmt: skip
    assert reading.span(reading.pieces[0], most=10) == "Wir zählen"


def test_a_long_sentence_is_cut() -> None:
    pieces = read(" ".join(["number"] * 500)).pieces
    assert sum(piece.words for piece in pieces) == 500
    assert max(piece.letters for piece in pieces) <= MAX_LETTERS + len("number")


def test_a_few_latin_words_in_another_script_are_left_open() -> None:
    name, chinese = read("Python 是一种编程语言").pieces
    assert (name.is_in("zh"), chinese.is_in("zh"), chinese.is_in("en")) == (None, True, False)


def test_a_word_said_often_counts_once() -> None:
    once, often = (read(f"the temperature is {text}").pieces[0] for text in ("Fahrenheit", "Fahrenheit " * 9))
    assert once.chances == often.chances


def test_a_full_table_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    table = WordTable()
    monkeypatch.setattr(spoken, "_MOST_ROWS", 5)
    first = table.rows_of(["one", "two", "three", "four", "five", "six", "one"])
    assert first.tolist()[-1] == first.tolist()[0]
    assert table.rows_of(["seven"]).tolist() == [0]
    assert list(table.row_of) == ["seven"]
