"""{{convert}}: constants of scipy, and the examples on the template's documentation."""

import math

import pytest
import scipy.constants as constants
from hypothesis import given
from hypothesis import strategies as st

from mt.dataprep.extract import editions
from mt.dataprep.extract.unit_conversion import Number, _units, convert, text

UNITS = _units()
KNOWN = {
    "mi": constants.mile,
    "ft": constants.foot,
    "in": constants.inch,
    "yd": constants.yard,
    "nmi": constants.nautical_mile,
    "acre": constants.acre,
    "ha": constants.hectare,
    "lb": constants.lb,
    "oz": constants.oz,
    "st": constants.stone,
    "gr": constants.grain,
    "LT": constants.long_ton,
    "ST": constants.short_ton,
    "USgal": constants.gallon_US,
    "impgal": constants.gallon_imp,
    "USfloz": constants.fluid_ounce_US,
    "impfloz": constants.fluid_ounce_imp,
    "oilbbl": constants.bbl,
    "mph": constants.mph,
    "kn": constants.knot,
    "km/h": constants.kmh,
    "hp": constants.hp,
    "psi": constants.psi,
    "atm": constants.atm,
    "bar": constants.bar,
    "cal": constants.calorie,
    "lbf": constants.lbf,
    "ly": constants.light_year,
    "pc": constants.parsec,
    "AU": constants.au,
    "sqmi": constants.mile**2,
    "sqft": constants.foot**2,
    "sqin": constants.inch**2,
    "sqyd": constants.yard**2,
    "cuft": constants.foot**3,
    "cuin": constants.inch**3,
    "cuyd": constants.yard**3,
    "cumi": constants.mile**3,
    "/sqmi": constants.mile**-2,
    "lbft": constants.lbf * constants.foot,
    "cuft/s": constants.foot**3,
    "kWh": 1000 * constants.hour,
    "fathom": 6 * constants.foot,
    "furlong": 660 * constants.foot,
    "ft/s": constants.foot,
    "inHg": 25.4 * constants.mmHg,
}


@pytest.mark.parametrize("code", KNOWN)
def test_a_unit_has_its_value_in_si_units(code):
    assert UNITS[code].scale == pytest.approx(KNOWN[code], rel=1e-6)


def test_units_without_a_constant_are_multiples_of_ten():
    """The prefixes of SI; the others are above or are named here."""
    prefixed = {
        code: unit for code, unit in UNITS.items() if code not in KNOWN and unit not in map(UNITS.get, KNOWN)
    }
    odd = {code for code, unit in prefixed.items() if not math.log10(unit.scale).is_integer()}
    assert odd == {"mi/s", "F", "°F", "fahrenheit", "bhp", "shp", "PS", "kcal", "MWh", "GWh"}


@given(st.floats(-90, 5000))
def test_temperatures_are_those_of_scipy(value):
    number = Number("", value, 0)
    scales = {"C": "Celsius", "F": "Fahrenheit", "K": "Kelvin"}
    for code, name in scales.items():
        for other, other_name in scales.items():
            expected = constants.convert_temperature(value, name, other_name)
            assert convert(number, UNITS[code], UNITS[other]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "shown"),
    [
        ("2|km|mi", {}, "2 kilometres (1.2 mi)"),
        ("7|mi|km", {}, "7 miles (11 km)"),
        ("2|km|mi|2", {"abbr": "on"}, "2 km (1.24 mi)"),
        ("7|mi|km|2", {"abbr": "on"}, "7 mi (11.27 km)"),
        ("2|to|5|km|mi", {}, "2 to 5 kilometres (1.2 to 3.1 mi)"),
        ("2|-|5|km|mi", {}, "2–5 kilometres (1.2–3.1 mi)"),
        ("2|-|5|km|mi|2", {"abbr": "on"}, "2–5 km (1.24–3.11 mi)"),
        ("2|and|5|km|mi", {"sigfig": "3", "abbr": "off"}, "2 and 5 kilometres (1.24 and 3.11 miles)"),
        ("1|lb|kg", {}, "1 pound (0.45 kg)"),
        ("1|lb|kg", {"abbr": "on"}, "1 lb (0.45 kg)"),
        ("1|lb|kg", {"abbr": "off"}, "1 pound (0.45 kilograms)"),
        ("1|lb|kg", {"abbr": "in"}, "1 lb (0.45 kilograms)"),
        ("10|mi|km", {"adj": "on"}, "10-mile (16 km)"),
        ("10|ft|m|-long", {"adj": "mid"}, "10-foot-long (3.0 m)"),
        ("123|ft|m|-1", {}, "123 feet (40 m)"),
        ("123|ft|m|0", {}, "123 feet (37 m)"),
        ("123|ft|m|1", {}, "123 feet (37.5 m)"),
        ("550|ft|m|0", {}, "550 feet (168 m)"),
        ("550|ft|m", {}, "550 feet (170 m)"),
        ("500|ft|m", {}, "500 feet (150 m)"),
        ("1200|ft|m", {"sigfig": "4"}, "1,200 feet (365.8 m)"),
        ("1200|ft|m", {"sigfig": "3"}, "1,200 feet (366 m)"),
        ("60|and|170|kg|lb", {}, "60 and 170 kilograms (130 and 370 lb)"),
        ("5|ft|10|in|cm", {}, "5 feet 10 inches (178 cm)"),
        ("1.75|m|ftin", {"abbr": "on"}, "1.75 m (5 ft 9 in)"),
        ("37|C|F", {}, "37 °C (99 °F)"),
        ("-40|C|F", {}, "\u221240 °C (\u221240 °F)"),
        ("100|mph", {}, "100 miles per hour (160 km/h)"),
        ("10|x|20|ft|m", {"abbr": "on"}, "10 ft × 20 ft (3.0 m × 6.1 m)"),
        ("640|acre|km2", {}, "640 acres (2.6 km²)"),
        ("2.5|km2|acre", {"adj": "on"}, "2.5-square-kilometre (620-acre)"),
        ("500|kg|lb", {"order": "flip"}, "1,100 pounds (500 kg)"),
        ("100|mi|km", {"disp": "or"}, "100 miles or 160 kilometres"),
        ("100|km|mi", {"disp": "out"}, "62 mi"),
        ("4|m|ft", {"sp": "us"}, "4 meters (13 ft)"),
        ("3|t|lb", {"sp": "us"}, "3 metric tons (6,600 lb)"),
        ("1|t|LT", {"sp": "us", "abbr": "off"}, "1 metric ton (0.98 long tons)"),
        ("1/2|mi|km", {}, "1\u20442 mile (0.80 km)"),
        ("20|nmi|km mi", {}, "20 nautical miles (37 km; 23 mi)"),
    ],
)
def test_a_conversion_is_that_of_the_documentation(arguments, options, shown):
    """Examples of en.wikipedia.org/wiki/Template:Convert and Help:Convert."""
    assert text(editions.edition("en"), arguments.split("|"), **options) == shown


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("5|foo|bar", "5 foo"),
        ("many|km|mi", "many km"),
        ("5|km|kg", "5 kilometres"),
        ("5|kg|lboz", "5 kilograms"),
        ("1.2|e6m3|cuft", "1.2 million cubic metres"),
        ("5|m|parasang", "5 metres"),
        ("5", "5"),
        ("", None),
        ("1/0|km", "1/0 km"),
    ],
)
def test_what_cannot_be_converted_is_shown_as_written(arguments, shown):
    assert text(editions.edition("en"), arguments.split("|")) == shown


@given(
    st.text("0123456789.,-+/eE", max_size=12), st.sampled_from(sorted(UNITS)), st.sampled_from(sorted(UNITS))
)
def test_any_number_and_units_give_a_text(number, unit, other):
    shown = text(editions.edition("en"), [number, unit, other])
    assert shown or not number


@given(st.decimals("0.001", 9999, places=3), st.sampled_from(["mi", "ft", "in", "yd", "nmi"]))
def test_a_converted_length_differs_by_less_than_its_last_digits(number, code):
    value = float(number) * UNITS[code].scale
    shown = text(editions.edition("en"), [str(number), code, "m"], abbr="on", disp="out")
    written = shown.removesuffix(" m").replace(",", "")
    assert abs(float(written) - value) <= 0.51 * 10 ** -len(written.partition(".")[2])
