"""Record what the question-answering pipeline of transformers 4.57.6 returns and raises.

Run it with the python of the reference environment (``scripts/make_hf4_env``)::

    python=$(scripts/make_hf4_env)/bin/python
    $python tests/golden/make_pipeline_golden.py            # write the file
    $python tests/golden/make_pipeline_golden.py --check    # compare with it

It loads ``src/spanqa/models/spanqa-mini`` in float32 and writes
``tests/golden/pipeline-4.57.6-<first 12 hex digits of the sha256 of model.safetensors>.json``.
The keys of that file are explained in ``tests/golden/README.md``.

Only the standard library is imported at module level, so that tests can use ``decode`` to turn
the recorded arguments back into Python values without the reference environment.

All passages and questions below were written for this file.
"""

import argparse
import hashlib
import json
import os
import platform
import re
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "src" / "spanqa" / "models" / "spanqa-mini"
VERSION = "4.57.6"
THREADS = 2
MAX_LENGTH = 512


# --------------------------------------------------------------------------- passages


def paragraphs(text):
    """Undo the line wrapping of a text: blank lines separate paragraphs, the rest is one line."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))


TINY = "The ferry leaves at noon."

HARBOUR = paragraphs(
    """
    The harbour of Quillport was dug in 1874 by two hundred labourers from the neighbouring
    valley, who were paid in salt and smoked herring. It is nine metres deep at low tide, which
    allows cargo ships of medium size to moor beside the old customs house. The harbour master,
    Ingrid Solvang, keeps a brass bell in her office and rings it whenever a vessel arrives from
    abroad. Every autumn the town holds a lantern race in which rowing boats circle the outer
    breakwater after sunset, and the winning crew receives a barrel of cider.
    """
)

ORCHARD = paragraphs(
    """
    The Brennick orchard lies on a south-facing slope above the river Ulse. It was planted by
    Tobias Brennick in the spring of 1921, after he had sold his share in a failing brickworks.
    The first trees were forty-two pears, but a late frost killed most of them and he replaced
    them with apples from a nursery in Carrowdale.

    Today the orchard covers eleven hectares and is run by his great-granddaughter, Lena Okafor.
    She grows nine kinds of apple, of which the russet called Grey Widow is the best known. The
    fruit is picked by hand in October, stored in a cool barn built of limestone, and pressed in
    a machine that a local blacksmith made from parts of an abandoned tram. Roughly a third of
    the harvest becomes juice; the rest is sold at the Saturday market in Dunmarrow.

    In 2009 a fungus called black scab threatened the older trees. Lena refused to spray them and
    instead brought in sheep to eat the fallen leaves, because the spores survive the winter on
    dead leaves. The losses fell from sixty percent to five within three years, and students from
    the agricultural college now visit every May to count lichens on the trunks.
    """
)

LIGHTHOUSE = paragraphs(
    """
    When the council of Vardholm decided to build a lighthouse on the Skerry of Crows, most of
    the fishermen laughed. The rock is barely forty paces long, it disappears under foam in any
    gale from the west, and nobody had ever managed to spend a night on it. The engineer who
    accepted the task was Marit Haugen, a quiet woman of thirty-one who had built two bridges and
    a slaughterhouse but never anything at sea. She asked for seven years and was given five. The
    foundation stone was lowered into place on the ninth of June 1887, and a bottle of aquavit
    was broken over it, to the regret of the stonemasons.

    The tower was made of grey granite from the quarries at Tinnfjell, cut into blocks that locked
    into each other like the pieces of a puzzle. Each block was numbered with red paint and fitted
    together once on land before it was shipped, so that no time would be lost on the rock. The
    barge that carried them was called the Patient Ox, and it made three hundred and twelve
    crossings without losing a single stone. The only man who died during the work was a cook
    named Jonas Reed, who slipped on the landing stage while carrying a kettle of pea soup. His
    name is carved above the door, and until the last keeper left, pea soup was eaten on every
    anniversary of his death.

    The lamp was lit for the first time on the second of November 1892. It burned paraffin and
    stood inside a lens of cut glass that had been ordered from a workshop in Marseille. The lens
    floated on a bath of mercury, so that a child could turn it with one finger, and a clockwork
    mechanism had to be wound every four hours. On clear nights the beam was seen at a distance
    of twenty-two nautical miles. Sailors said that the light of Crows blinked like a tired owl,
    because the flashes came in pairs with a long darkness between them.

    For sixty-nine years the tower had three keepers at a time, who served for six weeks and then
    went ashore for two. The longest service was that of Peder Lund, who spent twenty-six years on
    the rock and filled forty notebooks with observations of birds. He was the first to notice
    that the petrels nested on the leeward ledge only in years when the herring came early. The
    university in Lorne later printed his notes under the title A Ledger of Wings, and the book
    is still used by people who study the sea. Peder himself refused to attend the celebration,
    since he could not bear the noise of crowds.

    Life on the rock was narrow. The bedroom was round, the beds were curved, and so were the
    shelves, the table and the bread bin. Fresh water came from rain that was collected on the
    gallery, and after a storm it tasted of salt for a month. The keepers kept hens for a while,
    but the birds were blown away in the winter of 1911. A piano was brought out in pieces by a
    keeper called Anton Weiss, who assembled it again in the kitchen and taught the others to
    sing in three voices. It could never be removed, because the staircase had been widened only
    once, and the piano is there to this day, without its strings.

    The most famous night in the history of the tower was the fourteenth of February 1938. A
    freighter named Halcyon, bound for Antwerp with a cargo of oranges and sewing machines, lost
    her rudder and drifted towards the skerry. The clockwork had jammed, and the keepers turned
    the lens by hand for eleven hours while one of them read aloud from the almanac to keep the
    rhythm. The ship passed the rock at a distance of ninety metres and was towed to safety in
    the morning by the tug Bruna. For weeks afterwards oranges were washed ashore all along the
    coast, and many children in the villages tasted one for the first time.

    Electricity reached the skerry in 1961 by means of a cable laid on the sea bed. The paraffin
    lamp was given to the museum in Vardholm and the last keepers, Olga Brandt and her brother
    Emil, locked the door on the thirtieth of September of that year. Since then the light has
    been controlled from an office on the mainland. A technician visits twice a year by helicopter
    to clean the panes and to chase away the cormorants, which have taken a liking to the gallery.

    In recent years there has been a dispute about the future of the tower. The coastal authority
    wishes to replace the light with a plastic buoy, which would cost less to maintain, while a
    society of friends of the lighthouse has collected eighty thousand crowns for repairs. Its
    chairwoman, Sunniva Dahl, argues that the granite is sound and that only the iron gallery
    needs to be renewed. The council will vote on the matter next spring. Until then the owl of
    Crows goes on blinking, two flashes and a long darkness, over a sea that has grown a little
    emptier of herring and a little fuller of sails.
    """
)

REPEATS = paragraphs(
    """
    Mara opened the bakery in Mill Street with her aunt, who was also called Mara. In the first
    year Mara baked the bread and the aunt sold it. Later the shop was renamed MARA in tall green
    letters, and when the letter R fell off, the children called it Ma A. Today mara is what people
    in the town say when they mean a small round loaf, and the owner of the bakery is still Mara.
    """
)

MARSH = paragraphs(
    """
    Peat forms where dead plants pile up faster than they rot. In cold and waterlogged ground
    there is little oxygen, so bacteria work slowly and the layers grow by about a millimetre a
    year. A bog that is three metres deep may therefore hold the remains of moss that was alive
    when the first farmers came. When a bog is drained, air enters and the stored carbon is
    released again.
    """
)

ACCENTS = (
    "Zo\u00eb M\u00fcller und Andr\u00e9 Fran\u00e7ois er\u00f6ffneten 1998 das Caf\u00e9 "
    "\u201eK\u00f6nigsst\u00fcberl\u201c in Z\u00fcrich. The pastry chef, Rene\u0301e "
    "D\u2019Amboise, came from Besanc\u0327on and her sister Bjo\u0308rk kept the books. "
    "\u0141ukasz \u017b\u00f3\u0142\u0107 delivers the flour from \u0141\u00f3d\u017a, and the "
    "na\u00efve guest who asks for a cr\u00e8me br\u00fbl\u00e9e on a Monday is told that the "
    "kitchen rests. Stra\u00dfenbahn number 7 stops in front of the door; the \ufb01rst one "
    "leaves at 05:12. Nguye\u0302\u0303n Th\u1ecb Hoa painted the ceiling in \u0130zmir blue."
)

CJK = (
    "\u5317\u6751\u5148\u751f\u306f\u4e00\u4e5d\u516b\u4e94\u5e74\u306b\u677e\u5c71\u3067"
    "\u5c0f\u3055\u306a\u672c\u5c4b\u3092\u958b\u3044\u305f\u3002 Mr Kitamura (\u5317\u6751) "
    "opened his bookshop in Matsuyama (\u677e\u5c71\u5e02) in 1985. His partner "
    "\u674e\u5c0f\u96e8 comes from \u6210\u90fd and translates poems. "
    "\u674e\u5c0f\u96e8\u559c\u6b22\u5728\u96e8\u5929\u559d\u8336\u3002 The Korean sign over the "
    "door reads \uc11c\uc810, which means bookshop, and the cat is called \u30e2\u30e2."
)

EMOJI = (
    "Group chat, Friday evening \U0001f389\U0001f389. Anna \U0001f469\u200d\U0001f4bb: the picnic "
    "starts at 3 pm near the old mill \U0001f333. Bob: I bring lemonade \U0001f34b\U0001f34b and "
    "two blankets. Chidi: my dog Biscuit \U0001f436 comes too \u2764\ufe0f! Dana: rain is "
    "expected\u2026 so we meet in the barn\U0001f3da\ufe0f instead. Flag of the day: "
    "\U0001f1f3\U0001f1f4 \U0001f44d\U0001f3fd."
)

CRLF = (
    "Item:\tKettle K-20\r\nColour:\tcopper\r\nPrice:\t34.90 EUR\r\n\r\nThe kettle holds 1.7 "
    "litres\u00a0and boils in four minutes.\r\n\tDo not\timmerse it  in   water.\x0bClean it with"
    "\u3000vinegar\u2003once a month.\r\nThe war\u00adranty lasts twenty\u200b-\u200bsix months "
    "and is given by \x07Ostmann\x00 Appliances\ufeff.\r\n"
)

LONGWORDS = (
    "The password of the vault is " + "xq7" * 40 + " and nobody can remember it. The village of "
    "Llanfairmossgwyndrobwllbryn has the longest sign in the county. The chemist wrote "
    "methylpropylisobutylcyclohexanedicarboxylate on the label, then the address "
    "https://archive.example.org/records/2021/shelf-14/box_003/letter-to-the-editor.txt?page=2"
    "&view=full#line-88 and the note pneumoniaandbronchitisandinfluenzaandmeaslesandmumps. "
    "The gardener prefers short words such as oak."
)

NUMBERS = (
    "Inventory of 12 March 2023:\n"
    "1. 1,250 bricks at $0.45 each\n"
    "2. 3.5 tonnes of sand\n"
    "3. 48 m\u00b2 of slate (\u20ac1,920.00)\n"
    "4. 16 bolts M10x1.25\n"
    "Delivery: 2023-03-27, between 07:30 and 09:00. Contact: +44 20 7946 0018, ext. 301. "
    "The total weight is 6,204 kg, i.e. 12% less than in 2022. Invoice no. A/77-B was paid on "
    "the 1st of April. Temperature must stay between -5\u00b0C and +30\u00b0C; humidity below "
    "65 %. Ratio of lime to sand is 1:3."
)

LOWER = (
    "the night train from orlova to the coast was nine hours late because a goat named pepper had "
    "eaten the signal flags. the conductor, a patient man called emeric, served tea from a samovar "
    "and told the passengers about the winter of the two moons. nobody complained except a dentist "
    "from halmar who had left his umbrella in the waiting room"
)

CONTRACT = paragraphs(
    """
    7. Term and Termination. 7.1 This Agreement commences on 1 July 2024 (the "Effective Date")
    and shall remain in force for an initial term of thirty-six (36) months, unless terminated
    earlier in accordance with this Section. 7.2 Either party may terminate this Agreement for
    convenience by giving the other party not less than ninety (90) days' prior written notice.
    7.3 The Supplier may terminate with immediate effect if the Customer fails to pay any
    undisputed invoice within forty-five (45) days of receipt. 7.4 Upon termination, the Customer
    shall return all Confidential Information and pay a wind-down fee equal to fifteen percent
    (15%) of the remaining fees. 7.5 Sections 4, 9 and 12 survive termination. This Agreement is
    governed by the laws of the Canton of Westmark, and the courts of Port Alder have exclusive
    jurisdiction.
    """
)

LOG = (
    "2024-11-03T04:12:07.331Z INFO  [main] gateway: starting version 3.8.1 on node ember-04\n"
    "2024-11-03T04:12:09.002Z INFO  [pool-2] db: connected to postgres://10.20.0.7:5432/orders\n"
    "2024-11-03T04:15:44.918Z WARN  [pool-2] db: slow query (2841 ms) SELECT * FROM line_items\n"
    "2024-11-03T04:16:02.100Z ERROR [worker-9] mailer: SMTP 421 from relay.internal, retry in "
    "30s\n"
    "2024-11-03T04:16:32.105Z ERROR [worker-9] mailer: gave up after 3 attempts, "
    "job_id=7f3a-99c1\n"
    "2024-11-03T04:20:00.000Z INFO  [cron] cleanup: removed 118 expired sessions\n"
    "2024-11-03T04:21:13.570Z FATAL [main] gateway: out of memory (heap 4096 MB), exiting with "
    "code 137\n"
)

PASSAGES = {
    "tiny": TINY,
    "harbour": HARBOUR,
    "orchard": ORCHARD,
    "lighthouse": LIGHTHOUSE,
    "repeats": REPEATS,
    "marsh": MARSH,
    "accents": ACCENTS,
    "cjk": CJK,
    "emoji": EMOJI,
    "crlf": CRLF,
    "longwords": LONGWORDS,
    "numbers": NUMBERS,
    "lower": LOWER,
    "contract": CONTRACT,
    "log": LOG,
}

QUESTIONS = {
    "tiny": [
        "When does the ferry leave?",
        "What leaves at noon?",
        "Who steers the ferry?",
    ],
    "harbour": [
        "When was the harbour dug?",
        "Who is the harbour master?",
        "How deep is the harbour at low tide?",
        "What were the labourers paid in?",
        "What does the winning crew receive?",
        "Why does Ingrid Solvang ring the bell?",
        "Where can cargo ships moor?",
        "How many labourers dug the harbour?",
        "When do rowing boats circle the breakwater?",
        "which race does the town hold every autumn",
    ],
    "orchard": [
        "Who planted the orchard?",
        "How large is the orchard today?",
        "What is the best known apple?",
        "Why did Lena bring in sheep?",
        "What threatened the older trees in 2009?",
        "Where is the fruit sold?",
        "When do students visit?",
        "What killed most of the pears?",
        "Who made the press?",
        "What had Tobias sold before he planted the trees?",
        "How many kinds of apple does she grow?",
        "To what did the losses fall?",
    ],
    "lighthouse": [
        "Who built the lighthouse?",
        "When was the lamp lit for the first time?",
        "What was the name of the barge?",
        "Who died during the work?",
        "How many notebooks did Peder Lund fill?",
        "What cargo did the Halcyon carry?",
        "When did electricity reach the skerry?",
        "Who is the chairwoman of the society?",
        "Where did the granite come from?",
        "What happened to the hens?",
        "How much money has the society collected?",
        "Who brought the piano to the rock?",
        "How often does a technician visit?",
        "What was the title of the book of notes?",
        "Which ship towed the freighter to safety?",
        "What did the lens float on?",
    ],
    "repeats": [
        "Who opened the bakery?",
        "Who owns the bakery today?",
        "What was the aunt called?",
        "What do people call a small round loaf?",
        "What was the shop renamed?",
        "Which letter fell off?",
    ],
    "marsh": [
        "Who discovered penicillin?",
        "What is the capital of Norway?",
        "How fast does peat grow?",
        "When was the football club founded?",
        "What happens when a bog is drained?",
        "How deep is the lake?",
    ],
    "accents": [
        "Where is the caf\u00e9?",
        "Who is the pastry chef?",
        "Where does the flour come from?",
        "Where did Ren\u00e9e come from?",
        "Who kept the books?",
        "Who painted the ceiling?",
        "When does the first tram leave?",
        "Wie hei\u00dft das Caf\u00e9?",
        "Who delivers the flour?",
    ],
    "cjk": [
        "When did Mr Kitamura open his bookshop?",
        "Where is the bookshop?",
        "What is the cat called?",
        "\u674e\u5c0f\u96e8\u6765\u81ea\u54ea\u91cc\uff1f",
        "\u5317\u6751\u306f\u3069\u3053\u3067\u672c\u5c4b\u3092\u958b\u3044\u305f\u304b\u3002",
        "What does the Korean sign read?",
        "What does \u674e\u5c0f\u96e8 translate?",
    ],
    "emoji": [
        "When does the picnic start?",
        "What does Bob bring?",
        "What is the name of the dog?",
        "Where do we meet instead?",
        "Who brings the dog \U0001f436?",
        "Which flag is it?",
    ],
    "crlf": [
        "What colour is the kettle?",
        "How much does the kettle cost?",
        "How long does the warranty last?",
        "How should the kettle be cleaned?",
        "Who gives the warranty?",
        "How much water does the kettle hold?",
        "What should not be\r\ndone\twith it?",
    ],
    "longwords": [
        "What is the password of the vault?",
        "Which village has the longest sign?",
        "What did the chemist write on the label?",
        "What is the address?",
        "What does the gardener prefer?",
        "What did the note say?",
    ],
    "numbers": [
        "How many bricks are there?",
        "How much sand is there?",
        "When is the delivery?",
        "What is the total weight?",
        "What is the ratio of lime to sand?",
        "What is the contact number?",
        "What does one brick cost?",
        "When was the invoice paid?",
        "Between which temperatures must it stay?",
    ],
    "lower": [
        "why was the train late?",
        "who was the conductor?",
        "What was the name of the goat?",
        "WHERE DID THE DENTIST COME FROM?",
        "what did the conductor serve?",
        "how late was the train",
    ],
    "contract": [
        "When does the Agreement commence?",
        "What is the initial term?",
        "How much notice must be given to terminate for convenience?",
        "What is the wind-down fee?",
        "Which law governs this Agreement?",
        "When may the Supplier terminate with immediate effect?",
        "Which sections survive termination?",
        "Which courts have jurisdiction?",
        "Who insures the goods?",
    ],
    "log": [
        "Which version is running?",
        "Why did the gateway exit?",
        "How long did the slow query take?",
        "How many sessions were removed?",
        "What was the exit code?",
        "On which node did the gateway start?",
        "What is the job id?",
    ],
}

# Each question is asked once with the defaults and once with one of these, in turn.
VARIANTS = [
    {"top_k": 2},
    {"top_k": 5},
    {"handle_impossible_answer": True},
    {"align_to_words": False},
    {"top_k": 5, "handle_impossible_answer": True},
    {"max_answer_len": 5},
    {"max_answer_len": 50, "top_k": 2},
    {"max_seq_len": 128, "doc_stride": 32},
    {"top_k": 2, "align_to_words": False},
    {"max_seq_len": 64, "doc_stride": 32},
    {"max_answer_len": 1},
    {"padding": "max_length"},
    {"top_k": 2, "align_to_words": False, "handle_impossible_answer": True},
    {"max_seq_len": 200, "doc_stride": 64, "handle_impossible_answer": True},
    {"max_seq_len": 128},
    {"batch_size": 4},
    {"max_seq_len": 200, "doc_stride": 64, "top_k": 5},
    {"max_answer_len": 5, "top_k": 5, "max_question_len": 64},
    {"max_seq_len": 384, "doc_stride": 200},
    {"max_answer_len": 50, "handle_impossible_answer": True},
]


# --------------------------------------------------------------------------- the calls

HARBOUR_Q = "Who is the harbour master?"
HARBOUR_DICT = {"question": HARBOUR_Q, "context": {"passage": "harbour"}}
TINY_DICT = {"question": "When does the ferry leave?", "context": {"passage": "tiny"}}
ORCHARD_DICT = {"question": "Who planted the orchard?", "context": {"passage": "orchard"}}
LONG_DICT = {
    "question": "When did electricity reach the skerry?",
    "context": {"passage": "lighthouse"},
}
LONG_QUESTION = (
    "In the paragraph that describes how the harbour of the little town came into being, and "
    "leaving aside for a moment everything that is said about the lantern race, the customs house "
    "and the barrel of cider, could you please tell me, as precisely as the text allows and "
    "without adding any guesses of your own, in which year the labourers from the neighbouring "
    "valley, who as we know were paid in salt and smoked herring, finally dug the harbour of "
    "Quillport?"
)


def ordinary_calls():
    """Every question with the defaults, and once more with one of the parameter sets."""
    calls = []
    turn = 0
    for name, questions in QUESTIONS.items():
        for question in questions:
            base = {"question": question, "context": {"passage": name}}
            calls.append(call("ordinary", f"{name}: defaults", kwargs=base))
            extra = VARIANTS[turn % len(VARIANTS)]
            shown = ", ".join(f"{key}={value}" for key, value in extra.items())
            calls.append(call("ordinary", f"{name}: {shown}", kwargs={**base, **extra}))
            turn += 1
    return calls


def parameter_calls():
    """Each parameter alone, over its values, then combinations of them."""
    calls = []

    def add(item, **extra):
        shown = ", ".join(f"{key}={value!r}" for key, value in extra.items())
        calls.append(call("parameters", shown, kwargs={**item, **extra}))

    for top_k in (1, 2, 5, 20):
        add(HARBOUR_DICT, top_k=top_k)
        add(LONG_DICT, top_k=top_k)
    for doc_stride in (0, 32, 64, 128, 200, 300):
        add(LONG_DICT, doc_stride=doc_stride)
    for max_answer_len in (1, 5, 15, 50, 500):
        add(ORCHARD_DICT, max_answer_len=max_answer_len)
        add(
            {**ORCHARD_DICT, "question": "Why did Lena bring in sheep?"},
            max_answer_len=max_answer_len,
        )
    for max_seq_len in (64, 128, 200, 384, 512):
        add(LONG_DICT, max_seq_len=max_seq_len)
    add(HARBOUR_DICT, max_seq_len=10, doc_stride=0)
    add(HARBOUR_DICT, max_seq_len=600)
    add(HARBOUR_DICT, max_seq_len=0)
    add(HARBOUR_DICT, max_seq_len=64, doc_stride=54)
    for max_question_len in (8, 64):
        add({**HARBOUR_DICT, "question": LONG_QUESTION}, max_question_len=max_question_len)
    for flag in (True, False):
        add({**LONG_DICT, "question": "Who discovered penicillin?"}, handle_impossible_answer=flag)
        add(
            {"question": "How deep is the lake?", "context": {"passage": "marsh"}},
            handle_impossible_answer=flag,
        )
        add(
            {"question": "Where is the bookshop?", "context": {"passage": "cjk"}},
            align_to_words=flag,
            top_k=5,
        )
        add(
            {
                "question": "Which village has the longest sign?",
                "context": {"passage": "longwords"},
            },
            align_to_words=flag,
            top_k=5,
        )
    for padding in ("do_not_pad", "longest", "max_length", True, False):
        add(HARBOUR_DICT, padding=padding)
    for batch_size in (1, 4):
        add(LONG_DICT, batch_size=batch_size)
        add(HARBOUR_DICT, batch_size=batch_size)
    add(HARBOUR_DICT, num_workers=0)
    add(HARBOUR_DICT, num_workers=1)
    add(
        HARBOUR_DICT,
        top_k=None,
        doc_stride=None,
        max_answer_len=None,
        max_seq_len=None,
        max_question_len=None,
        handle_impossible_answer=None,
        align_to_words=None,
        padding=None,
        batch_size=None,
    )
    # Combinations.
    add(LONG_DICT, top_k=5, handle_impossible_answer=True)
    add(LONG_DICT, top_k=20, handle_impossible_answer=True, max_seq_len=128, doc_stride=64)
    add(LONG_DICT, top_k=5, align_to_words=False, max_seq_len=200, doc_stride=32)
    add(LONG_DICT, top_k=2, max_seq_len=200, doc_stride=128, batch_size=4, padding="max_length")
    add(LONG_DICT, max_answer_len=5, max_seq_len=64, doc_stride=32, batch_size=4)
    add(
        LONG_DICT,
        max_answer_len=50,
        max_seq_len=384,
        doc_stride=64,
        top_k=2,
        handle_impossible_answer=True,
        align_to_words=False,
    )
    add(
        {**LONG_DICT, "question": "Who discovered penicillin?"},
        top_k=2,
        max_seq_len=128,
        doc_stride=64,
        handle_impossible_answer=True,
    )
    add(
        {**LONG_DICT, "question": "Who wrote the almanac?"},
        doc_stride=300,
        handle_impossible_answer=True,
    )
    add(
        {**LONG_DICT, "question": "When did the last keepers leave?"},
        doc_stride=300,
        handle_impossible_answer=True,
    )
    add(
        {**LONG_DICT, "question": "When was the lamp lit for the first time?"},
        max_seq_len=128,
        doc_stride=64,
        handle_impossible_answer=True,
    )
    add(
        {**LONG_DICT, "question": "Who is the mayor?"},
        handle_impossible_answer=True,
        max_seq_len=64,
        doc_stride=32,
    )
    add(
        {"question": "Who owns the bakery today?", "context": {"passage": "repeats"}},
        top_k=20,
        handle_impossible_answer=True,
    )
    add(
        {"question": "Who opened the bakery?", "context": {"passage": "repeats"}},
        top_k=5,
        align_to_words=False,
    )
    add(
        {"question": "Who opened the bakery?", "context": {"passage": "repeats"}},
        top_k=5,
        max_seq_len=64,
        doc_stride=32,
        handle_impossible_answer=True,
    )
    add(
        {"question": "What is the password of the vault?", "context": {"passage": "longwords"}},
        max_seq_len=64,
        doc_stride=32,
        top_k=5,
    )
    add(
        {"question": "What did the note say?", "context": {"passage": "longwords"}},
        max_seq_len=64,
        doc_stride=0,
        top_k=5,
    )
    add(
        {"question": "Who is the pastry chef?", "context": {"passage": "accents"}},
        align_to_words=False,
        top_k=5,
        max_answer_len=5,
    )
    add({"question": "What is the name of the dog?", "context": {"passage": "emoji"}}, top_k=20)
    add(
        {"question": "Who gives the warranty?", "context": {"passage": "crlf"}},
        top_k=5,
        handle_impossible_answer=True,
    )
    add(TINY_DICT, top_k=20)
    add(TINY_DICT, top_k=20, handle_impossible_answer=True)
    add(TINY_DICT, top_k=5, align_to_words=False, max_answer_len=1)
    add({"question": "What?", "context": "Tea"}, top_k=20)
    add({"question": "What?", "context": "Tea"}, top_k=20, handle_impossible_answer=True)
    add({"question": "What?", "context": "Tea"}, top_k=20, align_to_words=False)
    add({"question": "What?", "context": "Tea"}, top_k=2, align_to_words=False)
    add({"question": "What?", "context": "Tea"}, handle_impossible_answer=True)
    return calls


def form_calls():
    """Every accepted way of passing the inputs."""
    pair = ["Who is the harbour master?", "When was the harbour dug?"]
    contexts = [{"passage": "harbour"}, {"passage": "orchard"}]
    three = [HARBOUR_DICT, TINY_DICT, ORCHARD_DICT]
    sample = {"sample": HARBOUR_DICT}
    samples = [{"sample": item} for item in three]
    harbour = {"passage": "harbour"}
    return [
        call("keywords", "strings", kwargs=HARBOUR_DICT),
        call(
            "keywords",
            "surrounding blanks in the question",
            kwargs={**HARBOUR_DICT, "question": "  Who is the harbour master? \n"},
        ),
        call(
            "keywords",
            "blanks around the context",
            kwargs={"question": "When does it leave?", "context": "\n  It leaves at noon. \t"},
        ),
        call(
            "keywords",
            "upper-case question",
            kwargs={**HARBOUR_DICT, "question": HARBOUR_Q.upper()},
        ),
        call("keywords", "question of one letter", kwargs={**HARBOUR_DICT, "question": "?"}),
        call("keywords", "question of blanks only", kwargs={**HARBOUR_DICT, "question": "  "}),
        call(
            "keywords",
            "question with the text [CLS]",
            kwargs={"question": "[CLS] Who is the harbour master?", "context": harbour, "top_k": 5},
        ),
        call(
            "keywords",
            "question with the text [CLS] at its end",
            kwargs={"question": "Who [CLS]", "context": harbour},
        ),
        call(
            "keywords",
            "question with the text [CLS] at its end, not aligned",
            kwargs={"question": "Who [CLS]", "context": harbour, "align_to_words": False},
        ),
        call(
            "keywords",
            "question with the text [SEP]",
            kwargs={"question": "Who is [SEP] the harbour master?", "context": harbour, "top_k": 2},
        ),
        call(
            "keywords",
            "context with special tokens",
            kwargs={
                "question": "Who waits?",
                "context": "[CLS] Nobody [SEP] but [MASK] Ann waits [PAD].",
                "top_k": 5,
            },
        ),
        call(
            "keywords",
            "long question that still fits",
            kwargs={"question": LONG_QUESTION, "context": harbour},
        ),
        call(
            "keywords",
            "long question that leaves little room",
            kwargs={
                "question": LONG_QUESTION,
                "context": harbour,
                "max_seq_len": 128,
                "doc_stride": 16,
            },
        ),
        call(
            "keywords",
            "context of one character",
            kwargs={"question": "Which letter?", "context": "x"},
        ),
        call(
            "keywords",
            "context of punctuation only",
            kwargs={"question": "What?", "context": "... !?"},
        ),
        call(
            "keywords",
            "context of one unknown word",
            kwargs={"question": "What?", "context": "\u0e50" * 120},
        ),
        call(
            "keywords",
            "context of blanks only",
            kwargs={"question": HARBOUR_Q, "context": " \n\t "},
        ),
        call(
            "keywords",
            "context of blanks only, no answer allowed",
            kwargs={"question": HARBOUR_Q, "context": "   ", "handle_impossible_answer": True},
        ),
        call(
            "keywords",
            "context of blanks only, no answer allowed, top_k=5",
            kwargs={
                "question": HARBOUR_Q,
                "context": "   ",
                "handle_impossible_answer": True,
                "top_k": 5,
            },
        ),
        call(
            "keywords",
            "context of control characters only",
            kwargs={"question": HARBOUR_Q, "context": "\x00\x07\u200b"},
        ),
        call(
            "keywords",
            "doc_stride larger than the room left, but the passage fits",
            kwargs={**HARBOUR_DICT, "doc_stride": 382},
        ),
        call("keywords", "unknown keyword ignored", kwargs={**HARBOUR_DICT, "threshold": 0.5}),
        call("positional", "two strings", args=[HARBOUR_Q, harbour]),
        call(
            "positional",
            "two strings and parameters",
            args=[HARBOUR_Q, harbour],
            kwargs={"top_k": 2, "handle_impossible_answer": True},
        ),
        call("positional", "two dicts", args=[HARBOUR_DICT, TINY_DICT]),
        call("positional", "one empty string", args=[""]),
        call("positional", "two SquadExamples", args=[sample, {"sample": TINY_DICT}]),
        call("dict", "one dict", args=[HARBOUR_DICT]),
        call("dict", "one dict, top_k", args=[HARBOUR_DICT], kwargs={"top_k": 2}),
        call("dict", "one dict of two lists", args=[{"question": pair, "context": contexts}]),
        call(
            "dict",
            "one dict of two lists of length one",
            args=[{"question": pair[:1], "context": contexts[:1]}],
        ),
        call(
            "dict",
            "one dict of lists of different lengths",
            args=[{"question": pair, "context": contexts[:1]}],
        ),
        call(
            "dict",
            "one dict with a question list and a context string",
            args=[{"question": ["Which letter?", "What?"], "context": "ab"}],
        ),
        call("dict", "through predict", args=[HARBOUR_DICT], method="predict"),
        call("dict", "through transform", args=[HARBOUR_DICT], method="transform"),
        call("list_of_dicts", "three", args=[three]),
        call(
            "list_of_dicts",
            "three, top_k and no answer allowed",
            args=[three],
            kwargs={"top_k": 2, "handle_impossible_answer": True},
        ),
        call("list_of_dicts", "one", args=[[HARBOUR_DICT]]),
        call("list_of_dicts", "one, top_k", args=[[HARBOUR_DICT]], kwargs={"top_k": 2}),
        call("list_of_dicts", "none", args=[[]]),
        call("list_of_dicts", "a tuple of dicts", args=[{"tuple": three}]),
        call("list_of_dicts", "dict and SquadExample mixed", args=[[TINY_DICT, sample]]),
        call("list_of_dicts", "through predict", args=[three], method="predict"),
        call(
            "list_of_dicts",
            "windows of several passages in one batch",
            args=[[TINY_DICT, LONG_DICT, HARBOUR_DICT]],
            kwargs={"batch_size": 4},
        ),
        call(
            "list_of_dicts",
            "one of them on blanks, one of them long",
            args=[[{"question": "What?", "context": " "}, LONG_DICT]],
            kwargs={"top_k": 2},
        ),
        call("list_of_dicts", "same input twice", args=[[TINY_DICT, TINY_DICT]]),
        call("data", "one dict", kwargs={"data": HARBOUR_DICT}),
        call("data", "list of dicts", kwargs={"data": three}),
        call("data", "list of SquadExamples", kwargs={"data": samples, "top_k": 2}),
        call("data", "generator", kwargs={"data": {"generator": three}}),
        call("data", "wins over question and context", kwargs={"data": TINY_DICT, **HARBOUR_DICT}),
        call("X", "one dict", kwargs={"X": HARBOUR_DICT}),
        call("X", "list of dicts", kwargs={"X": three}),
        call("X", "wins over data", kwargs={"X": TINY_DICT, "data": HARBOUR_DICT}),
        call("lists", "two and two", kwargs={"question": pair, "context": contexts}),
        call(
            "lists",
            "two and two, top_k",
            kwargs={"question": pair, "context": contexts, "top_k": 2},
        ),
        call("lists", "one and one", kwargs={"question": pair[:1], "context": contexts[:1]}),
        call(
            "lists",
            "one and one, top_k",
            kwargs={"question": pair[:1], "context": contexts[:1], "top_k": 2},
        ),
        call("lists", "none and none", kwargs={"question": [], "context": []}),
        call(
            "lists",
            "batch_size=4",
            kwargs={
                "question": [QUESTIONS[name][0] for name in PASSAGES],
                "context": [{"passage": name} for name in PASSAGES],
                "batch_size": 4,
            },
        ),
        call(
            "broadcast",
            "two questions, one context string",
            kwargs={"question": pair, "context": harbour},
        ),
        call(
            "broadcast",
            "ten questions, batch_size=4",
            kwargs={"question": QUESTIONS["harbour"], "context": harbour, "batch_size": 4},
        ),
        call(
            "broadcast",
            "one question in a list",
            kwargs={"question": pair[:1], "context": harbour, "top_k": 2},
        ),
        call("broadcast", "no question", kwargs={"question": [], "context": harbour}),
        call(
            "broadcast",
            "three questions, long passage",
            kwargs={
                "question": QUESTIONS["lighthouse"][:3],
                "context": {"passage": "lighthouse"},
                "batch_size": 4,
                "handle_impossible_answer": True,
            },
        ),
        call("topk", "topk=2", kwargs={**HARBOUR_DICT, "topk": 2}),
        call("topk", "topk=1", kwargs={**HARBOUR_DICT, "topk": 1}),
        call("topk", "topk and top_k: top_k wins", kwargs={**HARBOUR_DICT, "topk": 5, "top_k": 2}),
        call("topk", "topk with a positional dict", args=[HARBOUR_DICT], kwargs={"topk": 2}),
        call("sample", "list of one", args=[[sample]]),
        call("sample", "list of three", args=[samples], kwargs={"handle_impossible_answer": True}),
        call(
            "sample",
            "create_sample of lists",
            args=[{"sample": {"question": pair, "context": contexts}}],
        ),
        call("generator", "dicts", args=[{"generator": three}]),
        call("generator", "one dict: still an iterator", args=[{"generator": [TINY_DICT]}]),
        call("generator", "SquadExamples", args=[{"generator": samples}], kwargs={"top_k": 2}),
        call(
            "generator",
            "batch_size=4",
            args=[{"generator": [*three, LONG_DICT, TINY_DICT]}],
            kwargs={"batch_size": 4},
        ),
        call("generator", "nothing in it", args=[{"generator": []}]),
        call("generator", "more keys than needed", args=[{"generator": [{**TINY_DICT, "id": "a1"}]}]),
        call(
            "generator",
            "empty question is not checked",
            args=[{"generator": [{**TINY_DICT, "question": ""}]}],
        ),
        call(
            "generator",
            "empty context is not checked",
            args=[{"generator": [{**TINY_DICT, "context": ""}]}],
        ),
        call("iterator", "iter of a list", args=[{"iterator": three}]),
        call("dataset", "torch Dataset of dicts", args=[{"dataset": three}]),
        call(
            "dataset",
            "torch Dataset of SquadExamples, batch_size=4",
            args=[{"dataset": samples}],
            kwargs={"batch_size": 4},
        ),
        call(
            "dataset",
            "KeyDataset",
            args=[{"key_dataset": {"items": [{"qa": item, "n": 1} for item in three], "key": "qa"}}],
        ),
        call("init", "top_k=3 given to the constructor", kwargs=HARBOUR_DICT, init={"top_k": 3}),
        call(
            "init",
            "constructor's top_k overridden",
            kwargs={**HARBOUR_DICT, "top_k": 1},
            init={"top_k": 3},
        ),
        call(
            "init",
            "None does not override",
            kwargs={**HARBOUR_DICT, "top_k": None},
            init={"top_k": 2},
        ),
        call(
            "init",
            "several parameters",
            kwargs=LONG_DICT,
            init={
                "handle_impossible_answer": True,
                "max_seq_len": 128,
                "doc_stride": 32,
                "batch_size": 4,
            },
        ),
    ]


def error_calls():
    """Wrong or surprising input."""
    harbour = {"passage": "harbour"}
    question = HARBOUR_Q

    def bad(about, *args, method=None, init=None, **kwargs):
        return call("error", about, args=list(args), kwargs=kwargs, method=method, init=init)

    return [
        bad("no arguments"),
        bad("question only", question="Who?"),
        bad("context only", context="Ann waits."),
        bad("empty question", question="", context=harbour),
        bad("empty context", question=question, context=""),
        bad("question None", question=None, context="Ann waits."),
        bad("context None", question=question, context=None),
        bad("question not a string", question=7, context="Ann waits."),
        bad("context not a string", question="Who?", context=3.5),
        bad("context list with a question string", question="Who?", context=["Ann waits."]),
        bad(
            "tuples instead of lists",
            question={"tuple": ["Who?"]},
            context={"tuple": ["Ann waits."]},
        ),
        bad("lists of different lengths", question=["Who?", "When?"], context=["Ann waits."]),
        bad("empty question in a list", question=["Who?", ""], context="Ann waits."),
        bad("None in a question list", question=["Who?", None], context="Ann waits."),
        bad("None in a context list", question=["Who?"], context=[None]),
        bad("number in a question list", question=["Who?", 3], context="Ann waits."),
        bad("number in a context list", question=["Who?"], context=[3]),
        bad("dict without context", {"question": "Who?"}),
        bad("dict without question", {"context": "Ann waits."}),
        bad("dict with wrong key names", {"query": "Who?", "text": "Ann waits."}),
        bad("dict with one key too many", {"question": "Who?", "context": "Ann.", "id": "a1"}),
        bad("dict with None", {"question": None, "context": "Ann waits."}),
        bad("dict with an empty context", {"question": "Who?", "context": ""}),
        bad("empty dict", {}),
        bad("one string", "Who?"),
        bad("one SquadExample, not in a list", {"sample": HARBOUR_DICT}),
        bad("data: one SquadExample, not in a list", data={"sample": HARBOUR_DICT}),
        bad("positional question, keyword context", "Who?", context="Ann waits."),
        bad("three strings", "Who?", "Ann waits.", "more"),
        bad("string and list", "Who?", ["Ann waits.", "Bob sits."]),
        bad("list of strings", ["Who?", "Ann waits."]),
        bad("list of pairs", [["Who?", "Ann waits."]]),
        bad("list in a list", [[HARBOUR_DICT]]),
        bad("None", None),
        bad("number", 5),
        bad("data None", data=None),
        bad("X string", X="Who?"),
        bad("generator of pairs", {"generator": [{"tuple": ["Who?", "Ann waits."]}]}),
        bad("generator of dicts without context", {"generator": [{"question": "Who?"}]}),
        bad("generator with None as context", {"generator": [{"question": "Who?", "context": None}]}),
        bad(
            "KeyPairDataset",
            {"key_pair_dataset": {"items": [{"q": "Who?", "c": "Ann waits."}], "keys": ["q", "c"]}},
        ),
        bad("top_k=0", question=question, context=harbour, top_k=0),
        bad("top_k=-1", question=question, context=harbour, top_k=-1),
        bad("top_k a string", question=question, context=harbour, top_k="3"),
        bad("top_k=1.5", question=question, context=harbour, top_k=1.5),
        bad("topk=0", question=question, context=harbour, topk=0),
        bad(
            "top_k=0 given to the constructor",
            question=question,
            context=harbour,
            init={"top_k": 0},
        ),
        bad("max_answer_len=0", question=question, context=harbour, max_answer_len=0),
        bad("max_answer_len=-3", question=question, context=harbour, max_answer_len=-3),
        bad("doc_stride larger than max_seq_len", question=question, context=harbour, doc_stride=400),
        bad(
            "doc_stride larger than a small max_seq_len",
            question=question,
            context=harbour,
            max_seq_len=64,
            doc_stride=65,
        ),
        bad(
            "doc_stride equal to max_seq_len",
            question=question,
            context=harbour,
            max_seq_len=64,
            doc_stride=64,
        ),
        bad(
            "doc_stride equal to the room left",
            question=question,
            context=harbour,
            max_seq_len=64,
            doc_stride=55,
        ),
        bad(
            "doc_stride equal to max_seq_len - 1, though the passage fits",
            question=question,
            context=harbour,
            doc_stride=383,
        ),
        bad("doc_stride=-1", question=question, context=harbour, doc_stride=-1),
        bad("doc_stride a string", question=question, context=harbour, doc_stride="64"),
        bad(
            "no room for the context",
            question=question,
            context=harbour,
            max_seq_len=9,
            doc_stride=0,
        ),
        bad(
            "question longer than max_seq_len",
            question=LONG_QUESTION,
            context=harbour,
            max_seq_len=64,
        ),
        bad(
            "question longer than max_seq_len, max_question_len=8",
            question=LONG_QUESTION,
            context=harbour,
            max_seq_len=64,
            max_question_len=8,
        ),
        bad("question of 600 words", question="why " * 600, context=harbour),
        bad(
            "question too long in one of two inputs",
            question=[question, "why " * 600],
            context=harbour,
        ),
        bad("max_seq_len=2", question=question, context=harbour, max_seq_len=2),
        bad("max_seq_len=-5", question=question, context=harbour, max_seq_len=-5),
        bad(
            "max_seq_len beyond the positions of the model",
            question="Who built the lighthouse?",
            context={"passage": "lighthouse"},
            max_seq_len=600,
        ),
        bad("unknown padding", question=question, context=harbour, padding="wide"),
        bad("batch_size=0", question=question, context=harbour, batch_size=0),
        bad("batch_size=-1", question=question, context=harbour, batch_size=-1),
        bad("num_workers=-1", question=question, context=harbour, num_workers=-1),
        bad("lone surrogate in the context", question="Who?", context={"surrogate": "Ann waits."}),
    ]


def call(form, about, args=(), kwargs=None, method=None, init=None):
    """One entry of the list of calls, not yet run."""
    entry = {"form": form, "about": about, "args": list(args), "kwargs": dict(kwargs or {})}
    if method:
        entry["method"] = method
    if init:
        entry["init"] = dict(init)
    return entry


def all_calls():
    """The whole list, with ids such as ``ordinary-017``."""
    calls = [*ordinary_calls(), *parameter_calls(), *form_calls(), *error_calls()]
    counts = {}
    numbered = []
    for entry in calls:
        form = entry["form"]
        counts[form] = counts.get(form, 0) + 1
        numbered.append({"id": f"{form}-{counts[form]:03d}", **entry})
    return numbered


# --------------------------------------------------------------------------- arguments


def decode(value, passages, create_sample=None, key_datasets=None):
    """Turn a recorded argument into the Python value that was passed.

    ``create_sample(question=..., context=...)`` makes a SquadExample (or its equivalent);
    ``key_datasets`` is the pair of classes (KeyDataset, KeyPairDataset). Dicts with exactly one
    of the following keys stand for something else: ``passage`` (a text of the file), ``tuple``,
    ``generator``, ``iterator`` (of a list), ``sample``, ``dataset`` (a torch Dataset),
    ``key_dataset``, ``key_pair_dataset``, ``surrogate`` (a text with a lone surrogate at its end,
    which a JSON file in UTF-8 cannot hold).
    """

    def inner(item):
        return decode(item, passages, create_sample, key_datasets)

    if isinstance(value, list):
        return [inner(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, content),) = value.items()
        if kind == "passage":
            return passages[content]
        if kind == "tuple":
            return tuple(inner(content))
        if kind == "generator":
            return (item for item in inner(content))
        if kind == "iterator":
            return iter(inner(content))
        if kind == "sample":
            return create_sample(**inner(content))
        if kind == "dataset":
            return list_dataset(inner(content))
        if kind == "key_dataset":
            return key_datasets[0](list_dataset(inner(content["items"])), content["key"])
        if kind == "key_pair_dataset":
            return key_datasets[1](list_dataset(inner(content["items"])), *content["keys"])
        if kind == "surrogate":
            return content + "\ud800"
    return {key: inner(item) for key, item in value.items()}


def list_dataset(items):
    """A torch Dataset over a list."""
    from torch.utils.data import Dataset

    class ListDataset(Dataset):
        """Nothing but the list."""

        def __len__(self):
            return len(items)

        def __getitem__(self, index):
            return items[index]

    return ListDataset()


# --------------------------------------------------------------------------- running


def reference_tokenizer():
    """The BertTokenizerFast of the model folder, without its stored truncation and padding.

    ``tokenizer.json`` was saved with truncation to 128 and padding to 128, and there is no
    ``tokenizer_config.json``, so that ``model_max_length`` would be about 1e30. The pipeline asks
    for its own truncation in every call (``only_second`` at ``max_seq_len``) and for no padding
    by default, and transformers sets both on the backend at each call, so the stored settings
    would not be used; they are removed here all the same, and ``model_max_length`` is set to the
    512 positions of the model. ``check_tokenizer`` proves that it works.
    """
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast.from_pretrained(str(MODEL), model_max_length=MAX_LENGTH)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def check_tokenizer(tokenizer):
    """Fail if the tokenizer truncates or pads where nobody asked for it."""
    assert type(tokenizer).__name__ == "BertTokenizerFast" and tokenizer.is_fast
    assert tokenizer.model_max_length == MAX_LENGTH
    assert tokenizer.padding_side == "right" and tokenizer.truncation_side == "right"
    backend = tokenizer.backend_tokenizer
    assert backend.truncation is None and backend.padding is None
    assert len(backend.encode("a b").ids) == 4
    assert len(backend.encode("a " * 400).ids) == 402
    assert len(tokenizer("a b")["input_ids"]) == 4
    assert len(tokenizer("a " * 400)["input_ids"]) == 402


def watched_class():
    """A subclass of the pipeline that counts windows and can leave merging out."""
    from transformers import QuestionAnsweringPipeline

    class Watched(QuestionAnsweringPipeline):
        """Same results as its parent while ``merging`` is true.

        ``windows`` gets one number per example. ``merges`` collects which kinds of merging went
        into the answers that were returned.
        """

        def start(self, merging):
            """Forget what was seen in the call before."""
            self.merging = merging
            self.windows = []
            self.merges = set()

        def preprocess(self, example, **kwargs):
            """Count the windows of each example."""
            self.windows.append(0)
            index = len(self.windows) - 1
            for features in super().preprocess(example, **kwargs):
                self.windows[index] += 1
                yield features

        def postprocess(self, model_outputs, **kwargs):
            """Look at which of the returned answers are sums, and of what."""
            self.encodings = []
            self.found = []
            self.answers = []
            result = super().postprocess(model_outputs, **kwargs)
            returned = {id(answer) for answer in (result if isinstance(result, list) else [result])}
            for answer, (_, _, kinds) in zip(self.answers, self.found, strict=False):
                if id(answer) in returned:
                    self.merges |= kinds
            return result

        def get_indices(self, enc, *args, **kwargs):
            """Remember the window and the place of the candidate that is being looked at."""
            place = super().get_indices(enc, *args, **kwargs)
            if not any(enc is other for other in self.encodings):
                self.encodings.append(enc)
            window = next(i for i, other in enumerate(self.encodings) if enc is other)
            self.candidate = (window, place)
            return place

        def get_answer(self, answers, target):
            """Find the answer to add the score to, or nothing if merging is switched off."""
            self.answers = answers
            window, place = self.candidate
            hit = super().get_answer(answers, target) if self.merging else None
            if hit is None:
                self.found.append((place, {window}, set()))
                return None
            index = next(i for i, answer in enumerate(answers) if answer is hit)
            first_place, windows, kinds = self.found[index]
            if place != first_place:
                kinds.add("places")
            elif window in windows:
                kinds.add("tokens")
            else:
                kinds.add("windows")
            windows.add(window)
            return hit

    return Watched


def make_pipelines(tokenizer):
    """A function that gives the (stock, watched) pipelines for constructor arguments."""
    import torch
    from transformers import BertForQuestionAnswering, QuestionAnsweringPipeline, pipeline

    model = BertForQuestionAnswering.from_pretrained(str(MODEL), dtype=torch.float32)
    model.eval()
    assert model.dtype == torch.float32

    def build(pipeline_class, init):
        return pipeline(
            "question-answering",
            model=model,
            tokenizer=tokenizer,
            dtype=torch.float32,
            device="cpu",
            pipeline_class=pipeline_class,
            **init,
        )

    watched = watched_class()
    return lambda init: (build(QuestionAnsweringPipeline, init), build(watched, init))


def plain(value):
    """Make a result fit for JSON; scores keep eight significant digits."""
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    assert value is None or isinstance(value, (str, int)), type(value)
    return value


def run_once(pipe, entry):
    """Make the call on one pipeline; a lazy result is read to its end."""
    from transformers.pipelines.pt_utils import KeyDataset, KeyPairDataset

    def value(item):
        return decode(item, PASSAGES, pipe.create_sample, (KeyDataset, KeyPairDataset))

    args = value(entry["args"])
    kwargs = {key: value(item) for key, item in entry["kwargs"].items()}
    result = getattr(pipe, entry.get("method", "__call__"))(*args, **kwargs)
    if isinstance(result, (dict, list)):
        return result, False
    return list(result), True


def builtin_base(error):
    """The nearest class of the error that Python itself defines."""
    return next(cls.__name__ for cls in type(error).__mro__ if cls.__module__ == "builtins")


class Failure:
    """A with block that keeps what was raised in it.

    A panic of the tokenizer is a subclass of BaseException only, so that ``except Exception``
    would miss it.
    """

    error = None

    def __enter__(self):
        """Start; nothing has gone wrong yet."""
        return self

    def __exit__(self, kind, error, trace):
        """Keep the error and carry on, unless somebody wants to stop the run."""
        self.error = error
        return not isinstance(error, (KeyboardInterrupt, SystemExit))


def run_call(pipelines, entry):
    """Run one entry and return it with what came out of it."""
    entry = dict(entry)
    failure = Failure()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with failure:
            stock, watched = pipelines(entry.get("init", {}))
            result, lazy = run_once(stock, entry)
    if failure.error is not None:
        message = re.sub(r"0x[0-9a-f]+", "0x...", str(failure.error))
        entry["error"] = {
            "type": type(failure.error).__name__,
            "base": builtin_base(failure.error),
            "message": message if len(message) <= 600 else message[:600] + " [cut]",
        }
    else:
        entry["result"] = plain(result)
        if lazy:
            entry["lazy"] = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # A worker process would keep what it counted to itself.
            inside = {key: item for key, item in entry["kwargs"].items() if key != "num_workers"}
            watched.start(merging=True)
            again, _ = run_once(watched, {**entry, "kwargs": inside})
            assert plain(again) == entry["result"], entry["id"]
            windows, merges = watched.windows, sorted(watched.merges)
            watched.start(merging=False)
            unmerged, _ = run_once(watched, {**entry, "kwargs": inside})
        unmerged = plain(unmerged)
        entry["windows"] = windows
        entry["duplicates_merged"] = unmerged != entry["result"]
        if unmerged != entry["result"]:
            entry["merges"] = merges
            entry["result_unmerged"] = unmerged
    # The pipeline also makes NumPy raise a DeprecationWarning per window: not part of its contract.
    texts = [
        {"category": item.category.__name__, "message": str(item.message)}
        for item in caught
        if item.category in (FutureWarning, UserWarning)
    ]
    if texts:
        entry["warnings"] = texts
    return entry


def file_sha256(path):
    """Hex digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def make_golden():
    """Run everything and return the content of the file."""
    import numpy
    import tokenizers
    import torch
    import transformers

    if transformers.__version__ != VERSION:
        sys.exit(f"this needs transformers {VERSION}, found {transformers.__version__}")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    tokenizer = reference_tokenizer()
    check_tokenizer(tokenizer)
    pipelines = make_pipelines(tokenizer)
    calls = [run_call(pipelines, entry) for entry in all_calls()]
    made_by = {
        "command": "python tests/golden/make_pipeline_golden.py",
        "python": platform.python_version(),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "tokenizers": tokenizers.__version__,
        "numpy": numpy.__version__,
        "model": MODEL.relative_to(ROOT).as_posix(),
        "sha256": {
            name: file_sha256(MODEL / name)
            for name in ("model.safetensors", "config.json", "tokenizer.json", "vocab.txt")
        },
        "dtype": "float32",
        "device": "cpu",
        "threads": THREADS,
        "tokenizer": type(tokenizer).__name__,
        "model_max_length": tokenizer.model_max_length,
    }
    return {"made_by": made_by, "passages": PASSAGES, "calls": calls}


TOLERANCE = 2e-5  # float32 sums in another order; measured between a Xeon with AMX and an EPYC: up to 7e-6


def differences(old, new, where=""):
    """Places where two contents differ by more than the tolerance in a number, or at all otherwise."""
    if isinstance(old, float) and isinstance(new, float):
        return [] if abs(old - new) <= TOLERANCE else [f"{where}: {old} / {new}"]
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        return [d for key in old for d in differences(old[key], new[key], f"{where}/{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}/{i}")]
    return [] if old == new else [f"{where}: {old!r} / {new!r}"]


def main(argv=None):
    """Write the file, or compare a new run with it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    options = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RUST_BACKTRACE"] = "0"
    digest = file_sha256(MODEL / "model.safetensors")[:12]
    path = Path(__file__).resolve().parent / f"pipeline-{VERSION}-{digest}.json"
    content = make_golden()
    if options.check:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        found = differences(recorded["calls"], content["calls"])
        print("\n".join(found[:50]) or f"{len(content['calls'])} calls: no difference")
        return 1 if found else 0
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
    errors = sum("error" in entry for entry in content["calls"])
    print(f"{path.name}: {len(content['calls'])} calls, {errors} errors, {len(text.encode())} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
