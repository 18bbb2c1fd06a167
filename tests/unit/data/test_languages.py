"""Languages are told where they can be, and not guessed where they cannot."""

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from peftkit.data.languages import (
    LOOKED_AT,
    ONE_LANGUAGE,
    SMALL_WORDS,
    UNKNOWN,
    has_emoji,
    language_of,
    script_of,
)

SENTENCES = {
    "en": "I have lost my card and would like to get a new one, please.",
    "de": "Ich möchte mein Passwort ändern, aber es geht nicht.",
    "fr": "Où est mon colis ? Il devait arriver mardi.",
    "es": "¿Dónde está mi paquete? No lo he recibido.",
    "it": "Dov'è il mio pacco? Non è ancora arrivato.",
    "pt": "Onde está o meu pacote? Não chegou ainda.",
    "nl": "Waar is mijn pakket? Het is nog niet aangekomen.",
    "sv": "Hej, hur kan jag byta mitt lösenord?",
    "pl": "Gdzie jest moja paczka? Nie wiem, co się z nią stało.",
    "cs": "Kde je můj balík? Nevím, co se s ním stalo, když byl poslán.",
    "tr": "Paketim nerede? Bu çok önemli ve daha gelmedi.",
    "ru": "Где моя посылка? Она ещё не пришла.",
    "uk": "Де моя посилка? Вона ще не прийшла, я не знаю чому.",
    "el": "Πού είναι το πακέτο μου;",
    "he": "איפה החבילה שלי?",
    "ar": "أين الطرد الخاص بي؟ لم يصل بعد حتى الآن من المتجر",
    "fa": "بسته من کجا است؟ این را از شما می خواهم",
    "hi": "मेरा पैकेट कहाँ है? मैं इस के लिए क्या करूँ?",
    "th": "พัสดุของฉันอยู่ที่ไหน",
    "ko": "제 소포는 어디에 있나요?",
    "ja": "荷物はどこですか。まだ届いていません。",
    "zh": "我的包裹在哪里。还没有收到。",
}


@pytest.mark.parametrize(("code", "text"), SENTENCES.items())
def test_a_sentence_is_told(code: str, text: str) -> None:
    assert language_of(text) == code


@pytest.mark.parametrize(
    "text",
    ["", "42", "light", "CC(=O)Oc1ccccc1C(=O)O", "Emma", "x = f(y)", "😂😂", "ሰላም ልዑል", "on"],
)
def test_what_is_not_sure_is_unknown(text: str) -> None:
    assert language_of(text) == UNKNOWN


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("plain words", "Latin"),
        ("žluťoučký kůň", "Latin"),
        ("посылка OK", "Cyrillic"),
        ("ሰላም", "Ethiopic"),
        ("荷物はどこですか", "Kana"),
        ("한국어", "Hangul"),
        ("1 + 2 = 3 😂", ""),
        ("", ""),
    ],
)
def test_scripts_are_told_by_most_letters(text: str, script: str) -> None:
    assert script_of(text) == script


def test_emoji_are_seen_and_other_signs_are_none() -> None:
    assert all(has_emoji(text) for text in ("ok 👍", "🇫🇷", "❤", "⭐ five stars"))
    assert not any(has_emoji(text) for text in ("ok :)", "naïve", "5 € – £3", "→ ✓ • ©", ""))


@given(some.text(max_size=60))
def test_any_text_has_an_answer(text: str) -> None:
    codes = {line.partition(":")[0] for line in SMALL_WORDS.read_text().splitlines()}
    assert language_of(text) in codes | {*ONE_LANGUAGE.values(), UNKNOWN}
    assert isinstance(script_of(text), str)


@given(some.text(max_size=50))
def test_only_the_opening_is_read(text: str) -> None:
    start = "the cat is on the mat and it has a hat " * (LOOKED_AT // 39 + 1)
    assert language_of(start + text) == "en"


def test_every_language_has_words_that_no_other_has() -> None:
    words = dict(line.split(":", 1) for line in SMALL_WORDS.read_text().splitlines())
    sets = {code: set(said.split()) for code, said in words.items()}
    assert len(sets) == 25
    for code, own in sets.items():
        others = set().union(*(found for other, found in sets.items() if other != code))
        assert len(own - others) >= 5, code


def test_real_english_is_english_and_formulas_are_nothing(material: Path) -> None:
    with (material / "banking77" / "train.csv").open(newline="") as file:
        texts = [row[0] for row in csv.reader(file)][1:1001]
    told = Counter(map(language_of, texts))
    assert told["en"] >= 950
    assert told["en"] + told[UNKNOWN] >= 999
    questions = (material / "gsm8k" / "test.jsonl").read_text().splitlines()[:300]
    assert all(language_of(json.loads(line)["question"]) == "en" for line in questions)
    names = (material / "names" / "names.txt").read_text().split()[:500]
    assert {language_of(name) for name in names} == {UNKNOWN}
