"""Sentences in English and German from Unicode CLDR, as Babel ships it, and num2words."""

import datetime
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from babel import Locale, dates, numbers, units
from num2words import num2words

Phrase = tuple[str, str]
"""A sentence in English and in German."""
Slot = Callable[[random.Random], Phrase]
"""Draws what fills a gap in a template."""


class Template(NamedTuple):
    english: str
    german: str
    slots: tuple[Slot, ...]


ENGLISH, GERMAN = Locale("en"), Locale("de")

# German case endings are why each list is closed: CLDR gives nominatives, so what stands here is what a
# nominative serves: territories without an article, amounts and measures as subject or direct object.
PEOPLE = "Anna Clara David Eva Felix Julia Laura Martin Oliver Paul Sarah Thomas"
EVENTS: list[Phrase] = [
    ("The auction", "Die Versteigerung"),
    ("The concert", "Das Konzert"),
    ("The conference", "Die Konferenz"),
    ("The course", "Der Kurs"),
    ("The exam", "Die Prüfung"),
    ("The exhibition", "Die Ausstellung"),
    ("The festival", "Das Festival"),
    ("The game", "Das Spiel"),
    ("The lecture", "Der Vortrag"),
    ("The meeting", "Die Besprechung"),
    ("The party", "Die Feier"),
    ("The wedding", "Die Hochzeit"),
]
GOODS: list[Phrase] = [
    ("The bicycle", "Das Fahrrad"),
    ("The book", "Das Buch"),
    ("The camera", "Die Kamera"),
    ("The coat", "Der Mantel"),
    ("The computer", "Der Computer"),
    ("The guitar", "Die Gitarre"),
    ("The lamp", "Die Lampe"),
    ("The painting", "Das Gemälde"),
    ("The table", "Der Tisch"),
    ("The ticket", "Die Fahrkarte"),
]
COUNTED: list[Phrase] = [
    ("books", "Bücher"),
    ("houses", "Häuser"),
    ("letters", "Briefe"),
    ("pages", "Seiten"),
    ("photos", "Fotos"),
    ("stamps", "Briefmarken"),
    ("stars", "Sterne"),
    ("trees", "Bäume"),
]
TIME_ZONES = """
    Africa/Cairo America/Havana America/Lima America/Mexico_City America/New_York Asia/Baghdad Asia/Calcutta
    Asia/Jerusalem Asia/Seoul Asia/Shanghai Asia/Singapore Asia/Tokyo Australia/Sydney Europe/Athens
    Europe/Berlin Europe/Brussels Europe/Bucharest Europe/Copenhagen Europe/Dublin Europe/Helsinki
    Europe/Istanbul Europe/Lisbon Europe/London Europe/Madrid Europe/Moscow Europe/Oslo Europe/Paris
    Europe/Prague Europe/Rome Europe/Stockholm Europe/Vienna Europe/Warsaw
"""
CURRENCIES = """
    ARS AUD BRL CAD CHF CLP COP CZK DKK DZD EGP EUR GBP HKD HUF IDR INR ISK JPY KRW MAD MXN MYR NOK NZD PEN
    PHP PKR RON RSD RUB SEK SGD THB TND UAH USD UYU VND ZAR
"""
TERRITORIES = """
    AD AF AL AM AO AR AT AU AZ BD BE BF BG BI BJ BO BR BT BW BY BZ CA CL CM CN CO CR CU CY CZ DE DJ DK DZ EC
    EE EG ER ES ET FI FR GA GE GH GL GR GT GY HN HR HT HU ID IE IL IN IS IT JM JO JP KE KG KH KP KR KW KZ LA
    LI LR LS LT LU LV LY MA ME MG MK ML MM MR MT MW MX MY MZ NA NG NI NO NP NZ OM PA PE PG PK PL PT PY QA RO
    RS RU RW SA SE SG SI SL SN SO SR SY TG TH TJ TM TN TZ UG UY UZ VE VN ZA ZM ZW
"""
LANGUAGES = """
    af am ar as az be bg bn bo br bs ca co cs cy da de dz el en eo es et eu fa fi fo fr ga gl gu ha he hi hr
    hu hy id is it ja jv ka kk km kn ko ku ky la lb ln lo lt lv mg mk ml mn mr ms mt my ne nl no oc pa pl ps
    pt qu rm ro ru sa sc si sk sl sm sn so sq sr su sv sw ta te tg th ti tk tr tt ug uk ur uz vi wa xh yi yo
    zh zu
"""


def in_both(render: Callable[[Locale], str]) -> Phrase:
    return render(ENGLISH), render(GERMAN)


def one_of(phrases: Sequence[Phrase]) -> Slot:
    return lambda rng: rng.choice(phrases)


def named(keys: str, name: Callable[[Locale, str], str]) -> Slot:
    return one_of([(name(ENGLISH, key), name(GERMAN, key)) for key in keys.split()])


event, goods, counted = one_of(EVENTS), one_of(GOODS), one_of(COUNTED)
person = named(PEOPLE, lambda locale, name: name)
city = named(TIME_ZONES, lambda locale, zone: dates.get_timezone_location(zone, locale=locale, return_city=True))
territory = named(TERRITORIES, lambda locale, code: locale.territories[code])
language = named(LANGUAGES, lambda locale, code: locale.languages[code])
weekday = named("0 1 2 3 4 5 6", lambda locale, day: dates.get_day_names(locale=locale)[int(day)])


def date(english_pattern: str, german_pattern: str) -> Slot:
    def draw(rng: random.Random) -> Phrase:
        day = datetime.date(1950, 1, 1) + datetime.timedelta(days=rng.randrange(100 * 365))
        return (
            dates.format_date(day, english_pattern, locale=ENGLISH),
            dates.format_date(day, german_pattern, locale=GERMAN),
        )

    return draw


full_date, long_date = date("full", "full"), date("long", "long")
day_of_year, month = date("MMMM d", "d. MMMM"), date("MMMM y", "MMMM y")


def clock(rng: random.Random) -> Phrase:
    time = datetime.time(rng.randrange(24), rng.randrange(60))
    return in_both(lambda locale: dates.format_time(time, "short", locale=locale))


STEPS: list[tuple[Any, datetime.timedelta, int]] = [
    ("minute", datetime.timedelta(minutes=1), 59),
    ("hour", datetime.timedelta(hours=1), 23),
    ("day", datetime.timedelta(days=1), 30),
    ("week", datetime.timedelta(weeks=1), 20),
    ("month", datetime.timedelta(days=30), 11),
    ("year", datetime.timedelta(days=365), 50),
]


def from_now(sign: int) -> Slot:
    def draw(rng: random.Random) -> Phrase:
        unit, step, most = rng.choice(STEPS)
        delta = sign * rng.randint(1, most) * step
        return in_both(
            lambda locale: dates.format_timedelta(
                delta, granularity=unit, threshold=1_000, add_direction=True, locale=locale
            )
        )

    return draw


later, earlier = from_now(1), from_now(-1)


def money(rng: random.Random) -> Phrase:
    currency = rng.choice(CURRENCIES.split())
    amount = rng.randint(200, 10 ** rng.randint(3, 7)) / 100
    return in_both(lambda locale: numbers.format_currency(amount, currency, locale=locale, format_type="name"))


def measure(names: str) -> Slot:
    def draw(rng: random.Random) -> Phrase:
        unit = rng.choice(names.split())
        value = rng.randint(2, 10 ** rng.randint(1, 4)) + rng.choice([0, rng.randint(1, 9) / 10])
        return in_both(lambda locale: units.format_unit(value, unit, "long", locale=locale))

    return draw


def in_words(number: int, form: str) -> Phrase:
    return num2words(number, lang="en", to=form), num2words(number, lang="de", to=form)


def cardinal(rng: random.Random) -> Phrase:
    return in_words(rng.randint(2, 10 ** rng.randint(2, 5)), "cardinal")


def count(rng: random.Random) -> Phrase:
    hundreds = rng.randrange(10 ** rng.randint(0, 3))  # two to 99: "hunderteins" does not go before a noun
    return in_words(100 * hundreds + rng.randint(2, 99), "cardinal")


def year(rng: random.Random) -> Phrase:
    return in_words(100 * rng.randint(18, 19) + rng.randint(1, 99), "year")


KINDS: dict[str, list[Template]] = {
    "dates": [
        Template("{} is on {}.", "{} ist am {}.", (event, full_date)),
        Template("{} starts on {}.", "{} beginnt am {}.", (event, long_date)),
        Template("{} lasts from {} to {}.", "{} dauert vom {} bis zum {}.", (event, day_of_year, day_of_year)),
        Template("{} moved from {} to {}.", "{} wurde vom {} auf den {} verlegt.", (event, day_of_year, long_date)),
        Template("{} takes place in {}.", "{} findet im {} statt.", (event, month)),
        Template("{} is cancelled until {}.", "{} fällt bis zum {} aus.", (event, long_date)),
        Template("{} was born on {}.", "{} wurde am {} geboren.", (person, long_date)),
        Template("{} arrives on {}.", "{} kommt am {} an.", (person, full_date)),
        Template("{} wrote the letter on {}.", "{} schrieb den Brief am {}.", (person, full_date)),
    ],
    "times": [
        Template("{} starts at {}.", "{} beginnt um {} Uhr.", (event, clock)),
        Template("{} lasts from {} to {}.", "{} dauert von {} bis {} Uhr.", (event, clock, clock)),
        Template("{} is on {} at {}.", "{} ist am {} um {} Uhr.", (event, weekday, clock)),
        Template("The train to {} leaves at {}.", "Der Zug nach {} fährt um {} Uhr ab.", (city, clock)),
        Template("In {} it is now {}.", "In {} ist es jetzt {} Uhr.", (city, clock)),
        Template("{} called at {}.", "{} hat um {} Uhr angerufen.", (person, clock)),
        Template("{} is coming {}.", "{} kommt {}.", (person, later)),
        Template("{0} was in {1} {2}.", "{0} war {2} in {1}.", (person, city, earlier)),
    ],
    "currencies": [
        Template("{} costs {}.", "{} kostet {}.", (goods, money)),
        Template("{} paid {} for the repair.", "{} hat {} für die Reparatur bezahlt.", (person, money)),
        Template("{} owes me {}.", "{} schuldet mir {}.", (person, money)),
        Template("{} earns {} a month.", "{} verdient {} im Monat.", (person, money)),
        Template("The bill comes to {}.", "Die Rechnung beläuft sich auf {}.", (money,)),
        Template("The price is {}.", "Der Preis beträgt {}.", (money,)),
    ],
    "units": [
        Template("The bridge is {} long.", "Die Brücke ist {} lang.", (measure("kilometer meter mile yard foot"),)),
        Template("The snake is {} long.", "Die Schlange ist {} lang.", (measure("meter centimeter inch foot"),)),
        Template("The tower is {} high.", "Der Turm ist {} hoch.", (measure("meter foot yard"),)),
        Template("The line is {} wide.", "Die Linie ist {} breit.", (measure("millimeter centimeter inch"),)),
        Template("The ship sails {} a day.", "Das Schiff fährt {} am Tag.", (measure("nautical-mile mile kilometer"),)),
        Template("The star is {} away.", "Der Stern ist {} entfernt.", (measure("light-year parsec"),)),
        Template("The parcel weighs {}.", "Das Paket wiegt {}.", (measure("kilogram gram pound ounce"),)),
        Template("The truck weighs {}.", "Der Lastwagen wiegt {}.", (measure("tonne kilogram pound"),)),
        Template("The tank holds {}.", "Der Tank fasst {}.", (measure("liter hectoliter cubic-meter gallon"),)),
        Template("The glass holds {}.", "Das Glas fasst {}.", (measure("milliliter centiliter fluid-ounce"),)),
        Template("The recipe needs {} of oil.", "Das Rezept braucht {} Öl.", (measure("teaspoon tablespoon cup"),)),
        Template("The farm covers {}.", "Der Hof umfasst {}.", (measure("hectare square-kilometer square-mile"),)),
        Template("The flat measures {}.", "Die Wohnung misst {}.", (measure("square-meter square-foot"),)),
        Template("The journey takes {}.", "Die Reise dauert {}.", (measure("minute hour day week month"),)),
        Template("The expedition lasts {}.", "Die Expedition dauert {}.", (measure("week month year decade"),)),
        Template("The signal lasts {}.", "Das Signal dauert {}.", (measure("second millisecond microsecond"),)),
        Template("The wind reaches {}.", "Der Wind erreicht {}.", (measure("kilometer-per-hour mile-per-hour knot"),)),
        Template("The sensor shows {}.", "Der Sensor zeigt {} an.", (measure("celsius fahrenheit kelvin lux"),)),
        Template(
            "The gauge shows {}.", "Das Manometer zeigt {} an.", (measure("bar millibar hectopascal atmosphere"),)
        ),
        Template("The engine delivers {}.", "Der Motor leistet {}.", (measure("kilowatt watt horsepower megawatt"),)),
        Template("The meter reads {}.", "Der Zähler zeigt {} an.", (measure("kilowatt-hour volt ampere joule"),)),
        Template("The meal has {}.", "Die Mahlzeit hat {}.", (measure("kilocalorie kilojoule"),)),
        Template("The file takes up {}.", "Die Datei belegt {}.", (measure("megabyte gigabyte kilobyte terabyte"),)),
        Template("The processor reaches {}.", "Der Prozessor erreicht {}.", (measure("gigahertz megahertz"),)),
    ],
    "territories": [
        Template("{} is from {} and speaks {}.", "{} kommt aus {} und spricht {}.", (person, territory, language)),
        Template("{} moved from {} to {}.", "{} zog von {} nach {}.", (person, territory, territory)),
        Template("{} is learning {} and {}.", "{} lernt {} und {}.", (person, language, language)),
        Template("{} teaches {} in {}.", "{} unterrichtet {} in {}.", (person, language, territory)),
        Template("The tour visits {} and {}.", "Die Reise führt nach {} und {}.", (territory, territory)),
        Template("The book exists in {} and {}.", "Das Buch gibt es auf {} und {}.", (language, language)),
    ],
    "numbers": [
        Template("The number is {}.", "Die Zahl lautet {}.", (cardinal,)),
        Template("{} drew the number {}.", "{} zog die Nummer {}.", (person, cardinal)),
        Template("{} was born in {}.", "{} wurde {} geboren.", (person, year)),
        Template("{} counted {} {}.", "{} zählte {} {}.", (person, count, counted)),
        Template("The town has {} inhabitants.", "Die Stadt hat {} Einwohner.", (count,)),
    ],
}


def draw_pair(templates: Sequence[Template], rng: random.Random) -> Phrase:
    template = rng.choice(templates)
    phrases = [slot(rng) for slot in template.slots]
    if len(set(phrases)) < len(phrases):
        return draw_pair(templates, rng)
    return (
        template.english.format(*(english for english, _ in phrases)),
        template.german.format(*(german for _, german in phrases)),
    )
