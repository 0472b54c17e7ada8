"""Templates that are more than a pattern: what their documentation shows."""

import pytest

from mt.dataprep.extract.wikitext import plain_text

DOCUMENTED = {
    # numbers
    "{{val|4.2|u=kt}}": "4.2 kt",
    "{{val|1.23|0.05|e=5|u=m}}": "(1.23±0.05)×10⁵ m",
    "{{val|1.23|0.05|0.03|u=m}}": "(1.23+0.05−0.03) m",
    "{{val|1.234|(5)|u=m.s-1}}": "1.234(5) m·s⁻¹",
    "{{val|-5|ul=km|upl=s}}": "−5 km/s",
    "{{val|10|ul=degC}} {{1/2}} a{{\"'}}b": "10 °C 1/2 a\"'b",
    "{{val|e=6|u=Hz}}": "10⁶ Hz",
    "{{val|12345|fmt=commas|u=%}}": "12,345%",
    "{{frac|3|4}} {{frac|2}} {{frac|3|1|2}}": "3⁄4 1⁄2 3 1⁄2",
    "{{sfrac|1|2}} {{sfrac|3|1|2}}": "1/2 3 1/2",
    "2{{sup|10}} a{{sup|th}} x{{sub|1}}": "2¹⁰ ath x1",
    "{{e|6}} 5{{e|-3}} {{10^|9}}": "×10⁶ 5×10⁻³ 10⁹",
    "{{ordinal|1}} {{ordinal|12}} {{ordinal|102}} {{ordinal|113}}": "1st 12th 102nd 113th",
    "{{height|m=1.75}} {{height|ft=5|in=10}}": "1.75 m (5 ft 9 in) 5 ft 10 in (1.78 m)",
    "{{formatnum|1234567}} {{nts|-12345}}": "1,234,567 −12,345",
    "{{convert|5|km|mi}}; {{cvt|5|km}}; {{Convert|5|km|mi|abbr=on|1}}":
    "5 kilometres (3.1 mi); 5 km (3.1 mi); 5 km (3.1 mi)",
    "{{chem2|SO4(2-)}} {{chem|Na|+}}": "SO4²⁻ Na+",
    # dates
    "{{circa|1900}} {{c.|1880|1890}} {{circa}}": "c. 1900 c. 1880 – c. 1890 c.",
    "{{birth date|1815|12|10}}": "December 10, 1815",
    "{{birth date and age|1815|12|10|df=y}}": "10 December 1815",
    "{{death date and age|1852|11|27|1815|12|10|df=yes}}": "27 November 1852 (aged 36)",
    "{{start date|1993|2}} {{end date|1994}}": "February 1993 1994",
    "{{birth date|12 May 1900}} {{start date|2000|99|1}}": "12 May 1900 2000",
    "{{as of|2012|3}} {{as of|2012|lc=y}} {{as of|2012|3|5|since=y}}":
    "As of March 2012 as of 2012 Since 5 March 2012",
    "{{CE|50}} {{BCE}} {{AD|70}}": "50 CE BCE AD 70",
    "{{key press|Ctrl|C}} a{{shy}}b": "Ctrl+C ab",
    "{{as of|2012|alt=In 2012}}": "In 2012",
    # languages
    "{{lang|de|Haus}} {{lang-de|Haus}} {{langx|de|Haus}}": "Haus German: Haus German: Haus",
    "{{lang-ru|Москва|Moskva}}": "Russian: Москва, romanized: Moskva",
    "{{langx|ru|Дом|lit=house}}": "Russian: Дом, lit. 'house'",
    "{{lang-xyz|Haus}} {{lang-de|Haus|label=none}}": "Haus Haus",
    "{{transl|ru|Moskva}} {{transl|ru|ISO|Moskva}}": "Moskva Moskva",
    "{{IPA|/haʊs/}} {{IPA|de|haʊs}} {{IPA-de|haʊs}}": "/haʊs/ German: [haʊs] German: [haʊs]",
    "{{IPAc-en|lang|ˈ|h|aʊ|s}}": "/ˈhaʊs/",
    "{{zh|s=北京|t=北京|p=Běijīng}}": "simplified Chinese: 北京; traditional Chinese: 北京; pinyin: Běijīng",
    "{{nihongo|Tokyo|東京|Tōkyō}} {{nihongo||東京}}": "Tokyo (東京, Tōkyō) (東京)",
    "{{linktext|a|b}} {{respell|a|BEE}}": "ab a-BEE",
    # ships
    "{{USS|Iowa|BB-61}} {{USS|Iowa|BB-61|2}} {{USS|Iowa|BB-61|1}}": "USS Iowa (BB-61) Iowa BB-61",
    "{{HMS|Hood||6}} {{USS|Iowa|BB-61|3}} {{USS|Iowa|BB-61|6}}": "HMS Hood Iowa (BB-61) USS Iowa",
    "{{ship|HMS|Victory}} {{ship|HMS|Victory||2}} {{ship||Mary Rose}}": "HMS Victory Victory Mary Rose",
    # references in the text
    "{{harv|Smith|Jones|2000|p=12}}": "(Smith & Jones 2000, p. 12)",
    "{{harvtxt|Smith|2000}} {{harvnb|A|B|C|D|2000|pp=1–2}}": "Smith (2000) A et al. 2000, pp. 1–2",
    "{{harvtxt|A|B|C|2000}}": "A, B & C (2000)",
    # the rest
    "{{sic|recieve}} {{sic|teh|hide=y}} {{sic}}": "recieve [sic] teh [sic]",
    "{{code|print('')}} {{tl|a}} {{tlx|a|b}}": "print('') {{a}} {{a|b}}",
    "{{music|flat}} {{music|natural}}": "♭ ♮",
    "a {{ubl|b|c}} d": "a\nb\nc\nd",
    "{{plainlist|\n* a\n* b\n}}": "a\nb",
    "{{flatlist|\n* a\n* b\n}}": "a\nb",
    "{{abbr|UN|United Nations}} {{tooltip|a|b}} {{small|c}} {{center|d}}": "UN a c d",
    "{{quote|Words.|Author|Title|Source}}": "Words.\n— Author, Title, Source",
    "{{blockquote|text=Words.|author=Author}}": "Words.\n— Author",
    "{{cquote|Words.|author=Author|source=Source}}": "Words.\n— Author, Source",
    "{{flag|Germany}} {{flagicon|Germany}}": "Germany",
    "{{ill|Name|de|Anders}} {{ill|Name|de|lt=label}}": "Name label",
    # signs and sounds
    "Hawai{{okina}}i Sana{{hamza}}a {{ayin}}Ali": "Hawaiʻi Sanaʾa ʿAli",
    "A{{prime}} {{prime|A}} {{No.}} {{No.|5}} {{±|3}}": "A′ A′ No. No. 5 ±3",
    "{{IAST|Rāma}} {{transliteration|sa|Rāma}} {{script/Hebrew|שלום}} {{Script/Arabic|ا}}":
    "Rāma Rāma שלום ا",
    "{{ruby|東|ひがし}} {{proper name|Ada}} {{thinspace}}a{{nbsp|2}}b": "東(ひがし) Ada a b",
    "{{IPA link|ʃ}} {{IPAblink|ʃ}} {{IPAslink|ʃ}} {{audio|a.ogg|hear}}": "ʃ [ʃ] /ʃ/ hear",
    "{{unichar|00A9}} {{unichar|41|cwith=◌}} {{unichar|0300}}":
    "U+00A9 © COPYRIGHT SIGN U+0041 A LATIN CAPITAL LETTER A U+0300 COMBINING GRAVE ACCENT",
    "{{native name|fr|Le Louvre}} {{native phrase|fr|Bonjour|paren=omit}}": "Le Louvre (French) Bonjour",
    "{{in lang|fr|de}} {{in lang|ja}}": "(in French and German) (in Japanese)",
    "{{lang-rus|Москва|r=Moskva|p=mɐˈskva}}": "Russian: Москва, romanized: Moskva, IPA: [mɐˈskva]",
    "{{music|time|3|4}} {{music|scale|5}} {{music|segno}}": "3/4 5̂ 𝄋",
    # identifiers
    "{{ISBN|0-306-40615-2}} {{ISSN|0028-0836}} {{OCLC|123}} {{doi|10.1/a}} {{arXiv|2101.00001}}":
    "ISBN 0-306-40615-2 ISSN 0028-0836 OCLC 123 doi:10.1/a arXiv:2101.00001",
    "{{PMID|1}} {{PMC|2}} {{JSTOR|3}} {{LCCN|4}} {{CVE|2014-0160}} {{US patent|5}} {{IETF RFC|2616}}":
    "PMID 1 PMC 2 JSTOR 3 LCCN 4 CVE-2014-0160 U.S. patent 5 RFC 2616",
    "{{ussc|name=Roe v. Wade|410|113|1973}} {{USC|5|552}} {{OEIS|A000045}}":
    "Roe v. Wade, 410 U.S. 113 (1973) 5 U.S.C. § 552 (sequence A000045 in the OEIS)",
    "{{bibleverse|Genesis|1:1}} {{bibleverse||Genesis|1:1|KJV}} {{bibleverse|1|Samuel|2:3}} {{qref|2|255}}":
    "Genesis 1:1 Genesis 1:1 1 Samuel 2:3 Quran 2:255",
    # money
    "{{US$|5 million|1999}} {{£|12}} {{INR|50}} {{INR}} {{€|3}} {{HK$|7}} {{£sd|l=3|s=2|d=6}}":
    "US$5 million £12 ₹50 ₹ €3 HK$7 £3 2s 6d",
    "{{INRConvert|5|c}} {{currency|5000|USD}} {{currency|5|SEK}}": "₹5 crore $5,000 SEK 5",
    # lives and dates
    "{{age|1989|7|23|2003|7|14}} {{age in days|2000|1|1|2000|3|1}} {{ayd|1989|7|23|2003|7|14}}":
    "13 60 13 years, 356 days",
    "{{age|1989|7|23}}{{birth year and age|1950}} {{dts|2004-02-24}} {{date|2004-02-24}}":
    "1950 February 24, 2004 24 February 2004",
    "{{OldStyleDate|24 January|1726|13 January}}; {{OldStyleDateDY|24 January|1726|13 January 1725}}":
    "24 January [O.S. 13 January] 1726; 24 January 1726 [O.S. 13 January 1725]",
    "{{marriage|Ann Lee|1990|2000|end=div}} {{marriage|Bo|1990}} {{née|Ray}}":
    "Ann Lee (m. 1990; div. 2000) Bo (m. 1990) née Ray",
    "{{post-nominals|country=GBR|OM|FRS}} {{post-nominals|size=100%|OM|FRS}}": "OM FRS OM, FRS",
    # numbers
    "{{nuclide|carbon|14}} {{SimpleNuclide|uranium|235}} {{roman|19}} {{round|3.14159|2}} {{pct|1|3|1}}":
    "¹⁴₆C ²³⁵U XIX 3.14 33.3%",
    "{{plural|1|page}} {{plural|2|page}} {{plural|3|city}} {{plural|2|foot|feet}}":
    "1 page 2 pages 3 cities 2 feet",
    "{{RA|5|34|32}} {{DEC|+22|0|52}} {{mset|1, 2}} {{closed-open|0, 1}}":
    "5ʰ 34ᵐ 32ˢ +22° 0′ 52″ {1, 2} [0, 1)",
    "{{jct|state=CA|I|5|US|50}} {{if empty||b|c}} {{USA}}": "I-5 / US 50 b United States",
}  # fmt: skip
EDITIONS = [
    ("de", "{{enS|house}} {{laS|domus}} {{xxS|a}}", "englisch house lateinisch domus"),
    ("de", "{{Höhe|412|AT}} {{Höhe|412|XX}}", "412 m ü. A. 412 m"),
    ("de", "{{\"|a}} {{\" |b}}", "„a“ „b“"),
    ("fr", "{{unité|12,5|km|h|-1}} {{unité|1234.5|m}} {{unité|5|e=6|W}}", "12,5 km h⁻¹ 1 234,5 m 5×10⁶ W"),
    ("fr", "{{s|I}} {{-s|V|e}} {{sp|XVIII|e|et|XIX|e}} {{siècle|XX}}",
     "Ier siècle Ve siècle av. J.-C. XVIIIe et XIXe siècles XXe siècle"),
    ("fr", "{{date|1|1|1815}} {{date|10|décembre|1815|en littérature}} {{date-|12 mai 1900}}",
     "1er janvier 1815 10 décembre 1815 12 mai 1900"),
    ("es", "{{siglo|V|a|s}} {{siglo|XX}} {{fecha|1|5|1900}}", "siglo V a. C. XX 1 de mayo de 1900"),
    ("ru", "{{дата|10|12|1815}} {{lang-la|a}} {{число|1234567,5}}", "10 декабря 1815 лат. a 1 234 567,5"),
    ("ru", "1 {{plural|1|день|дня|дней}}, 22 {{plural|22|день|дня|дней}}, 11 {{plural|11|день|дня|дней}}",
     "1 день, 22 дня, 11 дней"),
    ("ru", "{{OldStyleDate|1 сентября|1815|20 августа}}; {{МФА|mɐˈskva}}",
     "20 августа (1 сентября) 1815; [mɐˈskva]"),
    ("de", "{{arS|القاهرة|DMG=al-Qāhira}}, {{zh|c=北京|p=Běijīng}}; {{Taste|Strg|C}}",
     "arabisch القاهرة, DMG al-Qāhira, chinesisch 北京, Pinyin Běijīng; Strg+C"),
    ("fr", "{{ordinal|5}} {{fchim|H|2|O}} {{durée|1|20}} {{vol.|3}} {{citation étrangère|en|so|ainsi}}",
     "5e H2O 1 h 20 min vol. 3 « so »"),
    ("es", "{{fallecimiento|27|11|1852|10|12|1815}}; {{superíndice|a}}",
     "27 de noviembre de 1852 (36 años); a"),
    ("zh", "{{lang-en|bridge}}、{{tsl|en|Old Mill|老磨坊}}、{{bd|1815年|12月10日|1852年}}、{{le|桥|Bridge}}",
     "英语：bridge、老磨坊、1815年12月10日－1852年、桥"),
    ("zh", "-{zh-cn:计算机;zh-tw:電腦;}-和-{R|硬盘}--{H|zh-cn:a;zh-tw:b}-、-{桥}-。",
     "计算机和硬盘、桥。"),
    ("en", "a -{b}- c", "a -{b}- c"),
    ("ja", "{{lang-de-short|a}} {{lang-de|a}} {{by|2001年}}", "独: a ドイツ語: a 2001年"),
]  # fmt: skip


@pytest.mark.parametrize("wikitext", DOCUMENTED)
def test_a_template_shows_what_its_documentation_says(wikitext):
    assert plain_text(wikitext) == DOCUMENTED[wikitext]


@pytest.mark.parametrize(("language", "wikitext", "text"), EDITIONS)
def test_templates_of_other_editions(language, wikitext, text):
    assert plain_text(wikitext, language=language) == text
