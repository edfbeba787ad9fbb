/** A text of our own, so that the first click shows something. The last question has no answer in it. */
export const TEXT = `The observatory on Mount Halden was planned as a weather station. In 1904 the physicist Ida Lorentzen persuaded the town of Brekka to pay for a telescope as well, and it took two winters to carry the lens, which weighs 310 kilograms, up the mountain by sledge.

The telescope opened on 3 May 1907. Its first discovery came eleven nights later, when Lorentzen's assistant, Tomas Vik, photographed a comet that had not been seen since 1826. The comet was named after the town, because neither of them wanted it to carry their own name.

Today the dome is a museum. Visitors reach it by cable car from April to October, and on clear Friday evenings they may look through the old lens at the moons of Jupiter.`;

export const QUESTIONS = ["Who discovered the comet?", "When did the telescope open?", "How tall is Mount Halden?"];
