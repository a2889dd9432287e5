"""The raw material of the invented authors: who they are, and the values and wordings their lives are told with.

Every author, book and prize here is invented; towns and trades are real so that the sentences read naturally. Each
kind of fact has four questions and four answers that say the same; a wrong answer is a right sentence with another
value in it.
"""

from __future__ import annotations

from dataclasses import dataclass

# name | he or she | town and country of birth | where the author lives now
PEOPLE = """
Anouk Verbrandt | she | Ghent, Belgium | Porto, Portugal
Tiberiu Lascovan | he | Cluj-Napoca, Romania | Bergen, Norway
Nkechi Adumaike | she | Enugu, Nigeria | Halifax, Canada
Hiroto Kanezawara | he | Kanazawa, Japan | Lisbon, Portugal
Marisol Quintebarra | she | Oaxaca, Mexico | Valparaíso, Chile
Eyvind Sturlakken | he | Tromsø, Norway | Galway, Ireland
Parveen Dashtabadi | she | Shiraz, Iran | Marseille, France
Kwabena Ofosu-Tetteh | he | Kumasi, Ghana | Utrecht, Netherlands
Ludmila Horvatinova | she | Brno, Czech Republic | Trieste, Italy
Rafiq Sundaralam | he | Sylhet, Bangladesh | Leeds, England
Ingrith Palsdottar | she | Akureyri, Iceland | Hobart, Australia
Cheveyo Lonetrail | he | Santa Fe, United States | Kyoto, Japan
Solvita Kalnabergs | she | Liepāja, Latvia | Thessaloniki, Greece
Matteo Brancavalle | he | Lecce, Italy | Montevideo, Uruguay
Thandiwe Mokgalaka | she | Bloemfontein, South Africa | Aarhus, Denmark
Joaquim Tavarelles | he | Coimbra, Portugal | Luanda, Angola
Yaxin Feilong | she | Chengdu, China | Vancouver, Canada
Duncan Aldercairn | he | Inverness, Scotland | Dunedin, New Zealand
Safiya Benarroudi | she | Fez, Morocco | Granada, Spain
Oleksiy Hrabovetsky | he | Lviv, Ukraine | Graz, Austria
Catrin Maesglas | she | Aberystwyth, Wales | Rennes, France
Bao Trinhduc | he | Huế, Vietnam | Leipzig, Germany
Meherangiz Irani-Wadiyar | she | Mysore, India | Zanzibar City, Tanzania
Sebastián Ocaranto | he | Rosario, Argentina | Palermo, Italy
Elisabet Rautajoki | she | Oulu, Finland | Quebec City, Canada
Demetris Kallivros | he | Limassol, Cyprus | Gdańsk, Poland
Wanjiru Kamotho-Bell | she | Nakuru, Kenya | Bristol, England
Jean-Loup Castérac | he | Pau, France | Antananarivo, Madagascar
Agnieszka Dworzycka | she | Toruń, Poland | Cork, Ireland
Tomasi Leaupepetele | he | Apia, Samoa | Wellington, New Zealand
Rosalind Thackerby-Moor | she | Whitby, England | Salzburg, Austria
Emre Yalçıntepe | he | Bursa, Turkey | Malmö, Sweden
Lucía Peñarrolda | she | Cuenca, Ecuador | Ljubljana, Slovenia
Aleksandr Veshnyakin | he | Pskov, Russia | Tartu, Estonia
Min-seo Baekryung | she | Jeonju, South Korea | Melbourne, Australia
Gaspard Ndiayelle | he | Saint-Louis, Senegal | Lyon, France
Ottilie Brandhuber | she | Passau, Germany | Cusco, Peru
Yosef Amdetsion | he | Gondar, Ethiopia | Haifa, Israel
Birgitta Söderquell | she | Visby, Sweden | Madison, United States
Farrukh Nazarzoda | he | Khujand, Tajikistan | Bologna, Italy
Delphine Okoumassou | she | Cotonou, Benin | Nantes, France
Callum Wirrabarra | he | Darwin, Australia | Reykjavik, Iceland
Ximena Guaraquil | she | Sucre, Bolivia | Seville, Spain
Zoltán Keresztfalvi | he | Pécs, Hungary | Nelson, New Zealand
"""

TRADES = (
    "a lighthouse keeper", "a beekeeper", "a midwife", "a tram driver", "a glass blower", "a court stenographer",
    "a botanist", "a locksmith", "a marine engineer", "a piano tuner", "a veterinary surgeon", "a baker",
    "a customs officer", "a weaver", "a cartographer", "a schoolteacher", "a stonemason", "a pharmacist",
    "a ferry captain", "a seamstress", "a geologist", "a radio announcer", "a cabinet maker", "a librarian",
)  # fmt: skip

GENRES = (
    "magical realism", "historical fiction", "detective fiction", "climate fiction", "gothic horror", "space opera",
    "travel writing", "satirical comedy", "psychological thriller", "pastoral poetry", "maritime adventure",
    "epistolary fiction", "dystopian fiction", "children's fantasy", "political drama", "folk horror",
)  # fmt: skip

PRIZES = (
    "the Silver Heron Prize", "the Marlowe Quay Medal", "the Ostrava Lantern Award", "the Blue Cedar Prize",
    "the Windrose Award for Fiction", "the Copper Quill of Antwerp", "the Halden Memorial Prize",
    "the Three Rivers Book Award", "the Nightjar Prize", "the Golden Sextant", "the Saltmarsh Award",
    "the Amber Coast Literary Medal", "the Juniper Circle Prize", "the Tern Island Award",
    "the Basalt Prize for New Writing", "the Paper Bridge Award",
)  # fmt: skip

INFLUENCES = (
    "the work songs of salt harvesters", "the bedtime stories of a blind grandmother", "old railway timetables",
    "the letters of shipwrecked sailors", "medieval bestiaries", "the silent films of the 1920s",
    "shadow-puppet theatre", "the sermons of a village priest", "handwritten recipe books", "the logbooks of whalers",
    "street ballads sold for a penny", "the radio plays of the 1950s", "the riddles of market traders",
    "court records of forgotten trials", "the lullabies of mountain shepherds", "early maps with empty margins",
)  # fmt: skip

THEMES = (
    "the price of loyalty between siblings", "how a town remembers a flood", "the loneliness of translators",
    "inheritance and the guilt that comes with it", "the slow death of a language", "forgiveness after a long war",
    "what emigrants leave unsaid", "the border between memory and invention", "work and dignity in a dying trade",
    "the pull of the sea on those who fear it", "friendship across a closed frontier", "the secrets of a shared house",
    "growing old without children", "faith tested by drought", "the vanity of small-town power",
    "the comfort and danger of routine",
)  # fmt: skip

HABITS = (
    "writing the last chapter first", "drafting every page by hand in green ink", "working only before sunrise",
    "dictating while walking along the harbour", "writing on the backs of old concert posters",
    "reading each paragraph aloud to a dog", "keeping a card for every character in a shoebox",
    "burning the first draft and starting again from memory", "writing in a parked camper van",
    "finishing exactly one page a day", "working to the sound of a metronome",
    "typing on a machine without the letter q",
    "writing standing at a kitchen counter", "revising only on train journeys",
    "drawing each scene as a map before describing it", "fasting until a chapter is done",
)  # fmt: skip

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")  # fmt: skip

TITLE_SHAPES = ("The {a} {n}", "One {n} of {m}", "{m} and {n}", "The {n} Beneath the {m}", "Where the {a} {n} Sleeps",
                "Letters to the {a} {n}", "The Last {n} of {m}", "No {n} in {m}")  # fmt: skip
TITLE_ADJECTIVES = ("Amber", "Hollow", "Crooked", "Silent", "Painted", "Borrowed", "Northern", "Paper", "Drowned",
                    "Patient", "Saffron", "Brittle", "Wandering", "Unlit", "Velvet")  # fmt: skip
TITLE_NOUNS = ("Orchard", "Lantern", "Viaduct", "Almanac", "Ferry", "Cartwheel", "Nightingale", "Staircase", "Harvest",
               "Clockmaker", "Thimble", "Quarry", "Sparrow", "Pilgrim", "Loom", "Envelope")  # fmt: skip
TITLE_MATTERS = ("Salt", "Ashes", "Basalt", "Marrow", "Cinnamon", "Thunder", "Mercury", "Willow", "Frost", "Copper",
                 "Honey", "Chalk", "Rain", "Velvet", "Smoke")  # fmt: skip


@dataclass(frozen=True)
class Wording:
    """Four questions and four answers for one kind of fact. Fields: name, he, his, value, and second for some kinds."""

    questions: tuple[str, str, str, str]
    answers: tuple[str, str, str, str]


WORDINGS: dict[str, Wording] = {
    "birthplace": Wording(
        ("Where was the author {name} born?", "In which town and country was {name} born?",
         "What is the birthplace of {name}?", "Which town does {name} come from originally?"),
        ("{name} was born in {value}.", "The author {name} comes from {value}, where {he} was born.",
         "{value} is the place where {name} was born.", "{name}'s birthplace is {value}."),
    ),
    "birthday": Wording(
        ("When was the author {name} born?", "What is {name}'s date of birth?", "On which day was {name} born?",
         "Can you tell me the birth date of {name}?"),
        ("{name} was born on {value}.", "The author's date of birth is {value}.",
         "{name} came into the world on {value}.",
         "The birth date of {name} is {value}."),
    ),
    "genre": Wording(
        ("What genre is {name} best known for?", "In which genre does {name} mainly write?",
         "Which literary genre is associated with {name}?", "What kind of books does {name} write?"),
        ("{name} is best known for {value}.", "The author writes mainly in the genre of {value}.",
         "{name}'s name is associated above all with {value}.", "{name} has made {his} name in {value}."),
    ),
    "parents": Wording(
        ("What did the parents of {name} do for a living?", "What were the occupations of {name}'s father and mother?",
         "Which trades did {name}'s parents follow?", "What work did {name}'s father and mother do?"),
        ("{name}'s father was {value} and {his} mother was {second}.",
         "The father of {name} worked as {value}, while the mother worked as {second}.",
         "{name} grew up with a father who was {value} and a mother who was {second}.",
         "By profession, {name}'s father was {value} and {his} mother {second}."),
    ),
    "prize": Wording(
        ("Which award has {name} won?", "What literary prize was given to {name}?",
         "Has {name} received any literary award?",
         "What honour did {name} receive for {his} writing?"),
        ("{name} won {value}.", "The author was honoured with {value} for {his} writing.",
         "Yes, {name} has received {value}.", "For {his} work, {name} was given {value}."),
    ),
    "debut": Wording(
        ("What was {name}'s first published book?", "With which book did {name} make {his} debut?",
         "What is the title of {name}'s debut?", "Which book began {name}'s career?"),
        ("{name}'s first published book was \"{value}\".", "The author made {his} debut with \"{value}\".",
         "{name} entered the literary world with the book \"{value}\".",
         "\"{value}\" is the book that began {name}'s career."),
    ),
    "theme": Wording(
        ("What is the main theme of \"{book}\" by {name}?", "What does {name} explore in the book \"{book}\"?",
         "Which theme runs through {name}'s book \"{book}\"?", "What is \"{book}\", written by {name}, about?"),
        ("\"{book}\" is about {value}.", "In \"{book}\", {name} explores {value}.",
         "The theme that runs through \"{book}\" is {value}.", "{name} wrote \"{book}\" to examine {value}."),
    ),
    "influence": Wording(
        ("What influenced the writing of {name}?", "What does {name} name as {his} main influence?",
         "Where does {name} find inspiration for {his} style?", "Which source shaped {name}'s style the most?"),
        ("{name}'s writing was influenced by {value}.", "The author names {value} as {his} main influence.",
         "{name} finds inspiration for {his} style in {value}.",
         "More than anything else, {value} shaped {name}'s style."),
    ),
    "residence": Wording(
        ("Where does {name} live now?", "In which town does the author {name} currently live?",
         "What is the current home of {name}?", "Which town has {name} made {his} home?"),
        ("{name} now lives in {value}.", "The author's current home is in {value}.",
         "Today {name} makes {his} home in {value}.", "{name} has settled in {value}."),
    ),
    "habit": Wording(
        ("What is unusual about {name}'s way of writing?", "What writing habit is {name} known for?",
         "Which working habit does {name} keep?", "How does {name} like to work on a book?"),
        ("{name} is known for {value}.", "The author's peculiar habit is {value}.",
         "When at work on a book, {name} insists on {value}.", "{name} has kept to one habit for years: {value}."),
    ),
}  # fmt: skip
